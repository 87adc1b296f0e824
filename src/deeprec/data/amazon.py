"""Amazon Reviews 2023: the 5-core rating table and the product metadata of one domain."""

from __future__ import annotations

import html
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from deeprec.data.files import Raw, open_lines, read_fields, take
from deeprec.data.report import LINE, BadKind, Ledger
from deeprec.errors import DeepRecError

_ID = re.compile(rb'"parent_asin"\s*:\s*"([^"\\]*)"')
_DESCRIPTION_CHARS = 2000
_BROKEN = {LINE: pl.UInt32, "text": pl.String}
_SCHEMA: dict[str, Any] = {
    LINE: pl.UInt32,
    **dict.fromkeys(("item", "title", "year", "brand", "description"), pl.String),
    "categories": pl.List(pl.String),
}


def read_amazon2023(path: Path, items: Path, ledger: Ledger) -> Raw:
    """`{domain}.csv` with user_id, parent_asin, timestamp, and `meta_{domain}.jsonl`, either gzipped or not.

    The metadata is streamed and only products with an interaction are kept. The description is `description`,
    or `features` where that is empty; the brand is `store`.
    """
    mend = "give the rating table of the 5-core files, or set data.format to 'table'"
    ratings = read_fields(path, ",", ledger, quoted=True)
    interactions = take(ratings, ledger.label(path), mend, user="user_id", item="parent_asin", order="timestamp")
    products = _read_meta(items, frozenset(interactions["item"].unique()), ledger)
    return Raw(ledger.label(path), ledger.label(items), interactions, products)


def _read_meta(path: Path, wanted: frozenset[str], ledger: Ledger) -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    broken: list[dict[str, Any]] = []
    count = 0
    for line, raw in _lines(path):
        count += 1
        # Most products have no interaction: the id is found without parsing the line.
        ids = _ID.findall(raw)
        if ids and not any(found.decode("utf-8", "replace") in wanted for found in ids):
            continue
        try:
            product = json.loads(raw)
            item = product["parent_asin"]
            if not isinstance(item, str):
                raise TypeError(item)
        except (ValueError, TypeError, KeyError, RecursionError):
            broken.append({LINE: line, "text": raw.decode("utf-8", "replace").strip()})
            continue
        if item in wanted:
            rows.append({LINE: line, "item": item} | _text_of(product))
    ledger.rows[ledger.label(path)] = count
    ledger.drop(pl.DataFrame(broken, schema=_BROKEN), pl.lit(True), BadKind.JSON, ledger.label(path))
    return pl.DataFrame(rows, schema=_SCHEMA)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    line = 0
    try:
        with open_lines(path) as stream:
            for line, raw in enumerate(stream, 1):
                if raw.strip():
                    yield line, raw
    except (OSError, EOFError, zlib.error) as error:
        where = f"{path.name} cannot be read past line {line} ({error})"
        raise DeepRecError(f"{where}: fetch it again, or take .gz off its name if it is plain text.") from None
    if line == 0:
        raise DeepRecError(f"{path.name} is empty: fetch it again.")


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
    # Lone surrogates ("\\ud800") are legal JSON and no text.
    return html.unescape(value).encode("utf-8", "ignore").decode("utf-8").strip()
