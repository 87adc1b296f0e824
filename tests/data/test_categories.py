"""Categories in the shapes that files have them."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from deeprec.data.categories import read_categories
from small_tables import categories, load, put

ROWS = "user_id,item_id,time\n" + "".join(f"u,{n},{n}\n" for n in range(1, 5))


def read(*cells: str, separator: str | None = None, **how: bool) -> list[list[str]]:
    lists = read_categories(pl.Series(cells), separator, **how).to_list()
    return [[name.strip() for name in names if name.strip()] for names in lists]


@pytest.mark.parametrize(
    "cell",
    [
        "['Comedy', 'Rock & Roll, Live']",
        '["Comedy", "Rock & Roll, Live"]',
        "('Comedy', 'Rock & Roll, Live')",
        "['Comedy' 'Rock & Roll, Live']",  # numpy
        "array(['Comedy', 'Rock & Roll, Live'], dtype=object)",
        "[['Comedy', 'Rock & Roll, Live']]",
        "[{'id': 35, 'name': 'Comedy'}, {'id': 7, 'name': 'Rock & Roll, Live'}]",
        '[{"Name": "Comedy"}, {"Name": "Rock & Roll, Live"}, null]',
        '{"/m/01z4y": "Comedy", "/m/0": "Rock & Roll, Live"}',
        '{"Comedy": 12, "Rock & Roll, Live": 3}',
        "'Comedy', 'Rock & Roll, Live'",
        '"Comedy"|"Rock & Roll, Live"',
        " [ 'Comedy' ,\n 'Rock & Roll, Live' ] ",
    ],
)
def test_lists_as_text(cell: str) -> None:
    assert read(cell, "[]", "['Drama']", "") == [["Comedy", "Rock & Roll, Live"], [], ["Drama"], []]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["[Comedy, Science Fiction]", "[Drama]"], [["Comedy", "Science Fiction"], ["Drama"]]),  # Java
        (['{Comedy,"Science Fiction"}', "{Drama}"], [["Comedy", "Science Fiction"], ["Drama"]]),  # PostgreSQL
        (["Comedy|[REC]", "Drama|(no genres listed)"], [["Comedy", "[REC]"], ["Drama", "(no genres listed)"]]),
        (["['Children\\'s', \"Rock 'n' Roll\"]"], [["Children's", "Rock 'n' Roll"]]),
        (["['Comedy', 'Dra"], [["['Comedy'", "'Dra"]]),  # torn: split as text
        (["[1, 2]", "[" * 5000], [["1", "2"], ["[" * 5000]]),
        (["Toys &amp; Games;Books", "Books;Garden"], [["Toys & Games", "Books"], ["Books", "Garden"]]),
    ],
)
def test_odd_cells(cells: list[str], expected: list[list[str]]) -> None:
    assert read(*cells) == expected


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["Garden, Toys", "Kitchen, Books", "Books, Toys", "Nuts | Bolts, Tools"], ["Garden", "Toys"]),
        (["Garden; Toys", "Kitchen; Books", "Nuts | Bolts"], ["Garden", "Toys"]),
        (["Garden|Toys", "Kitchen|Books", "a; b; c; d"], ["Garden", "Toys"]),
        (["Adhesives, Tapes|Toys", "Paint, Glue", "Tapes, Toys", "Glue|Toys"], ["Adhesives, Tapes", "Toys"]),
        (["Garden", "Toys", "Nuts, Bolts"], ["Garden"]),
    ],
)
def test_the_separator_is_that_of_most_rows(cells: list[str], expected: list[str]) -> None:
    assert read(*cells)[0] == expected


def test_words_of_recbole() -> None:
    assert read("Comedy Sci-Fi", "War Drama", "New|Age", words=True)[0] == ["Comedy", "Sci-Fi"]
    assert read("Comedy, Science Fiction", "War, Drama", "Drama", words=True)[0] == ["Comedy", "Science Fiction"]
    tight = ["Tapes, Glue,Tools", "Paint,Tools", "Tapes, Glue"]
    assert read(*tight, tight_commas=True)[0] == ["Tapes, Glue", "Tools"]
    assert read("Garden, Toys", "Tools, Toys", "A,B", tight_commas=True) == [
        ["Garden", "Toys"],
        ["Tools", "Toys"],
        ["A", "B"],
    ]


CELLS = {"1": "Home > Pans, Pots", "2": "Home > Lamps", "3": "Toys", "4": "['Home > Rugs', 'Art']"}
SPLIT = {"1": ("Home", "Pans, Pots"), "2": ("Home", "Lamps"), "3": ("Toys",), "4": ("Home", "Rugs", "Art")}


@pytest.mark.parametrize("form", ["csv", "item", "jsonl", "parquet"])
def test_the_configured_separator_is_heeded_in_every_format(tmp_path: Path, form: str) -> None:
    rows, source = ROWS, "interactions__csv"
    if form == "csv":
        text = "".join(f'{item},T{item},"{cell}"\n' for item, cell in CELLS.items())
        put(tmp_path, items__csv="item_id,title,categories\n" + text)
    elif form == "item":
        text = "".join(f"{item}\tT{item}\t{cell}\n" for item, cell in CELLS.items())
        put(tmp_path, set__item="item_id:token\ttitle:token_seq\tcategories:token_seq\n" + text)
        rows, source = (
            "user_id:token\titem_id:token\ttime:float\n" + ROWS.partition("\n")[2].replace(",", "\t"),
            "set__inter",
        )
    elif form == "jsonl":
        lists = {item: ["Home > Rugs", "Art"] if item == "4" else cell for item, cell in CELLS.items()}
        lines = [json.dumps({"item_id": item, "title": f"T{item}", "categories": cell}) for item, cell in lists.items()]
        put(tmp_path, items__jsonl="\n".join(lines))
    else:
        frame = pl.DataFrame({"item_id": list(CELLS), "title": [f"T{item}" for item in CELLS]})
        lists_ = [["Home > Rugs", "Art"] if item == "4" else [cell] for item, cell in CELLS.items()]
        frame.with_columns(categories=pl.Series(lists_)).write_parquet(tmp_path / "items.parquet")
    dataset = load(put(tmp_path, **{source: rows}), columns={"category_separator": " > "})
    assert {item: categories(dataset, item) for item in CELLS} == SPLIT


@pytest.mark.parametrize(
    "cells",
    [
        [[{"id": 1, "name": "Comedy"}, {"id": 2, "name": "War, Drama"}], []],
        [[["Comedy"], ["War, Drama"]], None],
        [{"title": "Comedy"}, {"title": "War, Drama"}],
        [["Comedy", None, "War, Drama"], [None]],
    ],
)
def test_nested_columns_of_parquet(tmp_path: Path, cells: list[object]) -> None:
    items = pl.DataFrame({"item_id": [1, 2], "title": ["A", "B"], "genres": cells})
    items.write_parquet(tmp_path / "items.parquet")
    dataset = load(put(tmp_path, interactions__csv="user_id,item_id,time\nu,1,1\nu,2,2\n"))
    expected = [("Comedy",), ("War, Drama",)] if isinstance(cells[0], dict) else [("Comedy", "War, Drama"), ()]
    assert list(dataset.catalog.categories) == expected


def test_samples_show_how_titles_years_and_categories_were_read(tmp_path: Path) -> None:
    items = "item_id,title,year,categories\n" + "".join(f"{n},T{n},200{n},X; Y\n" for n in range(1, 5))
    dataset = load(put(tmp_path, interactions__csv=ROWS, items__csv=items))
    samples = dataset.describe()["samples"]
    assert [sample["title"] for sample in samples] == ["T1 (2001)", "T3 (2003)", "T4 (2004)"]
    assert samples[0] == {"title": "T1 (2001)", "year": 2001, "categories": ["X", "Y"]}
