"""What a load found: bad rows by kind, each with its line, and what was repaired or filtered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import polars as pl

from deeprec.errors import DeepRecError

EXAMPLES = 3
LINE = "#line"
"""The column of line numbers; no column of a user's file keeps this name."""


class BadKind(StrEnum):
    """Why a row was dropped; `mend` says what to do about it."""

    mend: str

    def __new__(cls, value: str, mend: str) -> BadKind:
        member = str.__new__(cls, value)
        member._value_ = value
        member.mend = mend
        return member

    ENCODING = "undecodable bytes", "save the file as UTF-8"
    QUOTE = "unclosed or misplaced quote", "close the quote"
    FIELDS = "wrong number of fields", "give every row the same number of fields"
    JSON = "broken JSON", "write one JSON object a line, or fetch the file again"
    USER = "empty user", "fill in the users"
    ITEM = "empty item", "fill in the items"
    TIME = "unreadable time", "write times as numbers or ISO dates"
    POSITION = "unreadable position", "write positions as numbers"
    DUPLICATE = "duplicate row", "remove the duplicates"  # the same user, item and time or position
    UNKNOWN_ITEM = "item without an item row", "add these items to the item file"
    REPEATED_ITEM = "item row with a repeated id", "keep one row an item"


@dataclass(frozen=True, slots=True)
class BadRows:
    """Rows of one file dropped for one reason; `examples` are the first few, each with its line."""

    kind: BadKind
    file: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What happened between the files and the Dataset.

    `rows` counts the rows read of each file. `repeats` counts the interactions in which a user meets an item
    again at another time; they are no bad rows, and `repeats_kept` names the rule that was applied to them.
    `notes` are sentences about what was repaired instead of dropped.
    """

    rows: dict[str, int]
    bad: tuple[BadRows, ...]
    repeats: int
    repeats_kept: str
    filtered_users: int
    filtered_items: int
    filtered_interactions: int
    notes: tuple[str, ...]

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


class Ledger:
    """Collects findings while files are read."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self._bad: dict[tuple[str, BadKind], BadRows] = {}
        self.notes: list[str] = []

    def drop(
        self, frame: pl.DataFrame, is_bad: pl.Expr, kind: BadKind, file: str, say: Callable[[dict[str, Any]], str]
    ) -> pl.DataFrame:
        """`frame` without its bad rows; the report counts them and quotes the first ones with their lines.

        `frame` has a column `#line`, and where rows take up several lines a column `span`: a bad row counts as that
        many. `say` words what is wrong with a row, whose strings come to it quoted and shortened.
        """
        marked = frame.with_columns(is_bad.fill_null(True).alias("_bad"))
        bad = marked.filter("_bad").drop("_bad")
        if bad.is_empty():
            return frame
        count = int(bad["span"].sum()) if "span" in bad.columns else bad.height
        first = ({name: _shorten(cell) for name, cell in row.items()} for row in bad.head(EXAMPLES).to_dicts())
        examples = tuple(f"{position(file, row[LINE])}: {say(row)}" for row in first)
        before = self._bad.get((file, kind), BadRows(kind, file, 0, ()))
        self._bad[file, kind] = BadRows(kind, file, before.count + count, (before.examples + examples)[:EXAMPLES])
        return marked.filter(~pl.col("_bad")).drop("_bad")

    @property
    def bad(self) -> tuple[BadRows, ...]:
        return tuple(self._bad.values())

    def check(self, max_bad_share: float) -> None:
        """Refuse the load where a file has too large a share of bad rows.

        Raises:
            DeepRecError: a file is over the limit.
        """
        for file, rows in self.rows.items():
            here = sorted((bad for bad in self.bad if bad.file == file), key=lambda bad: -bad.count)
            count = sum(bad.count for bad in here)
            if count <= max_bad_share * rows:
                continue
            kinds = ", ".join(f"{bad.count:,} {bad.kind}" for bad in here)
            raise DeepRecError(
                f"{here[0].examples[0]}; {count:,} of {rows:,} rows of {file} are bad ({kinds}), more than "
                f"data.max_bad_share = {max_bad_share:g} allows: {here[0].kind.mend}, or raise the limit."
            )


def position(file: str, line: int) -> str:
    return f"{file} {'row' if file.endswith('.parquet') else 'line'} {line}"


def shorten(cell: str, chars: int = 40) -> str:
    """A cell's content for a message: quoted, escaped, short."""
    return repr(cell if len(cell) <= chars else cell[: chars - 1] + "…")


def _shorten(cell: Any) -> Any:
    return shorten(cell) if isinstance(cell, str) else cell
