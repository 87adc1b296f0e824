"""What a TRM is told in order to see how it listens, and what is counted; most of it worked out by hand."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprec.config import TRMConfig
from deeprec.data.catalog import ItemIdx, UserId
from deeprec.data.dataset import Task
from deeprec.evaluation.preference_sensitivity import item_preference, listen, pool, preferences
from deeprec.retrieval.cooccurrence import CoOccurrence
from deeprec.retrieval.retriever import Hit, Query
from deeprec.testing import RecordingRetriever, catalog_of, toy_dataset
from deeprec.trm.network import PreferenceSASRec
from deeprec.trm.preferences import frequent_phrases
from deeprec.trm.trm import TRM


def items(*numbers):
    return tuple(map(ItemIdx, numbers))


def tasks_of(*histories):
    return [Task(f"test:u{u}", UserId(f"u{u}"), items(*history)) for u, history in enumerate(histories)]


def targets_of(*targets):
    return {f"test:u{u}": ItemIdx(target) for u, target in enumerate(targets)}


# What is said


def test_an_oracle_says_all_that_the_target_is():
    catalog = catalog_of([("War", "Sea"), ("War",), (), tuple("abcdefgh")], years=[1995, None, None, None],
                         brands=["", "Acme", "", ""])  # fmt: skip
    said = [item_preference(catalog, ItemIdx(i)) for i in range(4)]
    assert said == ["War; Sea; 1990s", "War; Acme", "Film 2", "a; b; c; d; e; f"]


# 0 War Sea, 1 War, 2 Love, 3 Sea Love, 4 nothing, 5 eight
THEMED = catalog_of([("War", "Sea"), ("War",), ("Love",), ("Sea", "Love"), (), tuple("abcdefgh"), (), (), (), ()])


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ((), []),
        ((4,), ["Film 4"]),  # a title, where there is nothing else
        ((1,), ["War"]),
        ((0, 1), ["War", "Sea"]),
        ((0, 1, 2), ["War", "Love", "Sea"]),  # War twice; Love was later than Sea
        ((2, 0), ["War", "Sea", "Love"]),  # once each: the later item first, in its own order
        ((1, 1, 3, 2), ["Love", "War", "Sea"]),  # Love and War twice each, Love later
        ((0, 3, 2, 5), ["Love", "Sea", "a"]),
        ((5, 4), ["Film 4", "a", "b"]),
        ((1, 1, 1, *[2, 3] * 10), ["Love", "Sea"]),  # the three first are too long ago
        ((1, *[3] * 19), ["Sea", "Love", "War"]),  # twenty in all: the first still counts
        ((1, *[3] * 20), ["Sea", "Love"]),  # and here it does not
        ((5, 5, 5, 2), ["a", "b", "c"]),
    ],
)
def test_themes(history, expected):
    assert frequent_phrases(THEMED, items(*history)) == expected


def test_themes_are_of_the_phrases_that_training_knows():
    """Six of an item: the seventh and eighth are never a theme, however often they come."""
    catalog = catalog_of([tuple("abcdefgh"), ("x", "g"), ("y",), ("z",)])
    assert frequent_phrases(catalog, items(0, 0, 0, 1)) == ["a", "b", "c"]
    assert "h" not in frequent_phrases(catalog, items(0))


@given(n=st.integers(2, 30), seed=st.integers(0, 50))
def test_a_wrong_preference_is_another_users_and_everyones_is_used(n, seed):
    catalog = catalog_of([(f"phrase {i}",) for i in range(n)])
    said = preferences(catalog, tasks_of(*[()] * n), targets_of(*range(n)), seed)
    assert said["oracle"] == [f"phrase {i}" for i in range(n)]
    assert all(wrong != own for wrong, own in zip(said["wrong"], said["oracle"], strict=True))
    assert sorted(said["wrong"]) == sorted(said["oracle"])
    assert said == preferences(catalog, tasks_of(*[()] * n), targets_of(*range(n)), seed)


def test_wrong_preferences_are_drawn_at_random():
    """Over many seeds each of the other four users' comes as often."""
    catalog = catalog_of([(f"phrase {i}",) for i in range(5)])
    arguments = tasks_of(*[()] * 5), targets_of(*range(5))
    drawn = [preferences(catalog, *arguments, seed)["wrong"][0] for seed in range(400)]
    for other in range(1, 5):
        assert drawn.count(f"phrase {other}") / 400 == pytest.approx(0.25, abs=0.08)


