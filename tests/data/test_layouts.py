"""Files of many layouts: splits, RecBole's names, JSON lines, shards, Amazon's reviews, MovieLens."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from deeprec.config import load_config
from deeprec.data.dataset import Dataset
from deeprec.errors import DeepRecError
from deeprec.evaluation.tables import held_out_by
from small_tables import ITEMS, load, put, sequence

TRAIN = [("a", 1, 1), ("a", 2, 2), ("a", 3, 3), ("b", 4, 1), ("b", 1, 2), ("c", 2, 1)]
VALID = [("a", 4, 1), ("b", 2, 9)]  # a's is older than its training part
TEST = [("a", 1, 9), ("a", 2, 10), ("b", 3, 10), ("d", 4, 1)]  # a meets 1 and 2 again; d has nothing before


def csv(rows: list[tuple[str, int, int]], mark: str = ",", types: tuple[str, str, str] = ("", "", "")) -> str:
    header = mark.join(name + kind for name, kind in zip(("user_id", "item_id", "timestamp"), types, strict=True))
    return header + "\n" + "".join(f"{user}{mark}{item}{mark}{time}\n" for user, item, time in rows)


ATOMIC = (":token", ":token", ":float")
ATOMIC_ITEMS = ITEMS.replace("item_id,title", "item_id:token\ttitle:token_seq").replace(",", "\t")


def said(dataset: Dataset, split: str) -> dict[str, tuple[str, str]]:
    """History and target of each user, as ids without a space."""
    ids, targets = dataset.catalog.ids, dataset.targets(split)  # type: ignore[arg-type]
    return {
        task.user: ("".join(ids[item] for item in task.history), ids[targets[task.id]])
        for task in dataset.tasks(split)  # type: ignore[arg-type]
    }


def write_split(folder: Path, form: str) -> Path:
    if form == "recbole":
        parts = {
            f"s__{name}__inter": csv(rows, "\t", ATOMIC)
            for name, rows in zip(("train", "valid", "test"), (TRAIN, VALID, TEST), strict=True)
        }
        return put(folder, s__item=ATOMIC_ITEMS, **parts)
    if form == "csv":
        return put(
            folder,
            items__csv=ITEMS,
            users__csv="id\n1\n",
            train__csv=csv(TRAIN),
            validation__csv=csv(VALID),
            test__csv=csv(TEST),
        )
    if form == "named csv":
        return put(
            folder, items__csv=ITEMS, shop_train__csv=csv(TRAIN), shop_val__csv=csv(VALID), shop_test__csv=csv(TEST)
        )
    put(folder, items__csv=ITEMS, README__md="card")
    (folder / "data").mkdir()
    for name, rows in (("train", TRAIN), ("validation", VALID), ("test", TEST)):
        frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
        for shard, half in enumerate((frame[: len(rows) // 2], frame[len(rows) // 2 :])):
            half.write_parquet(folder / "data" / f"{name}-0000{shard}-of-00002.parquet")
    return folder


@pytest.mark.parametrize("form", ["recbole", "csv", "named csv", "hugging face"])
def test_the_split_of_the_files_is_the_one_that_is_evaluated(tmp_path: Path, form: str) -> None:
    dataset = load(write_split(tmp_path, form), repeats="keep")
    assert {user: sequence(dataset, user) for user in "abcd"} == {
        "a": list("123412"),
        "b": list("4123"),
        "c": ["2"],
        "d": ["4"],
    }
    assert said(dataset, "validation") == {"a": ("123", "4"), "b": ("41", "2")}
    assert said(dataset, "test") == {"a": ("1234", "1"), "b": ("412", "3")}
    trained = ["".join(dataset.catalog.ids[item] for item in items) for items in dataset.train_sequences()]
    assert trained == ["123", "41", "2", ""]
    assert any("6 interactions for training, 2 for validation, 4 for testing" in note for note in dataset.report.notes)
    assert dataset.report.bad == ()


def test_without_a_validation_file_the_last_training_item_validates(tmp_path: Path) -> None:
    dataset = load(put(tmp_path, items__csv=ITEMS, train__csv=csv(TRAIN), test__csv=csv(TEST)), repeats="keep")
    assert said(dataset, "validation") == {"a": ("12", "3"), "b": ("4", "1")}
    assert said(dataset, "test") == {"a": ("123", "1"), "b": ("41", "3")}
    assert list(map(len, dataset.train_sequences())) == [2, 1, 1, 0]


def test_parts_of_the_users_keep_the_split_and_it_is_in_the_fingerprint(tmp_path: Path) -> None:
    dataset = load(write_split(tmp_path, "csv"), repeats="keep")
    parts, rest = dataset.divide({"one": 0.5}, 1)
    assert 0 < len(rest.users) < 4
    assert said(parts["one"], "test") | said(rest, "test") == said(dataset, "test")
    whole = load(
        put(tmp_path / "whole", items__csv=ITEMS, interactions__csv=csv([*TRAIN, *VALID, *TEST])), repeats="keep"
    )
    moved = put(
        tmp_path / "moved",
        items__csv=ITEMS,
        train__csv=csv(TRAIN[:5]),
        valid__csv=csv([*VALID, TRAIN[5]]),
        test__csv=csv(TEST),
    )
    assert len({dataset.fingerprint, whole.fingerprint, load(moved, repeats="keep").fingerprint}) == 3
    assert "own split" in held_out_by(None, of_files=True)


def test_one_part_that_is_named_stands_alone(tmp_path: Path) -> None:
    for form, name in (("csv", "train.csv"), ("recbole", "s.train.inter")):
        dataset = load(write_split(tmp_path / form, form) / name)
        assert (len(dataset.items_N), dataset.parts_U2) == (6, None)


def test_bad_rows_of_a_split_are_told_with_their_file(tmp_path: Path) -> None:
    folder = put(tmp_path, items__csv=ITEMS, train__csv=csv(TRAIN), test__csv=csv([*TEST, ("e", 77, 1)]))
    with pytest.raises(DeepRecError, match=r"test\.csv line 6: item '77'.*1 of 5 rows of test\.csv"):
        load(folder)


@pytest.mark.parametrize(
    ("files", "options", "parts"),
    [
        ({"train__csv": csv(TRAIN), "valid__csv": csv(VALID)}, {}, ["without a test file", "train.csv, valid.csv"]),
        ({"train__csv": csv(TRAIN), "test__csv": csv(TEST)}, {"time_split": [0.5, 0.8]}, ["data.time_split"]),
        ({"a__csv": csv(TRAIN), "b__jsonl": "{}", "c__csv": csv(TEST)}, {}, ["several", "a.csv, c.csv", "data.source"]),
        (
            {"train__csv": csv(TRAIN), "test__csv": "user_id\na\n"},
            {},
            ["test.csv", "no item column", "data.columns.item"],
        ),
        (
            {"train__csv": csv(TRAIN), "test__csv": csv(TEST).replace("timestamp", "position")},
            {},
            ["train.csv, test.csv", "some positions"],
        ),
    ],
)
def test_splits_that_cannot_be_used(
    tmp_path: Path, files: dict[str, str], options: dict[str, object], parts: list[str]
) -> None:
    with pytest.raises(DeepRecError) as caught:
        load(put(tmp_path, items__csv=ITEMS, **files), **options)
    for part in parts:
        assert part in str(caught.value)


# --- RecBole ------------------------------------------------------------------------------------------------

YELP = "user_id:token\tbusiness_id:token\tstars:float\tdate:float\nu\t1\t4\t20\nu\t2\t4\t10\nu\t3\t5\t30\n"
YELP_ITEMS = "business_id:token\tlabel:token_seq\tkinds:token_seq\n1\tOne\tA|B\n2\tTwo\tB\n3\tThree\tA\n"


def test_recbole_files_with_other_names(tmp_path: Path) -> None:
    folder = put(tmp_path, y__inter=YELP, y__item=YELP_ITEMS)
    with pytest.raises(DeepRecError, match=r"y\.inter has no item column 'item_id'.*data\.columns\.item"):
        load(folder)
    columns = {"item": "business_id", "title": "label", "categories": "kinds", "time": "date"}
    dataset = load(folder, columns=columns)
    assert sequence(dataset, "u") == ["2", "1", "3"]
    assert dataset.catalog.titles == ("One", "Two", "Three")
    assert dataset.catalog.categories == (("A", "B"), ("B",), ("A",))
    for role, name in (("user", "who"), ("time", "when"), ("title", "title"), ("brand", "maker")):
        if (role, name) != ("title", "title"):
            with pytest.raises(DeepRecError, match=rf"no {role} column '{name}'.*data\.columns\.{role}"):
                load(folder, columns={**columns, role: name})


def test_a_named_column_is_refused_where_the_layout_is_fixed(tmp_path: Path) -> None:
    put(
        tmp_path,
        ratings__csv="userId,movieId,rating,timestamp\n1,1,5,9\n",
        movies__csv="movieId,title,genres\n1,A (1990),X\n",
    )
    assert load(tmp_path).catalog.titles == ("A (1990)",)
    assert load(tmp_path, columns={"user": "userId", "time": "timestamp"}).catalog.titles == ("A (1990)",)
    with pytest.raises(DeepRecError, match=r"data\.columns\.time = 'rating' .*read as movielens.*data\.format"):
        load(tmp_path, columns={"time": "rating"})


@pytest.mark.parametrize("mark", [" ", ",", ";"])
def test_recbole_files_with_other_marks(tmp_path: Path, mark: str) -> None:
    folder = put(tmp_path, s__inter=csv(TRAIN, mark, ATOMIC), s__item=ATOMIC_ITEMS)
    assert sequence(load(folder), "a") == ["1", "2", "3"]


def test_recbole_files_without_times_are_in_the_files_order(tmp_path: Path) -> None:
    rows = "user_id:token\titem_id:token\trating:float\nu\t3\t4\nv\t1\t4\nu\t1\t4\nu\t2\t4\n"
    dataset = load(put(tmp_path, s__inter=rows, s__item=ATOMIC_ITEMS))
    assert sequence(dataset, "u") == ["3", "1", "2"]
    assert dataset.times_N is None
    (note,) = dataset.report.notes
    assert "s.inter has no time or position" in note
    assert "the file's order" in note


def test_histories_in_rows_are_refused(tmp_path: Path) -> None:
    rows = "user_id:token\titem_id_list:token_seq\titem_id:token\nu\t1 2\t3\n"
    with pytest.raises(DeepRecError, match="history in each row"):
        load(put(tmp_path, s__inter=rows, s__item=ATOMIC_ITEMS))


# --- JSON lines, Amazon's reviews ----------------------------------------------------------------------------


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_json_lines_are_tables(tmp_path: Path) -> None:
    events = lines(
        *(
            {"user_id": user, "item_id": item, "time": time}
            for user, item, time in [("u", 2, 5), ("u", 1, 6), ("ü", 2, 1.5)]
        )
    )
    items = lines(
        {"item_id": 1, "title": "One \ud800", "categories": ["A, B", {"name": "C"}], "year": 1999, "more": {"x": [1]}},
        {"item_id": 2, "description": ["Two", "parts."], "title": "Two", "categories": None},
    )
    dataset = load(put(tmp_path, events__jsonl="\ufeff" + events, items__jsonl=items))
    assert sequence(dataset, "u") == ["2", "1"]
    assert sequence(dataset, "ü") == ["2"]
    assert dataset.catalog.titles == ("One (1999)", "Two")
    assert dataset.catalog.categories == (("A, B", "C"), ())
    assert dataset.catalog.descriptions == ("", "Two parts.")
    (tmp_path / "events.jsonl").rename(tmp_path / "events.ndjson")
    (tmp_path / "items.jsonl.gz").write_bytes(gzip.compress(items.encode()))
    (tmp_path / "items.jsonl").unlink()
    assert load(tmp_path).fingerprint == dataset.fingerprint


@pytest.mark.parametrize(
    ("events", "parts"),
    [
        (
            '{"user_id": "u", "item_id": 1, "time": 1}\n{"user_id": "u",\n',
            ["events.jsonl line 2", "no JSON object", "1 of 2 rows"],
        ),
        ('{"user_id": "u", "item_id": 1, "time": 1}\n[1]\n', ["events.jsonl line 2", "no JSON object"]),
        (
            '{"user": "u", "item_id": 1, "time": 1}\n',
            ["no user column 'user_id'", "user, item_id, time", "data.columns.user"],
        ),
        ('{"user_id": "u", "item_id": [1], "time": 1}\n', ["events.jsonl", "List(String)", "'item_id'"]),
    ],
)
def test_json_lines_that_cannot_be_used(tmp_path: Path, events: str, parts: list[str]) -> None:
    with pytest.raises(DeepRecError) as caught:
        load(put(tmp_path, items__csv=ITEMS, events__jsonl=events))
    for part in parts:
        assert part in str(caught.value)


REVIEW = {
    "rating": 5.0,
    "title": "Great!",
    "text": "I liked it.",
    "images": [],
    "asin": "X",
    "verified_purchase": True,
    "helpful_vote": 0,
}
REVIEWS = lines(
    *(
        {**REVIEW, "parent_asin": item, "user_id": user, "timestamp": time}
        for user, item, time in [("A", "B1", 1600000060000), ("A", "B2", 1600000000000), ("C", "B1", 1600000000001)]
    )
)
META = lines(
    {
        "main_category": "Toys",
        "title": "Pad &amp; Grip",
        "features": [],
        "description": ["Soft."],
        "price": None,
        "images": [],
        "store": "Acme",
        "categories": ["Toys > Games", "PC"],
        "details": {},
        "parent_asin": "B1",
    },
    {
        "main_category": None,
        "title": "Cable",
        "features": ["Long."],
        "description": [],
        "store": None,
        "categories": [],
        "details": {},
        "parent_asin": "B2",
    },
)


def test_amazon_reviews_2023_as_they_are_published(tmp_path: Path) -> None:
    folder = put(tmp_path, Toys__jsonl=REVIEWS, meta_Toys__jsonl=META)
    for source, options in ((folder, {}), (folder / "Toys.jsonl", {"items": str(folder / "meta_Toys.jsonl")})):
        dataset = load(source, **options)
        assert dataset.catalog.titles == ("Pad & Grip", "Cable")
        assert dataset.catalog.categories == (("Toys › Games", "PC"), ())
        assert dataset.catalog.descriptions == ("Soft.", "Long.")
        assert sequence(dataset, "A") == ["B2", "B1"]
        assert dataset.describe()["first_date"] == "2020-09-13"
    split = load(folder, columns={"category_separator": " > "})
    assert split.catalog.categories[0] == ("Toys", "Games", "PC")
    (folder / "meta_Toys.jsonl").unlink()
    with pytest.raises(DeepRecError, match=r"no item file beside .*Toys\.jsonl.*data\.items"):
        load(folder)  # the reviews' titles are no items' titles


def test_amazons_parts_and_its_metadata_beside_a_table(tmp_path: Path) -> None:
    head = "user_id,parent_asin,rating,timestamp\n"
    put(
        tmp_path / "parts",
        Toys__train__csv=head + "A,B2,5,1\n",
        Toys__test__csv=head + "A,B1,5,2\n",
        meta_Toys__jsonl=META,
    )
    assert said(load(tmp_path / "parts"), "test") == {"A": ("B2", "B1")}
    put(tmp_path, own__csv="user_id,item_id,time\nA,B2,1\nA,B1,2\n")
    dataset = load(tmp_path / "own.csv", items=str(tmp_path / "parts" / "meta_Toys.jsonl"))
    assert (dataset.catalog.titles[1], dataset.catalog.brands[0], dataset.catalog.descriptions[0]) == (
        "Cable",
        "Acme",
        "Soft.",
    )


# --- shards --------------------------------------------------------------------------------------------------


def shards(folder: Path, *names: str) -> Path:
    frame = pl.DataFrame(TRAIN, schema=["user_id", "item_id", "timestamp"], orient="row")
    for n, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frame[n * 6 // len(names) : (n + 1) * 6 // len(names)].write_parquet(path)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        ["train/0000.parquet", "train/0001.parquet", "train/0002.parquet"],
        [
            "interactions.parquet/part-00000-5f.c000.snappy.parquet",
            "interactions.parquet/part-00001-5f.c000.snappy.parquet",
        ],
        ["events_000000000000.parquet", "events_000000000001.parquet"],
    ],
)
def test_a_folder_of_shards_is_one_table(tmp_path: Path, names: list[str]) -> None:
    folder = shards(put(tmp_path, items__csv=ITEMS, README__md="card"), *names)
    dataset = load(folder)
    assert {user: sequence(dataset, user) for user in dataset.users} == {"a": list("123"), "b": list("41"), "c": ["2"]}
    assert dataset.parts_U2 is None


@pytest.mark.parametrize("empty", ["part-00000", "part-00002", "part-00004"])
def test_a_shard_without_rows_is_nothing(tmp_path: Path, empty: str) -> None:
    """Spark writes one for every empty partition."""
    put(tmp_path, items__csv=ITEMS)
    folder = shards(tmp_path / "interactions", "part-00001.parquet", "part-00003.parquet")
    pl.read_parquet(folder / "part-00001.parquet").clear().write_parquet(folder / f"{empty}.parquet")
    dataset = load(folder, items=str(tmp_path / "items.csv"))
    assert {user: sequence(dataset, user) for user in dataset.users} == {"a": list("123"), "b": list("41"), "c": ["2"]}


@pytest.mark.parametrize("name", ["part-00002.csv", "part-00002.csv.gz", "part-00002.jsonl"])
@pytest.mark.parametrize("first", [True, False])
def test_a_text_shard_without_rows_is_nothing(tmp_path: Path, name: str, first: bool) -> None:
    put(tmp_path, items__csv=ITEMS)
    folder, ending = tmp_path / "interactions", name.partition(".")[2]
    folder.mkdir()
    lines = csv(TRAIN).splitlines(keepends=True)
    body, empty = "".join(lines), lines[0]
    if ending == "jsonl":
        body, empty = pl.DataFrame(TRAIN, ["user_id", "item_id", "timestamp"], orient="row").write_ndjson(), ""
    pack = gzip.compress if ending.endswith("gz") else bytes
    (folder / name).write_bytes(pack(body.encode()))
    (folder / f"part-0000{1 if first else 3}.{ending}").write_bytes(pack(empty.encode()))
    dataset = load(folder, items=str(tmp_path / "items.csv"))
    assert {user: sequence(dataset, user) for user in dataset.users} == {"a": list("123"), "b": list("41"), "c": ["2"]}


@pytest.mark.parametrize("form", ["csv", "hugging face"])
@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_part_of_a_split_without_rows_is_told(tmp_path: Path, form: str, part: str) -> None:
    folder = write_split(tmp_path, form)
    if form == "csv":
        path = folder / f"{part}.csv"
        path.write_text(path.read_text().splitlines(keepends=True)[0])
    else:
        for path in (folder / "data").glob(f"{part}-*"):
            pl.read_parquet(path).clear().write_parquet(path)
    with pytest.raises(DeepRecError, match=rf"{part}\S* has (a header but )?no rows: give a file with rows\."):
        load(folder, repeats="keep")


def test_shards_without_any_rows_are_told(tmp_path: Path) -> None:
    put(tmp_path, items__csv=ITEMS)
    folder = shards(tmp_path / "interactions", "part-00001.parquet", "part-00003.parquet")
    for path in folder.iterdir():
        pl.read_parquet(path).clear().write_parquet(path)
    with pytest.raises(DeepRecError, match=r"part-00001\.parquet has no rows: give a file with rows\."):
        load(folder, items=str(tmp_path / "items.csv"))


def test_items_may_be_shards_too(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": [1, 2, 3, 4], "title": ["A", "B", "C", "D"]})
    folder = shards(tmp_path / "interactions", "part-00000.parquet", "part-00001.parquet").parent
    (folder / "items").mkdir()
    for n in range(2):
        items[2 * n : 2 * n + 2].write_parquet(folder / "items" / f"part-0000{n}.parquet")
    assert load(folder).catalog.titles == ("A", "B", "C", "D")
    assert load(folder / "interactions", items=str(folder / "items")).catalog.titles == ("A", "B", "C", "D")


def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    with pytest.raises(DeepRecError, match=r"2 of 3 files of the table of train-00000-of-00003\.parquet"):
        load(shards(put(tmp_path, items__csv=ITEMS), "train-00000-of-00003.parquet", "train-00002-of-00003.parquet"))


# --- MovieLens, and messages ---------------------------------------------------------------------------------

MOVIES = 'movieId,title,genres\n122,Boomerang (1992),Comedy|Romance\n185,"Net, The (1995)",Action|Crime\n'


@pytest.mark.parametrize(
    "files",
    [
        {  # 10M
            "ratings__dat": "1::122::5::838985046\n1::185::4.5::838983525\n",
            "movies__dat": "122::Boomerang (1992)::Comedy|Romance\n185::Net, The (1995)::Action|Crime\n",
            "tags__dat": "1::122::tag::1\n",
        },
        {  # 20M, 25M, 32M
            "ratings__csv": "userId,movieId,rating,timestamp\n1,122,5.0,838985046\n1,185,4.5,838983525\n",
            "movies__csv": MOVIES,
            "tags__csv": "userId,movieId,tag,timestamp\n1,122,x,1\n",
            "links__csv": "movieId,imdbId,tmdbId\n122,1,1\n",
            "genome-scores__csv": "movieId,tagId,relevance\n122,1,0.5\n",
        },
        {  # 20M as others publish it
            "rating__csv": "userId,movieId,rating,timestamp\n"
            '1,122,5.0,"1996-08-02 11:24:06"\n1,185,4.5,"1996-08-02 10:58:45"\n',
            "movie__csv": MOVIES,
        },
    ],
)  # fmt: skip
def test_layouts_of_movielens(tmp_path: Path, files: dict[str, str]) -> None:
    dataset = load(put(tmp_path, **files))
    assert dataset.catalog.titles == ("Boomerang (1992)", "Net, The (1995)")
    assert dataset.catalog.categories == (("Comedy", "Romance"), ("Action", "Crime"))
    assert sequence(dataset, "1") == ["185", "122"]
    assert dataset.times_N is not None
    assert dataset.times_N.tolist() == [838983525, 838985046]


def test_a_blank_first_title_does_not_hide_a_later_one(tmp_path: Path) -> None:
    rows = "user_id,item_id,time,title\nu,1,1,\nv,1,2,One\nu,2,3,Two\n"
    assert load(put(tmp_path, shop__csv=rows)).catalog.titles == ("One", "Two")


def test_a_missing_source_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("shop", "data/shop.csv", str(tmp_path / "gone.csv")):
        with pytest.raises(DeepRecError, match=r"There is no file or folder .*--set data\.source=PATH") as caught:
            load(source)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(("key", "cell"), [("data.source", "2024"), ("data.items", "1.50"), ("data.columns.user", "0")])
def test_a_number_is_text_where_text_is_wanted(tmp_path: Path, key: str, cell: str) -> None:
    *sections, last = key.split(".")
    path = tmp_path / "x.toml"
    path.write_text(f"[{'.'.join(sections)}]\n{last} = {cell}\n")
    for config, expected in (
        (load_config(None, [f"{key}={cell}"]), cell),
        (load_config(path), str(float(cell) if "." in cell else cell)),
    ):
        value = config.model_dump()
        for part in key.split("."):
            value = value[part]
        assert value == expected
    with pytest.raises(DeepRecError, match=r"data\.user_core"):
        load_config(None, ["data.user_core=x"])
