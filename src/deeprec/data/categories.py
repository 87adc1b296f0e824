"""Categories: lists, lists written as text, and cells with separators."""

from __future__ import annotations

import ast
import html
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

_NAME_FIELDS = ("name", "title", "label", "category", "genre", "tag", "value", "text")
_BRACKETED = r"(?s)^(?:\[.*\]|\{.*\}|\(.*\)|array\(.*\))$"
_QUOTED = r"""^(?:'[^']*'|"[^"]*")(?:\s*[,;|]\s*(?:'[^']*'|"[^"]*"))*$"""
_BETWEEN_QUOTED = re.compile(r"""(?<=['"])\s*[,;|]\s*(?=['"])""")
_ARRAY = re.compile(r"(?s)^array\((.*?)(?:,\s*dtype=[^)]*)?\)$")
_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_STRINGS = re.compile(rf"""(?s)({_STRING})(\s+(?=['"]))?""")


def read_categories(
    cells: pl.Series, separator: str | None = None, *, words: bool = False, tight_commas: bool = False
) -> pl.Series:
    """Lists of names from a column of lists or of text.

    A cell may be a JSON or Python list as text, of strings or of objects with a name. Other cells are split at
    `separator`, which also splits the names in lists, or without one at the mark that most rows use: | or ; or , .
    With `words`, spaces separate where few rows have a mark. With `tight_commas`, a comma before a space belongs to a
    name, where most rows with commas have one without a space.
    """
    if cells.dtype == pl.List(pl.String):
        lists: Iterable[list[str]] = [
            _split_again([name for name in names or [] if name is not None], separator) for names in cells.to_list()
        ]
    else:
        cells = cells.fill_null("").str.strip_chars()
        written = cells.filter(cells.str.contains(_BRACKETED) | cells.str.contains(_QUOTED))
        read = {text: _parse(text) for text in written.unique().to_list()}
        texts = cells.to_list()
        plain = [text if read.get(text) is None else "" for text in texts]
        split = _split(plain, separator, words, tight_commas)
        lists = (
            names if (own := read.get(text)) is None else _split_again(own, separator)
            for text, names in zip(texts, split, strict=True)
        )
    return pl.Series(list(lists), dtype=pl.List(pl.String))


def names_of(value: object) -> list[str]:
    """The names in a value of JSON, Python or Parquet: strings, numbers, lists of them, objects with a name."""
    if value is None or value != value:
        return []
    if isinstance(value, Mapping):
        return _names_of_object(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [name for part in value for name in names_of(part)]
    return [str(value)]


def _names_of_object(value: Mapping[Any, Any]) -> list[str]:
    """The field that names an object, else its texts ({"/m/0lsxr": "Crime"}), else its keys ({"Crime": 3})."""
    fields = {str(key).casefold(): part for key, part in value.items()}
    for key in _NAME_FIELDS:
        if isinstance(fields.get(key), str):
            return [fields[key]]
    return [part for part in value.values() if isinstance(part, str)] or list(map(str, value))


def _parse(text: str) -> list[str] | None:
    """The names in a list written as text; None if it is none."""
    if text[-1] in "'\"":
        text = f"[{_BETWEEN_QUOTED.sub(', ', text)}]"
    elif array := _ARRAY.match(text):
        text = array[1]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        with_commas = _STRINGS.sub(lambda found: f"{found[1]}, " if found[2] else found[0], text)  # numpy writes none
        try:
            with warnings.catch_warnings(action="ignore"):  # of Python's parser about '\d'
                value = ast.literal_eval(with_commas)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return None
    return names_of(value) if isinstance(value, list | tuple | set | dict) else None


def _split(cells: list[str], separator: str | None, words: bool, tight_commas: bool) -> list[list[str]]:
    texts = pl.Series(cells, dtype=pl.String)
    bare = sum(cell[0] + cell[-1] in ("[]", "{}") for cell in cells if cell) * 2 > sum(map(bool, cells))
    if bare:  # lists without quotes, as Java and PostgreSQL write them
        texts = texts.str.replace(r"(?s)^[\[{](.*)[\]}]$", "$1")
    if texts.str.contains(r"&#?\w+;").any():
        texts = pl.Series(list(map(html.unescape, texts.to_list())), dtype=pl.String)
    mark = separator or _common_mark(texts, words)
    if mark == "," and tight_commas and separator is None and _has_tight_commas(texts):
        texts, mark = texts.str.replace_all(r",([^ ])", "\x00$1"), "\x00"
    lists = texts.str.split(mark)
    if bare:
        lists = lists.list.eval(pl.element().str.strip_chars().str.replace(r"""^(?:"(.*)"|'(.*)')$""", "$1$2"))
    found: list[list[str]] = lists.to_list()
    return found


def _common_mark(cells: pl.Series, words: bool) -> str:
    """The separator that most rows use.

    Commas stand in names too, so they separate only where they are in more than twice as many rows as | or ; are.
    """
    rows = {mark: int(cells.str.contains(mark, literal=True).sum()) for mark in "|;,"}
    mark = max("|;", key=rows.__getitem__)
    if rows[","] > 2 * rows[mark]:
        mark = ","
    spaced = cells.str.contains(" ", literal=True) & ~cells.str.contains(mark, literal=True)
    return " " if words and (2 * rows[mark] <= int(spaced.sum()) or not rows[mark]) else mark


def _has_tight_commas(cells: pl.Series) -> bool:
    tight = cells.str.contains(r",[^ ]")
    loose = cells.str.contains(", ", literal=True) & ~tight
    return bool(tight.any()) and int(tight.sum()) >= int(loose.sum())


def _split_again(names: list[str], separator: str | None) -> list[str]:
    return names if separator is None else [part for name in names for part in name.split(separator)]
