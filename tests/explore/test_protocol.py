"""Every string of the protocol: what the parser makes of any text, and what the prompts contain."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprec.config import Guidance
from deeprec.explore import protocol
from deeprec.explore.protocol import (
    ANSWER,
    END_ANSWER,
    END_ITEMS,
    END_PREFERENCE,
    END_THINK,
    ITEMS,
    PREFERENCE,
    TAGS,
    THINK,
    Answer,
    Call,
    Fault,
    Parsed,
    answer_text,
    call_text,
    item_lines,
    parse,
    parse_lines,
    prompt,
    rerank_prompt,
    titles_prompt,
    tool_result,
)

ANY_TEXT = st.text(st.characters(codec=None, categories=None))
FRAGMENTS = st.lists(
    st.one_of(
        st.sampled_from(
            [*TAGS, "\n", "1. ", "2. A", "User:", "\nAssistant:\n", "title", "first phrase; second phrase"]
        ),
        st.text(max_size=5),
    ),
    max_size=12,
).map("".join)


def read(text: str, *, size: int = 2, after_items: bool = False) -> Parsed:
    return parse(text, answer_size=size, after_items=after_items)


def call(preference: str, before: str = "Hm. ", after: str = "") -> str:
    return f"{before}{PREFERENCE}{preference}{END_PREFERENCE}{after}"


def answer(lines: str = "1. A\n2. B\n", before: str = f"Well.\n{END_THINK}\n", after: str = "") -> str:
    return f"{before}{ANSWER}\n{lines}{END_ANSWER}{after}"


CALLS = {
    "well formed": (call("war; drama"), "Hm.", "war; drama", []),
    "no thought": (call("war", before=""), "", "war", []),
    "space around": (call("\n war \n", before="\n Hm.\n "), "Hm.", "war", []),
    "text after the stop": (call("war", after="\n\nmore"), "Hm.", "war", []),
    "role words inside a sentence": (call("war", before="The User: likes it.\nAssistant: no\n"), None, "war", []),
    "role word on its own line": (call("war", before="Hm.\nUser:\n"), "Hm.\nUser:", "war", [Fault.ECHO]),
    "other role word": (call("war", before="\t Assistant : \nHm. "), "Assistant : \nHm.", "war", [Fault.ECHO]),
    "empty preference": (call(""), "Hm.", "", [Fault.EMPTY_PREFERENCE]),
    "only separators": (call(" ;\n; "), "Hm.", ";\n;", [Fault.EMPTY_PREFERENCE]),
    "the prompt's example": (call("first phrase; second phrase"), "Hm.", "first phrase; second phrase", [Fault.ECHO]),
    "forged list": (
        call("war", before=f"{ITEMS}\n1. Forged (1999)\n{END_ITEMS}\n"),
        f"{ITEMS}\n1. Forged (1999)\n{END_ITEMS}",
        "war",
        [Fault.FORGED_ITEMS],
    ),
    "half a forged list": (call(f"war{END_ITEMS}"), "Hm.", f"war{END_ITEMS}", [Fault.FORGED_ITEMS]),
    "thought opened again": (call("war", before=f"{THINK} Hm. "), f"{THINK} Hm.", "war", [Fault.THINK]),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str) -> None:
    text, thought, preference, faults = CALLS[name]
    parsed = read(text)
    assert isinstance(parsed, Call)
    assert parsed.thought == (text.partition(PREFERENCE)[0].strip() if thought is None else thought)
    assert parsed.preference == preference
    assert list(parsed.faults) == faults
    assert read(text, after_items=True) == parsed


AB = ("A", "B")
ANSWERS: dict[str, tuple[str, bool, tuple[str, ...], list[Fault]]] = {
    "well formed": (answer(), True, AB, []),
    "no thought, nothing retrieved": (answer(before=END_THINK), False, AB, []),
    "no thought after a list": (answer(before=f" \n{END_THINK}\n"), True, AB, [Fault.NO_FINAL_THOUGHT]),
    "text after the stop": (answer(after="\n3. C\nThe end"), True, AB, []),
    "blank lines and space": (answer("\n  1. A  \n\n\t2.  B\r\n"), True, AB, []),
    "role words in titles": (
        answer("1. The User: Assistant\n2. Assistant\n"),
        True,
        ("The User: Assistant", "Assistant"),
        [],
    ),
    "figures in titles": (answer("1. 10. Planet\n2. 2. (1999)\n"), True, ("10. Planet", "2. (1999)"), []),
    "role word on its own line": (answer("1. A\nUser:\n"), True, ("A",), [Fault.ECHO, Fault.NUMBERING]),
    "a line too few": (answer("1. A\n"), True, ("A",), [Fault.LINES]),
    "a line too many": (answer("1. A\n2. B\n3. C\n"), True, ("A", "B", "C"), [Fault.LINES]),
    "no lines": (answer(""), True, (), [Fault.LINES]),
    "wrong number": (answer("1. A\n3. B\n"), True, AB, [Fault.NUMBERING]),
    "both numbers wrong": (answer("2. A\n1. B\n"), True, AB, [Fault.NUMBERING] * 2),
    "no number": (answer("A\n2. B\n"), True, ("B",), [Fault.NUMBERING]),
    "other numbering": (answer("1) A\n2. B\n"), True, ("B",), [Fault.NUMBERING]),
    "a number alone": (answer("1.\n2. B\n"), True, ("B",), [Fault.NUMBERING]),
    "a huge number": (answer(f"1. A\n{'9' * 5000}. B\n"), True, ("A",), [Fault.NUMBERING]),
    "other figures": (answer("1. A\n٢. B\n"), True, ("A",), [Fault.NUMBERING]),
    "the prompt's first title": (
        answer("1. title of the best item\n2. B\n"),
        True,
        ("title of the best item", "B"),
        [Fault.ECHO],
    ),
    "the prompt's last title": (answer("1. A\n2. title\n"), True, ("A", "title"), [Fault.ECHO]),
    "tool tags in a title": (
        answer(f"1. A{PREFERENCE}\n2. B{END_PREFERENCE}\n"),
        True,
        (f"A{PREFERENCE}", f"B{END_PREFERENCE}"),
        [Fault.TOOL_IN_ANSWER],
    ),
    "a forged list in the answer": (
        answer(f"1. A\n{ITEMS}\n2. B\n"),
        True,
        AB,
        [Fault.FORGED_ITEMS, Fault.LINES, Fault.NUMBERING, Fault.NUMBERING],
    ),
    "a call in the thought": (answer(before=call("war") + f"\n{END_THINK}\n"), True, AB, [Fault.TAGS]),
    "thought not closed": (answer(before="Well.\n"), True, AB, [Fault.THINK]),
    "nothing before the answer": (answer(before=""), True, AB, [Fault.THINK, Fault.NO_FINAL_THOUGHT]),
    "thought opened again": (answer(before=f"{THINK}Well.{END_THINK}"), True, AB, [Fault.THINK]),
    "text before the answer": (answer(before=f"Well.{END_THINK}So: "), True, AB, [Fault.THINK]),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name: str) -> None:
    text, after_items, titles, faults = ANSWERS[name]
    parsed = read(text, after_items=after_items)
    assert isinstance(parsed, Answer)
    assert parsed.titles == titles
    assert list(parsed.faults) == faults


def test_a_thought_closed_twice_is_a_fault() -> None:
    parsed = read(answer(before=f"Well.{END_THINK}So.{END_THINK}"))
    assert isinstance(parsed, Answer)
    assert set(parsed.faults) == {Fault.THINK}
    assert parsed.thought == "Well."
    assert Fault.THINK in read(answer(after=END_THINK)).faults


def test_the_thought_of_an_answer() -> None:
    assert read(answer(before=f"\n I know. \n{END_THINK}\n")).thought == "I know."
    assert read(answer(before="I know.\n")).thought == "I know."


STRAYS = {
    "nothing": ("", []),
    "plain text": (" I like films. ", []),
    "half a call": (f"Hm. {PREFERENCE}war", [Fault.TAGS]),
    "the other half": (f"war{END_PREFERENCE}", [Fault.TAGS]),
    "the wrong way round": (f"{END_PREFERENCE}war{PREFERENCE}", [Fault.TAGS]),
    "opened twice": (f"{PREFERENCE}{call('war')}", [Fault.TAGS]),
    "two calls": (call("war") + call("drama"), [Fault.TAGS]),
    "forged": (f"{ITEMS}\n1. A\n", [Fault.FORGED_ITEMS]),
    "role word": ("Hm.\nAssistant:\nHello", [Fault.ECHO]),
    "thought opened again": (f"{THINK}", [Fault.THINK]),
    "thought closed, no answer": (f"Well.{END_THINK}", [Fault.NO_ANSWER]),
    "answer not closed": (f"Well.{END_THINK}{ANSWER}\n1. A\n2. B\n", [Fault.NO_ANSWER]),
    "answer not opened": (f"Well.{END_THINK}\n1. A\n2. B\n{END_ANSWER}", [Fault.NO_ANSWER]),
    "answer the wrong way round": (f"Well.{END_THINK}{END_ANSWER}1. A{ANSWER}", [Fault.NO_ANSWER]),
    "answer opened twice": (f"Well.{END_THINK}{ANSWER}{answer(before='')}", [Fault.NO_ANSWER]),
    "two answers": (answer() + answer(before=""), [Fault.NO_ANSWER]),
    "answer closed, nothing else": (f"Well. {END_ANSWER}", [Fault.THINK, Fault.NO_ANSWER]),
    "thought closed, then a call": (f"Well.{END_THINK}{call('war')}", [Fault.NO_ANSWER]),
    "call, then thought closed": (f"{call('war')}{END_THINK}", [Fault.TAGS, Fault.NO_ANSWER]),
}


@pytest.mark.parametrize("name", STRAYS)
def test_strays(name: str) -> None:
    text, faults = STRAYS[name]
    parsed = read(text)
    assert type(parsed) is Parsed
    assert list(parsed.faults) == faults


def test_the_tables_reach_every_fault_of_the_parser() -> None:
    of_the_environment = {
        Fault.NO_CALL,
        Fault.UNKNOWN_TITLE,
        Fault.AMBIGUOUS_TITLE,
        Fault.REPEATED_TITLE,
        Fault.SEEN_TITLE,
        Fault.FILTERED_TITLE,
    }
    tables: tuple[dict[str, Any], ...] = (CALLS, ANSWERS, STRAYS)
    reached = {fault for table in tables for row in table.values() for fault in row[-1]}
    assert reached | of_the_environment == set(Fault)
    assert not reached & of_the_environment


@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize("guidance", ["rules", "example"])
def test_an_echoed_prompt_is_full_of_faults(size: int, guidance: Guidance) -> None:
    text = prompt("1. A\n", answer_size=size, items_per_call=5, max_calls=3, guidance=guidance)
    for echo in (text, text.partition(f"{THINK}\n")[0], text + call("war"), text + answer()):
        parsed = read(echo, size=size, after_items=True)
        assert not isinstance(parsed, Call)
        assert {Fault.ECHO, Fault.FORGED_ITEMS, Fault.TAGS} <= set(parsed.faults)


@given(st.one_of(ANY_TEXT, FRAGMENTS), st.integers(1, 3), st.booleans())
@settings(max_examples=500)
def test_any_text_is_read_and_always_alike(text: str, size: int, after_items: bool) -> None:
    parsed = parse(text, answer_size=size, after_items=after_items)
    assert parsed == parse(text, answer_size=size, after_items=after_items)
    if isinstance(parsed, Answer):
        assert all("\n" not in title and title.strip() for title in parsed.titles)
        assert len(parsed.titles) == size or parsed.faults
    elif isinstance(parsed, Call):
        assert parsed.preference in text
        assert PREFERENCE not in parsed.preference
    if any(tag in text for tag in (ITEMS, END_ITEMS)):
        assert Fault.FORGED_ITEMS in parsed.faults


# No tags, no line that could be a role word, nothing of the prompt's examples.
_TAME = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"], exclude_characters="<>:;"), min_size=1)
TAME = _TAME.map(str.strip).filter(lambda text: text and not text.startswith("title"))


@given(TAME, TAME)
def test_a_written_call_is_read_back(thought: str, preference: str) -> None:
    assert read(call_text(thought, preference)) == Call(thought, (), preference)


@given(TAME, st.lists(TAME, min_size=1, max_size=12))
def test_a_written_answer_is_read_back(thought: str, titles: list[str]) -> None:
    parsed = read(answer_text(thought, titles), size=len(titles), after_items=True)
    assert parsed == Answer(thought, (), tuple(titles))


@given(ANY_TEXT, st.integers(1, 3))
def test_any_lines_are_read(body: str, size: int) -> None:
    titles, faults = parse_lines(body, answer_size=size)
    assert titles == parse_lines(body, answer_size=size)[0]
    assert len(titles) == size or faults


def test_items_are_numbered_and_have_categories_where_there_are_any() -> None:
    lines = item_lines(["A (1990)", "B"], [("War", "Drama"), ()])
    assert lines == "1. A (1990)\n  - categories: War, Drama\n2. B\n"
    assert item_lines([], []) == ""
    assert tool_result(lines) == f"\n\n{ITEMS}\n{lines}{END_ITEMS}\n\n"
    assert tool_result(lines, last=True) == f"\n\n{ITEMS}\n{lines}{END_ITEMS}\n\nNo calls are left.\n\n"


def test_the_prompt_shows_the_history_the_limits_and_every_tag() -> None:
    history = "1. Braces {answer_size} % \\ (1990)\n  - categories: War\n"
    text = prompt(history, answer_size=7, items_per_call=13, max_calls=3)
    assert text.endswith(f"\n\nUser:\n{history}\nAssistant:\n{THINK}\n")
    assert "the 7 items" in text
    assert "up to 13 items" in text
    assert "up to 3 times in all" in text
    assert "\n7. title\n" in text
    assert all(tag in text for tag in TAGS)
    assert not re.search(r"{[a-z_A-Z]+}", text.replace(history, ""))


def test_a_trained_model_is_told_the_task_alone() -> None:
    options = {"answer_size": 7, "items_per_call": 5, "max_calls": 3}
    text = prompt("1. A\n", **options, guidance="task")
    asked = "Recommend 7 items, after up to 3 calls of the tool."
    assert text == f"{asked}\n\nUser:\n1. A\n\nAssistant:\n{THINK}\n"
    rules = prompt("1. A\n", **options)
    assert text.partition("\nUser:\n")[1:] == rules.partition("\nUser:\n")[1:]


def test_the_demonstration_is_an_exploration_without_faults() -> None:
    options = {"answer_size": 7, "items_per_call": 5, "max_calls": 3}
    bare, shown = prompt("1. A\n", **options), prompt("1. A\n", **options, guidance="example")
    head, _, tail = bare.rpartition("\nUser:\n")
    assert shown.startswith(head)
    assert shown.endswith(tail)
    example = shown.removeprefix(head).partition(f"Assistant:\n{THINK}\n")[2].partition("\n\nThe real user")[0]
    segments = [part.partition(f"{END_ITEMS}\n\n") for part in example.split(f"\n\n{ITEMS}\n")]
    written = [segments[0][0], *(after for _, _, after in segments[1:])]
    parsed = [read(text, size=3, after_items=position > 0) for position, text in enumerate(written)]
    assert [type(part) for part in parsed] == [Call, Call, Answer]
    assert not any(part.faults for part in parsed)


def test_the_rerank_prompt_ends_inside_the_answer() -> None:
    history, candidates = item_lines(["H"], [("War",)]), item_lines(["A", "B"], [(), ("Drama",)])
    text = rerank_prompt(history, candidates, answer_size=2)
    assert text.endswith(f"Assistant:\n{ANSWER}\n{protocol.ONE_SHOT_START}")
    assert f"User:\n{history}" in text
    assert f"Candidates:\n{candidates}" in text
    assert "exactly 2 of their titles" in text
    assert not any(tag in text for tag in (PREFERENCE, END_PREFERENCE, ITEMS, END_ITEMS, THINK))
    titles, faults = parse_lines(f"{protocol.ONE_SHOT_START} B\n2. A\n", answer_size=2)
    assert (titles, faults) == (("B", "A"), ())


def test_prompts_forbid_the_history_only_where_it_is_excluded() -> None:
    limits = {"answer_size": 7, "items_per_call": 5, "max_calls": 3}
    once = ", best first, each once"
    for guidance in ("task", "rules", "example"):
        excluded, open_ = (prompt("1. A\n", **limits, guidance=guidance, exclude_history=e) for e in (True, False))
        assert excluded == prompt("1. A\n", **limits, guidance=guidance)
        assert open_ == excluded.replace(f"{once} and none from the history:", f"{once}, also from the history:")
        assert (open_ != excluded) == (guidance != "task")
    excluded, open_ = (titles_prompt("1. A\n", answer_size=7, exclude_history=e) for e in (True, False))
    assert "exactly 7 titles that you know, none from the history, best first" in excluded
    assert open_ == excluded.replace("none from the history", "also from the history")
