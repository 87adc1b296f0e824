"""Formats, and figures of the real sets."""

from __future__ import annotations

import gzip
import json
import shutil
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import deeprec
from deeprec.assets import fetch
from deeprec.config import DataConfig
from deeprec.data.catalog import ItemId, without_year
from deeprec.data.dataset import Dataset
from deeprec.data.sources import load_dataset, load_items
from deeprec.errors import DeepRecError
from shared_data import shared

GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


def load(source: Path | str, *, offline: bool = False, **options: object) -> Dataset:
    options = {"user_core": 1, "item_core": 1, "source": str(source), **options}
    return load_dataset(DataConfig.model_validate(options), offline=offline)


def same(one: Dataset, other: Dataset) -> bool:
    fields = ("ids", "titles", "years", "categories")
    return one.fingerprint == other.fingerprint and all(
        getattr(one.catalog, field) == getattr(other.catalog, field) for field in fields
    )


def ids_of(dataset: Dataset, u: int) -> list[str]:
    return [dataset.catalog.ids[item] for item in dataset.sequence(u)]


# --- the real sets ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def ml_100k() -> Path:
    """A folder with RecBole's atomic files of ml-100k."""
    try:
        folder = fetch("ml-100k")
    except DeepRecError as error:
        pytest.skip(f"ml-100k cannot be had here: {error}")
    if not (folder / "ml-100k.inter").is_file():
        pytest.skip("this copy of ml-100k holds the raw files, from which no atomic ones are made here")
    return folder


def test_ml_100k_figures(ml_100k: Path) -> None:
    whole = load(ml_100k)
    said = whole.describe()
    assert (said["users"], said["items"], said["interactions"]) == (943, 1682, 100_000)
    assert said["interactions_per_user"] == {"min": 20, "median": 65.0, "max": 737}
    assert (said["first_date"], said["last_date"]) == ("1997-09-20", "1998-04-22")
    assert (said["bad_rows"], said["repeats"]) == (0, 0)

    core = load_dataset(DataConfig(source="ml-100k"))
    assert (len(core.users), len(core.catalog), len(core.items_N)) == (943, 1349, 99_287)
    assert core.report.filtered_items == 1682 - 1349
    assert core.catalog.titles[core.catalog.index(ItemId("1"))] == "Toy Story (1995)"
    assert core.name == "ml-100k"
    assert len(core.tasks("test")) == len(core.tasks("validation")) == 943


@pytest.mark.parametrize(
    ("name", "users", "items", "interactions", "per_user", "per_item"),
    [
        ("ml-1m", 6040, 3416, 999_611, (18, 96.0, 2277), (5, 146.0, 3428)),
        ("amazon-scientific-2018", 8442, 4385, 59_427, (5, 6.0, 80), (5, 8.0, 490)),
        ("ml-latest-small", 610, 9724, 100_836, (20, 70.5, 2698), (1, 3.0, 329)),
    ],
)
def test_figures_of_the_development_sets(
    name: str,
    users: int,
    items: int,
    interactions: int,
    per_user: tuple[float, ...],
    per_item: tuple[float, ...],
) -> None:
    dataset = load(shared(name), repeats="keep")
    said = dataset.describe()
    assert (said["users"], said["items"], said["interactions"]) == (users, items, interactions)
    assert tuple(said["interactions_per_user"].values()) == per_user
    assert tuple(said["interactions_per_item"].values()) == per_item
    assert (said["bad_rows"], said["empty_titles"], dataset.name) == (0, 0, name)


def test_ml_1m_text_and_order() -> None:
    dataset = load(shared("ml-1m"))
    said = dataset.describe()
    assert (said["with_year"], said["with_categories"]) == (1.0, 1.0)
    named = zip(dataset.catalog.titles, dataset.catalog.years, strict=True)
    assert len({without_year(title, year) for title, year in named}) == 3376
    assert dataset.times_N is None
    assert ids_of(dataset, 0)[:3] == ["3186", "1270", "1721"]


def test_ml_latest_small_text_and_times() -> None:
    said = load(shared("ml-latest-small")).describe()
    assert (said["first_date"], said["last_date"]) == ("1996-03-29", "2018-09-24")
    assert round(said["tied_times"], 4) == 0.2304
    assert (round(said["with_year"], 4), round(said["with_categories"], 4)) == (0.9987, 0.9965)


