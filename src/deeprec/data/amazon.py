"""Amazon Reviews 2023: the reviews or the rating table, and the product metadata, of one domain."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import polars as pl

from deeprec.config import DataConfig
from deeprec.data.categories import read_categories
from deeprec.data.compression import plain_name
from deeprec.data.files import Raw, read_fields, take
from deeprec.data.finding import JSON_LINES, Found
from deeprec.data.json_lines import clean, iterate_lines, read_json_lines, report_broken
from deeprec.data.parquet import text_of
from deeprec.data.report import LINE, Ledger
from deeprec.data.table import join_files

OWN_COLUMNS = {"user": "user_id", "item": "parent_asin", "time": "timestamp", "title": "title", "brand": "store"}
"""The columns of this layout by what they hold."""

_ID = re.compile(rb'"parent_asin"\s*:\s*"([^"\\]*)"')
_REVIEW = ("user_id", "parent_asin", "timestamp")
_DESCRIPTION_CHARS = 2000
_SCHEMA: dict[str, Any] = {
    LINE: pl.UInt32,
    **dict.fromkeys(("item", "title", "year", "brand", "description"), pl.String),
    "categories": pl.List(pl.String),
}


def read_amazon2023(found: Found, config: DataConfig, ledger: Ledger, *, every_item: bool = False) -> Raw:
    """`{domain}.csv` with user_id, parent_asin, timestamp, in parts of a split or not, or the reviews `{domain}.jsonl`,
    and the products `meta_{domain}.jsonl`.

    The metadata is streamed and, without `every_item`, only products with an interaction are kept. The description is
    `description`, or `features` where that is empty; the brand is `store`.
    """
    mend = "give the reviews or the rating table as they are published, or set data.format to 'table'"
    frames = []
    for path in found.interactions:
        if plain_name(path).endswith(JSON_LINES):
            rows = read_json_lines(path, ledger, _REVIEW)
            rows = rows.with_columns(
                text_of(cells, ledger.label(path), joined=False) for cells in rows.select(pl.exclude(LINE))
            )
        else:
            rows = read_fields(path, ",", ledger, quoted=True)
        frames.append(take(rows, ledger.label(path), mend, user="user_id", item="parent_asin", order="timestamp"))
    interactions = join_files(found.interactions, frames, ledger, found.parts)
    (items,) = found.items
    products = _read_meta(items, None if every_item else frozenset(interactions["item"].unique()), ledger)
    if separator := config.columns.category_separator:
        products = products.with_columns(categories=read_categories(products["categories"], separator))
    return Raw(ledger.label(found.interactions[0]), ledger.label(items), interactions, products)


def _read_meta(path: Path, wanted: frozenset[str] | None, ledger: Ledger) -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    broken: list[tuple[int, str]] = []
    count = 0
    for line, raw in iterate_lines(path):
        count += 1
        # Most products have no interaction: the id is found without parsing the line.
        ids = [] if wanted is None else _ID.findall(raw)
        if wanted is not None and ids and not any(found.decode("utf-8", "replace") in wanted for found in ids):
            continue
        try:
            product = json.loads(raw)
            item = product["parent_asin"]
            if not isinstance(item, str):
                raise TypeError(item)
        except (ValueError, TypeError, KeyError, RecursionError):
            broken.append((line, raw.decode("utf-8", "replace").strip()))
            continue
        if wanted is None or item in wanted:
            rows.append({LINE: line, "item": item} | _text_of(product))
    ledger.rows[ledger.label(path)] = count
    report_broken(broken, "JSON object with a parent_asin", path, ledger)
    return pl.DataFrame(rows, schema=_SCHEMA)


def _text_of(product: dict[str, Any]) -> dict[str, Any]:
    categories = product.get("categories")
    return {
        "title": _string(product.get("title")),
        "year": "",
        "brand": _string(product.get("store")),
        "description": (_string(product.get("description")) or _string(product.get("features")))[:_DESCRIPTION_CHARS],
        "categories": [_string(name) for name in categories] if isinstance(categories, list) else [],
    }


def _string(value: object) -> str:
    """Text of a JSON value that may be null, a string or a list of strings; HTML entities resolved."""
    if isinstance(value, list):
        value = " ".join(part for part in value if isinstance(part, str))
    if not isinstance(value, str):
        return ""
    return clean(html.unescape(value))
