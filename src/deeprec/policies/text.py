"""Policies that write whole segments of text at once: scripts, people, and anything else that speaks text."""

from __future__ import annotations

import re
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from deeprec.explore.policy import Chunk, Finish, Policy, Request

_LONG = 256  # characters of a token, at most: Python reads and writes numbers of 4,300 digits
Writer = Callable[[str], str]
"""Reads the whole conversation so far and returns the next segment."""


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text up to the end of the stop that ends first, and whether there is one."""
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    return text[: min(ends, default=len(text))], bool(ends)


class Codec(Protocol):
    def encode(self, text: str, *, first: bool = False) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...


class WordTokenizer:
    """One token per word with the white space before it: lossless, and about as many as a language model's.

    A token is the number whose bytes are a 1 and then the word's, so no vocabulary grows.
    """

    def encode(self, text: str, *, first: bool = False) -> list[int]:
        return [token for word in re.findall(r"\s*\S+|\s+", text) for token in self.piece(word)]

    def piece(self, text: str) -> list[int]:
        """The one token of a text, white space included; more tokens if it is very long."""
        parts = [text[position : position + _LONG] for position in range(0, len(text), _LONG)]
        return [int.from_bytes(b"\1" + part.encode("utf-8", "surrogatepass")) for part in parts]

    def decode(self, tokens: Sequence[int]) -> str:
        words = [token.to_bytes((token.bit_length() + 7) // 8)[1:] for token in tokens]
        return b"".join(words).decode("utf-8", "surrogatepass")


class SegmentPolicy(Policy):
    """Writes a whole segment for every open request in one step, and keeps no state between segments."""

    supports_constraints = True

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.seconds = {"write": 0.0}
        self._open: dict[str, Request] = {}

    def encode(self, text: str, *, first: bool = False) -> list[int]:
        return self.codec.encode(text, first=first)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.codec.decode(tokens)

    def submit(self, requests: Sequence[Request]) -> None:
        self._open.update((request.key, request) for request in requests)

    def step(self) -> list[Chunk]:
        started = time.perf_counter()
        requests, self._open = list(self._open.values()), {}
        chunks = self._write(requests) if requests else []
        self.seconds["write"] += time.perf_counter() - started
        return chunks

    def release(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._open.pop(key, None)

    @abstractmethod
    def _write(self, requests: Sequence[Request]) -> list[Chunk]:
        """The segment of each request."""


class TextPolicy(SegmentPolicy):
    """Runs a writer. Its tokens are those of `codec`; with a model's tokenizer its traces can be trained on."""

    def __init__(self, writer: Writer, codec: Codec | None = None) -> None:
        super().__init__(codec or WordTokenizer())
        self.writer = writer

    def _write(self, requests: Sequence[Request]) -> list[Chunk]:
        return [self._chunk(request, self._text(request)) for request in requests]

    def _text(self, request: Request) -> str:
        return self.writer(self.decode(request.context))

    def _chunk(self, request: Request, text: str) -> Chunk:
        text, stopped = cut_at_stop(text, request.stops)
        finish = Finish.STOP if stopped else Finish.END
        tokens = self.encode(text)
        if len(tokens) > request.max_new_tokens:
            tokens, finish = tokens[: request.max_new_tokens], Finish.LENGTH
        return Chunk(request.key, tuple(tokens), (), finish)
