"""Bytes to text: UTF-8 first, else the format's own encoding; and text that was encoded twice, or for HTML."""

from __future__ import annotations

import codecs
import html
import re
from dataclasses import dataclass

import polars as pl

_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_HIGH = re.compile(rb"[\x80-\xff]")
_HIGH_RUN = re.compile(rb"[\x80-\xff]{2,}")


@dataclass(frozen=True, slots=True)
class Decoded:
    """Text, its encoding, and which lines (from 1) are not in it; `example` is the first one that is not UTF-8."""

    text: str
    encoding: str
    broken: tuple[int, ...] = ()
    example: tuple[int, str] | None = None


def decode(raw: bytes, own: str) -> Decoded:
    """Text of bytes that are UTF-8, UTF-16 or UTF-32 with their mark, or in the format's `own` encoding.

    Bytes that are not UTF-8 are judged by their lines that are not ASCII. Where more lines are text in `own` alone
    than are valid UTF-8, the file is in `own`: these lines are read so and valid UTF-8 as UTF-8. Else the file is UTF-8
    and the others are broken. Lines of `own` must look Western, with most letters ASCII: Cyrillic or Chinese bytes do
    not. Byte order marks go, wherever they stand. UnicodeDecodeError for UTF-16 or UTF-32 that is damaged.
    """
    if wide := wide_encoding(raw):
        return Decoded(_unmark(raw.decode(wide)), wide)
    try:
        return Decoded(_unmark(raw.decode("utf-8")), "utf-8")
    except UnicodeDecodeError:
        pass
    end = b"\n" if b"\n" in raw else b"\r"
    lines = raw.split(end)
    special = [number for number, line in enumerate(lines) if not line.isascii()]
    strange = [number for number in special if not _is(lines[number], "utf-8")]
    readable = [] if own == "utf-8" else [number for number in strange if _is(lines[number], own)]
    if len(readable) > len(special) - len(strange) and _looks_western([lines[number] for number in readable]):
        for number in readable:
            lines[number] = lines[number].decode(own).encode()
        example = readable[0] + 1, lines[readable[0]].decode().strip()
        encoding, unread = own, sorted(set(strange) - set(readable))
    else:
        example, encoding, unread = None, "utf-8", strange
    text = end.join(lines).decode("utf-8", "replace")
    return Decoded(_unmark(text), encoding, tuple(number + 1 for number in unread), example)


def decode_start(raw: bytes) -> str:
    """The text of a file's first bytes, which may end inside a character."""
    wide = wide_encoding(raw)
    return _unmark(raw.decode(wide, "ignore")) if wide else decode(raw, "cp1252").text


def wide_encoding(raw: bytes) -> str | None:
    """UTF-16 or UTF-32, if bytes begin with its mark."""
    return next((encoding for mark, encoding in _BOMS.items() if raw.startswith(mark)), None)


def _unmark(text: str) -> str:
    return text.replace("\ufeff", "") if "\ufeff" in text else text


def _is(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _looks_western(lines: list[bytes]) -> bool:
    """Whether bytes over 127 mostly stand alone: accents and curly quotes, no alphabet of their own."""
    single = sum(len(_HIGH.findall(line)) for line in lines)
    in_runs = sum(len(run) for line in lines for run in _HIGH_RUN.findall(line))
    return 2 * in_runs <= single


# What the bytes 0x80 to 0xbf become where UTF-8 is read as cp1252 or latin-1.
_TAIL = "\u0080-\u00bf" + re.escape("".join(bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0xA0)))
# First bytes of UTF-8 for Latin, Greek, Cyrillic, Hebrew and Arabic, for punctuation and Asia, for emoji; and the rest.
_MOJIBAKE = f"[ÂÃÄÅÎÏÐÑ×ØÙ][{_TAIL}]|[âãäåæçèéêëìí][{_TAIL}]{{2}}|ð[{_TAIL}]{{3}}"


def find_mojibake(cells: pl.Series) -> pl.Series:
    """The cells of text that was UTF-8, was read as cp1252 or latin-1, and was saved so ('CafÃ©')."""
    suspects = cells.filter(cells.str.contains(_MOJIBAKE))
    return suspects.filter(pl.Series([mend_mojibake(cell) != cell for cell in suspects], dtype=pl.Boolean))


def excerpt_mojibake(cell: str) -> str:
    """The first word of a cell that `find_mojibake` found in which the wrong characters stand."""
    words = (found[0] for found in re.finditer(rf"\S*(?:{_MOJIBAKE})\S*", cell))
    return next((word for word in words if mend_mojibake(word) != word), cell)


def mend_mojibake(cell: str) -> str:
    """The cell as it was meant, decoded once or twice too often; as it is where it is no such text."""
    for _ in range(3):
        mended = re.sub(_MOJIBAKE, lambda found: _redecode(found[0]), cell)
        if mended == cell:
            break
        cell = mended
    return cell


def _redecode(text: str) -> str:
    raw = b"".join(char.encode("cp1252" if char > "\u00ff" else "latin-1", "replace") for char in text)
    meant = raw.decode("utf-8", "replace")
    return text if re.search("[\u0080-\u009f\ufffd]", meant) else meant


def unescape(cells: pl.Series) -> pl.Series:
    """Strings with their HTML entities as characters ('Health &amp; Care')."""
    found = cells.str.contains(r"&#?\w+;").arg_true()
    if found.is_empty():
        return cells
    return cells.clone().scatter(found, [html.unescape(cell).strip() for cell in cells.gather(found)])
