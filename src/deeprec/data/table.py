"""RecBole's atomic files, and a user's own table with items in a file of their own or among the interactions."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import polars as pl

from deeprec.config import USUAL_COLUMNS, Columns, DataConfig
from deeprec.data.categories import read_categories
from deeprec.data.compression import plain_name
from deeprec.data.files import Raw, pick, read_any, read_fields, read_header, require
from deeprec.data.finding import JSON_LINES, Found
from deeprec.data.json_lines import read_json_lines
from deeprec.data.parquet import lists_of, read_parquet, text_of
from deeprec.data.report import FILE, LINE, Ledger, NoRowsError
from deeprec.errors import DeepRecError

_GENRES = ("genres", "class", "genre")  # of RecBole's files, separated by spaces
_ATOMIC_TITLES = ("title", "movie_title", "name", "item_name")
_TEXTS = ("title", "year", "brand", "description")

Read = Callable[[Path], pl.DataFrame]


def read_recbole(found: Found, config: DataConfig, ledger: Ledger) -> Raw:
    """`.inter` and `.item` files with typed headers ('user_id:token'), separated by tabs (or the mark that the header
    has), no quoting.

    `data.columns` names columns without their types. Where nothing is named, `timestamp`, `time` or `date` decides the
    order, else `position`, else the file's order; titles are in `title`, `movie_title`, `name` or `item_name`;
    categories in `genres`, `class` or `genre` (separated by spaces, or by the mark of most rows) or in `categories`.
    """
    columns = config.columns
    types: dict[str, str] = {}

    def read(path: Path) -> pl.DataFrame:
        frame = read_fields(path, _atomic_separator(path), ledger)
        types.update(_types(frame, ledger.label(path)))
        return frame.rename({name: name.partition(":")[0] for name in frame.columns if name != LINE})

    interactions, ordered_by = _read_interactions(found, read, columns, ledger, file_order=True)
    file = ledger.label(found.items[0])
    rows = read(found.items[0])
    named = {role: _column(rows, columns, role, file) for role in (*_TEXTS[1:], "categories")}
    if columns.title == Columns().title:
        named["title"] = require(rows, _ATOMIC_TITLES, "title", file, "name it with data.columns.title")
    else:
        named["title"] = _column(rows, columns, "title", file)
    kinds = named["categories"]
    words = kinds in _GENRES and types[kinds] == "token_seq"
    return Raw(
        interactions_file=ledger.label(found.interactions[0]),
        items_file=file,
        interactions=interactions,
        items=_item_text(rows, named, columns, file, ledger, words=words, tight_commas=True),
        ordered_by=ordered_by,
        dated_titles=named["year"] is not None,
    )


def read_table(found: Found, config: DataConfig, ledger: Ledger) -> Raw:
    """CSV, TSV, JSON lines (each may be compressed) or Parquet files of interactions, with an item file of these kinds
    or, without one, with a title column of its own; an item's first row with a title then gives its text."""
    columns = config.columns
    usual = {name for names in USUAL_COLUMNS.values() for name in names}
    wanted = usual | {"parent_asin"} | {name for name in columns.model_dump().values() if name is not None}
    read_before: dict[Path, pl.DataFrame] = {}

    def read(path: Path) -> pl.DataFrame:
        if path not in read_before:
            read_before[path] = _read(path, wanted, ledger, path in found.items and _names_title(path, columns))
        return read_before[path]

    found = _without_empty(found, read)
    interactions, ordered_by = _read_interactions(found, read, columns, ledger)
    if not found.items and columns.title not in read(found.interactions[0]).columns:
        first = ledger.label(found.interactions[0])
        raise DeepRecError(
            f"There are no item titles: {first} has no column {columns.title!r} and no item file "
            "is beside it: name a title column with data.columns.title or an item file with data.items."
        )
    files = _with_rows(found.items, read) or found.interactions
    texts, dated = [], False
    for path in files:
        rows = read(path)
        file = ledger.label(path)
        named = {role: _column(rows, columns, role, file) for role in (*_TEXTS, "categories")}
        texts.append(_item_text(rows, named, columns, file, ledger, first_is_item=path in found.items))
        dated = dated or named["year"] is not None
    return Raw(
        interactions_file=ledger.label(found.interactions[0]),
        items_file=ledger.label(files[0]),
        interactions=interactions,
        items=join_files(files, texts, ledger),
        ordered_by=ordered_by,
        dated_titles=dated,
    )


