"""Files to frames of strings: decompression, decoding, lines, fields, quotes; every bad row keeps its line number."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from deeprec.data.report import LINE, BadKind, Ledger, position, shorten
from deeprec.errors import DeepRecError

_CHUNK = 100_000
_UNICODE_16_32 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


@dataclass(frozen=True, slots=True)
class Raw:
    """What a format's reader returns, before any row is checked."""

    interactions_file: str
    items_file: str
    interactions: pl.DataFrame  # columns #line, user, item, order (strings); of several files, #file and part too
    items: pl.DataFrame  # #line, item, title, year, brand, description (strings), categories (lists of strings)
    ordered_by: Literal["time", "position"] = "time"
    dated_titles: bool = False  # titles may end in '(year)'


def read_bytes(path: Path) -> bytes:
    """The content of a text file, gunzipped if its name ends in .gz; DeepRecError if it is damaged or no text."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DeepRecError(f"There is no file {path}: check the path.") from None
    except OSError as error:
        raise DeepRecError(f"{path} cannot be read ({error.strerror}): check the path.") from None
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            fault = f"{path.name} is not a whole gzip file ({error})"
            raise DeepRecError(f"{fault}: fetch it again, or take .gz off its name if it is plain text.") from None
    elif raw.startswith((b"\x1f\x8b", b"PK\x03\x04")):
        raise DeepRecError(f"{path.name} is a compressed archive: unpack it, or name it .gz if it is a gzip.")
    if raw.startswith(_UNICODE_16_32):
        raise DeepRecError(f"{path.name} begins as UTF-16 or UTF-32 text: save it as UTF-8.")
    if b"\x00" in raw:
        where = position(path.name, raw.partition(b"\x00")[0].count(b"\n") + 1)
        raise DeepRecError(f"{where} holds a NUL byte, so the file is no text: save it as UTF-8.")
    if not raw.strip():
        raise DeepRecError(f"{path.name} is empty: give a file with rows.")
    return raw


def read_header(path: Path) -> str:
    """The first line of a text file that may be gzipped; '' if it cannot be read."""
    try:
        with open_lines(path) as stream:
            return stream.readline(1 << 16).decode("utf-8-sig", "replace").rstrip("\r\n")
    except (OSError, EOFError, zlib.error):
        return ""


def read_fields(
    path: Path,
    separator: str,
    ledger: Ledger,
    names: Sequence[str] | None = None,
    encoding: str = "utf-8",
    quoted: bool = False,
) -> pl.DataFrame:
    """The rows of a separated text file as strings, stripped of outer whitespace: `#line` (1-based, where the
    row begins) and one column a name; without `names` the first line gives them.

    With `quoted`, a field that begins with '"' runs to the closing '"', over separators and line breaks.
    The ledger takes rows that cannot be decoded, never close a quote or have another number of fields.
    DeepRecError as `read_bytes`, and without rows or with a name twice.
    """
    header, lines = _read_lines(path, encoding, names is None, ledger)
    if names is None:
        names = _unquote([header], separator)[0] if quoted else header.split(separator)
        names = [name.strip() for name in names]
        if not any(names):
            raise DeepRecError(f"The header of {path.name}, {shorten(header)}, names no column: mend it.")
        if twice := [name for name in names if names.count(name) > 1]:
            raise DeepRecError(f"The header of {path.name} has the column {twice[0]!r} twice: rename one.")
    rows = _join_quoted(lines, separator, path.name, ledger) if quoted else lines.with_columns(quotes=False)
    width = len(names)
    plain = rows.filter(~pl.col("quotes")).with_columns(
        found=pl.col("text").str.count_matches(separator, literal=True) + 1
    )
    plain = ledger.drop(plain, pl.col("found") != width, BadKind.FIELDS, path.name, width=width)
    fields = pl.col("text").str.split_exact(separator, width - 1).struct.rename_fields(list(names))
    frames = [plain.select(LINE, fields.alias("fields")).unnest("fields")]
    for chunk in rows.filter("quotes").iter_slices(_CHUNK):
        cells = _unquote(chunk["text"].to_list(), separator)
        chunk = chunk.with_columns(found=pl.Series(list(map(len, cells))))
        chunk = ledger.drop(chunk, pl.col("found") == 0, BadKind.QUOTE, path.name, fault="misplaced quote")
        chunk = ledger.drop(chunk, pl.col("found") != width, BadKind.FIELDS, path.name, width=width)
        even = [row for row in cells if len(row) == width]
        frame = pl.DataFrame(even, schema=dict.fromkeys(names, pl.String), orient="row")
        frames.append(frame.insert_column(0, chunk[LINE]))
    return pl.concat(frames).sort(LINE).with_columns(pl.col(pl.String).str.strip_chars())


def read_any(path: Path, ledger: Ledger) -> pl.DataFrame:
    """A text table as `read_fields` reads it with quotes.

    The separator is tab for .tsv, else the most frequent of , tab ; | in the header.
    """
    is_tsv = path.name.removesuffix(".gz").endswith(".tsv")
    separator = "\t" if is_tsv else max(",\t;|", key=read_header(path).count)
    return read_fields(path, separator, ledger, quoted=True)


def pick(frame: pl.DataFrame, names: Sequence[str]) -> str | None:
    """The first of `names` that is a column."""
    return next((name for name in names if name in frame.columns), None)


def require(frame: pl.DataFrame, names: Sequence[str], what: str, file: str, mend: str) -> str:
    """As `pick`, but DeepRecError if none is a column, with the columns found and the one that was probably meant."""
    if column := pick(frame, names):
        return column
    found = [name for name in frame.columns if name != LINE]
    bare = {re.sub(r"[^a-z0-9]", "", name.casefold()): name for name in reversed(found)}
    wanted = [re.sub(r"[^a-z0-9]", "", name.casefold()) for name in (*names, what)]
    close = [near for name in wanted for near in difflib.get_close_matches(name, bare, n=1, cutoff=0.6)]
    hint = f", perhaps {bare[close[0]]!r} is meant" if close else ""
    raise DeepRecError(f"{file} has no {what} column {names[0]!r} (its columns: {', '.join(found)}){hint}: {mend}.")


def take(frame: pl.DataFrame, file: str, mend: str, **columns: str) -> pl.DataFrame:
    """`#line` and the columns of a fixed layout, by what each holds (user="userId"); errors as in `require`."""
    whats = {"order": "time"}
    named = {role: require(frame, (name,), whats.get(role, role), file, mend) for role, name in columns.items()}
    return frame.select(LINE, **named)


def _read_lines(path: Path, encoding: str, has_header: bool, ledger: Ledger) -> tuple[str, pl.DataFrame]:
    """The header ('' without one), and #line (from 1) and text of the other lines that are not blank."""
    raw = read_bytes(path)
    broken: list[int] = []
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        text = raw.decode(encoding, "replace")
        lines_of_bytes = enumerate(raw.split(b"\n"), 1)
        broken = [line for line, part in lines_of_bytes if part.decode(encoding, "ignore").encode(encoding) != part]
    del raw
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if "\n" not in text:
        text = text.replace("\r", "\n")
    lines = pl.Series("text", [text]).str.split("\n").explode().to_frame()
    lines = lines.with_row_index(LINE, offset=1).filter(pl.col("text").str.strip_chars() != "")
    header = ""
    if has_header:
        header = lines["text"].item(0)
        if lines[LINE].item(0) in broken:
            raise DeepRecError(f"The header of {path.name} is not {encoding} text: save the file as UTF-8.")
        lines = lines.slice(1)
    if lines.is_empty():
        raise DeepRecError(f"{path.name} has a header but no rows: give a file with rows.")
    ledger.rows[path.name] = lines.height
    is_broken = pl.col(LINE).is_in(broken)
    return header, ledger.drop(lines, is_broken, BadKind.ENCODING, path.name, encoding=encoding)


