"""Policies that write whole segments of text at once: scripts, people, and whatever else speaks text."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from deeprec.explore.policy import Chunk, Finish, Request

_LONG = 256
"""Characters of a token, at most: Python reads and writes numbers of 4,300 digits."""
Writer = Callable[[str], str]
"""Reads the whole conversation so far and returns the next segment."""


class Codec(Protocol):
    def encode(self, text: str, *, first: bool = False) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...


class WordTokenizer:
    """One token a word with the white space before it: lossless, and about as many as a language model's.

    A token is the word's bytes, after a 1, as a number, so that nothing is kept for however many words there are.
    """

    def encode(self, text: str, *, first: bool = False) -> list[int]:
        return [token for word in re.findall(r"\s*\S+|\s+", text) for token in self.piece(word)]

    def piece(self, text: str) -> list[int]:
        """The one token of a text, whatever white space is in it; more where it is very long."""
        parts = [text[position : position + _LONG] for position in range(0, len(text), _LONG)]
        return [int.from_bytes(b"\1" + part.encode("utf-8", "surrogatepass")) for part in parts]

    def decode(self, tokens: Sequence[int]) -> str:
        words = [token.to_bytes((token.bit_length() + 7) // 8)[1:] for token in tokens]
        return b"".join(words).decode("utf-8", "surrogatepass")


class SegmentPolicy(ABC):
    """Writes a whole segment for every open request in one step, and keeps nothing from one segment to the next."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.seconds: dict[str, float] = {}
        self._open: dict[str, Request] = {}

    def encode(self, text: str, *, first: bool = False) -> list[int]:
        return self.codec.encode(text, first=first)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.codec.decode(tokens)

    def submit(self, requests: Sequence[Request]) -> None:
        self._open.update((request.key, request) for request in requests)

    def step(self) -> list[Chunk]:
        requests, self._open = list(self._open.values()), {}
        return self._write(requests) if requests else []

    def release(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._open.pop(key, None)

    @abstractmethod
    def _write(self, requests: Sequence[Request]) -> list[Chunk]:
        """The segment of each request."""


class TextPolicy(SegmentPolicy):
    """Drives a writer. Its tokens are those of `codec`; a language model's tokenizer makes its traces trainable."""

    def __init__(self, writer: Writer, codec: Codec | None = None) -> None:
        super().__init__(codec or WordTokenizer())
        self.writer = writer

    def _write(self, requests: Sequence[Request]) -> list[Chunk]:
        return [self._chunk(request, self._text(request)) for request in requests]

    def _text(self, request: Request) -> str:
        return self.writer(self.decode(request.context))

    def _chunk(self, request: Request, text: str) -> Chunk:
        ends = [text.index(stop) + len(stop) for stop in request.stops if stop in text]
        finish = Finish.STOP if ends else Finish.END
        tokens = self.encode(text[: min(ends)] if ends else text)
        if len(tokens) > request.max_new_tokens:
            tokens, finish = tokens[: request.max_new_tokens], Finish.LENGTH
        return Chunk(request.key, tuple(tokens), (), finish)
