"""A sensible explorer written by hand: a baseline, and a stand-in in tests.

Like a language model it reads the conversation and nothing else. It asks for what the whole history shares, then for
what distinguishes the latest items, then for what the first answers have in common with the history. It says
categories and decades; where the history has none, words that titles share, and titles. While the answer is short, it
asks on, as often as it may. It ranks items in the order in which they came back.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deeprec.explore import protocol
from deeprec.policies.text import TextPolicy

_ITEM = re.compile(r"^\d+\. (?P<title>.+)(?:\n  - categories: (?P<categories>.+))?", re.MULTILINE)
_SIZE = re.compile(r"Recommend (?:the )?(\d+) items")
_BUDGET = re.compile(r"up to (\d+) (?:calls|times)")
_YEAR = re.compile(r"\((\d{3})\d\)$")
_WORD = re.compile(r"\w{5,}")  # shorter ones are mostly "with", "from" and the like
_RECENT = 5
_NAMES = 3  # titles in a preference, at most
_NAME_WORDS, _NAME_CHARS = 6, 80  # of a title that name it; in long titles, sizes and packs follow
_THOUGHTS = (
    "I start with what most of the history shares.",
    "The latest items may show a new direction, so I look there.",
    "Now I look at what the best answers and the history have in common.",
)
"""One before each call."""


@dataclass(frozen=True, slots=True)
class _Item:
    title: str
    phrases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScriptedWriter:
    """Writes the segments of the scripted explorer. `answer_size` titles; default: as many as the prompt asks for."""

    answer_size: int | None = None

    def __call__(self, conversation: str) -> str:
        history_text, rest = _split(conversation)
        history, lists = _items(history_text), _lists(rest)
        titles = [item.title for items in lists for item in items]
        size = self.answer_size
        if size is None and (asked_for := _SIZE.search(conversation)):
            size = int(asked_for[1])
        short = size is not None and len(titles) < size
        allowed = _BUDGET.search(conversation)
        calls = int(allowed[1]) if allowed else len(_THOUGHTS)
        exhausted = bool(lists) and not lists[-1]
        if not exhausted and len(lists) < (calls if short else min(calls, len(_THOUGHTS))):
            asked = {part.partition(protocol.END_PREFERENCE)[0] for part in rest.split(protocol.PREFERENCE)[1:]}
            ideas = [_preference(history, lists), *(_others(history, lists) if short else ())]
            if preference := next((idea for idea in ideas if idea not in asked), None):
                return protocol.call_text(_THOUGHTS[min(len(lists), len(_THOUGHTS) - 1)], preference)
        thought = "What fits the whole history comes first, then what fits a part of it."
        return protocol.answer_text(thought, titles[:size])


class ScriptedPolicy(TextPolicy):
    def __init__(self, answer_size: int | None = None) -> None:
        super().__init__(ScriptedWriter(answer_size))


def list_titles(conversation: str) -> list[list[str]]:
    """The titles of each item list that came back, in order."""
    return [[item.title for item in items] for items in _lists(_split(conversation)[1])]


def name_of(title: str) -> str:
    """The first words of a title, as a single phrase of a preference."""
    short = " ".join(title.split()[:_NAME_WORDS])[:_NAME_CHARS]
    return re.sub("[;；؛]", ",", short).rstrip(" ,:-") or "something else"


def _preference(history: Sequence[_Item], lists: Sequence[Sequence[_Item]]) -> str:
    """What to ask for after so many calls; see the module."""
    liked = counts = _count(history)
    if history and not liked:
        return "; ".join(_words_and_titles(history, lists))
    if len(lists) == 1:
        counts = _count(history[-_RECENT:])
        for phrase in _top(liked, 2):
            counts[phrase] = 0  # asked for already
    elif lists:
        counts = _shared(_count([item for items in lists for item in items[:_RECENT]]), liked)
    return "; ".join(_top(counts, 3 if len(lists) == 1 else 2)) or "something new"


def _words_and_titles(history: Sequence[_Item], lists: Sequence[Sequence[_Item]]) -> list[str]:
    """As `_preference`, for a history that has titles alone."""
    latest, liked = [item.title for item in reversed(history)], _words(history)
    if not lists:
        shared = Counter({word: count for word, count in liked.items() if count > 1})
        return [*_top(shared, 2), name_of(latest[0])]
    if len(lists) == 1:
        return list(dict.fromkeys(map(name_of, latest)))[:_NAMES]
    found = [item for items in lists for item in items[:_RECENT]]
    return _top(_shared(_words(found), liked), 2) or [name_of(items[0].title) for items in lists if items]


def _others(history: Sequence[_Item], lists: Sequence[Sequence[_Item]]) -> Iterator[str]:
    """What else there is to ask for: each title of the history, the latest first, then those that came back."""
    for item in (*reversed(history), *(item for items in lists for item in items)):
        yield name_of(_YEAR.sub("", item.title))


def _split(conversation: str) -> tuple[str, str]:
    """The history's lines, and everything after the prompt."""
    history, _, rest = conversation.rpartition("\nUser:\n")[2].partition("\n\nAssistant:\n")
    return history, rest


def _lists(text: str) -> list[list[_Item]]:
    return [_items(part.partition(protocol.END_ITEMS)[0]) for part in text.split(protocol.ITEMS)[1:]]


def _items(text: str) -> list[_Item]:
    found = []
    for match in _ITEM.finditer(text):
        phrases = [name.strip() for name in (match["categories"] or "").split(",") if name.strip()]
        if year := _YEAR.search(match["title"]):
            phrases.append(f"{year[1]}0s")
        found.append(_Item(match["title"], tuple(phrases)))
    return found


def _count(items: Sequence[_Item]) -> Counter[str]:
    return Counter(phrase for item in items for phrase in item.phrases)


def _words(items: Sequence[_Item]) -> Counter[str]:
    """In how many titles each word is."""
    return Counter(word for item in items for word in dict.fromkeys(_WORD.findall(item.title.lower())))


def _shared(some: Counter[str], others: Counter[str]) -> Counter[str]:
    return Counter({phrase: count * others[phrase] for phrase, count in some.items()})


def _top(counts: Counter[str], n: int) -> list[str]:
    return [phrase for phrase, count in counts.most_common(n) if count > 0]
