"""The record of one exploration: what rewards, training masks, logs, metrics and the page all read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from deeprec.data.catalog import ItemIdx
from deeprec.explore.policy import Usage
from deeprec.explore.protocol import Fault
from deeprec.retrieval.retriever import Hit


class Author(StrEnum):
    """Who wrote a segment; the training mask is made of this and of nothing else."""

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
    FAILED = "policy failed"


class Origin(StrEnum):
    """Where a served ranking comes from. Only ANSWER is wholly the policy's own."""

    ANSWER = "answer"
    COMPLETED = "answer and retrieved items"
    POOL = "retrieved items in order"
    RETRIEVER = "retriever without preference"


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens with one author. `logprobs` is empty for the environment, and where none are known."""

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
        answer: the answer's lines in order; empty where there was no answer that could be read.
        spare: items of the retriever without a preference, asked for only where nothing else was retrieved.
        faults: everything the policy did wrong, one entry each time.
        error: why the policy failed, where it did.
        usage: of a policy behind a server; None for others.
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

    @property
    def well_formed(self) -> bool:
        """Answered, without a fault."""
        return self.stop is Stop.ANSWERED and not self.faults

    @property
    def pool(self) -> tuple[ItemIdx, ...]:
        """Distinct retrieved items in the order in which they were first seen."""
        return tuple(self.first_found())

    def first_found(self) -> dict[ItemIdx, tuple[int, Turn]]:
        """Each retrieved item's first call: its number, from 1, and the call."""
        found: dict[ItemIdx, tuple[int, Turn]] = {}
        for number, turn in enumerate(self.turns, start=1):
            for hit in turn.hits:
                found.setdefault(hit.item, (number, turn))
        return found

    @property
    def answered(self) -> tuple[ItemIdx, ...]:
        """The items of the answer's faultless lines, best first; at most `answer_size`, each once."""
        items = [line.item for line in self.answer if line.item is not None and line.fault is None]
        return tuple(items[: self.answer_size])

    def with_fallback(self) -> tuple[tuple[ItemIdx, ...], Origin]:
        """The ranking that a user is given, and where it comes from.

        Places that the answer leaves empty, first those of lines that name nothing new, are filled by what else the
        pool has, list after list, or the retriever without a preference where nothing was retrieved: who copies the
        lists and slips in a title loses that place to the next one retrieved, and not to all lines after it.
        """
        answer = self.answered
        if len(answer) == self.answer_size:
            return answer, Origin.ANSWER
        found = self.pool if self.turns else [hit.item for hit in self.fallback]
        others = iter([item for item in found if item not in answer][: self.answer_size - len(answer)])
        positions = [line.item if line.fault is None else next(others, None) for line in self.answer]
        ranking = tuple(item for item in (*positions, *others) if item is not None)
        if answer:
            return ranking, Origin.COMPLETED
        return ranking, Origin.POOL if self.turns else Origin.RETRIEVER

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
        """Plain JSON values; `from_json` gives the equal trace back."""
        return {
            "task": self.task,
            "user": self.user,
            "history": list(self.history),
            "segments": [
                {
                    "author": segment.author.value,
                    "tokens": list(segment.tokens),
                    "logprobs": list(segment.logprobs),
                    "text": segment.text,
                }
                for segment in self.segments
            ],
            "turns": [
                {"thought": turn.thought, "preference": turn.preference, "hits": _hits_out(turn.hits)}
                for turn in self.turns
            ],
            "thought": self.thought,
            "answer": [
                {"text": line.text, "item": line.item, "retrieved": line.retrieved, "fault": line.fault}
                for line in self.answer
            ],
            "spare": _hits_out(self.fallback),
            "stop": self.stop.value,
            "faults": [fault.value for fault in self.faults],
            "answer_size": self.answer_size,
            "error": self.error,
            "usage": asdict(self.usage) if self.usage else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trace:
        return cls(
            task=data["task"],
            user=data["user"],
            history=tuple(data["history"]),
            segments=tuple(
                Segment(Author(s["author"]), tuple(s["tokens"]), tuple(s["logprobs"]), s["text"])
                for s in data["segments"]
            ),
            turns=tuple(Turn(t["thought"], t["preference"], _hits_in(t["hits"])) for t in data["turns"]),
            thought=data["thought"],
            answer=tuple(
                Line(x["text"], x["item"], x["retrieved"], None if x["fault"] is None else Fault(x["fault"]))
                for x in data["answer"]
            ),
            fallback=_hits_in(data["spare"]),
            stop=Stop(data["stop"]),
            faults=tuple(Fault(fault) for fault in data["faults"]),
            answer_size=data["answer_size"],
            error=data["error"],
            usage=Usage(**data["usage"]) if data.get("usage") else None,
        )


def _hits_out(hits: Sequence[Hit]) -> list[list[float]]:
    return [[hit.item, hit.score] for hit in hits]


def _hits_in(pairs: Sequence[Sequence[float]]) -> tuple[Hit, ...]:
    return tuple(Hit(ItemIdx(int(item)), float(score)) for item, score in pairs)