def _without_empty(found: Found, read: Read) -> Found:
    """Without interaction files that are empty, if their table, or their part of a split, has others."""
    parts = found.parts or (0,) * len(found.interactions)
    kept: list[tuple[Path, int]] = []
    for part in sorted(set(parts)):
        paths = [path for path, of in zip(found.interactions, parts, strict=True) if of == part]
        kept += [(path, part) for path in _with_rows(paths, read)]
    interactions = tuple(path for path, _ in kept)
    return replace(found, interactions=interactions, parts=tuple(part for _, part in kept) if found.parts else ())


def _with_rows(paths: Sequence[Path], read: Read) -> tuple[Path, ...]:
    """The files that have rows; NoRowsError if none of several has. Spark writes a file for each empty partition."""
    kept, errors = [], []
    for path in paths:
        try:
            read(path)
            kept.append(path)
        except NoRowsError as error:
            errors.append(error)
    if errors and not kept:
        raise errors[0]
    return tuple(kept)


def join_files(
    paths: Sequence[Path], frames: Sequence[pl.DataFrame], ledger: Ledger, parts: Sequence[int] = ()
) -> pl.DataFrame:
    """The rows of several files with their file's name in `#file`, and of a ready-made split with their `part`."""
    if len(frames) == 1:
        return frames[0]
    labels = map(ledger.label, paths)
    named = [frame.with_columns(pl.lit(file).alias(FILE)) for file, frame in zip(labels, frames, strict=True)]
    if parts:
        named = [frame.with_columns(part=pl.lit(part)) for part, frame in zip(parts, named, strict=True)]
    return pl.concat(named)


def _read(path: Path, wanted: Collection[str], ledger: Ledger, names_title: bool) -> pl.DataFrame:
    if plain_name(path).endswith(".parquet"):
        frame = read_parquet(path)
        ledger.rows[ledger.label(path)] = frame.height
        return frame
    if plain_name(path).endswith(JSON_LINES):
        return read_json_lines(path, ledger, wanted)
    return read_any(path, ledger, header=ledger.header or names_title)


def _names_title(path: Path, columns: Columns) -> bool:
    """Whether an item file has a header even where data.header says that files have none."""
    return columns.title in re.split(r"\W+", read_header(path))


def _read_interactions(
    found: Found, read: Read, columns: Columns, ledger: Ledger, *, file_order: bool = False
) -> tuple[pl.DataFrame, Literal["time", "position"]]:
    """#line, user, item and order of all interaction files; with `file_order` the row's number where nothing else
    orders them."""
    frames, orders = [], set[str]()
    for path in found.interactions:
        frame, file = read(path), ledger.label(path)
        if "item_id_list" in frame.columns:
            raise DeepRecError(
                f"{file} holds a history in each row (item_id_list): give the file with one interaction a row."
            )
        user, item = (_needed(frame, columns, role, file) for role in ("user", "item"))
        time, position = (_column(frame, columns, role, file) for role in ("time", "position"))
        # A position that was asked for by name wins over a time that was merely found.
        order = position if columns.position and not columns.time else time or position
        if order is None and not file_order:
            names = ", ".join(name for name in frame.columns if name != LINE)
            lack = f"{file} has neither a time nor a position column (its columns: {names})"
            raise DeepRecError(f"{lack}: name one with data.columns.time or data.columns.position.")
        if order is None:
            lack = f"{file} has no time or position column that is named or known"
            ledger.notes.append(f"{lack}, so its rows count in the file's order (else: data.columns.time)")
        orders.add("position" if order in (position, None) else "time")
        texts = {
            "user": _id_text(frame[user], file, ledger),
            "item": _id_text(frame[item], file, ledger),
            "order": frame[LINE].cast(pl.String) if order is None else text_of(frame[order], file, joined=False),
        }
        frames.append(pl.DataFrame({LINE: frame[LINE], **texts}))
    if len(orders) > 1:
        names = ", ".join(map(ledger.label, found.interactions))
        raise DeepRecError(f"Some of {names} have times and some positions: name data.columns.time or position.")
    return join_files(found.interactions, frames, ledger, found.parts), "time" if orders == {"time"} else "position"