def test_amazon_scientific_text_and_repeats() -> None:
    folder = shared("amazon-scientific-2018")
    dataset = load(folder, repeats="keep")
    said = dataset.describe()
    assert said["repeats"] == 291
    assert (round(said["with_brand"], 4), round(said["with_categories"], 4)) == (0.9966, 0.9694)
    assert (round(said["with_description"], 4), said["distinct_titles"]) == (0.9544, 4259)
    glue = dataset.catalog.index(ItemId("B0000223UV"))
    assert dataset.catalog.phrases(glue) == ("Tapes, Adhesives & Sealants", "Urethane Adhesives", "Gorilla")
    assert len(load(folder).items_N) == 59_427 - 291
    assert max(map(len, load(folder).catalog.titles)) <= 80


# --- layouts that must give the same Dataset ----------------------------------------------------------------


def atomic(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    frames = []
    for ending in ("inter", "item"):
        frame = pl.read_csv(
            folder / f"ml-100k.{ending}",
            separator="\t",
            quote_char=None,
            infer_schema=False,
        )
        frames.append(frame.fill_null("").rename({name: name.partition(":")[0] for name in frame.columns}))
    return frames[0], frames[1]


def raw_title(row: dict[str, str]) -> str:
    """As GroupLens writes it; the atomic file has the two odd rows 267 and 1412 garbled."""
    if row["release_year"] == "V":
        return f"{row['movie_title']} (V)"
    return row["movie_title"] if row["release_year"] == "unkonwn" else f"{row['movie_title']} ({row['release_year']})"


def write_100k(folder: Path, inter: pl.DataFrame, item: pl.DataFrame) -> None:
    rows = inter.select("user_id", "item_id", "rating", "timestamp").rows()
    (folder / "u.data").write_text("".join("\t".join(row) + "\n" for row in rows), encoding="latin-1")
    lines = []
    for row in item.to_dicts():
        flags = ["1" if genre in row["class"].split(" ") else "0" for genre in GENRES]
        lines.append("|".join([row["item_id"], raw_title(row), "01-Jan-1995", "", "http://x/?a", *flags]))
    (folder / "u.item").write_text("\n".join(lines) + "\n", encoding="latin-1")


def write_1m(folder: Path, inter: pl.DataFrame, item: pl.DataFrame) -> None:
    rows = inter.select("user_id", "item_id", "rating", "timestamp").rows()
    (folder / "ratings.dat").write_text("".join("::".join(row) + "\n" for row in rows), encoding="latin-1")
    lines = [f"{row['item_id']}::{raw_title(row)}::{row['class'].replace(' ', '|')}" for row in item.to_dicts()]
    (folder / "movies.dat").write_text("\n".join(lines) + "\n", encoding="latin-1")


def write_latest(folder: Path, inter: pl.DataFrame, item: pl.DataFrame) -> None:
    ratings = inter.select(userId="user_id", movieId="item_id", rating="rating", timestamp="timestamp")
    ratings.write_csv(folder / "ratings.csv", line_terminator="\r\n")
    movies = pl.DataFrame(
        [
            (row["item_id"], raw_title(row), row["class"].replace(" ", "|") or "(no genres listed)")
            for row in item.to_dicts()
        ],
        schema=["movieId", "title", "genres"],
        orient="row",
    )
    movies.write_csv(folder / "movies.csv", line_terminator="\r\n")


@pytest.mark.parametrize("write", [write_100k, write_1m, write_latest])
def test_raw_layouts_of_ml_100k_give_the_same_dataset(ml_100k: Path, tmp_path: Path, write: object) -> None:
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    write(folder, *atomic(ml_100k))  # type: ignore[operator]
    assert same(load(folder), load(ml_100k))
    assert same(load(folder, user_core=3, item_core=5), load(ml_100k, user_core=3, item_core=5))
    assert load(folder).name == "ml-100k"


def test_gzipped_atomic_files_and_a_files_path(ml_100k: Path, tmp_path: Path) -> None:
    for ending in ("inter", "item"):
        packed = tmp_path / f"set.{ending}.gz"
        packed.write_bytes(gzip.compress((ml_100k / f"ml-100k.{ending}").read_bytes(), compresslevel=1))
    assert same(load(tmp_path), load(ml_100k))
    assert same(load(tmp_path / "set.inter.gz"), load(ml_100k))


# --- small hand-made files ----------------------------------------------------------------------------------


def put(folder: Path, **files: str) -> Path:
    """Files by name; '__' in a name stands for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


ITEMS = "item_id,title\n1,One\n2,Two\n3,Three\n4,Four\n"


def test_equal_times_keep_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = "user_id,item_id,time\nu,3,5\nu,1,5\nv,4,1\nu,4,5\nu,2,4\nv,2,1\n"
    dataset = load(put(tmp_path, interactions__csv=rows, items__csv=ITEMS))
    assert ids_of(dataset, 0) == ["2", "3", "1", "4"]
    assert ids_of(dataset, 1) == ["4", "2"]


def test_positions_order_as_numbers(tmp_path: Path) -> None:
    rows = "user_id,item_id,position\nu,3,10\nu,1,9\nu,2,1.5\n"
    dataset = load(put(tmp_path, interactions__csv=rows, items__csv=ITEMS))
    assert ids_of(dataset, 0) == ["2", "1", "3"]
    assert dataset.times_N is None


@pytest.mark.parametrize(("rule", "expected"), [("first", "123"), ("last", "231"), ("keep", "12131")])
def test_repeats(tmp_path: Path, rule: str, expected: str) -> None:
    rows = "user_id,item_id,time\nu,1,1\nu,2,2\nu,1,3\nu,3,4\nu,1,5\n"
    dataset = load(put(tmp_path, interactions__csv=rows, items__csv=ITEMS), repeats=rule)
    assert "".join(ids_of(dataset, 0)) == expected
    assert (dataset.report.repeats, dataset.report.repeats_kept, dataset.report.bad) == (2, rule, ())


def test_dates_are_times(tmp_path: Path) -> None:
    cells = [
        "2020-01-02", "2020-01-01T23:59:59.5Z", "2020-01-01 23:59", "2020-01-02T01:00:00+02:00", "1577836800",
    ]  # fmt: skip
    rows = "user_id,item_id,when\n" + "".join(f"u{n},{n % 4 + 1},{cell}\n" for n, cell in enumerate(cells))
    dataset = load(put(tmp_path, interactions__csv=rows, items__csv=ITEMS), columns={"time": "when"})
    moments = [
        datetime(2020, 1, 2), datetime(2020, 1, 1, 23, 59, 59, 500_000), datetime(2020, 1, 1, 23, 59),
        datetime(2020, 1, 1, 23, 0), datetime(2020, 1, 1),
    ]  # fmt: skip
    assert dataset.times_N is not None
    assert dataset.times_N.tolist() == [moment.replace(tzinfo=UTC).timestamp() for moment in moments]
    assert dataset.describe()["last_date"] == "2020-01-02"


def test_milliseconds_become_seconds_and_are_noted(tmp_path: Path) -> None:
    rows = "user_id,item_id,timestamp\nu,1,1577836800123\nu,2,1577836800124\n"
    dataset = load(put(tmp_path, interactions__csv=rows, items__csv=ITEMS))
    assert dataset.times_N is not None
    np.testing.assert_allclose(dataset.times_N, [1577836800.123, 1577836800.124], atol=1e-6)
    assert any("milliseconds" in note for note in dataset.report.notes)


TABLE = (
    "who;what;when;name;made;kinds;maker\n"
    'a;x1;2;"Red; ""big"" shoe";1999;Shoes|Red;Acme\n'
    "a;x2;1;Blue <b>hat</b>;2004.0;Hats;\n"
    'b;x2;3;Blue <b>hat</b>;2004.0;"Hats";\n'
    'b;x3;4;"Two\nlines";;;Bolt\n'
)
NAMED = {
    "user": "who", "item": "what", "time": "when", "title": "name", "year": "made", "categories": "kinds",
    "brand": "maker",
}  # fmt: skip


def test_a_users_own_table_with_titles_inside(tmp_path: Path) -> None:
    dataset = load(put(tmp_path, shop__csv=TABLE) / "shop.csv", columns=NAMED)
    assert dataset.catalog.titles == ('Red; "big" shoe (1999)', "Blue ‹b›hat‹/b› (2004)", "Two lines")
    assert dataset.catalog.categories == (("Shoes", "Red"), ("Hats",), ())
    assert dataset.catalog.brands == ("Acme", "", "Bolt")
    assert ids_of(dataset, 0) == ["x2", "x1"]
    assert dataset.report.rows == {"shop.csv": 4}
    assert (dataset.report.bad, dataset.name) == ((), "shop")


@pytest.mark.parametrize("kind", ["tsv", "csv.gz", "parquet"])
def test_a_table_in_other_containers_is_the_same(tmp_path: Path, kind: str) -> None:
    first = load(put(tmp_path, shop__csv=TABLE) / "shop.csv", columns=NAMED)
    frame = pl.read_csv(tmp_path / "shop.csv", separator=";", infer_schema=False)
    path = tmp_path / f"other.{kind}"
    if kind == "tsv":
        frame.write_csv(path, separator="\t")
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(frame.write_csv().encode()))
    else:
        typed = frame.with_columns(
            pl.from_epoch(pl.col("when").cast(pl.Int64)),
            pl.col("made").cast(pl.Float64),
            pl.col("kinds").str.split("|"),
        )
        typed.write_parquet(path)
    other = load(path, columns=NAMED)
    assert same(other, first)
    assert other.times_N is not None
    assert other.times_N.tolist() == [1, 2, 3, 4]


def test_a_bom_and_windows_lines_do_no_harm(tmp_path: Path) -> None:
    put(tmp_path, items__csv=ITEMS.replace("\n", "\r\n"))
    text = "user_id,item_id,time\r\nu,1,1\r\nu,2,2\r\n"
    (tmp_path / "interactions.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    dataset = load(tmp_path)
    assert dataset.catalog.titles == ("One", "Two")


def test_an_inch_mark_is_no_quote(tmp_path: Path) -> None:
    rows = 'user_id,item_id,time,title\nu,1,1,5" pipe\nu,2,2,"Pipe, 6"""\nu,3,3,plain\n'
    dataset = load(put(tmp_path, shop__csv=rows))
    assert dataset.catalog.titles == ('5" pipe', 'Pipe, 6"', "plain")


def test_a_column_may_be_called_line(tmp_path: Path) -> None:
    rows = "line,user_id,item_id,time,title\n7,u,1,1,One\n8,u,2,2,Two\n"
    assert load(put(tmp_path, shop__csv=rows)).catalog.titles == ("One", "Two")


def test_amazon_reviews_2023(tmp_path: Path) -> None:
    ratings = (
        "user_id,parent_asin,rating,timestamp\nA,B1,5.0,1600000000000\nA,B2,1.0,1500000000000\nC,B1,4.0,1600000000001\n"
    )
    products = [
        {"parent_asin": "B9", "title": "Nobody's"},
        {
            "title": "Pad &amp; <b>Grip</b> \ud800", "store": "Acme", "categories": ["Video Games", "PC"],
            "description": [], "features": ["Soft.", "Black."], "parent_asin": "B1",
        },
        {"parent_asin": "B2", "title": None, "store": None, "categories": [], "description": ["A", "b."]},
    ]  # fmt: skip
    meta = "".join(json.dumps(product) + "\n" for product in products)
    (tmp_path / "Toys.csv").write_text(ratings, encoding="utf-8")
    (tmp_path / "meta_Toys.jsonl.gz").write_bytes(gzip.compress(meta.encode()))
    for source in (tmp_path, tmp_path / "Toys.csv"):
        dataset = load(source)
        assert dataset.catalog.ids == ("B1", "B2")
        assert dataset.catalog.titles == ("Pad & ‹b›Grip‹/b›", "Untitled item B2")
        assert dataset.catalog.brands == ("Acme", "")
        assert dataset.catalog.categories == (("Video Games", "PC"), ())
        assert dataset.catalog.descriptions == ("Soft. Black.", "A b.")
        assert ids_of(dataset, 0) == ["B2", "B1"]
        assert dataset.describe()["first_date"] == "2017-07-14"
        assert any("no title" in note for note in dataset.report.notes)


@pytest.mark.parametrize(
    ("column", "cells", "expected"),
    [
        ("categories", ["X, Y,Z", "X, Y"], (("X, Y", "Z"), ("X, Y",))),
        ("categories", ["X, Z", "X, Y"], (("X", "Z"), ("X", "Y"))),
        ("genres", ["Sci-Fi Film-Noir", ""], (("Sci-Fi", "Film-Noir"), ())),
        ("class", ["New Age|Rock", "unknown"], (("New Age", "Rock"), ())),
    ],
)
def test_recbole_columns_by_their_usual_names(tmp_path: Path, column: str, cells: list[str], expected: object) -> None:
    inter = "user_id:token\titem_id:token\tposition:float\nu\ta\t2\nu\tb\t1\n"
    item = f'item_id:token\ttitle:token_seq\t{column}:token_seq\na\tA "quoted\t{cells[0]}\nb\tB\t{cells[1]}\n'
    dataset = load(put(tmp_path, s__inter=inter, s__item=item))
    assert dataset.catalog.titles == ('A "quoted', "B")
    assert dataset.catalog.categories == expected
    assert ids_of(dataset, 0) == ["b", "a"]


def test_offline_and_a_folder_need_no_asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    folder = put(tmp_path / "real", interactions__csv="user_id,item_id,time\nu,1,1\n", items__csv=ITEMS)

    def pretend(name: str, *, offline: bool = False) -> Path:
        asked.append((name, offline))
        return folder

    monkeypatch.setattr("deeprec.assets.fetch", pretend)
    assert load(folder).name == "real"
    assert asked == []
    assert load("some-asset", offline=True).name == "some-asset"
    assert asked == [("some-asset", True)]


def test_a_source_can_be_a_name_a_folder_a_file_or_a_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "user_id,item_id,time\n" + "".join(
        f"u{user},{item},{user + item}\n" for user in range(5) for item in range(1, 5)
    )
    folder = put(tmp_path / "shop", interactions__csv=rows, items__csv=ITEMS)
    monkeypatch.setattr("deeprec.assets.fetch", lambda name, offline=False: folder)
    expected = load_dataset(DataConfig(source=str(folder)))
    assert len(expected.users) == 5
    for source in (folder, str(folder), folder / "interactions.csv", "shop"):
        assert same(load_dataset(source), expected)
    assert same(deeprec.load_dataset(folder), expected)


def test_a_toml_names_source_and_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = put(tmp_path, shop__csv=TABLE) / "shop.csv"
    columns = "".join(f'{role} = "{name}"\n' for role, name in NAMED.items())
    put(tmp_path, shop__toml=f"[data]\nsource = '{table}'\nuser_core = 1\nitem_core = 1\n[data.columns]\n{columns}")
    expected = load(table, columns=NAMED)
    assert same(load_dataset(tmp_path / "shop.toml"), expected)
    monkeypatch.chdir(tmp_path)
    assert same(load_dataset("shop.toml"), expected)
    with pytest.raises(DeepRecError, match=r"no configuration file .*gone\.toml"):
        load_dataset("gone.toml")
    put(tmp_path, wrong__toml="[data]\nsauce = 1\n")
    with pytest.raises(DeepRecError, match=r"'data\.sauce' \(from wrong\.toml\)"):
        load_dataset("wrong.toml")


def test_the_item_file_can_be_named(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", things__csv=ITEMS)
    folder = put(tmp_path / "a", interactions__csv="user_id,item_id,time\nu,1,1\nu,2,2\n")
    dataset = load(folder, items=str(tmp_path / "elsewhere" / "things.csv"))
    assert dataset.catalog.titles == ("One", "Two")
    shutil.rmtree(tmp_path / "elsewhere")
    with pytest.raises(DeepRecError, match=r"data\.items"):
        load(folder, items=str(tmp_path / "elsewhere" / "things.csv"))


def test_all_items_are_those_that_nobody_chose_too(tmp_path: Path) -> None:
    """Of a table and of Amazon's layout, whose products are otherwise read only where someone chose them."""
    chosen = [f"{user},i{item},{time}" for time, (user, item) in enumerate(product("abcde", range(3)))]
    products = [json.dumps({"parent_asin": f"i{item}", "title": f"Product {item}"}) for item in range(5)]
    shop, amazon = tmp_path / "shop", tmp_path / "amazon"
    for folder in (shop, amazon):
        folder.mkdir()
    (shop / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *chosen]))
    (shop / "items.csv").write_text("\n".join(["item_id,title", *(f"i{item},Product {item}" for item in range(5))]))
    (amazon / "Toys.csv").write_text("\n".join(["user_id,parent_asin,timestamp", *chosen]))
    (amazon / "meta_Toys.jsonl").write_text("\n".join(products))
    for source in (shop, amazon):
        assert load_dataset(source).catalog.ids == ("i0", "i1", "i2")
        assert load_items(source).titles == tuple(f"Product {item}" for item in range(5))


def test_layouts_of_one_file_refuse_several(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv", "movies.csv"):
        (tmp_path / name).write_text("movieId,title,genres\n1,A film,Drama\n")
    with pytest.raises(DeepRecError, match="Files read as movielens are one of each kind, not"):
        load_dataset(DataConfig(source=str(tmp_path), format="movielens"))
