"""The record of one exploration, which rewards, training masks, logs, metrics and the page all read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter

from deeprec.data.catalog import ItemIdx
from deeprec.explore.policy import Usage
from deeprec.explore.protocol import Fault
from deeprec.retrieval.retriever import Hit


class Author(StrEnum):
    """Who wrote a segment. The training mask depends on nothing else."""

    ENVIRONMENT = "environment"
    POLICY = "policy"


class Stop(StrEnum):
    """Why an exploration ended."""

    ANSWERED = "answered"
    MALFORMED = "malformed"
    END_OF_TEXT = "end of text"
    CALL_LIMIT = "call limit"
    SEGMENT_LIMIT = "segment limit"
    CONTEXT_LIMIT = "context limit"
    FILTERED = "content filter"
    UNEXPLAINED = "end without a reason"
    FAILED = "policy failed"


class Origin(StrEnum):
    """The source of a ranking. Only ANSWER is entirely the policy's."""

    ANSWER = "answer"
    COMPLETED = "answer and retrieved items"
    POOL = "retrieved items in order"
    RETRIEVER = "retriever without preference"


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens with one author. `logprobs` is empty for the environment, and where they are unknown."""

    author: Author
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One tool call and what it returned, best first."""

    thought: str
    preference: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the answer: the title as written, and the item it names unless a fault prevents it."""

    text: str
    item: ItemIdx | None
    retrieved: bool
    fault: Fault | None


@dataclass(frozen=True, slots=True)
class Trace:
    """One exploration, finished.

    Attributes:
        segments: every token of the context in order, with its author; the first is the prompt.
        answer: the answer's lines in order; empty without a readable answer.
        fallback: items of the retriever without a preference; only if nothing else was retrieved.
        faults: everything the policy did wrong, one entry each time.
        error: why the policy failed, if it did.
        usage: tokens that a server counted; None for policies in this process.
        titles: of the items of `ranking`.
    """

    task: str
    user: str
    history: tuple[ItemIdx, ...]
    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...]
    thought: str
    answer: tuple[Line, ...]
    fallback: tuple[Hit, ...]
    stop: Stop
    faults: tuple[Fault, ...]
    answer_size: int
    error: str | None = None
    usage: Usage | None = None
    titles: tuple[str, ...] = ()  # of `ranking`, if an explorer made the trace

    @property
    def well_formed(self) -> bool:
        """Answered, without a fault."""
        return self.stop is Stop.ANSWERED and not self.faults

    @property
    def pool(self) -> tuple[ItemIdx, ...]:
        """Distinct retrieved items, first seen first."""
        return tuple(self.first_found())

    def first_found(self) -> dict[ItemIdx, tuple[int, Turn]]:
        """Each retrieved item's first call: its number, from 1, and the call."""
        found: dict[ItemIdx, tuple[int, Turn]] = {}
        for number, turn in enumerate(self.turns, start=1):
            for hit in turn.hits:
                found.setdefault(hit.item, (number, turn))
        return found

    @property
    def raw_ranking(self) -> tuple[ItemIdx, ...]:
        """The items of the answer's faultless lines, best first; at most `answer_size`, each once."""
        items = [line.item for line in self.answer if line.item is not None and line.fault is None]
        return tuple(items[: self.answer_size])

    @property
    def ranking(self) -> tuple[ItemIdx, ...]:
        """The ranking with fallback, best first; at most `answer_size` items.

        Other retrieved items, or those of `fallback` if there are none, fill the positions that the answer leaves
        empty. Faulty lines are filled first, so an invented title between copied ones costs one position alone.
        """
        answer = self.raw_ranking
        if len(answer) == self.answer_size:
            return answer
        found = self.pool if self.turns else [hit.item for hit in self.fallback]
        others = iter([item for item in found if item not in answer][: self.answer_size - len(answer)])
        positions = [line.item if line.fault is None else next(others, None) for line in self.answer]
        return tuple(item for item in (*positions, *others) if item is not None)

    @property
    def origin(self) -> Origin:
        """Where `ranking` comes from."""
        if answer := self.raw_ranking:
            return Origin.ANSWER if len(answer) == self.answer_size else Origin.COMPLETED
        return Origin.POOL if self.turns else Origin.RETRIEVER

    @property
    def policy_tokens(self) -> int:
        return sum(len(segment.tokens) for segment in self.segments if segment.author is Author.POLICY)

    def tokens(self) -> tuple[list[int], list[bool], list[float]]:
        """All tokens, whether the policy wrote each, and its logprob (0 for the environment's, nan if unknown)."""
        ids: list[int] = []
        written: list[bool] = []
        logprobs: list[float] = []
        for segment in self.segments:
            ids += segment.tokens
            written += [segment.author is Author.POLICY] * len(segment.tokens)
            unknown = math.nan if segment.author is Author.POLICY else 0.0
            logprobs += segment.logprobs or [unknown] * len(segment.tokens)
        return ids, written, logprobs

    def to_json(self) -> dict[str, Any]:
        """Values that JSON can hold; `from_json` gives the equal trace back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trace:
        return _TRACE.validate_python(data)


_TRACE = TypeAdapter(Trace)
