"""RecBole's atomic files, and a user's own table with items in a file of their own or among the interactions."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from deeprec.config import USUAL_COLUMNS, Columns, DataConfig
from deeprec.data.files import Raw, contains, pick, read_any, read_fields, read_header, require, split_categories
from deeprec.data.report import LINE, Ledger
from deeprec.errors import DeepRecError

_GENRES = ("genres", "class", "genre")  # of RecBole's files, separated by spaces
_NO_CATEGORIES = pl.lit(None, dtype=pl.List(pl.String))


def read_recbole(path: Path, items: Path, ledger: Ledger) -> Raw:
    """`.inter` and `.item` files, tab separated, typed headers ('user_id:token'), no quoting.

    `timestamp` decides the order, else `position`. Titles are in `title`, `movie_title` or `name`; categories in
    `genres`, `class` or `genre` (separated by spaces, or by | where one occurs) or in `categories` (by commas).
    """
    interactions = _untyped(read_fields(path, "\t", ledger), ledger.label(path))
    item_rows = _untyped(read_fields(items, "\t", ledger), ledger.label(items))
    mend = "give the file this column"
    user = require(interactions, ("user_id",), "user", ledger.label(path), mend)
    item = require(interactions, ("item_id",), "item", ledger.label(path), mend)
    order = require(interactions, ("timestamp", "position"), "time or position", ledger.label(path), mend)
    usual = {role: pick(item_rows, names) for role, names in USUAL_COLUMNS.items()}
    return Raw(
        interactions_file=ledger.label(path),
        items_file=ledger.label(items),
        interactions=interactions.select(LINE, user=user, item=item, order=order),
        items=item_rows.select(
            LINE,
            item=require(item_rows, ("item_id",), "item", ledger.label(items), mend),
            title=require(item_rows, ("title", "movie_title", "name"), "title", ledger.label(items), mend),
            categories=_atomic_categories(item_rows, usual["categories"]),
            **{role: _text(usual[role]) for role in ("year", "brand", "description")},
        ),
        ordered_by="time" if order == "timestamp" else "position",
        dated_titles=usual["year"] is not None,
    )


def read_table(path: Path, items: Path | None, config: DataConfig, ledger: Ledger) -> Raw:
    """A CSV, TSV (either may be gzipped) or Parquet file of interactions, with an item file of the same kinds
    or, without one, with a title column of its own; an item's first row then gives its text."""
    columns = config.columns
    interactions = read_any(path, ledger)
    roles = ("user", "item", "time", "position")
    user, item, time, position = (_column(interactions, columns, role, ledger.label(path)) for role in roles)
    # A position that was asked for by name wins over a time that was merely found.
    order = position if columns.position and not columns.time else time or position
    if order is None:
        found = ", ".join(name for name in interactions.columns if name != LINE)
        lack = f"{ledger.label(path)} has neither a time nor a position column (its columns: {found})"
        raise DeepRecError(f"{lack}: name one with data.columns.time or data.columns.position.")
    if items is None and columns.title not in interactions.columns:
        raise DeepRecError(
            f"There are no item titles: {ledger.label(path)} has no column {columns.title!r} and no item file is "
            "beside it: name a title column with data.columns.title or an item file with data.items."
        )
    item_rows = interactions if items is None else _read_items(items, columns, ledger)
    items_file = ledger.label(path) if items is None else ledger.label(items)
    text_roles = ("title", "year", "brand", "description")
    named = {role: _column(item_rows, columns, role, items_file) for role in text_roles}
    # In a file without header, columns.item is the position in the interactions; an item file begins with the item.
    bare = items is not None and not ledger.header
    named["item"] = item_rows.columns[1] if bare else _column(item_rows, columns, "item", items_file)
    categories = _column(item_rows, columns, "categories", items_file)
    split = split_categories(categories, columns.category_separator, item_rows) if categories else _NO_CATEGORIES
    text = item_rows.select(LINE, categories=split, **{role: _text(name) for role, name in named.items()})
    return Raw(
        interactions_file=ledger.label(path),
        items_file=items_file,
        interactions=interactions.select(LINE, user=user, item=item, order=order),
        items=text,
        ordered_by="position" if order == position else "time",
        dated_titles=named["year"] is not None,
    )


def _read_items(path: Path, columns: Columns, ledger: Ledger) -> pl.DataFrame:
    """The item file; where files have no header, it may still have one that names the title."""
    return read_any(path, ledger, header=ledger.header or columns.title in re.split(r"\W+", read_header(path)))


def _untyped(frame: pl.DataFrame, file: str) -> pl.DataFrame:
    """Columns without their types ('user_id:token' becomes 'user_id')."""
    names = [name for name in frame.columns if name != LINE]
    bare = [name.partition(":")[0] for name in names]
    if bare == names:
        raise DeepRecError(
            f"The header of {file}, {names}, has no types such as 'user_id:token': write them, "
            "or set data.format to 'table'."
        )
    if len(set(bare)) < len(bare):
        raise DeepRecError(f"The header of {file}, {names}, names a column twice: rename one.")
    return frame.rename(dict(zip(names, bare, strict=True)))


def _column(frame: pl.DataFrame, columns: Columns, role: str, file: str) -> str | None:
    """The configured column, which must be there, or else one with a usual name, if there is one."""
    name = getattr(columns, role)
    if name is None:
        return pick(frame, USUAL_COLUMNS[role])
    return require(frame, (name,), role, file, f"name it with data.columns.{role}")


def _text(column: str | None) -> pl.Expr:
    return pl.lit("") if column is None else pl.col(column)


def _atomic_categories(frame: pl.DataFrame, column: str | None) -> pl.Expr:
    if column is None:
        return _NO_CATEGORIES
    if contains(frame[column], "|"):
        return split_categories(column, "|", frame)
    if column in _GENRES:
        return split_categories(column, " ", frame)
    # 'Tapes, Adhesives & Sealants,Adhesive Tapes': a comma before a space belongs to the name, unless all do.
    if frame[column].str.contains(r",[^ ]").any():
        kept = pl.col(column).str.replace_all(", ", "\x00", literal=True).str.split(",")
        return kept.list.eval(pl.element().str.replace_all("\x00", ", ", literal=True))
    return split_categories(column, ",", frame)
