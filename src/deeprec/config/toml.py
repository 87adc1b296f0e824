"""TOML: files, and single values."""

from __future__ import annotations

import codecs
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deeprec.errors import DeepRecError


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The file's content; `what` names it in the DeepRecError where it is missing."""
    try:
        raw = path.read_bytes()
        # Editors and shells on Windows begin files with a byte order mark, some in UTF-16.
        wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return tomllib.loads(raw.decode("utf-16" if wide else "utf-8-sig").replace("\r\n", "\n"))
    except FileNotFoundError:
        raise DeepRecError(f"There is no {what} {path}: check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise DeepRecError(f"{path} is not readable TOML ({error}): mend the file.") from None


def apply_override(tree: dict[str, Any], override: str, is_text: Callable[[str], bool] = lambda _: False) -> None:
    """Set `section.key=value` in a tree; the value is read as TOML and, failing that, as a string.

    Where `is_text` says that a key holds text, numbers and dates are text as they are written.
    """
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise DeepRecError(f"--set {override!r} is not of the form section.key=value.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if not isinstance(value, str | list | dict) and is_text(key.strip()):
        value = text.strip()
    *parents, last = key.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise DeepRecError(f"--set {override!r}: {parent!r} is not a section.")
    tree[last] = value
