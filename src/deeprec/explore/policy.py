"""The interface of policies: anything that continues token contexts."""

from __future__ import annotations

import sys
from abc import abstractmethod
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
    FILTERED = "content filter"
    UNEXPLAINED = "no reason given"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Constraint:
    """Between `opening` and `closing` a segment holds nothing but `lines` lines `1. title`, `2. title` and so on.

    Each of `titles` stands there at most once, and all if they are fewer. The text before `opening` is free. `begun` is
    what the context already has of the first line, if the answer is open.
    """

    opening: str
    closing: str
    titles: tuple[str, ...]
    lines: int
    begun: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """Continue `context` by one segment."""

    key: str  # names the exploration; contexts of one key only ever grow, so a policy may keep state by it
    context: Sequence[int]  # every token so far, those of the policy included
    stops: tuple[str, ...]  # the segment ends with the token that completes one of these strings
    max_new_tokens: int
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    seed: int = 0  # of this segment alone, so that a sample does not depend on the rest of the batch
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class PromptDefaults:
    """The options of `ExploreConfig` that a policy works best with."""

    guidance: Guidance = "example"
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
    """Tokens that a policy has written; in the last chunk of a segment also why it ended.

    `logprobs` are at the requested temperature (at 0 the model's own), before `top_p` and any constraint; empty if
    unknown.
    """

    key: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish | None = None
    error: str | None = None
    usage: Usage | None = None


class Policy(Protocol):
    """Subclass it, and inherit the contract tests of `deeprec.testing.PolicyContract`.

    Attributes:
        seconds: wall seconds so far, by activity (for instance `prefill` and `decode`).
        prompt_defaults: what the policy works best with; None: the defaults for untrained models.
        context_limit: tokens that a context may have.
        supports_sampling: whether `submit` accepts a temperature above 0; otherwise it raises a DeepRecError.
        supports_constraints: likewise for constraints. Policies that write whole texts accept and ignore them.
        forkable: whether forked copies of this process may use it.
        by_person: whether its calls are a person's requests and not guesses.
    """

    seconds: dict[str, float]
    prompt_defaults: PromptDefaults | None = None
    context_limit: int = sys.maxsize
    supports_sampling: bool = True
    supports_constraints: bool = False
    forkable: bool = False
    by_person: bool = False

    @abstractmethod
    def encode(self, text: str, *, first: bool = False) -> list[int]:
        """Tokens of a text; `first` for the one that opens a context (it may get a start token)."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones included."""

    @abstractmethod
    def submit(self, requests: Sequence[Request]) -> None:
        """Accept requests; more may be submitted while others are being written."""

    @abstractmethod
    def step(self) -> list[Chunk]:
        """Write on, and return what is new: at least one chunk while any request is open, else none."""

    @abstractmethod
    def release(self, keys: Sequence[str]) -> None:
        """Drop the open requests of explorations and free their state. Unknown keys are fine."""