def _item_text(
    rows: pl.DataFrame,
    named: Mapping[str, str | None],
    columns: Columns,
    file: str,
    ledger: Ledger,
    *,
    words: bool = False,
    tight_commas: bool = False,
    first_is_item: bool = False,
) -> pl.DataFrame:
    kinds = named["categories"]
    lists = pl.repeat(None, rows.height, dtype=pl.List(pl.String), eager=True)
    if kinds is not None:
        cells = lists_of(rows[kinds]) if rows[kinds].dtype.is_nested() else text_of(rows[kinds], file)
        lists = read_categories(cells, columns.category_separator, words=words, tight_commas=tight_commas)
    empty = pl.repeat("", rows.height, eager=True)
    texts = {role: empty if (name := named[role]) is None else text_of(rows[name], file) for role in _TEXTS}
    # Amazon's metadata may be the item file of a table.
    is_amazon = columns.item not in rows.columns and "parent_asin" in rows.columns
    if first_is_item and not ledger.header:  # columns.item is the position in the interactions
        item_column = rows.columns[1]
    else:
        item_column = "parent_asin" if is_amazon else _needed(rows, columns, "item", file)
    item = _id_text(rows[item_column], file, ledger)
    return pl.DataFrame({LINE: rows[LINE], "item": item, **texts, "categories": lists})


def _id_text(column: pl.Series, file: str, ledger: Ledger) -> pl.Series:
    text = text_of(column, file, joined=False)
    if column.dtype.is_float() and not text.str.contains(".", literal=True).any():
        ledger.notes.append(f"{file} has decimals in column {column.name!r}, read as whole numbers, 28.0 as 28")
    return text


def _atomic_separator(path: Path) -> str:
    """The mark that parts an atomic file's typed names; a tab where none does."""
    header = read_header(path).strip()
    marks = (mark for mark in "\t ,;|" if mark in header and all(":" in name for name in header.split(mark)))
    return next(marks, "\t")


def _types(frame: pl.DataFrame, file: str) -> dict[str, str]:
    """The type of each column by its bare name: 'token' of 'user_id:token'."""
    names = [name for name in frame.columns if name != LINE]
    types = {name: kind for name, _, kind in (name.partition(":") for name in names)}
    if not any(types.values()):
        raise DeepRecError(
            f"The header of {file}, {names}, has no types such as 'user_id:token': write them, "
            "or set data.format to 'table'."
        )
    if len(types) < len(names):
        raise DeepRecError(f"The header of {file}, {names}, names a column twice: rename one.")
    return types


def _column(frame: pl.DataFrame, columns: Columns, role: str, file: str) -> str | None:
    """The configured column, which must be there, or else one with a usual name, if there is one."""
    if getattr(columns, role) is None:
        return pick(frame, USUAL_COLUMNS[role])
    return _needed(frame, columns, role, file)


def _needed(frame: pl.DataFrame, columns: Columns, role: str, file: str) -> str:
    return require(frame, (getattr(columns, role),), role, file, f"name it with data.columns.{role}")
