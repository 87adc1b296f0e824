"""What a load found: bad rows by kind, each with its line, and what was repaired or filtered."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import polars as pl

from deeprec.errors import DeepRecError

EXAMPLES = 3
LINE = "#line"
"""The column of line numbers; no column of a user's file keeps this name."""
FAULT, LOST, WHY = "#fault", "#lost", "#why"
"""Columns of sentences, which messages quote as they are."""

Quoting = Literal["csv", "none", "backslash"]
FILE = "#file"
"""The column of file names, where rows are of several files."""


class NoRowsError(DeepRecError):
    """A file holds no rows: nothing, where it is one of several of its table."""


class BadKind(StrEnum):
    """Why a row was dropped; `says` words it for one row, with the row's cells, and `mend` says what to do."""

    says: str
    mend: str

    def __new__(cls, value: str, says: str, mend: str) -> BadKind:
        member = str.__new__(cls, value)
        member._value_, member.says, member.mend = value, says, mend
        return member

    ENCODING = "undecodable bytes", "not {encoding} text, {text}", "save the file as UTF-8"
    QUOTE = "unclosed or misplaced quote", "{#fault}, {text}", "close the quote or set data.quoting"
    FIELDS = (
        "wrong number of fields",
        "{found} fields instead of {width}{#why}, {text}",
        "give all rows the same number of fields",
    )
    JSON = "broken JSON", "no {what}, {text}", "write one JSON object a line or fetch it again"
    USER = "empty user", "the user is empty", "fill in the users"
    ITEM = "empty item", "the item is empty", "fill in the items"
    TIME = "unreadable time", "time {order} is not a number or a date", "write times as numbers or ISO dates"
    POSITION = "unreadable position", "position {order} is not a number", "write positions as numbers"
    DUPLICATE = "duplicate row", "user {user} and item {item} at this {ordered_by} again", "remove the duplicates"
    UNKNOWN_ITEM = "item without an item row", "item {item} is not in {items_file}", "add these items to the item file"
    LOST_ITEM = (
        "item whose own row is bad",
        "item {item} lost its row, {#lost}",
        "mend the item file",
    )
    REPEATED_ITEM = "item row with a repeated id", "item {item} has a row already", "keep one row an item"


