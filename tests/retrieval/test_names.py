"""What a request names, on a small shelf of films and products."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.data.catalog import build_catalog
from deeprec.retrieval import names as module
from deeprec.retrieval.names import Names

FILMS = [
    ("Batman", 1989, ["Action"]),
    ("Batman Returns", 1992, ["Action"]),
    ("Batman & Robin", 1997, ["Action", "Comedy"]),
    ("Dark City", 1998, ["Sci-Fi"]),
    ("Léon: The Professional (a.k.a. Léon)", 1994, ["Crime"]),
    ("Matrix, The", 1999, ["Sci-Fi"]),
    ("Matrix", 1993, ["Drama"]),
    ("Heat", 1995, ["Crime"]),
    ("Body Heat", 1981, ["Crime", "Thriller"]),
    ("Heat, The", 2013, ["Comedy"]),
    ("Fantasy", 1990, ["Drama"]),
    ("War, The", 1994, ["Drama"]),
    ("M*A*S*H", 1970, ["Comedy", "War"]),
    ("Spider-Man", 2002, ["Action"]),
    ("It", 1990, ["Horror"]),
    ("City of Lost Children, The (Cité des enfants perdus, La)", 1995, ["Fantasy", "Sci-Fi"]),
    ("Strada, La", 1954, ["Drama"]),
    ("Some Like It Hot", 1959, ["Comedy", "Crime"]),
    ("Comedy of Terrors, The", 1964, ["Comedy", "Horror"]),
    ("Faster; Kill! Kill!", 1965, ["Action"]),
    ("Halloween", 1978, ["Horror"]),
    ("Halloween", 2007, ["Horror"]),
    ("Ædel Smørrebrød", None, []),
    ("千と千尋の神隠し", 2001, ["Fantasy"]),
    *[(f"Film {n}", 1990 + n % 8, [genre]) for n, genre in enumerate(["War", "Fantasy", "Crime", "Comedy"] * 10)],
]
PRODUCTS = [
    ("WD-40 Spray Can", "WD-40", ["Lubricants"]),
    ("Hanna HI-98107 pH Tester", "Hanna Instruments", ["Testers"]),
    ("Hanna HI98128 Tester", "Hanna Instruments", ["Testers"]),
    ("Blue Grease", "Würth", ["Lubricants"]),
    ("Caliper, 6 inch", "Mitutoyo", ["Gauges", "Caliper"]),
    ("C++ Primer", "", ["Books"]),
    ("C Primer", "", ["Books"]),
    *[(f"Beaker of {n} ml", "Acme", ["Glass", "Beaker"]) for n in range(101, 140)],
]


def build(rows):
    titles, years, brands, categories = zip(*rows, strict=True)
    n = len(titles)
    return Names(build_catalog([f"i{i}" for i in range(n)], titles, years, brands, categories, [""] * n, 80))


@pytest.fixture(scope="module")
def films():
    return build([(title, year, "", categories) for title, year, categories in FILMS])


@pytest.fixture(scope="module")
def products():
    return build([(title, None, brand, categories) for title, brand, categories in PRODUCTS])


def tiers(names, request):
    """Titles of each level, the highest first."""
    levels_I = names.levels([request]).toarray()[0]
    present = sorted(set(levels_I) - {0.0}, reverse=True)
    assert present == list(range(len(present), 0, -1))
    return [[names.catalog.titles[item] for item in np.flatnonzero(levels_I == level)] for level in present]


BATMAN, RETURNS, ROBIN = "Batman (1989)", "Batman Returns (1992)", "Batman & Robin (1997)"
HEAT, BODY, THE_HEAT = "Heat (1995)", "Body Heat (1981)", "Heat, The (2013)"
LEON = "Léon: The Professional (a.k.a. Léon) (1994)"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ("Batman", [[BATMAN], [RETURNS, ROBIN]]),
        ("batman (1989)", [[BATMAN], [RETURNS, ROBIN]]),
        ("BATMAN 1989", [[BATMAN], [RETURNS, ROBIN]]),
        # Words inside a longer phrase count: the more and the rarer, the higher. Words that ask are no part of a title.
        ("films like Batman Returns", [[RETURNS], [BATMAN, ROBIN]]),
        ("something like Heat please", [[HEAT], [THE_HEAT], [BODY]]),
        ("I want to watch it", [["It (1990)"]]),
        ("Batman in a dark alley", [["Dark City (1998)"], [BATMAN, RETURNS, ROBIN]]),
        ("robin, the friend of Batman", [[ROBIN], [BATMAN, RETURNS]]),
        # Several phrases: words of a phrase that is a title come first.
        ("Batman; dark", [[BATMAN], [RETURNS, ROBIN], ["Dark City (1998)"]]),
        ("dark\nbatman", [[BATMAN], [RETURNS, ROBIN], ["Dark City (1998)"]]),
        ("Heat; Batman; 1990s", [[BATMAN, HEAT], [THE_HEAT], [RETURNS, ROBIN, BODY]]),
        # Accents, punctuation, articles, brackets.
        ("Leon", [[LEON]]),
        ("LÉON", [[LEON]]),
        ("Léon: The Professional", [[LEON]]),
        ("the matrix", [["Matrix, The (1999)", "Matrix (1993)"]]),
        ("Matrix, The", [["Matrix, The (1999)"], ["Matrix (1993)"]]),
        ("The Matrix (1999)", [["Matrix, The (1999)"], ["Matrix (1993)"]]),
        ("La Strada", [["Strada, La (1954)"], [FILMS[15][0] + " (1995)"]]),
        ("the city of lost children", [[FILMS[15][0] + " (1995)"], ["Dark City (1998)"]]),
        ("mash", [["M*A*S*H (1970)"]]),
        ("m*a*s*h", [["M*A*S*H (1970)"]]),
        ("spiderman", [["Spider-Man (2002)"]]),
        ("Spider Man!", [["Spider-Man (2002)"]]),
        ("faster kill kill", [["Faster; Kill! Kill! (1965)"]]),
        ("War; Faster; Kill! Kill!", [["Faster; Kill! Kill! (1965)"]]),
        ("aedel smorrebrod", [["Ædel Smørrebrød"]]),
        ("ＢＡＴＭＡＮ", [[BATMAN], [RETURNS, ROBIN]]),
        ("千と千尋の神隠し", [["千と千尋の神隠し (2001)"]]),
        # One common word.
        ("It", [["It (1990)"]]),
        # Namesakes lead together.
        ("halloween", [["Halloween (1978)", "Halloween (2007)"]]),
        ("Halloween (2007)", [["Halloween (2007)"], ["Halloween (1978)"]]),
        # Categories and decades are no names, even where a title has their word; a whole title is one.
        ("Comedy", []),
        ("Comedy; 1990s", []),
        ("War", []),
        ("War, The", [["War, The (1994)"]]),
        ("The War", [["War, The (1994)"]]),
        ("Fantasy", [["Fantasy (1990)"]]),
        ("dark fantasy", [["Dark City (1998)"]]),
        ("Film", []),  # too many bear it
        ("", []),
        (" ; ", []),
        ("xyzzy", []),
    ],
)
def test_films(films, request_, expected):
    assert tiers(films, request_) == expected


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ("HI-98107", [["Hanna HI-98107 pH Tester"]]),
        ("hi98107", [["Hanna HI-98107 pH Tester"]]),
        ("a HI98128 tester", [["Hanna HI98128 Tester"], ["Hanna HI-98107 pH Tester"]]),
        ("Hanna", [["Hanna HI-98107 pH Tester", "Hanna HI98128 Tester"]]),
        ("wd40", [["WD-40 Spray Can"]]),
        ("Wurth grease", [["Blue Grease"]]),  # a brand
        ("Würth", [["Blue Grease"]]),
        ("caliper", [["Caliper, 6 inch"]]),  # in as many titles as categories
        ("beaker", []),
        ("Acme", []),  # a brand of many items
        ("beaker of 117 ml", [["Beaker of 117 ml"]]),
        ("C++ Primer", [["C++ Primer"], ["C Primer"]]),
        ("Lubricants", []),
    ],
)
def test_products(products, request_, expected):
    assert tiers(products, request_) == expected


def test_a_word_of_few_items_is_a_name_in_a_large_catalogue_too(monkeypatch):
    """Ten items, or one in two hundred."""
    rows = [(f"Zorro {n}" if n < 12 else f"number{n}", None, "", []) for n in range(2400)]
    assert [len(tier) for tier in tiers(build(rows), "zorro")] == [12]
    assert tiers(build(rows[:2000]), "zorro") == []
    assert [len(tier) for tier in tiers(build(rows[2:2000]), "zorro")] == [10]


def test_a_catalogue_without_items_or_words():
    for rows in ([("?!", None, "", [])], [("…", 1990, "", []), ("$", None, "", ["$"])]):
        assert tiers(build(rows), "?!" if len(rows) == 1 else "$") == [[rows[-1][0]]]
    n = build([("a", None, "", [])]).levels([])
    assert n.shape == (0, 1)


@given(texts=st.lists(st.text(max_size=30), max_size=4))
def test_any_request_has_levels_of_its_own(films, texts):
    levels_QI = films.levels(texts)
    assert levels_QI.shape == (len(texts), len(FILMS))
    assert levels_QI.has_sorted_indices
    for text, levels_I in zip(texts, levels_QI.toarray(), strict=True):
        np.testing.assert_array_equal(films.levels([text]).toarray()[0], levels_I)


@given(position=st.integers(0, len(FILMS) - 1), history=st.sampled_from(["", "; dark comedy", "; Batman", "; 1990s"]))
def test_every_title_is_on_top(films, position, history):
    title = films.catalog.titles[position]
    levels_I = films.levels([title + history]).toarray()[0]
    assert levels_I[position] == levels_I.max() > 0
    assert module.phrases_of(title) != [""]
