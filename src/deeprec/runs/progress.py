"""How long work reports its progress; the command line draws it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    def __call__(self, done: int, total: int | None = None, text: str = "") -> None:
        """`done` units of the phase are done so far; `total` and `text` replace the earlier ones."""
        ...


class Progress:
    """Silent; subclasses show messages and draw phases as bars."""

    def message(self, text: str) -> None:
        """A line for the reader, plain text."""

    @contextmanager
    def phase(self, name: str, total: int | None = None, *, unit: str = "") -> Iterator[Advance]:
        """A timed part of the work of `total` units; `unit` says what is counted, for the bar."""
        yield lambda done, total=None, text="": None


SILENT = Progress()
