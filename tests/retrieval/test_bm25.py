"""BM25 against sums by hand."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.data.catalog import build_catalog
from deeprec.retrieval import bm25
from deeprec.retrieval.bm25 import BM25


def catalog(*titles, categories=None):
    n = len(titles)
    ids, blank = [f"i{i}" for i in range(n)], [""] * n
    return build_catalog(ids, titles, [None] * n, blank, categories or [()] * n, blank, 80)


@pytest.fixture
def rare(monkeypatch):
    """In small catalogues every word is in more than a tenth of the items."""
    monkeypatch.setattr(bm25, "MAX_ITEM_SHARE", 0.5)


def test_scores_by_hand(rare):
    """A word in n of N titles has ln(1 + (N - n + 0.5) / (n + 0.5)); a title of L words (1.75 in the mean) counts it
    1 / (1 + 1.5 (0.25 + 0.75 L / 1.75)).
    """
    found = BM25(catalog("red steel nut", "red bolt", "paper", "glue"))
    red, steel, bolt = log(1 + 2.5 / 2.5), log(1 + 3.5 / 1.5), log(1 + 3.5 / 1.5)
    long, short = 1 / (1 + 1.5 * (0.25 + 0.75 * 3 / 1.75)), 1 / (1 + 1.5 * (0.25 + 0.75 * 2 / 1.75))
    scores_QI = found.scores(["Red; steel", "bolt, red", "", "wood"]).toarray()
    first = [(red + steel) * long, red * short, 0, 0]
    second = [red * long, (red + bolt) * short, 0, 0]
    expected_QI = [first, second, [0] * 4, [0] * 4]
    np.testing.assert_allclose(scores_QI, expected_QI, rtol=1e-5)


def test_a_repeated_word_counts_once_and_case_has_no_effect(rare):
    found = BM25(catalog("red steel nut", "red bolt", "paper", "glue"))
    one, twice = found.scores(["steel nut", "STEEL nut; steel, Nut"]).toarray()
    np.testing.assert_array_equal(one, twice)


def test_words_of_many_items_are_ignored():
    titles = [f"kit number{n}" for n in range(20)]
    found = BM25(catalog(*titles)).scores(["kit", "number7", "kit number7"]).toarray()
    assert not found[0].any()
    assert np.flatnonzero(found[1]).tolist() == [7]
    np.testing.assert_array_equal(found[1], found[2])


def test_categories_and_brands_are_words_too(rare):
    found = BM25(catalog("a nut", "a bolt", "glue", categories=[("Hex Nuts",), (), ()]))
    assert np.flatnonzero(found.scores(["hex"]).toarray()[0]).tolist() == [0]


def test_words_of_too_many_items_are_ignored_whatever_their_share(monkeypatch):
    monkeypatch.setattr(bm25, "MAX_ITEMS", 2)
    found = BM25(catalog("red", "red", "red", "blue", "blue", *[f"number{n}" for n in range(95)]))
    assert np.diff(found.scores(["red", "blue"]).indptr).tolist() == [0, 2]


def test_stop_words_are_ignored(rare):
    found = BM25(catalog("pack of nuts", "glue", "paper", "ink"))
    assert not found.scores(["of the"]).nnz


@pytest.mark.parametrize("titles", [(), ("!", "?")])
def test_a_catalogue_without_words_has_no_scores(titles):
    scores_QI = BM25(catalog(*titles)).scores(["red", ""])
    assert scores_QI.shape == (2, len(titles))
    assert not scores_QI.nnz


@given(texts=st.lists(st.text(max_size=20), max_size=5))
def test_any_preference_has_scores_of_its_own(texts):
    """None raises, none is below zero, and none depends on the others."""
    found = BM25(catalog(*[f"red number{n} paper{n % 5}" for n in range(30)]))
    scores_QI = found.scores(texts).toarray()
    assert scores_QI.shape == (len(texts), 30)
    assert (scores_QI >= 0).all()
    for text, scores_I in zip(texts, scores_QI, strict=True):
        np.testing.assert_array_equal(found.scores([text]).toarray()[0], scores_I)
