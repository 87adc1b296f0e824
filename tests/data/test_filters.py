"""Filters: what passes, what is named otherwise, and what is said where nothing passes."""

from __future__ import annotations

import gc
import time
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.data.catalog import Catalog, build_catalog
from deeprec.data.filters import ItemFilter, allowed_items, attributes_of, read_ids
from deeprec.errors import DeepRecError
from toys import catalog_of

CATALOG = catalog_of(
    [("Comedy", "Drama"), ("comedy",), ("Sci-Fi",), (), ("Film-Noir", "Drama"), ("Animé",)],
    years=[1990, 1995, 1999, None, 1946, 2001],
    brands=["Fox", "", "FOX", "Ealing “Studios”", "", "Toho"],
)


def passing(catalog: Catalog = CATALOG, **parts: object) -> list[int]:
    found = allowed_items(catalog, ItemFilter(**parts))  # type: ignore[arg-type]
    assert found is not None
    return list(found)


def test_each_part_alone() -> None:
    assert passing(categories=["Comedy"]) == [0, 1]
    assert passing(categories=["Sci-Fi", "Drama"]) == [0, 2, 4]  # one of them is enough
    assert passing(brands=["Fox"]) == [0, 2]
    assert passing(years=(1990, 1999)) == [0, 1, 2]  # both ends; an item without a year does not pass
    assert passing(years=(1946, 1946)) == [4]
    assert passing(ids=["i3", "Film 5 (2001)"]) == [3, 5]
    assert passing(available=["i4", "i0", "not in the catalogue"]) == [0, 4]


def test_parts_together_and_none() -> None:
    assert passing(categories=["Comedy", "Sci-Fi"], years=(1995, 2010)) == [1, 2]
    assert passing(categories=["Drama"], brands=["Fox"], years=(1980, 1990), ids=["i0", "i4"], available=["i0"]) == [0]
    assert allowed_items(CATALOG, None) is None
    assert allowed_items(CATALOG, ItemFilter()) is None


@pytest.mark.parametrize("name", ["COMEDY", " comedy. ", "“Comedy”", "ｃｏｍｅｄｙ"])
def test_names_are_compared_as_titles_are(name: str) -> None:
    assert passing(categories=[name]) == passing(categories=name) == [0, 1]


def test_a_name_of_other_code_points() -> None:
    assert passing(categories=["anime\N{COMBINING ACUTE ACCENT}"]) == [5]
    assert passing(brands=['"ealing “studios”']) == passing(brands=["Ealing “Studios"]) == [3]


