"""Search among some items only: equal to a sort of these, for every index, size of set and mixture of queries."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deeprec.data.catalog import ItemIdx
from deeprec.data.item_set import ItemSet
from deeprec.errors import DeepRecError
from deeprec.retrieval.gathered import GatheredVectors
from deeprec.retrieval.index import Index
from deeprec.retrieval.retriever import Hit, Query, top_hits

KINDS = ["exact", "hnsw", "ivfpq"]
N_ITEMS, WIDTH = 3000, 16


@cache
def vectors():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N_ITEMS, WIDTH)).astype(np.float32), rng.normal(size=(40, WIDTH)).astype(np.float32)


@cache
def built(kind):
    return Index.build(vectors()[0], kind)


def sorted_hits(items_ID, queries_QD, k, exclude, include):
    """By float64 sums, rounded, and Python's sort."""
    scores_QI = (queries_QD.astype(np.float64)[:, None] * items_ID.astype(np.float64)).sum(2).astype(np.float32)
    results = []
    for scores_I, excluded, included in zip(scores_QI.tolist(), exclude, include, strict=True):
        among = set(range(len(items_ID)) if included is None else included) - set(excluded)
        results.append([Hit(i, scores_I[i]) for i in sorted(among, key=lambda i: (-scores_I[i], i))[:k]])
    return results


small = st.integers(-2, 2)


@given(st.data(), st.integers(1, 40), st.integers(0, 6), st.integers(0, 45))
def test_it_is_a_sort_of_what_is_included(data, n_items, n_queries, k):
    """Several queries may share a set, gathered or not, beside others without one."""
    items_ID = data.draw(arrays.arrays(np.float32, (n_items, 2), elements=small))
    queries_QD = data.draw(arrays.arrays(np.float32, (n_queries, 2), elements=small))
    some = st.sets(st.integers(0, n_items - 1))
    sets = [None, *(ItemSet.of(each) for each in data.draw(st.lists(some, min_size=1, max_size=3)))]
    include = data.draw(st.lists(st.sampled_from(sets), min_size=n_queries, max_size=n_queries))
    exclude = data.draw(st.lists(some, min_size=n_queries, max_size=n_queries))
    hits = Index.build(items_ID).search(queries_QD, k, exclude, include)
    assert hits == sorted_hits(items_ID, queries_QD, k, exclude, include)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 10, 100, 1000, 2900, N_ITEMS])
@pytest.mark.parametrize("shared", [True, False])
def test_every_kind_is_exact_under_a_filter(kind, size, shared):
    items_ID, queries_QD = vectors()
    rng = np.random.default_rng(size)
    include = [ItemSet.of(rng.choice(N_ITEMS, size, replace=False)) for _ in range(1 if shared else 40)]
    include *= 40 // len(include)
    exclude = [range(row) for row in range(40)]
    expected = sorted_hits(items_ID, queries_QD, 20, exclude, include)
    assert built(kind).search(queries_QD, 20, exclude, include) == expected
    alone = [built(kind).search(queries_QD[[q]], 20, [exclude[q]], [include[q]])[0] for q in range(40)]
    assert alone == expected


@pytest.mark.parametrize("kind", KINDS)
def test_queries_without_a_filter_are_answered_as_ever(kind):
    queries_QD = vectors()[1]
    plain = built(kind).search(queries_QD, 10)
    mixed = built(kind).search(queries_QD, 10, (), [None if row % 2 else {3, 4, 5} for row in range(40)])
    assert mixed[1::2] == plain[1::2]
    assert all({hit.item for hit in hits} == {3, 4, 5} for hits in mixed[::2])


def test_items_that_are_added_are_found_under_a_filter_too():
    items_ID, queries_QD = vectors()
    index = Index.build(items_ID[:2000])
    known = ItemSet.of(range(100))
    before = index.search(queries_QD, 5, (), [known] * 40)
    with pytest.raises(DeepRecError, match=r"Items 0 to 2000 are to be included of 2000"):
        index.search(queries_QD[:1], 5, (), [{0, 2000}])
    index.add(items_ID[2000:])
    assert index.search(queries_QD, 5, (), [known] * 40) == before
    among = ItemSet.of(range(1990, 2010))
    expected = sorted_hits(items_ID, queries_QD, 5, [()] * 40, [among] * 40)
    assert index.search(queries_QD, 5, (), [among] * 40) == expected


@pytest.mark.parametrize("items", [{-1, 3}, {N_ITEMS}])
def test_items_that_are_not_there_are_refused(items):
    with pytest.raises(DeepRecError, match=f"are to be included of {N_ITEMS}: name positions in this catalogue"):
        built("exact").search(vectors()[1][:1], 5, (), [items])
    with pytest.raises(DeepRecError, match="are to be included"):
        top_hits(np.zeros((1, N_ITEMS)), [Query((), include=items)], 5)


def test_each_query_has_its_own_set():
    with pytest.raises(DeepRecError, match="40 queries came with 2 collections to include"):
        built("exact").search(vectors()[1], 5, (), [{1}, {2}])


def test_gathered_vectors_are_kept_within_a_bound():
    items_ID = vectors()[0]
    first, second, third = (ItemSet.of(range(start, start + 40)) for start in (0, 100, 200))
    gathered = GatheredVectors(100)
    kept = gathered.of(first, items_ID)
    np.testing.assert_array_equal(kept.numpy(), items_ID[:40])
    gathered.of(second, items_ID)
    assert gathered.of(first, items_ID) is kept
    gathered.of(third, items_ID)  # the second was not used for longest
    assert gathered.of(first, items_ID) is kept
    large = ItemSet.of(range(101))
    assert gathered.of(large, items_ID) is not gathered.of(large, items_ID)  # more than it may keep
    assert len(gathered.of(ItemSet.of([]), items_ID)) == 0


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.data(), st.integers(0, 25))
def test_top_hits_is_a_sort_of_what_is_included(scores, data, k):
    some = st.sets(st.integers(0, len(scores) - 1))
    include, exclude = data.draw(some), data.draw(some)
    expected = sorted(include - exclude, key=lambda item: (-scores[item], item))[:k]
    query = Query((), exclude=exclude, include=include)
    both = top_hits(np.array([scores, scores], dtype=float), [query, Query(())], k)
    assert [hit.item for hit in both[0]] == expected
    assert len(both[1]) == min(k, len(scores))


def test_a_set_of_items():
    items = ItemSet.of([5, 1, 5, 3])
    assert list(items) == [1, 3, 5]
    assert len(items) == 3
    assert [item in items for item in range(7)] == [False, True, False, True, False, True, False]
    assert items == frozenset({1, 3, 5}) == items
    assert items == ItemSet.of(np.array([3, 1, 5])) == ItemSet.of(dict.fromkeys([1, 3, 5]))
    assert items != ItemSet.of([1, 3]) != items
    assert hash(items) == hash(ItemSet.of(iter([1, 3, 5]))) == hash(frozenset({1, 3, 5}))
    assert items & {3, 4} == {3}
    assert ItemSet.of(items) is items
    assert ItemIdx(1) not in ItemSet.of([])
