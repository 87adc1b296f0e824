"""The benchmark of preference sensitivity: its preferences and its figures, mostly worked out by hand."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprec.config import TRMConfig
from deeprec.data.catalog import ItemIdx, UserId
from deeprec.data.dataset import Task
from deeprec.retrieval.cooccurrence import CoOccurrence
from deeprec.retrieval.retriever import Hit, Query
from deeprec.trm.network import PreferenceSASRec
from deeprec.trm.trm import TRM
from stand_ins import HashedWords
from toys import RecordingRetriever, catalog_of, toy_dataset

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import preference_sensitivity as benchmark

item_preference, preferences = benchmark.item_preference, benchmark.preferences
pool, sensitivity = benchmark.pool, benchmark.sensitivity


def items(*numbers):
    return tuple(map(ItemIdx, numbers))


def tasks_of(*histories):
    return [Task(f"test:u{u}", UserId(f"u{u}"), items(*history)) for u, history in enumerate(histories)]


def targets_of(*targets):
    return {f"test:u{u}": ItemIdx(target) for u, target in enumerate(targets)}


# Preferences


def test_an_oracle_has_all_phrases_of_the_target():
    catalog = catalog_of([("War", "Sea"), ("War",), (), tuple("abcdefgh")], years=[1995, None, None, None],
                         brands=["", "Acme", "", ""])  # fmt: skip
    assert [item_preference(catalog, ItemIdx(i)) for i in range(4)] == [
        "War; Sea; 1990s",
        "War; Acme",
        "Film 2",
        "a; b; c; d; e; f",
    ]


@given(n=st.integers(2, 30), seed=st.integers(0, 50))
def test_a_wrong_preference_is_another_users_and_everyones_is_used(n, seed):
    catalog = catalog_of([(f"phrase {i}",) for i in range(n)])
    found = preferences(catalog, tasks_of(*[()] * n), targets_of(*range(n)), seed)
    assert found["oracle"] == [f"phrase {i}" for i in range(n)]
    assert all(wrong != own for wrong, own in zip(found["wrong"], found["oracle"], strict=True))
    assert sorted(found["wrong"]) == sorted(found["oracle"])
    assert found == preferences(catalog, tasks_of(*[()] * n), targets_of(*range(n)), seed)


def test_wrong_preferences_are_drawn_at_random():
    """Over many seeds each of the other four users' comes as often."""
    catalog = catalog_of([(f"phrase {i}",) for i in range(5)])
    arguments = tasks_of(*[()] * 5), targets_of(*range(5))
    drawn = [preferences(catalog, *arguments, seed)["wrong"][0] for seed in range(400)]
    for other in range(1, 5):
        assert drawn.count(f"phrase {other}") / 400 == pytest.approx(0.25, abs=0.08)


def test_frequent_phrases_know_nothing_of_the_target():
    """Every film has a studio of its own, so that a leak would show; other targets change no frequent phrases."""
    dataset = toy_dataset(n_users=40)
    n = len(dataset.catalog)
    catalog = dataclasses.replace(dataset.catalog, brands=tuple(f"Studio {i}" for i in range(n)))
    tasks, targets = dataset.tasks("test"), dataset.targets("test")
    found = preferences(catalog, tasks, targets, seed=0)
    for task, text, oracle in zip(tasks, found["frequent phrases"], found["oracle"], strict=True):
        own = {phrase for item in task.history for phrase in catalog.phrases(item)}
        assert set(text.split("; ")) <= own
        assert len(text.split("; ")) == 3
        assert f"Studio {targets[task.id]}" in oracle
        assert f"Studio {targets[task.id]}" not in text.split("; ")
    others = {task: ItemIdx((target + 1) % n) for task, target in targets.items()}
    assert preferences(catalog, tasks, others, seed=0)["frequent phrases"] == found["frequent phrases"]


# Sensitivity


class WrittenRanks:
    """Answers with ranks written beforehand, by preference and weight, and keeps the queries."""

    def __init__(self, ranks):
        self.by_query = ranks
        self.calls = []

    def ranks(self, queries, targets):
        self.calls.append((queries, list(targets)))
        return np.array([self.by_query[query.preference, query.preference_weight] for query in queries])