WRONG = {
    "No item has the category 'Comdy': did you mean 'Comedy'?": {"categories": ["Comdy"]},
    "No item has the category 'xyzzy': categories are for instance 'Comedy', 'Drama', 'Sci-Fi'.": {
        "categories": ["Drama", "xyzzy"]
    },
    "No item has the brand 'Foxx': did you mean 'Fox'?": {"brands": ["Foxx"]},
    "There is no item with the title or id 'i33' in the catalogue: did you mean 'i3'": {"ids": ["i33"]},
    "There is no item with the title or id 'Flim 5' in the catalogue: did you mean 'Film 5 (2001)'": {
        "ids": ["Flim 5"]
    },
    "No item is of the years 1950 to 1960: in this catalogue years go from 1946 to 2001.": {"years": (1950, 1960)},
    "The years 1999 to 1990 run backwards: give the first year first.": {"years": (1999, 1990)},
    "No item passes the filter (category 'Sci-Fi', brand 'Toho', years 1990 to 2001): leave a part of it out.": {
        "categories": ["Sci-Fi"],
        "brands": ["Toho"],
        "years": (1990, 2001),
    },
    "No item passes the filter (0 ids): leave a part of it out.": {"ids": []},
    "Nothing is available now: none of the available ids is an item's.": {"available": ["x", "y"]},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_what_is_wrong_is_said(sentence: str) -> None:
    with pytest.raises(DeepRecError) as caught:
        passing(**WRONG[sentence])
    assert str(caught.value).startswith(sentence)


def test_a_catalogue_of_titles_only() -> None:
    catalog = catalog_of([(), ()])
    for parts, sentence in (
        ({"categories": ["Drama"]}, "No item has the category 'Drama': this catalogue has no categories."),
        ({"brands": ["Fox"]}, "No item has the brand 'Fox': this catalogue has no brands."),
        ({"years": (1990, 1999)}, "No item is of the years 1990 to 1999: in this catalogue no item has a year."),
    ):
        with pytest.raises(DeepRecError) as caught:
            passing(catalog, **parts)
        assert str(caught.value) == sentence
    assert passing(catalog, ids=["i1"]) == [1]


def test_equal_filters_share_a_set_and_a_catalogue_is_freed() -> None:
    catalog = catalog_of([("War",)] * 3)
    one = allowed_items(catalog, ItemFilter(["War"]))
    assert allowed_items(catalog, ItemFilter(categories=("War",))) is one
    assert attributes_of(catalog) is attributes_of(catalog)
    alive = weakref.ref(catalog)
    del catalog
    gc.collect()
    assert alive() is None


names = st.sampled_from(["War", "war", "Drama", "Comedy", "Sci-Fi"])


@given(
    st.lists(st.tuples(st.lists(names, max_size=3), st.one_of(st.none(), st.integers(1900, 1905)), names), min_size=1),
    st.lists(names, max_size=2),
    st.one_of(st.none(), st.tuples(st.integers(1899, 1906), st.integers(0, 4))),
    st.lists(names, max_size=1),
)
def test_it_is_a_look_at_every_item(rows, categories, span, brands) -> None:  # type: ignore[no-untyped-def]
    categories_of, years, brands_of = map(list, zip(*rows, strict=True))
    catalog = catalog_of(categories_of, years=years, brands=brands_of)
    wanted = ItemFilter(categories, brands, span and (span[0], span[0] + span[1]))

    def passes(i: int) -> bool:
        kinds = {name.casefold() for name in categories_of[i]}
        return (
            (not categories or bool(kinds & {name.casefold() for name in categories}))
            and (not brands or brands_of[i].casefold() in {name.casefold() for name in brands})
            and (span is None or (years[i] is not None and span[0] <= years[i] <= span[0] + span[1]))
        )

    expected = [i for i in range(len(rows)) if passes(i)]
    if not wanted:
        assert allowed_items(catalog, wanted) is None
    elif expected and not _unknown(catalog, wanted):
        assert list(allowed_items(catalog, wanted) or ()) == expected
    else:
        with pytest.raises(DeepRecError, match=r"^No item "):
            allowed_items(catalog, wanted)


def _unknown(catalog: Catalog, wanted: ItemFilter) -> bool:
    has = [{name.casefold() for row in catalog.categories for name in row}, {b.casefold() for b in catalog.brands}]
    asked = [{name.casefold() for name in names} for names in (wanted.categories, wanted.brands)]
    return not (asked[0] <= has[0] and asked[1] <= has[1])


def test_a_filter_takes_milliseconds() -> None:
    n = 200_000
    rng = np.random.default_rng(0)
    kinds, years = rng.integers(50, size=n).tolist(), rng.integers(1950, 2020, size=n).tolist()
    ids = [f"p{i}" for i in range(n)]
    rows = [(f"Kind {kind}",) for kind in kinds]
    catalog = build_catalog(ids, ids, years, [""] * n, rows, [""] * n, 80)
    passing(catalog, categories=["Kind 7"], years=(1960, 1970))  # makes the index
    started = time.perf_counter()
    found = passing(catalog, categories=["kind 3", "Kind 9"], years=(1990, 1999))
    assert time.perf_counter() - started < 0.1
    assert found == [i for i in range(n) if kinds[i] in (3, 9) and 1990 <= years[i] <= 1999]


def test_ids_are_read_from_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "stock.txt"
    path.write_bytes("\ufeffi4\r\n\r\n i0 \nkörper 7,x\n".encode())
    assert read_ids(path) == ["i4", "i0", "körper 7,x"]
    for content, sentence in ((b"\n \n", "names no item: write one id a line"), (b"\xff\xfe", "can't be read")):
        path.write_bytes(content)
        with pytest.raises(DeepRecError, match=sentence):
            read_ids(path)
    with pytest.raises(DeepRecError, match=r"missing.txt can't be read .*No such file.*one id a line"):
        read_ids(tmp_path / "missing.txt")
