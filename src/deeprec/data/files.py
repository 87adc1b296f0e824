"""Files to frames of strings: decompression, decoding, lines, fields, quotes; every bad row keeps its line number."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import polars as pl

from deeprec.data.compression import ENDINGS, open_lines, plain_name, refuse_archive
from deeprec.data.encodings import Decoded, decode, decode_start, wide_encoding
from deeprec.data.quoting import Rows, needs_no_quotes, split_line, split_rows
from deeprec.data.report import FAULT, LINE, WHY, BadKind, Ledger, NoRowsError, Quoting, position, shorten
from deeprec.errors import DeepRecError

_SEPARATORS = ",\t;|"
_SEPARATOR_LINE = re.compile(r'\s*"?sep=(\t|[^\s"])"?[\r\n]*', re.IGNORECASE)
_STRAY = " (a carriage return stands inside the row)"
_VALUE = re.compile(r"[-+]?\d+([.,]\d+)*([eE][-+]?\d+)?|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?")
_NO_HEADER = "set data.header = false and name columns by their positions, as data.columns.user = '1'"


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
    """The content of a text file, decompressed (gzip, bzip2, xz, zstd); DeepRecError if it is damaged or no text."""
    try:
        with open_lines(path) as stream:
            raw = stream.read()
        refuse_archive(path, raw[:4096])
    except FileNotFoundError:
        raise DeepRecError(f"There is no file {path}: check the path.") from None
    except OSError as error:
        raise _damaged(path, error) from None
    if b"\x00" in raw and wide_encoding(raw) is None:
        where = position(path.name, raw.partition(b"\x00")[0].count(b"\n") + 1)
        raise DeepRecError(f"{where} holds a NUL byte, so the file is no text: save it as UTF-8.")
    if not raw.strip():
        raise NoRowsError(f"{path.name} is empty: give a file with rows.")
    return raw


def _damaged(path: Path, error: OSError) -> DeepRecError:
    if error.errno is not None:
        return DeepRecError(f"{path} cannot be read ({error.strerror}): check the path.")
    kind = path.suffix.removeprefix(".").replace("gz", "gzip") if path.suffix in ENDINGS else "compressed"
    return DeepRecError(f"{path.name} is not a whole {kind} file ({error}): fetch it again.")


def read_header(path: Path) -> str:
    """The first line of a text file that may be compressed, after Excel's 'sep=;'; '' if it cannot be read."""
    head = _read_head(path)
    return next((line for line in head if not _SEPARATOR_LINE.fullmatch(line)), "")


def _read_head(path: Path, lines: int = 3) -> list[str]:
    """The first lines that are not blank, at most; damage is left to who reads the whole file."""
    try:
        with open_lines(path) as stream:
            raw = stream.read(1 << 16)
    except (OSError, DeepRecError):
        return []
    return [line for line in re.split(r"[\r\n]+", decode_start(raw)) if line.strip()][:lines]


def read_fields(
    path: Path,
    separator: str,
    ledger: Ledger,
    names: Sequence[str] | None = None,
    encoding: str = "cp1252",
    quoted: bool = False,
    header: bool | None = None,
) -> pl.DataFrame:
    """The rows of a separated text file as strings, stripped of outer whitespace: `#line` (1-based, where the
    row begins) and one column a name. Without `names` the first line gives them or, without a `header` (default: as the
    ledger says), they are '1', '2', ... from the left.

    Text is UTF-8, UTF-16 with its mark, or in `encoding` (see `decode`). With `quoted`, fields may be quoted as
    `split_rows` guesses; a quoting that the ledger names is heeded in any case. The ledger takes rows that cannot be
    decoded, that misplace a quote or have another number of fields. DeepRecError as `read_bytes`, and without rows or
    with a name twice.
    """
    file = ledger.label(path)
    lines, decoded = _read_lines(path, encoding)
    quoting = ledger.quoting or (None if quoted else "none")
    if separator == " ":
        lines = lines.with_columns(pl.col("text").str.strip_chars().str.replace_all(" +", " "))
    if names is None:
        has_header = ledger.header if header is None else header
        names, lines = _take_names(lines, separator, quoting, has_header, file, decoded.encoding)
    if lines.is_empty():
        raise NoRowsError(f"{file} has a header but no rows: give a file with rows.")
    if decoded.example and encoding == "cp1252":
        line, example = decoded.example
        ledger.notes.append(f"{file} is not UTF-8 and was read as cp1252, first {shorten(example)} in line {line}")
    rows = split_rows(lines, separator, names, quoting)
    if note := _quoting_note(rows, lines, separator, len(names), file) if quoting is None else "":
        ledger.notes.append(note)
    ledger.rows[file] = rows.good.height + rows.bad.height
    bad = ledger.drop(rows.bad, pl.col("broken"), BadKind.ENCODING, file, encoding=decoded.encoding)
    bad = ledger.drop(bad, pl.col(FAULT) != "", BadKind.QUOTE, file)
    stray = pl.when(pl.col("text").str.contains("\r", literal=True)).then(pl.lit(_STRAY)).otherwise(pl.lit(""))
    ledger.drop(bad.with_columns(stray.alias(WHY)), pl.lit(True), BadKind.FIELDS, file, width=len(names))
    return rows.good.with_columns(pl.col(pl.String).str.strip_chars())