def test_a_theme_knows_nothing_of_the_target():
    """Every film has a studio of its own, so that a leak would show; other targets leave the themes as they are."""
    dataset = toy_dataset(n_users=40)
    n = len(dataset.catalog)
    catalog = dataclasses.replace(dataset.catalog, brands=tuple(f"Studio {i}" for i in range(n)))
    tasks, targets = dataset.tasks("test"), dataset.targets("test")
    said = preferences(catalog, tasks, targets, seed=0)
    for task, frequent_phrase, oracle in zip(tasks, said["theme"], said["oracle"], strict=True):
        own = {phrase for item in task.history for phrase in catalog.phrases(item)}
        assert set(frequent_phrase.split("; ")) <= own
        assert len(frequent_phrase.split("; ")) == 3
        assert f"Studio {targets[task.id]}" in oracle
        assert f"Studio {targets[task.id]}" not in frequent_phrase.split("; ")
    others = {task: ItemIdx((target + 1) % n) for task, target in targets.items()}
    assert preferences(catalog, tasks, others, seed=0)["theme"] == said["theme"]


# How it is heard


class Ranks:
    """Answers with ranks written beforehand, by preference and trust, and keeps the queries."""

    def __init__(self, ranks):
        self.by_question = ranks
        self.asked = []

    def ranks(self, queries, targets):
        self.asked.append((queries, list(targets)))
        return np.array([self.by_question[query.preference, query.preference_weight] for query in queries])


def test_every_user_is_heard_with_every_kind_at_every_trust():
    """Without one, ranks 1 and 10: NDCG@10 of 1 / log2(3) and 0."""
    second = 1 / np.log2(3)
    trm = Ranks(
        {("", 0.0): 1, ("far", 0.0): 10}
        | {("war", 0.5): 0, ("sea", 0.5): 10, ("war", 1.0): 0, ("sea", 1.0): 9}
        | {("love", 0.5): -1, ("art", 0.5): 2, ("love", 1.0): -1, ("art", 1.0): 1}
    )
    tasks, targets = tasks_of((0, 1), (2,)), targets_of(7, 8)
    said = {"good": ["war", "sea"], "bad": ["love", "art"]}
    none, *heard = listen(trm, tasks, targets, said, (0.5, 1.0))
    assert (none.kind, none.preference_weight) == ("none", 0.0)
    np.testing.assert_allclose(none.ndcg_U, [second, second])
    assert [(one.kind, one.preference_weight) for one in heard] == [
        ("good", 0.5),
        ("good", 1.0),
        ("bad", 0.5),
        ("bad", 1.0),
    ]
    expected = [([1, 0], [1, 0]), ([1, 1 / np.log2(11)], [1, 1]), ([0, 0.5], [0, 1]), ([0, second], [0, 1])]
    for one, (ndcg_U, recall_U) in zip(heard, expected, strict=True):
        np.testing.assert_allclose(one.ndcg_U, ndcg_U)
        np.testing.assert_array_equal(one.recall_U, recall_U)
    assert len(trm.asked) == 5
    for queries, wanted in trm.asked:
        assert wanted == [7, 8]
        assert [query.history for query in queries] == [task.history for task in tasks]
        assert [set(query.exclude) for query in queries] == [{0, 1}, {2}]


