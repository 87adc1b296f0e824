"""Text to a language model's tokens and back, and what all engines share: the end of a segment, and error messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from deeprec.errors import DeepRecError
from deeprec.explore.policy import Finish, Policy, Request


class TokenizerCodec:
    """Encodes piece by piece, without special tokens except a start token if the tokenizer sets one.

    `ends` are the tokens that end any text, by the tokenizer and a `GenerationConfig` of transformers.
    """

    def __init__(self, tokenizer: Any, generation: Any = None) -> None:
        self.tokenizer = tokenizer
        # What the tokenizer itself puts before a text; its settings don't tell for all kinds of tokenizer.
        opened = tokenizer("a")["input_ids"][:1]
        self.start = opened if opened == [tokenizer.bos_token_id] else []
        ends = getattr(generation, "eos_token_id", None)
        self.ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}

    def encode(self, text: str, *, first: bool = False) -> list[int]:
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return [*self.start, *tokens] if first else tokens

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


class StopChecker:
    """Finds the end of a segment, token by token."""

    def __init__(self, codec: TokenizerCodec, request: Request) -> None:
        self.codec, self.request, self.written = codec, request, 0
        # Every token adds at least one byte or nothing, so a stop that just ended lies in so many of the last.
        self._longest = max((len(stop.encode()) for stop in request.stops), default=1)
        self._tail: list[int] = []

    def after(self, token: int) -> Finish | None:
        """Whether this next token ends the segment, and why."""
        self.written += 1
        self._tail = [*self._tail[-self._longest :], token]
        text = self.codec.decode(self._tail)
        if any(stop in text for stop in self.request.stops):
            return Finish.STOP
        if token in self.codec.ends:
            return Finish.END
        return Finish.LENGTH if self.written >= self.request.max_new_tokens else None


def refuse_unsupported(
    policy: Policy | type[Policy], kind: str, *, constrained: bool = False, sampled: bool = False
) -> None:
    if constrained and not policy.supports_constraints:
        remedy = "use transformers or openvino, or explore.answer='free'"
        raise DeepRecError(f"policy.kind={kind!r} can't restrict answers to retrieved titles: {remedy}.")
    if sampled and not policy.supports_sampling:
        raise DeepRecError(f"policy.kind={kind!r} is greedy: set explore.temperature=0, or use transformers.")


def refuse_missing(setting: str, package: str, install: str) -> NoReturn:
    raise DeepRecError(f"{setting} needs {package}: pip install {install}.") from None


@contextmanager
def explain_errors(problem: str) -> Iterator[None]:
    """Whatever a damaged or foreign folder makes loaders raise becomes a DeepRecError that begins with the problem."""
    try:
        yield
    except DeepRecError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever foreign code raises)
        raise DeepRecError(f"{problem}: {brief(error)}") from None


def brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
