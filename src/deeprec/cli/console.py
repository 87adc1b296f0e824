"""Messages and progress bars on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from deeprec.runs.progress import Advance, Progress


def show_table(console: Console, columns: Sequence[str], rows: Iterable[Iterable[str | Text]], title: str = "") -> None:
    """Print plain texts as a table; without columns, it has no header."""
    table = Table(*columns, title=escape(title), show_header=bool(columns))
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    console.print(table)


class ConsoleProgress(Progress):
    """Draws counted phases as bars.

    Attributes:
        seconds: of each phase so far.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}

    def message(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def phase(self, name: str, total: int | None = None, *, unit: str = "") -> Iterator[Advance]:
        started = time.perf_counter()
        phase = super().phase(name) if total is None else self._bar(unit or name, total)
        try:
            with phase as advance:
                yield advance
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    @contextmanager
    def _bar(self, text: str, total: int) -> Iterator[Advance]:
        name, times = TextColumn("{task.description}", markup=False), (TimeElapsedColumn(), TimeRemainingColumn())
        with Bars(name, BarColumn(), MofNCompleteColumn(), *times, console=self.console) as bars:
            task = bars.add_task(text, total=total)

            def advance(done: int, total: int | None = None, text: str = "") -> None:
                bars.update(task, completed=done, total=total, description=text or None)

            yield advance


@contextmanager
def download_bar(size: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal, until `size` bytes are there."""
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=size)
        yield lambda done: bars.update(task, completed=done)