def _read_lines(path: Path, encoding: str) -> tuple[pl.DataFrame, Decoded]:
    """#line (from 1), text and broken (not decoded) of the lines that are not blank, and how they were decoded."""
    raw = read_bytes(path)
    try:
        decoded = decode(raw, encoding)
    except UnicodeDecodeError:
        raise DeepRecError(f"{path.name} begins as UTF-16 or UTF-32 text and is damaged: save it as UTF-8.") from None
    del raw
    text, decoded = decoded.text, replace(decoded, text="")
    if "\r" in text:
        text = re.sub("\r+\n", "\n", text)
        text = text if "\n" in text else text.replace("\r", "\n")
    lines = pl.Series("text", [text]).str.split("\n").explode().to_frame()
    lines = lines.with_row_index(LINE, offset=1).filter(pl.col("text").str.strip_chars() != "")
    if lines.is_empty():
        raise NoRowsError(f"{path.name} is empty: give a file with rows.")
    return lines.with_columns(broken=pl.col(LINE).is_in(decoded.broken)), decoded


def _take_names(
    lines: pl.DataFrame, separator: str, quoting: Quoting | None, has_header: bool, file: str, encoding: str
) -> tuple[list[str], pl.DataFrame]:
    """The names of the columns and the lines after them."""
    if _SEPARATOR_LINE.fullmatch(lines["text"].item(0)) and lines.height > 1:
        lines = lines.slice(1)
    header = lines["text"].item(0)
    names = [name.strip() for name in split_line(header, separator, quoting)]
    if not has_header:
        return [str(number) for number in range(1, len(names) + 1)], lines
    if lines["broken"].item(0):
        raise DeepRecError(f"The header of {file} is not {encoding} text: save the file as UTF-8.")
    words = header.split()
    first = lines["text"].item(1) if lines.height > 1 else ""
    if len(names) == 1 < len(words) == len(split_line(first, separator, quoting)):
        names = words  # set off by spaces over rows that are not
    if not any(names):
        raise DeepRecError(f"The header of {file}, {shorten(header)}, names no column: mend it.")
    if twice := [name for name in names if names.count(name) > 1]:
        if looks_like_data(names):
            raise DeepRecError(f"{file} has no header, its first line is a row ({', '.join(names)}): {_NO_HEADER}.")
        raise DeepRecError(f"The header of {file} has the column {twice[0]!r} twice: rename one.")
    return names, lines.slice(1)


def _quoting_note(rows: Rows, lines: pl.DataFrame, separator: str, width: int, file: str) -> str:
    """What the report says of a guess on which the text of cells depends."""
    if rows.quoting == "backslash":
        return f"{file}: a backslash makes the quote after it text (data.quoting = 'backslash', by the file's look)"
    if separator != "\t" or not needs_no_quotes(lines, separator, width):
        return ""
    if rows.quoting == "none":
        return f"{file}: quotes belong to the text (data.quoting = 'none', by the file's look)"
    return f"{file}: quotes around fields were taken off (data.quoting = 'csv', by the file's look)"


def looks_like_data(names: Sequence[str]) -> bool:
    """Whether the cells of a first line are a row's, as a number or a date among them is no column's name.

    Names that are positions ('1', '2', ...) are those of a file without header.
    """
    positions = [str(number) for number in range(1, len(names) + 1)]
    return list(names) != positions and any(_VALUE.fullmatch(name) for name in names)


def read_any(path: Path, ledger: Ledger, header: bool | None = None) -> pl.DataFrame:
    """A text table as `read_fields` reads it with quotes; see `find_separator`."""
    return read_fields(path, find_separator(path), ledger, quoted=True, header=header)


def find_separator(path: Path) -> str:
    """What parts the fields of a table: what its first line says ('sep=;'), tab in a .tsv, else the most frequent of
    , tab ; | in the header or, where it has none of them, in the row after it; else a space."""
    head = _read_head(path)
    if head and (said := _SEPARATOR_LINE.fullmatch(head[0])):
        return said[1]
    if plain_name(path).endswith(".tsv") and any("\t" in line for line in head):
        return "\t"
    for line in head[:2]:
        mark = max(_SEPARATORS, key=line.count)
        if mark in line:
            return mark
    return " " if head and " " in head[0].strip() else ","


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
    if looks_like_data(found):
        first = ", ".join(found)
        raise DeepRecError(
            f"{file} has no {what} column {names[0]!r}, its first line is a row ({first}): {_NO_HEADER}."
        )
    raise DeepRecError(f"{file} has no {what} column {names[0]!r} (its columns: {', '.join(found)}){hint}: {mend}.")


def take(frame: pl.DataFrame, file: str, mend: str, **columns: str) -> pl.DataFrame:
    """`#line` and the columns of a fixed layout, by what each holds (user="userId"); errors as in `require`."""
    whats = {"order": "time"}
    named = {role: require(frame, (name,), whats.get(role, role), file, mend) for role, name in columns.items()}
    return frame.select(LINE, **named)
