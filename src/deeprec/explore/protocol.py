"""The text protocol: every prompt, tag and parsing rule, and nothing else.

The tags are those of the paper's published code, so models trained with it work here; they are plain text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from deeprec.config import Guidance
from deeprec.retrieval.retriever import phrases_of

THINK, END_THINK = "<think>", "</think>"
ANSWER, END_ANSWER = "<recommendation_list>", "</recommendation_list>"
PREFERENCE, END_PREFERENCE = "<|begin_of_preference|>", "<|end_of_preference|>"
ITEMS, END_ITEMS = "<|begin_of_item_list|>", "<|end_of_item_list|>"

PROTOCOL = 2  # version of what models read and write. A training of another version is not resumed.
NO_CALLS = "No calls are left."
TAGS = (THINK, END_THINK, ANSWER, END_ANSWER, PREFERENCE, END_PREFERENCE, ITEMS, END_ITEMS)
ONE_SHOT_START = "1."  # the first characters of the answer, with which prompts of the one-shot baselines end

STOPS = (END_PREFERENCE, END_ANSWER)
"""A segment of the policy ends with one of these, at the end of its text, or at a limit."""

_EXAMPLE_PREFERENCE = "first phrase; second phrase"
_EXAMPLE_TITLE = "title of the best item"

_RULES = f"""\
Recommend the {{answer_size}} items that a user is most likely to choose next. A recommender tool helps you to explore \
the catalogue.

To call the tool, write short phrases that describe what to look for, joined by semicolons:
{PREFERENCE}{_EXAMPLE_PREFERENCE}{END_PREFERENCE}
It answers with up to {{items_per_call}} items that fit both the phrases and the user's history:
{ITEMS}
1. title
  - categories: ...
{END_ITEMS}

How to work:
- Reason about the history first, then call the tool.
- Call it up to {{max_calls}} times in all, with other phrases each time: look where the answers point, and in new \
directions.
- When you know enough, reason about all the items you were shown, close your thoughts and give exactly \
{{answer_size}} of their titles, best first, each once{{of_history}}:
{END_THINK}
{ANSWER}
1. {_EXAMPLE_TITLE}
...
{{answer_size}}. title
{END_ANSWER}
{{demonstration}}"""

_TASK = "Recommend {answer_size} items, after up to {max_calls} calls of the tool.\n"

_DIALOGUE = f"""
User:
{{history}}

Assistant:
{THINK}
"""

_ONE_SHOT = f"""\
Recommend the {{answer_size}} items that a user is most likely to choose next. {{request}}, best first, each once:
{ANSWER}
1. {_EXAMPLE_TITLE}
...
{{answer_size}}. title
{END_ANSWER}

