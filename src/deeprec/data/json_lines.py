"""JSON lines: a JSON object a line, as text columns and lists."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from deeprec.data.categories import names_of
from deeprec.data.compression import open_lines
from deeprec.data.report import LINE, BadKind, Ledger, NoRowsError
from deeprec.errors import DeepRecError

_BROKEN = {LINE: pl.UInt32, "text": pl.String}


def read_json_lines(path: Path, ledger: Ledger, wanted: Collection[str]) -> pl.DataFrame:
    """The keys in `wanted` as columns: strings, '' where a row has none, or lists of strings where any row has a list
    or an object; `#line` from 1. Other keys are empty columns. The ledger takes lines that are no objects."""
    lines: list[int] = []
    columns: dict[str, list[Any]] = {}
    keys: dict[str, None] = {}
    broken: list[tuple[int, str]] = []
    count = 0
    for line, raw in iterate_lines(path):
        count += 1
        try:
            row = json.loads(raw)
            if not isinstance(row, dict):
                raise TypeError(row)
        except (ValueError, TypeError, RecursionError):
            broken.append((line, raw.decode("utf-8", "replace").strip()))
            continue
        for key in row:
            if key in wanted and key not in columns:
                columns[key] = [None] * len(lines)
        keys |= dict.fromkeys(row)
        lines.append(line)
        for key, values in columns.items():
            values.append(row.get(key))
    ledger.rows[ledger.label(path)] = count
    report_broken(broken, "JSON object", path, ledger)
    names = [key for key in keys if key != LINE]
    frame = {LINE: pl.Series(lines, dtype=pl.UInt32)} | {
        name: _column(columns.get(name, [None] * len(lines))) for name in names
    }
    return pl.DataFrame(frame)


def iterate_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1; DeepRecError if the file is damaged or empty."""
    line = 0
    try:
        with open_lines(path) as stream:
            for line, raw in enumerate(stream, 1):
                if line == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if raw.strip():
                    yield line, raw
    except (OSError, EOFError, zlib.error) as error:
        where = f"{path.name} cannot be read past line {line} ({error})"
        raise DeepRecError(f"{where}: fetch it again, or take .gz off its name if it is plain text.") from None
    if line == 0:
        raise NoRowsError(f"{path.name} is empty: fetch it again.")


def report_broken(rows: list[tuple[int, str]], what: str, path: Path, ledger: Ledger) -> None:
    frame = pl.DataFrame(rows, schema=_BROKEN, orient="row")
    ledger.drop(frame, pl.lit(True), BadKind.JSON, ledger.label(path), what=what)


def clean(text: str) -> str:
    """Without lone surrogates (\"\\\\ud800\"), which are legal JSON and no text."""
    return text.encode("utf-8", "ignore").decode("utf-8").strip()


def _column(values: list[Any]) -> pl.Series:
    if any(isinstance(value, list | dict) for value in values):
        lists = [[clean(part) for part in names_of(value)] for value in values]
        return pl.Series(lists, dtype=pl.List(pl.String))
    return pl.Series([_text(value) for value in values], dtype=pl.String)


def _text(value: object) -> str:
    if isinstance(value, str):
        return clean(value)
    return "" if value is None or value != value else json.dumps(value)
