"""What a load found: bad rows by kind, each with its line, and what was repaired or filtered."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import polars as pl

from deeprec.errors import DeepRecError

EXAMPLES = 3
LINE = "#line"
"""The column of line numbers; no column of a user's file keeps this name."""
FILE = "#file"
"""The column of file names, where rows are of several files."""


class BadKind(StrEnum):
    """Why a row was dropped; `says` words it for one row, with the row's cells, and `mend` says what to do."""

    says: str
    mend: str

    def __new__(cls, value: str, says: str, mend: str) -> BadKind:
        member = str.__new__(cls, value)
        member._value_, member.says, member.mend = value, says, mend
        return member

    ENCODING = "undecodable bytes", "not {encoding} text, {text}", "save the file as UTF-8"
    QUOTE = "unclosed or misplaced quote", "{fault}, {text}", "close the quote"
    FIELDS = (
        "wrong number of fields",
        "{found} fields instead of {width}, {text}",
        "give all rows the same number of fields",
    )
    JSON = "broken JSON", "no {what}, {text}", "write one JSON object a line or fetch it again"
    USER = "empty user", "the user is empty", "fill in the users"
    ITEM = "empty item", "the item is empty", "fill in the items"
    TIME = "unreadable time", "time {order} is not a number or a date", "write times as numbers or ISO dates"
    POSITION = "unreadable position", "position {order} is not a number", "write positions as numbers"
    DUPLICATE = "duplicate row", "user {user} and item {item} at this {ordered_by} again", "remove the duplicates"
    UNKNOWN_ITEM = "item without an item row", "item {item} is not in {items_file}", "add these items to the item file"
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


class Ledger:
    """Collects findings while files are read."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self._bad: dict[tuple[str, BadKind], BadRows] = {}
        self.notes: list[str] = []

    def drop(self, frame: pl.DataFrame, is_bad: pl.Expr, kind: BadKind, file: str, **words: object) -> pl.DataFrame:
        """`frame` without its bad rows; the report counts them and quotes the first ones with their lines.

        `frame` has a column `#line`, and where rows take up several lines a column `span`: a bad row counts as that
        many. `words` complete what the kind says of a row, beside its cells, which are quoted and shortened.
        """
        marked = frame.with_columns(is_bad.fill_null(True).alias("_bad"))
        bad = marked.filter("_bad")
        if bad.is_empty():
            return frame
        examples = []
        for row in bad.head(EXAMPLES).to_dicts():
            cells = {name: shorten(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
            examples.append(f"{position(file, row[LINE])}: {kind.says.format_map(cells | words)}")
        before = self._bad.get((file, kind), BadRows(kind, file, 0, ()))
        count = before.count + (int(bad["span"].sum()) if "span" in bad.columns else bad.height)
        self._bad[file, kind] = BadRows(kind, file, count, (*before.examples, *examples)[:EXAMPLES])
        return marked.filter(~pl.col("_bad")).drop("_bad")

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


def position(file: str, line: int) -> str:
    return f"{file} {'row' if file.endswith('.parquet') else 'line'} {line}"


def shorten(cell: str, chars: int = 40) -> str:
    """A cell's content for a message: quoted, escaped, short."""
    return repr(cell if len(cell) <= chars else cell[: chars - 1] + "…")