def test_every_user_is_ranked_with_every_kind_at_every_weight():
    """Without a preference, ranks 1 and 1: NDCG@10 of 1 / log2(3)."""
    second = 1 / np.log2(3)
    trm = WrittenRanks(
        {("", 0.0): 1}
        | {("war", 0.5): 0, ("sea", 0.5): 10, ("war", 1.0): 0, ("sea", 1.0): 9}
        | {("love", 0.5): -1, ("art", 0.5): 2, ("love", 1.0): -1, ("art", 1.0): 1}
    )
    tasks, targets = tasks_of((0, 1), (2,)), targets_of(7, 8)
    texts = {"good": ["war", "sea"], "bad": ["love", "art"]}
    none, *found = sensitivity(trm, tasks, targets, texts, (0.5, 1.0))
    assert (none.kind, none.preference_weight) == ("none", 0.0)
    np.testing.assert_allclose(none.ndcg_U, [second, second])
    kinds = [(one.kind, one.preference_weight) for one in found]
    assert kinds == [("good", 0.5), ("good", 1.0), ("bad", 0.5), ("bad", 1.0)]
    expected = [([1, 0], [1, 0]), ([1, 1 / np.log2(11)], [1, 1]), ([0, 0.5], [0, 1]), ([0, second], [0, 1])]
    for one, (ndcg_U, recall_U) in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.ndcg_U, ndcg_U)
        np.testing.assert_array_equal(one.recall_U, recall_U)
    assert len(trm.calls) == 5
    for queries, targets_U in trm.calls:
        assert targets_U == [7, 8]
        assert [query.history for query in queries] == [task.history for task in tasks]
        assert [set(query.exclude) for query in queries] == [{0, 1}, {2}]


@pytest.fixture(scope="module")
def dataset():
    return toy_dataset(n_users=50)


@pytest.fixture(scope="module")
def trm(dataset):
    """Untrained, which is enough to be moved by a preference."""
    torch.manual_seed(0)
    return untrained(dataset, TRMConfig(width=16, layers=1, history=8))


def untrained(dataset, config):
    catalog, encoder = dataset.catalog, HashedWords()
    text_ID = torch.from_numpy(encoder.encode(catalog.texts()))
    cooccurrence = CoOccurrence.fit(dataset.train_sequences(), len(catalog))
    return TRM(PreferenceSASRec(config, text_ID), catalog, encoder, config, cooccurrence)


def test_only_weight_zero_changes_nothing(dataset, trm):
    tasks, targets = dataset.tasks("test"), dataset.targets("test")
    texts = preferences(dataset.catalog, tasks, targets, seed=0)
    none, *found = sensitivity(trm, tasks, targets, texts, (0.0, 1.0))
    assert [(one.kind, one.preference_weight) for one in found] == [(kind, w) for kind in texts for w in (0.0, 1.0)]
    assert none.ndcg_U.any()
    for one in found:
        if one.preference_weight == 0:
            np.testing.assert_array_equal(one.ndcg_U, none.ndcg_U)
            np.testing.assert_array_equal(one.recall_U, none.recall_U)
        else:
            assert (one.ndcg_U != none.ndcg_U).any()


def test_a_preference_is_measured_on_its_own_ranking(dataset, trm):
    """NDCG of full retrieval, the history left out."""
    tasks, targets = dataset.tasks("test"), dataset.targets("test")
    texts = preferences(dataset.catalog, tasks, targets, seed=0)["oracle"]
    _, oracle = sensitivity(trm, tasks, targets, {"oracle": texts}, (0.4,))
    queries = [Query(t.history, text, frozenset(t.history), 0.4) for t, text in zip(tasks, texts, strict=True)]
    for ndcg, hits, task in zip(oracle.ndcg_U, trm.retrieve(queries, 10), tasks, strict=True):
        found, target = [hit.item for hit in hits], targets[task.id]
        assert ndcg == pytest.approx(1 / np.log2(found.index(target) + 2) if target in found else 0)


# Pools


class Genres(RecordingRetriever):
    """Items of the preferred genre first, then the lowest; item i is of genre `letters[i % len(letters)]`."""

    def __init__(self, n_items, letters):
        super().__init__(n_items)
        self.letters = letters

    def retrieve(self, queries, k):
        self.batches.append(list(queries))
        hits = []
        for query in queries:
            allowed = [ItemIdx(i) for i in range(self.n_items) if i not in query.exclude]
            allowed.sort(key=lambda i: (self.letters[i % len(self.letters)] != query.preference, i))
            hits.append([Hit(item, -float(position)) for position, item in enumerate(allowed[:k])])
        self.answers += hits
        return hits


