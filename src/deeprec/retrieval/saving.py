"""A folder of files with a record (JSON), replaced as a whole."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from deeprec.errors import DeepRecError, one_line


@contextmanager
def replacing(folder: Path, name: str, title: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A new folder to write files into, and a record to fill, which at the end replace those that `folder` has.

    The record becomes `<name>.json`, and its "folder" names the folder of the files. A kill or an error leaves the old
    files or the new ones, whole. Other files in `folder` stay. `title` is the thing's name in the DeepRecError that
    says that files can't be written.
    """
    files, record = folder / f"{name}-{secrets.token_hex(4)}", {"folder": ""}
    try:
        files.mkdir(parents=True)
        yield files, record
        part = folder / f"{name}.json.part"
        part.write_text(json.dumps(record | {"folder": files.name}, indent=2) + "\n", encoding="utf-8")
        os.replace(part, folder / f"{name}.json")  # now the folder holds the new files
    except (DeepRecError, OSError, RuntimeError, SafetensorError) as error:  # FAISS raises RuntimeError
        shutil.rmtree(files, ignore_errors=True)
        if isinstance(error, DeepRecError):
            raise
        fault = f"The {title} can't be written to {folder} ({one_line(error)})"
        raise DeepRecError(f"{fault}: make room there or mend its permissions.") from None
    for old in folder.glob(f"{name}-{8 * '[0-9a-f]'}"):
        if old != files:
            shutil.rmtree(old, ignore_errors=True)  # a file that is mapped stays readable
