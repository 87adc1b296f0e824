"""What long work tells whoever shows it; the command line draws it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    def __call__(self, done: int, total: int | None = None, text: str = "") -> None:
        """So much of the phase is done, in all; `total` and `text` replace those before."""
        ...


class Progress:
    """Silent. Subclasses show messages, and draw phases as bars."""

    def message(self, text: str) -> None:
        """A line for the reader, plain text."""

    @contextmanager
    def phase(self, name: str, total: int | None = None, *, unit: str = "") -> Iterator[Advance]:
        """A part of the work, which is timed.

        Args:
            total: units of work; None where they are not counted.
            unit: what is counted, for the bar.
        """
        yield lambda done, total=None, text="": None


SILENT = Progress()
