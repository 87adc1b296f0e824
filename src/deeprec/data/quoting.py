"""Fields of separated text in three ways of quoting, and which of them a file uses.

csv: a field that begins with '"' runs to the closing '"', over separators and line breaks; '""' in it is a quote.
backslash: as csv, and a backslash before a quote, a separator or a backslash makes it text (Spark, MySQL).
none: every character is text.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from deeprec.data.report import FAULT, LINE, Quoting

_CHUNK = 100_000
# The module's own limit of 131,072 characters a field guards nothing here: the file is in memory.
csv.field_size_limit(2**31 - 1)

_UNCLOSED = "a quote is opened and never closed"
_MISPLACED = "misplaced quote"
# A file holds no NUL, so it can mark what a backslash made text.
_HIDDEN = {"\\": "\x00b", '"': "\x00q"}
_HIDDEN_SEPARATOR = "\x00s"


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a text: the good ones in columns by name, the others as text with what is wrong with them."""

    quoting: Quoting
    good: pl.DataFrame  # #line, where the row begins, and one column a name
    bad: pl.DataFrame  # #line, text, broken (not decoded), found (number of fields), #fault ('': their number)


def split_rows(lines: pl.DataFrame, separator: str, names: Sequence[str], quoting: Quoting | None) -> Rows:
    """Rows of the fields `names` from lines (#line, text, broken); without a `quoting`, by the likeliest one.

    That is the one with the fewest bad rows: of backslash, where one stands before a quote or a separator, csv, and
    none, where the separator is a tab; the first of equal ones.
    """
    if quoting is not None:
        return _split(lines, separator, names, quoting, guessed=False)
    best: Rows | None = None
    for candidate in _candidates(lines, separator):
        rows = _split(lines, separator, names, candidate, guessed=True)
        if best is None or rows.bad.height < best.bad.height:
            best = rows
        if best.bad.is_empty():
            break
    assert best is not None
    return best


def split_line(text: str, separator: str, quoting: Quoting | None) -> list[str]:
    """The fields of one line, as a header; without quotes where they are misplaced."""
    quoted = quoting != "none" and len(separator) == 1 and '"' in text
    return (quoted and _unquote([text], separator)[0]) or text.split(separator)


def needs_no_quotes(lines: pl.DataFrame, separator: str, width: int) -> bool:
    """Whether fields begin with quotes and every line has the right number of fields even if quotes are text."""
    quoted = pl.col("text").str.contains(f'(^|{re.escape(separator)})"').any()
    return bool(lines.select(quoted & (_count(separator) == width).all()).item())


def _candidates(lines: pl.DataFrame, separator: str) -> Iterator[Quoting]:
    slashed = lines.filter(pl.col("text").str.contains("\\", literal=True))["text"]
    if slashed.str.contains_any(['\\"', "\\" + separator]).any():
        yield "backslash"
    yield "csv"
    if separator == "\t":
        yield "none"


def _split(lines: pl.DataFrame, separator: str, names: Sequence[str], quoting: Quoting, guessed: bool) -> Rows:
    width = len(names)
    if quoting == "none" or len(separator) > 1:
        rows = lines.with_columns(pl.lit("").alias(FAULT), quotes=False)
    else:
        hidden = lines.with_columns(text=_hide(separator)) if quoting == "backslash" else lines
        rows = _join_lines(hidden, lines["text"], separator, width, guessed)
    plain = rows.filter(~pl.col("quotes")).with_columns(found=_count(separator))
    is_good = (pl.col("found") == width) & ~pl.col("broken")
    fields = pl.col("text").str.split_exact(separator, width - 1).struct.rename_fields(list(names))
    good = [plain.filter(is_good).select(LINE, fields.alias("fields")).unnest("fields")]
    bad = [plain.filter(~is_good)]
    for chunk in rows.filter("quotes").iter_slices(_CHUNK):
        cells = _unquote(chunk["text"].str.replace_all("\r", " ", literal=True).to_list(), separator)
        chunk = chunk.with_columns(found=pl.Series(list(map(len, cells)), dtype=pl.UInt32))
        misplaced = (pl.col(FAULT) == "") & (pl.col("found") == 0)
        chunk = chunk.with_columns(pl.when(misplaced).then(pl.lit(_MISPLACED)).otherwise(FAULT).alias(FAULT))
        is_good = (pl.col("found") == width) & (pl.col(FAULT) == "") & ~pl.col("broken")
        kept = chunk.select(is_good).to_series()
        even = [row for row, keep in zip(cells, kept, strict=True) if keep]
        frame = pl.DataFrame(even, schema=dict.fromkeys(names, pl.String), orient="row")
        good.append(frame.insert_column(0, chunk[LINE].filter(kept)))
        bad.append(chunk.filter(~kept))
    whole, faulty = pl.concat(good).sort(LINE), pl.concat(bad).drop("quotes").sort(LINE)
    if quoting == "backslash":
        whole = whole.with_columns(_reveal(pl.col(pl.String), separator, ""))
        faulty = faulty.with_columns(_reveal(pl.col("text"), separator, "\\"))
    return Rows(quoting, whole, faulty)