class Texts:
    """A text encoder that knows nothing but whether texts are equal."""

    width = 12

    def encode(self, texts):
        vectors = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=self.width) for text in texts]
        vectors_ND = np.array(vectors, dtype=np.float32).reshape(-1, self.width)
        return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def dataset():
    return toy_dataset(n_users=50)


@pytest.fixture(scope="module")
def trm(dataset):
    """Untrained, which is enough to be moved by a preference."""
    torch.manual_seed(0)
    config = TRMConfig(width=16, layers=1, heads=2, history=8)
    encoder = Texts()
    catalog = dataset.catalog
    text_ID = torch.from_numpy(encoder.encode(catalog.texts()))
    near = CoOccurrence.of(dataset.train_sequences(), len(catalog))
    return TRM.of(PreferenceSASRec(config, text_ID), catalog, encoder, config, near)


def test_without_trust_nothing_changes_and_with_it_something_does(dataset, trm):
    tasks, targets = dataset.tasks("test"), dataset.targets("test")
    said = preferences(dataset.catalog, tasks, targets, seed=0)
    none, *heard = listen(trm, tasks, targets, said, (0.0, 1.0))
    assert [(one.kind, one.preference_weight) for one in heard] == [
        (kind, preference_weight) for kind in said for preference_weight in (0.0, 1.0)
    ]
    assert none.ndcg_U.any()
    for one in heard:
        if one.preference_weight == 0:
            np.testing.assert_array_equal(one.ndcg_U, none.ndcg_U)
            np.testing.assert_array_equal(one.recall_U, none.recall_U)
        else:
            assert (one.ndcg_U != none.ndcg_U).any()


def test_a_preference_is_measured_on_the_ranking_that_it_gives(dataset, trm):
    """NDCG of full retrieval, the history left out."""
    tasks, targets = dataset.tasks("test"), dataset.targets("test")
    said = preferences(dataset.catalog, tasks, targets, seed=0)["oracle"]
    _, heard = listen(trm, tasks, targets, {"oracle": said}, (0.4,))
    queries = [Query(t.history, text, frozenset(t.history), 0.4) for t, text in zip(tasks, said, strict=True)]
    for ndcg, hits, task in zip(heard.ndcg_U, trm.retrieve(queries, 10), tasks, strict=True):
        found = [hit.item for hit in hits]
        wanted = targets[task.id]
        assert ndcg == pytest.approx(1 / np.log2(found.index(wanted) + 2) if wanted in found else 0)


# Pools


class Genres(RecordingRetriever):
    """Items of the genre that is asked for first, then the lowest; item i is of genre `letters[i % len(letters)]`."""

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
    are left, 0 to 45. The third saw nothing: the 60 lowest, asked for in three calls without a preference.
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
def test_lists_of_both_sides_are_as_long_and_hold_nothing_twice_nor_seen(n_items, histories, genres):
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
    """The toy's 40 films fit into both sides, so nothing can be gained; without trust nothing is even moved."""
    tasks, targets = dataset.tasks("test"), dataset.targets("test")
    result = pool(trm, dataset.catalog, tasks, targets, 1.0)
    assert result.pooled_U.all()
    assert result.blank_U.all()
    large = toy_dataset(n_users=60, n_items=150)
    text_ID = torch.from_numpy(Texts().encode(large.catalog.texts()))
    near = CoOccurrence.of(large.train_sequences(), len(large.catalog))
    other = TRM.of(PreferenceSASRec(trm.config, text_ID), large.catalog, Texts(), trm.config, near)
    tasks, targets = large.tasks("test"), large.targets("test")
    deaf, moved = (pool(other, large.catalog, tasks, targets, preference_weight) for preference_weight in (0.0, 1.0))
    np.testing.assert_array_equal(deaf.pooled_U, deaf.blank_U)
    assert (moved.pooled_U != moved.blank_U).any()
    np.testing.assert_array_equal(moved.blank_U, deaf.blank_U)