User:
{{shown}}
Assistant:
{ANSWER}
{ONE_SHOT_START}"""

_ROLE_LINE = re.compile(r"^[ \t]*(?:User|Assistant)[ \t]*:[ \t]*$", re.MULTILINE)
_ANSWER_LINE = re.compile(r"([0-9]{1,4})\.[ \t]+(.+)")


class Fault(StrEnum):
    """What a policy can do wrong. Each occurrence counts once."""

    NO_CALL = "no tool call"
    NO_ANSWER = "no answer"
    TAGS = "tool tags not in pairs"
    EMPTY_PREFERENCE = "empty preference"
    FORGED_ITEMS = "item list written by the policy"
    ECHO = "prompt text repeated"
    THINK = "thought not closed exactly once, right before the answer"
    NO_FINAL_THOUGHT = "no thought after the last item list"
    TOOL_IN_ANSWER = "tool tags in the answer"
    LINES = "wrong number of answer lines"
    NUMBERING = "answer line not numbered in order"
    UNKNOWN_TITLE = "title not in the catalogue"
    AMBIGUOUS_TITLE = "title of several items"
    REPEATED_TITLE = "title repeated in the answer"
    SEEN_TITLE = "title from the history"
    FILTERED_TITLE = "title that the filter leaves out"


@dataclass(frozen=True, slots=True)
class Parsed:
    """Text that is neither a call nor an answer."""

    thought: str
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Call(Parsed):
    """A well delimited tool call: the thought before it and the preference inside it."""

    preference: str


@dataclass(frozen=True, slots=True)
class Answer(Parsed):
    """A delimited answer: the thought before `</think>` and the titles, in order."""

    titles: tuple[str, ...]


def item_lines(titles: Sequence[str], categories: Sequence[Sequence[str]]) -> str:
    """Numbered items as the history and the tool show them; ends with a newline unless empty."""
    return "".join(
        answer_line(number, title) + (f"  - categories: {', '.join(names)}\n" if names else "")
        for number, (title, names) in enumerate(zip(titles, categories, strict=True), start=1)
    )


def prompt(
    history: str,
    *,
    answer_size: int,
    items_per_call: int,
    max_calls: int,
    guidance: Guidance = "rules",
    exclude_history: bool = True,
) -> str:
    """The opening text, up to and including the opened thought; the history is from `item_lines`.

    Guidance is the task in one line; the rules; or the rules and a short exploration of invented items, for models that
    were not trained to explore.
    """
    return ((_TASK if guidance == "task" else _RULES) + _DIALOGUE).format(
        demonstration=_demonstration(answer_size) if guidance == "example" else "",
        of_history=" and none from the history" if exclude_history else ", also from the history",
        history=history.rstrip("\n"),
        answer_size=answer_size,
        items_per_call=items_per_call,
        max_calls=max_calls,
    )


def tool_result(items: str, *, last: bool = False) -> str:
    """What the environment appends after a call: `items` from `item_lines` and, after the last call, a note."""
    return f"\n\n{ITEMS}\n{items}{END_ITEMS}\n\n" + (f"{NO_CALLS}\n\n" if last else "")


def rerank_prompt(history: str, candidates: str, *, answer_size: int) -> str:
    """The prompt of the one-shot baseline that ranks candidates: no tool, and the answer in the same form."""
    request = f"Rank the candidates below: give exactly {answer_size} of their titles"
    shown = f"{history}\nCandidates:\n{candidates}"
    return _ONE_SHOT.format(answer_size=answer_size, request=request, shown=shown)


def titles_prompt(history: str, *, answer_size: int, exclude_history: bool = True) -> str:
    """The prompt of the baseline that knows only the history: titles from memory, in the same form."""
    of_history = "none" if exclude_history else "also"
    request = f"Give exactly {answer_size} titles that you know, {of_history} from the history"
    return _ONE_SHOT.format(answer_size=answer_size, request=request, shown=history)


def call_text(thought: str, preference: str) -> str:
    """A tool call as a policy should write it."""
    return f"{thought.strip()}\n{PREFERENCE}{preference.strip()}{END_PREFERENCE}"


def answer_text(thought: str, titles: Sequence[str]) -> str:
    """An answer as a policy should write it."""
    lines = "".join(answer_line(*numbered) for numbered in enumerate(titles, start=1))
    return f"{thought.strip()}\n{END_THINK}\n{ANSWER}\n{lines}{END_ANSWER}"


def answer_line(number: int, title: str) -> str:
    return f"{number}. {title}\n"


def _demonstration(answer_size: int) -> str:
    """An exploration with two calls and three titles, written by the functions that write real ones."""
    history = item_lines(("Paper Boats (1994)", "Midnight Ledger (1995)"), (("Drama, Romance",), ("Crime, Thriller",)))
    dramas = item_lines(("Harbour Lights (1995)", "A Quiet Verdict (1993)"), (("Drama, Romance",), ("Crime, Drama",)))
    crimes = item_lines(("The Glass Alibi (1997)", "Cold Receipt (1994)"), (("Crime, Mystery",), ("Thriller",)))
    first = "The user likes dramas of the 1990s, some with romance. I ask for those first."
    second = "The last title was a crime thriller, so I look in that direction too."
    last = "The Glass Alibi fits the latest title best, then Harbour Lights and A Quiet Verdict."
    picks = ("The Glass Alibi (1997)", "Harbour Lights (1995)", "A Quiet Verdict (1993)")
    return (
        f"\nA short example, with 3 titles in the answer:\n\nUser:\n{history}\nAssistant:\n{THINK}\n"
        f"{call_text(first, 'Drama; Romance; 1990s')}{tool_result(dramas)}"
        f"{call_text(second, 'Crime; Thriller')}{tool_result(crimes)}"
        f"{answer_text(last, picks)}\n\nThe real user, with {answer_size} titles in the answer:\n"
    )


def parse(text: str, *, answer_size: int, after_items: bool) -> Parsed:
    """Read one segment that a policy wrote, before which there may be items. Any string is accepted; errors become
    faults, as another number of titles than `answer_size`."""
    common = {
        Fault.FORGED_ITEMS: ITEMS in text or END_ITEMS in text,
        Fault.ECHO: _ROLE_LINE.search(text),
        Fault.THINK: THINK in text,
    }
    faults = [fault for fault, there in common.items() if there]
    if END_ANSWER in text or ANSWER in text or END_THINK in text:
        return _parse_answer(text, faults, answer_size, after_items)
    if text.count(PREFERENCE) == 1 and text.count(END_PREFERENCE) == 1:
        thought, _, rest = text.partition(PREFERENCE)
        preference, closed, _ = rest.partition(END_PREFERENCE)
        if closed:
            preference = preference.strip()
            if not phrases_of(preference):
                faults.append(Fault.EMPTY_PREFERENCE)
            elif preference == _EXAMPLE_PREFERENCE:
                faults.append(Fault.ECHO)
            return Call(thought.strip(), tuple(faults), preference)
    if PREFERENCE in text or END_PREFERENCE in text:
        faults.append(Fault.TAGS)
    return Parsed(text.strip(), tuple(faults))


def _parse_answer(text: str, faults: list[Fault], answer_size: int, after_items: bool) -> Parsed:
    thought, closed, rest = text.partition(END_THINK)
    if PREFERENCE in thought or END_PREFERENCE in thought:
        faults.append(Fault.TAGS)
    if not closed or rest.count(END_THINK):
        faults.append(Fault.THINK)
    if not closed:
        thought, _, rest = text.partition(ANSWER)
        rest = ANSWER + rest
    if after_items and not thought.strip():
        faults.append(Fault.NO_FINAL_THOUGHT)
    if text.count(ANSWER) != 1 or text.count(END_ANSWER) != 1 or not 0 <= rest.find(ANSWER) < rest.find(END_ANSWER):
        faults.append(Fault.NO_ANSWER)
        return Parsed(thought.strip(), tuple(faults))
    between, _, rest = rest.partition(ANSWER)
    body, _, _ = rest.partition(END_ANSWER)
    if between.strip():
        faults.append(Fault.THINK)
    if PREFERENCE in rest or END_PREFERENCE in rest:
        faults.append(Fault.TOOL_IN_ANSWER)
    titles, line_faults = parse_lines(body, answer_size=answer_size)
    return Answer(thought.strip(), (*faults, *line_faults), titles)


def parse_lines(body: str, *, answer_size: int) -> tuple[tuple[str, ...], tuple[Fault, ...]]:
    """The titles of `n. title` lines, in order, and the faults of the lines; blank lines are skipped."""
    lines = [line for line in body.split("\n") if line.strip()]
    faults = [Fault.LINES] if len(lines) != answer_size else []
    titles = []
    for position, line in enumerate(lines, start=1):
        match = _ANSWER_LINE.fullmatch(line.strip())
        if match is None or int(match[1]) != position:
            faults.append(Fault.NUMBERING)
        if match is None:
            continue
        if match[2] in (_EXAMPLE_TITLE, "title"):
            faults.append(Fault.ECHO)
        titles.append(match[2])
    return tuple(titles), tuple(faults)