def _count(separator: str) -> pl.Expr:
    return pl.col("text").str.count_matches(separator, literal=True) + 1


def _hide(separator: str) -> pl.Expr:
    text = pl.col("text")
    for char, code in _HIDDEN.items():
        text = text.str.replace_all("\\" + char, code, literal=True)
    return text.str.replace_all("\\" + separator, _HIDDEN_SEPARATOR, literal=True)


def _reveal(text: pl.Expr, separator: str, before: str) -> pl.Expr:
    for char, code in (_HIDDEN | {separator: _HIDDEN_SEPARATOR}).items():
        text = text.str.replace_all(code, before + char, literal=True)
    return text


def _join_lines(lines: pl.DataFrame, written: pl.Series, separator: str, width: int, guessed: bool) -> pl.DataFrame:
    """Rows from lines, as quoted fields may hold line breaks; adds `quotes` (has one) and `fault`.

    A quote that is opened and not closed in its line makes one row with the lines to the next odd quote. It does not
    where these lines are rows by themselves (see `_Block`); then its own row alone is bad. `written` are the lines
    with their backslashes.
    """
    lines = lines.with_columns(quotes=pl.col("text").str.contains('"', literal=True))
    # Only a line with an odd number of quotes opens or closes a field. It opens one if, without its closed fields, a
    # quote is left at the beginning of a field, so that '5" pipe' is text.
    odd = lines.with_row_index("number").filter(pl.col("text").str.count_matches('"', literal=True) % 2 == 1)
    if odd.is_empty():
        return lines.with_columns(pl.lit("").alias(FAULT))
    mark = re.escape(separator)
    rest = pl.col("text").str.replace_all(rf'(^|{mark})"(?:[^"]|"")*"', "$1")
    block = _Block(lines["text"], written, separator, width, guessed)
    row_of = np.arange(lines.height)
    unclosed = np.zeros(lines.height, dtype=bool)
    begun = None
    for number, opens in odd.select("number", rest.str.contains(rf'(^|{mark})"')).iter_rows():
        if begun is not None and block.is_row(begun, number):
            row_of[begun : number + 1] = begun
            begun = None
            continue
        if begun is not None:
            unclosed[begun] = True
        begun = number if opens else None
    if begun is not None:
        unclosed[begun] = True
    fault = pl.when(pl.Series(unclosed)).then(pl.lit(_UNCLOSED)).otherwise(pl.lit("")).alias(FAULT)
    lines = lines.with_columns(fault, row=pl.Series(row_of))
    return (
        lines.group_by("row", maintain_order=True)
        .agg(
            pl.col(LINE).first(),
            pl.col("text").str.join("\n"),
            pl.col("broken").any(),
            pl.col("quotes").any(),
            pl.col(FAULT).first(),
        )
        .drop("row")
    )


class _Block:
    """Judges whether lines between two odd quotes are one row or rows by themselves."""

    def __init__(self, text: pl.Series, written: pl.Series, separator: str, width: int, guessed: bool) -> None:
        self._text = text
        self._separator = separator
        self._width = width
        self._guessed = guessed
        marks_L = [lines.str.count_matches(separator, literal=True).to_numpy() for lines in (text, written)]
        self._fits_L = (marks_L[0] == width - 1) | (marks_L[1] == width - 1)
        self._own_L = self._fits_L
        # A comma before a space belongs to a sentence, unless the file sets its fields off by spaces.
        spaced_L = text.str.contains(separator + " ", literal=True).to_numpy()
        if separator in ",;" and 2 * spaced_L[self._fits_L].sum() < self._fits_L.sum():
            self._own_L = self._fits_L & ~spaced_L
        self._own_before_L = np.append(0, np.cumsum(self._own_L))

    def is_row(self, first: int, last: int) -> bool:
        """Whether the lines `first` to `last` are one row.

        Lines after the first that have the right number of fields speak against it. They decide where quoting is
        guessed and half of those between, or more, are such lines, and so is the last where the first has the right
        number too. Otherwise the lines are one row if its fields are the right number.
        """
        between = last - first - 1
        own = int(self._own_before_L[last] - self._own_before_L[first + 1])
        if own == 0 and not self._own_L[last]:
            return True
        ends_fit = bool(self._fits_L[first] and self._own_L[last])
        if self._guessed and (2 * own > between or (ends_fit and 2 * own >= between)):
            return False
        text = "\n".join(self._text[first : last + 1])
        return len(_unquote([text], self._separator)[0]) == self._width


def _unquote(rows: Sequence[str], separator: str) -> list[list[str]]:
    """The fields of each row; none where text follows a closing quote."""
    try:
        fields = list(csv.reader(rows, delimiter=separator, strict=True))
    except csv.Error:
        fields = []
    if len(fields) == len(rows):
        return fields
    # A row is broken: read them one by one to find it.
    return [[]] if len(rows) == 1 else [_unquote([row], separator)[0] for row in rows]
