"""Parquet files: columns of many types, and their text."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl

from deeprec.data.categories import names_of
from deeprec.data.compression import ENDINGS, open_lines
from deeprec.data.report import LINE, NoRowsError
from deeprec.errors import DeepRecError

_WHOLE = 2.0**53  # larger floats are no exact integers


def read_parquet(path: Path) -> pl.DataFrame:
    """A Parquet file as it is; `#line` is the row's number from 1. DeepRecError if it is missing, damaged or empty."""
    if not path.is_file():
        raise DeepRecError(f"There is no file {path}: check the path.")
    try:
        packed = path.suffix in ENDINGS
        frame = pl.read_parquet(io.BytesIO(open_lines(path).read()) if packed else path)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DeepRecError(f"{path.name} is not a whole Parquet file ({reason}): write it again.") from None
    if frame.is_empty():
        raise NoRowsError(f"{path.name} has no rows: give a file with rows.")
    return frame.drop(LINE, strict=False).with_row_index(LINE, offset=1)


def text_of(column: pl.Series, file: str, *, joined: bool = True) -> pl.Series:
    """A column's cells as stripped text, '' for null.

    Floats and decimals that are all whole become whole numbers, dates become ISO dates in UTC. Lists and objects give
    their names, joined by spaces where `joined`. DeepRecError if the type has no text.
    """
    dtype = column.dtype
    if joined and dtype.is_nested():
        text = lists_of(column).list.join(" ", ignore_nulls=True)
    elif dtype.is_float() or dtype.is_decimal():
        text = _numbers_as_text(column)
    elif isinstance(dtype, pl.Datetime | pl.Date):
        moments = column.cast(pl.Datetime("us", getattr(dtype, "time_zone", None)))
        text = moments.dt.epoch("us").cast(pl.Datetime("us")).dt.to_string("%Y-%m-%d %H:%M:%S%.6f")
    elif dtype == pl.Binary:
        try:
            text = column.cast(pl.String)
        except pl.exceptions.PolarsError:
            lack = f"{file} has bytes in column {column.name!r} that are no UTF-8 text"
            raise DeepRecError(f"{lack}: write it as text.") from None
    elif isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Boolean | pl.Null) or dtype.is_integer():
        text = column.cast(pl.String)
    else:
        raise DeepRecError(
            f"{file} has the type {dtype} in column {column.name!r}, which has no text: write it as text."
        )
    return text.fill_null("").str.strip_chars()


def lists_of(column: pl.Series) -> pl.Series:
    """The names in each cell of a column of lists or objects, as lists of strings."""
    if isinstance(column.dtype, pl.List) and column.dtype.inner == pl.String:
        return column
    return pl.Series(column.name, list(map(names_of, column.to_list())), dtype=pl.List(pl.String))


def _numbers_as_text(column: pl.Series) -> pl.Series:
    numbers = column.cast(pl.Float64)
    text = column.cast(pl.String).set(numbers.is_nan(), None)
    whole = (numbers.is_nan() | (numbers == numbers.floor()) & (numbers.abs() < _WHOLE)).fill_null(True)
    return numbers.fill_nan(None).cast(pl.Int64).cast(pl.String) if whole.all() else text
