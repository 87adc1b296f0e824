"""What the item text of every format passes: cells that mean nothing, HTML entities, mojibake, one row an item."""

from __future__ import annotations

import polars as pl

from deeprec.data.encodings import excerpt_mojibake, find_mojibake, mend_mojibake, unescape
from deeprec.data.files import Raw
from deeprec.data.report import LINE, BadKind, Ledger, position, shorten

NOTHING = ("nan", "NaN", "null", "NULL", "N/A", "n/a", "#N/A", "<NA>", "NaT", "\\N")
"""Cells that programs write where there is nothing; no title is spelt so."""
TITLE_OR_NOTHING = ("None", "none", "NONE", "Null", "NA")
"""Cells that are nothing in other text, and as titles where several items have the same: films bear such names."""

_TEXT = ("title", "brand", "description")
_YEAR_ZERO = r"^0+([-/.: ].*)?$"


def clean_items(raw: Raw, items: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """The rows of `items`, one an item; bad ones go to the ledger.

    Cells that mean nothing become '', HTML entities characters. Blank cells of an item's first row are filled from its
    later rows. Ids are never changed. Item rows that were taken from interactions repeat by nature: none is bad.
    """
    file = raw.items_file
    of_interactions = file == raw.interactions_file
    if of_interactions:
        items = items.filter(pl.col("item") != "").unique(
            set(items.columns) - {LINE}, keep="first", maintain_order=True
        )
    items = items.with_columns(unescape(items[name]) for name in _TEXT)
    shared = items.filter(pl.col("title").is_in(TITLE_OR_NOTHING) & (pl.col("item").n_unique().over("title") > 1))
    year = _without(pl.col("year"), (*NOTHING, *TITLE_OR_NOTHING))
    items = items.with_columns(
        _without(pl.col("title"), (*NOTHING, *shared["title"].unique())),
        _without(pl.col("brand", "description"), (*NOTHING, *TITLE_OR_NOTHING)),
        pl.when(year.str.contains(_YEAR_ZERO)).then(pl.lit("")).otherwise(year).alias("year"),
        _clean_categories(items["categories"]),
    )
    _note_mojibake(items, file, ledger)
    items = ledger.drop(items, pl.col("item") == "", BadKind.ITEM, file)
    repeated = ~pl.col("item").is_first_distinct()
    if items.select(repeated.any()).item():
        text, categories = pl.col(*_TEXT, "year"), pl.col("categories")
        items = items.with_columns(
            text.filter(text != "").first().over("item").fill_null(""),
            categories.filter(categories.list.len() > 0).first().over("item"),
        )
    return items.filter(~repeated) if of_interactions else ledger.drop(items, repeated, BadKind.REPEATED_ITEM, file)


def _without(text: pl.Expr, nothing: tuple[str, ...]) -> pl.Expr:
    return pl.when(text.is_in(nothing)).then(pl.lit("")).otherwise(text).name.keep()


def _clean_categories(categories: pl.Series) -> pl.Series:
    """Lists without names that mean nothing."""
    names = categories.explode().unique().drop_nulls()
    clean = dict(zip(names, unescape(names), strict=True)) | dict.fromkeys((*NOTHING, *TITLE_OR_NOTHING), "")
    changed = {name: new for name, new in clean.items() if name != new}
    element = pl.element().replace(list(changed), list(changed.values()))
    return categories.list.eval(element.filter(element != ""))


def _note_mojibake(items: pl.DataFrame, file: str, ledger: Ledger) -> None:
    for column in _TEXT:
        found = find_mojibake(items[column])
        if found.is_empty():
            continue
        word = excerpt_mojibake(found[0])
        where = position(file, items.filter(pl.col(column) == found[0])[LINE][0])
        ledger.notes.append(
            f"{file} has UTF-8 that was read in another encoding and saved ({column} of {len(found):,} items), first "
            f"{shorten(word)} for {shorten(mend_mojibake(word))} in {where}: export the file again as UTF-8"
        )