def test_a_pool_by_hand():
    """200 items, 25 of each of a..h, items 0, 8, 16, ... of a. Without a preference come the 60 lowest.

    The first user saw c, then h, then a last: the pool is 3 times 20 films, of a from 24 to 176, of h from
    23 to 175 and of c from 10 to 162. The second saw one of b: the pool is 20 of b, 9 to 161, then the 40 lowest that
    are left, 0 to 45. The third saw nothing: the 60 lowest, in three calls without a preference.
    """
    letters = "abcdefgh"
    catalog = catalog_of([(letters[i % 8],) for i in range(200)])
    tasks = tasks_of((0, 7, 8, 2, 15, 16), (1,), ())
    retriever = Genres(200, letters)

    def found(*targets):
        result = pool(retriever, catalog, tasks, targets_of(*targets), 0.6)
        return result.pooled_U.tolist(), result.blank_U.tolist()

    result = pool(retriever, catalog, tasks, targets_of(176, 45, 59), 0.6)
    assert result.preference_weight == 0.6
    # 6 of the first user's lowest are excluded, so 65 is the last of 60; for the second it is 60, for the third 59.
    assert (result.pooled_U.tolist(), result.blank_U.tolist()) == ([1, 1, 1], [0, 1, 1])
    assert found(184, 46, 60) == ([0, 0, 0], [0, 1, 0])
    assert found(175, 161, 0) == ([1, 1, 1], [0, 0, 1])
    assert found(183, 169, 0) == ([0, 0, 1], [0, 0, 1])
    assert found(162, 60, 59) == ([1, 0, 1], [0, 1, 1])
    assert found(170, 61, 60) == ([0, 0, 0], [0, 0, 0])
    assert found(65, 60, 59) == ([0, 0, 1], [1, 1, 1])
    assert found(66, 60, 59) == ([1, 0, 1], [0, 1, 1])  # of c
    first, second, third, blank = retriever.batches[:4]
    assert [[query.preference for query in batch] for batch in (first, second, third)] == [
        ["a", "b", ""],
        ["h", "", ""],
        ["c", "", ""],
    ]
    assert [(query.preference, query.exclude) for query in blank] == [("", set(task.history)) for task in tasks]
    assert {query.preference_weight for batch in (first, second, third) for query in batch} == {0.6}
    assert all(query.history == task.history for batch in retriever.batches[:4]
               for query, task in zip(batch, tasks, strict=True))  # fmt: skip


@settings(max_examples=40)
@given(
    n_items=st.integers(1, 100),
    histories=st.lists(st.lists(st.integers(0, 99), max_size=30), min_size=1, max_size=4),
    genres=st.integers(1, 6),
)
def test_both_lists_are_as_long_and_have_no_item_twice_or_of_the_history(n_items, histories, genres):
    """Sixty items, or all that the user has not seen."""
    letters = "abcdef"[:genres]
    histories = [[item % n_items for item in history] for history in histories]
    tasks = tasks_of(*histories)
    retriever = Genres(n_items, letters)
    targets = targets_of(*[(7 * u) % n_items for u in range(len(tasks))])
    result = pool(retriever, catalog_of([(letters[i % genres],) for i in range(n_items)]), tasks, targets, 1.0)
    n = len(tasks)
    for u, task in enumerate(tasks):
        pooled = [hit.item for turn in range(3) for hit in retriever.answers[turn * n + u]]
        blank = [hit.item for hit in retriever.answers[3 * n + u]]
        for found in (pooled, blank):
            assert len(found) == len(set(found)) == min(60, n_items - len(set(task.history)))
            assert not set(found) & set(task.history)
        assert result.pooled_U[u] == (targets[task.id] in pooled)
        assert result.blank_U[u] == (targets[task.id] in blank)


def test_the_pool_of_a_trm(dataset, trm):
    """The toy's 40 films fit into both lists, so nothing can be gained; at weight 0 both lists are the same."""
    tasks, targets = dataset.tasks("test"), dataset.targets("test")
    result = pool(trm, dataset.catalog, tasks, targets, 1.0)
    assert result.pooled_U.all()
    assert result.blank_U.all()
    large = toy_dataset(n_users=60, n_items=150)
    other, tasks, targets = untrained(large, trm.config), large.tasks("test"), large.targets("test")
    ignored, applied = (pool(other, large.catalog, tasks, targets, weight) for weight in (0.0, 1.0))
    np.testing.assert_array_equal(ignored.pooled_U, ignored.blank_U)
    assert (applied.pooled_U != applied.blank_U).any()
    np.testing.assert_array_equal(applied.blank_U, ignored.blank_U)
