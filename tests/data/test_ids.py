"""Ids that files write in two ways, and columns of Parquet that are no text."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from deeprec.errors import DeepRecError
from small_tables import ITEMS, load, put, sequence

FLOAT_ITEMS = "item_id,title\n" + "".join(f"{n}.0,Title {n}\n" for n in range(1, 5))


def rows(*items: str, user: str = "u") -> str:
    return "user_id,item_id,time\n" + "".join(f"{user},{item},{time}\n" for time, item in enumerate(items))


@pytest.mark.parametrize(
    ("interactions", "items"),
    [
        (rows("3.0", "1.0", "4.0"), ITEMS),
        (rows("3", "1", "4"), FLOAT_ITEMS),
        (rows("3.0", "1", "4.00"), ITEMS),
        (rows("3.0", "1.0", "4.0"), FLOAT_ITEMS.replace("1.0,", "1,")),
    ],
)
def test_whole_floats_match_between_the_files(tmp_path: Path, interactions: str, items: str) -> None:
    dataset = load(put(tmp_path, interactions__csv=interactions, items__csv=items))
    assert sequence(dataset, "u") == ["3", "1", "4"]
    assert dataset.catalog.titles == ("Title 1", "Title 3", "Title 4")
    assert dataset.report.bad == ()
    assert any("matched as whole numbers, such as" in note for note in dataset.report.notes)


@pytest.mark.parametrize(
    ("interactions", "items", "ids"),
    [
        (rows("3.0", "1.0"), FLOAT_ITEMS, ["3.0", "1.0"]),  # the same in both: as written
        (rows("1.5", "1.0"), "item_id,title\n1.5,A\n1.0,B\n", ["1.5", "1.0"]),
        (rows("1.0.0", "v1.0"), "item_id,title\n1.0.0,A\nv1.0,B\n", ["1.0.0", "v1.0"]),
    ],
)
def test_other_ids_stay_as_they_are(tmp_path: Path, interactions: str, items: str, ids: list[str]) -> None:
    dataset = load(put(tmp_path, interactions__csv=interactions, items__csv=items))
    assert sequence(dataset, "u") == ids
    assert dataset.report.notes == ()


def test_users_match_too(tmp_path: Path) -> None:
    put(tmp_path, items__csv=ITEMS, train__csv=rows("1", "2", user="7.0"), test__csv=rows("3", user="7"))
    dataset = load(tmp_path)
    assert dataset.users == ("7",)
    assert sequence(dataset, "7") == ["1", "2", "3"]


@pytest.mark.parametrize("dtype", [pl.Float64, pl.Float32, pl.Decimal(10, 2), pl.Int8, pl.UInt64, pl.String, pl.Binary])
def test_ids_of_parquet(tmp_path: Path, dtype: pl.DataType) -> None:
    frame = pl.DataFrame({"user_id": ["1", "1", "2"], "item_id": ["3", "1", "1"], "time": [1, 2, 3]})
    numbers = frame.with_columns(pl.col("user_id", "item_id").cast(pl.Int64).cast(dtype, strict=False))
    if dtype in (pl.String, pl.Binary):
        numbers = frame.with_columns(pl.col("user_id", "item_id").cast(dtype))
    numbers.write_parquet(tmp_path / "interactions.parquet")
    dataset = load(put(tmp_path, items__csv=ITEMS))
    assert dataset.users == ("1", "2")
    assert sequence(dataset, "1") == ["3", "1"]
    assert any("28.0 as 28" in note for note in dataset.report.notes) == (dtype in (pl.Float64, pl.Float32))


def test_a_missing_float_id_is_an_empty_one(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": [1.0, 2.0, None], "item_id": [1, 2, 3], "time": [1, 2, 3]})
    frame.with_columns(
        pl.when(pl.col("time") == 2).then(float("nan")).otherwise("user_id").alias("user_id")
    ).write_parquet(tmp_path / "interactions.parquet")
    dataset = load(put(tmp_path, items__csv=ITEMS), max_bad_share=0.9)
    assert dataset.users == ("1",)
    assert [(bad.kind, bad.count) for bad in dataset.report.bad] == [("empty user", 2)]


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        (pl.Series(["Blue", "Red"], dtype=pl.Categorical), "Blue"),
        (pl.Series(["Blue", "Red"], dtype=pl.Enum(["Blue", "Red"])), "Blue"),
        (pl.Series(["Café".encode(), b"Red"]), "Café"),
        (pl.Series([True, False]), "true"),
        (pl.Series([Decimal("1.50"), Decimal("2.00")]), "1.50"),
        (pl.Series([["Blue", "jug"], ["Red"]]), "Blue jug"),
        (pl.Series([{"name": "Blue", "n": 1}, {"name": "Red", "n": 2}]), "Blue"),
        (pl.Series([1984, 2001]), "1984"),
    ],
)
def test_titles_of_many_types(tmp_path: Path, cells: pl.Series, text: str) -> None:
    pl.DataFrame({"item_id": ["1", "2"], "title": cells}).write_parquet(tmp_path / "items.parquet")
    dataset = load(put(tmp_path, interactions__csv=rows("1", "2")))
    assert dataset.catalog.titles[0] == text


@pytest.mark.parametrize(
    ("column", "cells", "said"),
    [
        ("title", pl.Series([dt.time(12), dt.time(13)]), "type Time in column 'title'"),
        ("time", pl.Series([dt.timedelta(1), dt.timedelta(2)]), "type Duration(time_unit='us') in column 'time'"),
        ("item_id", pl.Series([["1"], ["2"]]), "type List(String) in column 'item_id'"),
        ("user_id", pl.Series([{"id": 1}, {"id": 2}]), "type Struct({'id': Int64}) in column 'user_id'"),
        ("title", pl.Series([b"\xff\xfe", b"ok"]), "bytes in column 'title' that are no UTF-8"),
    ],
)
def test_types_without_text_are_refused_by_name(tmp_path: Path, column: str, cells: pl.Series, said: str) -> None:
    frame = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["1", "2"], "time": [1, 2], "title": ["A", "B"]})
    frame.with_columns(cells.alias(column)).write_parquet(tmp_path / "shop.parquet")
    with pytest.raises(DeepRecError, match="write it as text") as caught:
        load(tmp_path)
    assert f"shop.parquet has the {said}" in str(caught.value) or f"shop.parquet has {said}" in str(caught.value)


def test_a_column_that_is_not_used_may_have_any_type(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["1"], "time": [1], "title": ["A"], "took": [dt.timedelta(1)]})
    frame.with_columns(photo=pl.Series([b"\xff\xd8"])).write_parquet(tmp_path / "shop.parquet")
    assert load(tmp_path).catalog.titles == ("A",)
