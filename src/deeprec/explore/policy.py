"""What an explorer drives: anything that continues token contexts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from deeprec.config import Guidance


class Finish(StrEnum):
    """Why a policy stopped writing a segment."""

    STOP = "stop string"
    END = "end of text"
    LENGTH = "token limit"
    NO_ROOM = "context full"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Constraint:
    """Between `opening` and `closing` a segment holds nothing but lines `1. title`, `2. title` and so on.

    Each title is written at most once (one that stands here twice, twice): `lines` of them, or all where there are
    fewer. What stands before `opening` is free.

    Attributes:
        begun: where the answer is open already, what the context has of its first line.
    """

    opening: str
    closing: str
    titles: tuple[str, ...]
    lines: int
    begun: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """Continue `context` by one segment.

    Attributes:
        key: names the exploration; contexts of one key only ever grow, so a policy may keep state by it.
        context: every token so far, the policy's own included.
        stops: the segment ends with the token that completes one of these strings.
        temperature: 0 is greedy.
        seed: of this segment alone, so that a result does not depend on what else is in the batch.
        constraint: on the answer, for policies that choose tokens; those that write text know what they write.
    """

    key: str
    context: Sequence[int]
    stops: tuple[str, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class PromptDefaults:
    """Of `ExploreConfig`, what a policy works best with. One that has such says so by an attribute `habits`."""

    guidance: Guidance
    preference_weight: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a server counted as read and written."""

    read: int = 0
    written: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.read + other.read, self.written + other.written)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens that a policy has written, with the logprob of each under the distribution it was sampled from
    before `top_p` and any constraint (at temperature 0: the model's own). `logprobs` is empty where none are known."""

    key: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish | None = None
    error: str | None = None
    usage: Usage | None = None


class Policy(Protocol):
    """Implementations inherit the contract tests of `deeprec.testing.PolicyContract`."""

    def encode(self, text: str, *, first: bool = False) -> list[int]:
        """Tokens of a text; `first` for the one that opens a context (it may get a start token)."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        ...

    def submit(self, requests: Sequence[Request]) -> None:
        """Take on requests; more may be submitted while others are being written."""
        ...

    def step(self) -> list[Chunk]:
        """Write on, and return what is new: at least one chunk while any request is open, else none."""
        ...

    def release(self, keys: Sequence[str]) -> None:
        """Forget explorations: open requests are dropped, kept state is freed. Unknown keys are fine."""
        ...

    @property
    def seconds(self) -> dict[str, float]:
        """Wall seconds spent so far, by activity (for instance `prefill` and `decode`)."""
        ...