@dataclass(frozen=True, slots=True)
class BadRows:
    """Rows of one file dropped for one reason; `examples` are the first few, each with its line."""

    kind: BadKind
    file: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What happened between the files and the Dataset."""

    rows: dict[str, int]  # read of each file
    bad: tuple[BadRows, ...]
    repeats: int  # interactions in which a user meets an item again at another time; they are no bad rows
    repeats_kept: str  # the rule that was applied to them
    filtered_users: int
    filtered_items: int
    filtered_interactions: int
    notes: tuple[str, ...]  # sentences about what was repaired instead of dropped

    @property
    def bad_count(self) -> int:
        return sum(bad.count for bad in self.bad)

    def lines(self) -> list[str]:
        """The report as sentences for a terminal."""
        lines = [f"{file}: {count:,} rows read" for file, count in self.rows.items()]
        lines += [f"{bad.count:,} dropped, {bad.kind}: {'; '.join(bad.examples)}" for bad in self.bad]
        if self.repeats:
            lines.append(f"{self.repeats:,} repeats of a user and an item (data.repeats: {self.repeats_kept})")
        if self.filtered_interactions:
            lines.append(
                f"{self.filtered_users:,} users, {self.filtered_items:,} items and "
                f"{self.filtered_interactions:,} interactions below data.user_core or data.item_core"
            )
        return lines + list(self.notes)


_OF_TEXT = (BadKind.ENCODING, BadKind.QUOTE, BadKind.FIELDS, BadKind.JSON)
_LOST_ROWS = 10_000  # so many bad rows of a file are searched for ids
_CELL_ENDS = re.compile(r"::|[\t,;|\"]")


class Ledger:
    """What one load was told about its files, and what it finds in them.

    `quoting` (None: guess) and `header` (whether text files begin with names) are the configured ones.
    """

    def __init__(self, quoting: Quoting | None = None, header: bool = True) -> None:
        self.quoting = quoting
        self.header = header
        self.rows: dict[str, int] = {}
        self._bad: dict[tuple[str, BadKind], BadRows] = {}
        self._labels: dict[Path, str] = {}
        self._lost: dict[str, dict[str, str]] = {}
        self.notes: list[str] = []

    def label(self, *paths: Path) -> str:
        """How messages call the first of `paths`: its name, with as many folders as tell it from the load's others.

        A load names all its files together before it reads them; a label once given stays.
        """
        known = dict.fromkeys([*self._labels, *(path.absolute() for path in paths)])
        for path in known:
            if path not in self._labels:
                self._labels[path] = _shortest_tail(path, known)
        return self._labels[paths[0].absolute()]

    def drop(self, frame: pl.DataFrame, is_bad: pl.Expr, kind: BadKind, file: str, **words: object) -> pl.DataFrame:
        """`frame` without its bad rows; the report counts them and quotes the first ones with their lines.

        `frame` has a column `#line`. `words` complete what the kind says of a row, beside its cells, which are quoted
        and shortened unless their column begins with '#'. A column `#file` names the file where rows are of several.
        """
        marked = frame.with_columns(is_bad.fill_null(True).alias("_bad"))
        bad = marked.filter("_bad")
        if bad.is_empty():
            return frame
        of_files = bad.partition_by(FILE, maintain_order=True) if FILE in bad.columns else [bad]
        for rows in of_files:
            self._record(rows, kind, rows[FILE][0] if FILE in rows.columns else file, words)
        return marked.filter(~pl.col("_bad")).drop("_bad")

    def _record(self, bad: pl.DataFrame, kind: BadKind, file: str, words: dict[str, object]) -> None:
        examples = []
        for row in bad.head(EXAMPLES).to_dicts():
            cells = {
                name: shorten(cell) if isinstance(cell, str) and name[0] != "#" else cell for name, cell in row.items()
            }
            examples.append(f"{position(file, row[LINE])}: {kind.says.format_map({WHY: ''} | cells | words)}")
        before = self._bad.get((file, kind), BadRows(kind, file, 0, ()))
        self._bad[file, kind] = BadRows(kind, file, before.count + bad.height, (*before.examples, *examples)[:EXAMPLES])
        if kind in _OF_TEXT and "text" in bad.columns:
            lost = self._lost.setdefault(file, {})
            for line, text in bad.head(_LOST_ROWS).select(LINE, "text").iter_rows():
                for cell in filter(None, map(str.strip, _CELL_ENDS.split(text))):
                    lost.setdefault(cell, f"{position(file, line)} ({kind})")

    def lost(self, file: str) -> pl.DataFrame:
        """What stood in rows of a file that were dropped as no rows at all: each cell as `item`, and `#lost`, where."""
        cells = self._lost.get(file, {})
        schema = {"item": pl.String, LOST: pl.String}
        return pl.DataFrame({"item": list(cells), LOST: list(cells.values())}, schema=schema)

    @property
    def bad(self) -> tuple[BadRows, ...]:
        return tuple(self._bad.values())

    def check(self, max_bad_share: float) -> None:
        """DeepRecError where a file has too large a share of bad rows."""
        for file, rows in self.rows.items():
            here = sorted((bad for bad in self.bad if bad.file == file), key=lambda bad: -bad.count)
            if (count := sum(bad.count for bad in here)) > max_bad_share * rows:
                kinds = ", ".join(f"{bad.count:,} {bad.kind}" for bad in here)
                raise DeepRecError(
                    f"{here[0].examples[0]}; {count:,} of {rows:,} rows of {file} are bad ({kinds}), more than "
                    f"data.max_bad_share = {max_bad_share:g} allows: {here[0].kind.mend}, or raise the limit."
                )


def repeats_note(repeated: int, targets: int, split: str, *, exclude_history: bool) -> str:
    """How many targets repeat an item of their history, and what becomes of these; empty where none is affected."""
    if exclude_history and not repeated:
        return ""
    said = f"{repeated:,} of {targets:,} {split} targets ({100 * repeated / targets:.1f} %) were chosen before"
    if not exclude_history:
        return f"{said}; the history is not excluded"
    most = 1 - repeated / targets
    return f"{said}; the history is excluded, so these can only score 0, and no metric can pass {most:.4f}"


def _shortest_tail(path: Path, others: Iterable[Path]) -> str:
    """The last parts of a path, as few as no other path ends with."""
    tail = path.parts
    for parts in range(1, len(path.parts)):
        tail = path.parts[-parts:]
        if not any(other.parts[-parts:] == tail for other in others if other != path):
            break
    return Path(*tail).as_posix()


def position(file: str, line: int) -> str:
    return f"{file} {'row' if '.parquet' in file else 'line'} {line}"


def shorten(cell: str, chars: int = 40) -> str:
    """A cell's content for a message: quoted, escaped, short."""
    return repr(cell if len(cell) <= chars else cell[: chars - 1] + "…")
