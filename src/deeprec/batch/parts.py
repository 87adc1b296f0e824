"""A table that is made part by part in a folder beside its file, so that an interrupted run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from deeprec.errors import DeepRecError
from deeprec.runs import JsonLines, explaining_full_disk, lock

_SINKS: dict[str, Callable[[pl.LazyFrame, Path], object]] = {
    ".parquet": pl.LazyFrame.sink_parquet,
    ".csv": pl.LazyFrame.sink_csv,
    ".jsonl": pl.LazyFrame.sink_ndjson,
}
"""Each writes a file without holding the whole table in memory."""
_RECORD = "record.json"


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a table in a folder, numbered from 0; a part is there whole or not at all."""

    folder: Path
    total: int

    def missing(self) -> list[int]:
        return [number for number in range(self.total) if not self._file(number).exists()]

    def add(self, number: int, frame: pl.DataFrame) -> None:
        """DeepRecError if the disk is full."""
        file, scratch = self._file(number), self.folder / "part"
        with explaining_full_disk(self.folder):
            frame.write_parquet(scratch)
            os.replace(scratch, file)
        self.log(number).path.unlink(missing_ok=True)

    def log(self, number: int) -> JsonLines:
        """What is known of a part before it is whole; gone once it is."""
        return JsonLines(self.folder / f"{number:06}.jsonl")

    def scan(self) -> pl.LazyFrame:
        return pl.scan_parquet([self._file(number) for number in range(self.total)], glob=False)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06}.parquet"


@contextmanager
def table_in_parts(path: Path, record: Mapping[str, Any], total: int) -> Iterator[Parts]:
    """The parts of the table that `path` is to hold; where the block ends with all of them, they become the file.

    They lie in the folder `<path>.parts`. `record` says what decides the table, by what a reader calls it, as JSON
    values: parts of another record are no parts of this table.

    DeepRecError if the file is there, its ending is unknown, the folder has parts of another record, another process is
    at work on them, or the disk is full. Parts are kept then, and the next call with the same record goes on.
    """
    check_file(path)
    folder = folder_of(path)
    with explaining_full_disk(path):
        folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        _compare(folder, json.loads(json.dumps(record)))
        parts = Parts(folder, total)
        # A file beside all parts is of a run that was killed at its very end.
        if not path.exists() or parts.missing():
            _refuse_file(path)
            yield parts
            _join(parts, path)
        else:
            yield parts
        for pattern in ("*.parquet", "*.jsonl", "part", "joined", _RECORD, ".lock"):
            for file in folder.glob(pattern):
                file.unlink(missing_ok=True)
    with suppress(OSError):  # something of another's lies there
        folder.rmdir()


def folder_of(path: Path) -> Path:
    """Of the parts."""
    return path.with_name(f"{path.name}.parts")


def check_file(path: Path) -> None:
    """DeepRecError if no run could write this file."""
    if path.suffix.lower() not in _SINKS:
        raise DeepRecError(f"{path} names no format: let it end in {', '.join(_SINKS)}.")
    if not folder_of(path).is_dir():
        _refuse_file(path)


def _refuse_file(path: Path) -> None:
    if path.exists():
        raise DeepRecError(f"{path} is there already and is kept: remove it, or name another file.")


def _compare(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record, or compare it with the one that is there."""
    file, scratch = folder / _RECORD, folder / "part"
    if not file.exists():
        with explaining_full_disk(folder):
            scratch.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            os.replace(scratch, file)
        return
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        other = [name for name in record if known.get(name) != record[name]]
    except (ValueError, AttributeError):
        raise DeepRecError(f"{file} is damaged: remove {folder} to begin again.") from None
    if other:
        raise DeepRecError(
            f"{folder} holds an unfinished run with another {' and another '.join(other)}: finish it with its own "
            "settings, or remove the folder."
        )


def _join(parts: Parts, path: Path) -> None:
    joined = parts.folder / "joined"
    with explaining_full_disk(path):
        try:
            _SINKS[path.suffix.lower()](parts.scan(), joined)
        except BaseException:
            joined.unlink(missing_ok=True)  # a full disk needs the room
            raise
        os.replace(joined, path)