def _join_quoted(lines: pl.DataFrame, separator: str, file: str, ledger: Ledger) -> pl.DataFrame:
    """Rows from lines, as quoted fields may hold line breaks; adds `quotes` (has one) and `span` (lines)."""
    lines = lines.with_columns(quotes=pl.col("text").str.contains('"', literal=True), span=pl.lit(1))
    # Only a line with an odd number of quotes opens or closes a field. It opens one if, without its closed fields, a
    # quote is left at the beginning of a field, so that '5" pipe' is text.
    odd = lines.with_row_index("number").filter(pl.col("text").str.count_matches('"', literal=True) % 2 == 1)
    if odd.is_empty():
        return lines
    mark = re.escape(separator)
    rest = pl.col("text").str.replace_all(rf'(^|{mark})"(?:[^"]|"")*"', "$1")
    row_of = np.arange(lines.height)
    begun = None
    for number, opens in odd.select("number", rest.str.contains(rf'(^|{mark})"')).iter_rows():
        if begun is not None:
            row_of[begun : number + 1] = begun
            begun = None
        elif opens:
            begun = number
    lines = lines.with_columns(row=pl.Series(row_of), number=pl.int_range(pl.len()))
    unclosed = pl.col("number").eq_missing(begun)
    lines = ledger.drop(lines, unclosed, BadKind.QUOTE, file, fault="a quote is opened and never closed")
    return lines.group_by("row", maintain_order=True).agg(
        pl.col(LINE).first(), pl.col("text").str.join("\n"), pl.col("quotes").any(), pl.col("span").sum()
    )


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


def open_lines(path: Path) -> io.BufferedIOBase:
    """A stream of a file's bytes, gunzipped if its name ends in .gz; errors come while reading."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")
