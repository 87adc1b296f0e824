"""Compressed files, told by their first bytes; archives and workbooks are refused with what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from deeprec.errors import DeepRecError


def _open_zst(path: Path) -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd.open(path)


# Ending of the name: first bytes, and what opens such a file.
_COMPRESSED: dict[str, tuple[bytes, Callable[[Path], Any]]] = {
    ".gz": (b"\x1f\x8b", gzip.open),
    ".bz2": (b"BZh", bz2.open),
    ".xz": (b"\xfd7zXZ\x00", lzma.open),
    ".zst": (b"\x28\xb5\x2f\xfd", _open_zst),
}
ENDINGS = tuple(_COMPRESSED)

EXCEL = (".xlsx", ".xlsm", ".xls", ".xlsb", ".ods")
_OLD_EXCEL = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_WORKBOOK_PARTS = (b"xl/", b"[Content_Types].xml", b"opendocument.spreadsheet")
_ARCHIVES = {b"PK\x03\x04": "zip", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar"}
_HEAD = 4096


def plain_name(path: Path) -> str:
    """A file's name without the ending of a compression: 'ml-1m.inter' of 'ml-1m.inter.zst'."""
    return path.stem if path.suffix in ENDINGS else path.name


def with_compressed(*endings: str) -> tuple[str, ...]:
    """Each ending, and each followed by one of a compression."""
    return tuple(ending + packed for ending in endings for packed in ("", *ENDINGS))


def open_lines(path: Path) -> io.BufferedReader:
    """A stream of a file's bytes, decompressed if it is gzip, bzip2, xz or zstd by its content, not by its name.

    Damage comes as OSError while reading. DeepRecError for archives, Excel files, and a name that promises a
    compression which the content has not.
    """
    with path.open("rb") as plain:
        head = plain.read(_HEAD)
    for magic, opener in _COMPRESSED.values():
        if head.startswith(magic):
            return io.BufferedReader(_Decompressed(opener(path)), 1 << 18)
    refuse_archive(path, head)
    if path.suffix in ENDINGS:
        fault = f"{path.name} is not a whole {path.suffix.removeprefix('.').replace('gz', 'gzip')} file"
        raise DeepRecError(f"{fault}: fetch it again, or take {path.suffix} off its name if it is plain text.")
    return path.open("rb")


def refuse_archive(path: Path, head: bytes) -> None:
    """DeepRecError if a file that begins with `head` is a workbook, an archive or Parquet."""
    kind = next((name for magic, name in _ARCHIVES.items() if head.startswith(magic)), None)
    if head.startswith(_OLD_EXCEL) or (
        kind == "zip" and (path.suffix.lower() in EXCEL or any(part in head for part in _WORKBOOK_PARTS))
    ):
        raise DeepRecError(f"{path.name} is an Excel or OpenDocument workbook: save its sheet as CSV, and name that.")
    if head.startswith(b"PAR1"):
        raise DeepRecError(f"{path.name} is a Parquet file: give it a name that ends in .parquet.")
    if kind is None and head[257:262] == b"ustar":
        kind = "tar"
    if kind is not None:
        raise DeepRecError(f"{path.name} is a {kind} archive: unpack it, and name the file in it.")


class _Decompressed(io.RawIOBase):
    """A decompressor's stream whose damage is an OSError, whatever its own errors are."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._read(-1)

    def _read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except (EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            raise OSError(str(error)) from error
        except Exception as error:
            if type(error).__name__ != "ZstdError":  # its module is loaded for such files alone
                raise
            raise OSError(str(error)) from error

    def close(self) -> None:
        self._stream.close()
        super().close()
