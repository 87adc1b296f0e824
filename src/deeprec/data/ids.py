"""Ids that tables of numbers write in two ways: 28 in one file, 28.0 in the other."""

from __future__ import annotations

import polars as pl

from deeprec.data.files import Raw
from deeprec.data.report import Ledger

_WHOLE = r"^([+-]?\d+)\.0+$"


def match_whole_numbers(raw: Raw, ledger: Ledger) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Interactions and items of `raw`, with ids such as 28.0 as 28 where the other file or other rows write 28.

    Ids that are the same everywhere stay as they are written.
    """
    interactions, items = raw.interactions, raw.items
    known, wanted = items["item"].unique(), interactions["item"].unique()
    lost = wanted.filter(~wanted.is_in(known.implode()))
    if not lost.is_empty():
        here, there = _bare(lost), _bare(known)
        if here.is_in(there.implode()).any():
            interactions, items = (frame.with_columns(_bare_all("item")) for frame in (interactions, items))
            files = f"items of {raw.interactions_file} and {raw.items_file}"
            ledger.notes.append(f"{files} are matched as whole numbers, such as {_example(wanted, known)}")
    users = interactions["user"].unique()
    decimal = users.filter(users.str.contains(_WHOLE))
    if _bare(decimal).is_in(users.implode()).any():
        interactions = interactions.with_columns(_bare_all("user"))
        ledger.notes.append(
            f"users of {raw.interactions_file} are matched as whole numbers, such as {_example(users, users)}"
        )
    return interactions, items


def _bare(ids: pl.Series) -> pl.Series:
    return ids.str.replace(_WHOLE, "$1")


def _bare_all(column: str) -> pl.Expr:
    return pl.col(column).str.replace(_WHOLE, "$1")


def _example(ids: pl.Series, others: pl.Series) -> str:
    written = pl.concat([ids, others]).unique().sort()
    bare = _bare(written)
    first = written.filter((bare != written) & bare.is_in(written.implode())).item(0)
    return f"{first} for {first.partition('.')[0]}"
