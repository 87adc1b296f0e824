"""The TRM on the toy data set, with a stand-in for MiniLM."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import processes
from deeprec.config import TRMConfig
from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.data.dataset import Sequences
from deeprec.data.filters import ItemFilter
from deeprec.data.item_set import ItemSet
from deeprec.errors import DeepRecError
from deeprec.retrieval.baselines import PopularityRetriever
from deeprec.retrieval.cooccurrence import WINDOW, CoOccurrence
from deeprec.retrieval.index import Index
from deeprec.retrieval.retriever import Query, Retriever
from deeprec.testing import RetrieverContract
from deeprec.trm import training
from deeprec.trm.calibration import CANDIDATE_WEIGHTS, calibrate_preference_weight
from deeprec.trm.network import PreferenceSASRec
from deeprec.trm.text_encoder import TextEncoder
from deeprec.trm.trm import FORMAT_VERSION, TRM
from stand_ins import HashedWords
from toys import GENRES, catalog_of, toy_dataset

CONFIG = TRMConfig(width=16, layers=1, history=6, epochs=20, learning_rate=0.01)
SHORT = CONFIG.model_copy(update={"epochs": 4})
CONSTANTS = {
    "network.DROPOUT": 0.1,
    "training.PATIENCE": 20,
    "training.AVERAGED_EPOCHS": 0.9,
    "batches.BATCH_POSITIONS": 96,
    "preferences.FREQUENT_SHARE": 0.1,
    "preferences.EXACT_SHARE": 1.0,
}
"""What so small a data set needs."""


def set_constants(patch):
    for name, value in CONSTANTS.items():
        patch.setattr(f"deeprec.trm.{name}", value)


@pytest.fixture(scope="module", autouse=True)
def constants():
    with pytest.MonkeyPatch.context() as patch:
        set_constants(patch)
        yield


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two threads would wait for each other longer than such small matrices take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset():
    return toy_dataset(n_users=120)


@pytest.fixture(scope="module")
def trm(dataset):
    return TRM.fit(dataset, CONFIG, HashedWords())


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(TextEncoder, "load", lambda **_: HashedWords())


def items(*numbers):
    return tuple(map(ItemIdx, numbers))


def copy_of(trm, vectors_ID=None, **options):
    """The same network with an index of its own, which may grow."""
    vectors_ID = trm.index.vectors_ID.copy() if vectors_ID is None else vectors_ID
    config = trm.config.model_copy(update=options)
    return TRM(trm.model, trm.catalog, trm.encoder, config, trm.cooccurrence, Index.build(vectors_ID))


def new_items(first=40, genres=GENRES):
    """An item of each genre: `Film 40`, `Film 41`, ..., all of 1985."""
    return catalog_of([(genre,) for genre in genres], years=[1985] * len(genres), first=first)


class Conditioned(Retriever):
    """Every query with a preference of weight 0.5."""

    def __init__(self, trm):
        self.trm = trm

    def retrieve(self, queries, k):
        conditioned = [dataclasses.replace(query, preference="War; 1990s", preference_weight=0.5) for query in queries]
        return self.trm.retrieve(conditioned, k)


@pytest.mark.parametrize("state", ["trained", "conditioned", "grown", "loaded", "grown and loaded", "hnsw"])
class TestContract(RetrieverContract):
    @pytest.fixture
    def n_items(self, state):
        return 45 if "grown" in state else 40

    @pytest.fixture
    def retriever(self, state, trm, tmp_path, stand_in):
        found = copy_of(trm)
        if state == "conditioned":
            return Conditioned(trm)
        if state == "hnsw":
            pytest.importorskip("faiss")
            config = trm.config.model_copy(update={"index": "hnsw"})
            found = TRM(trm.model, trm.catalog, trm.encoder, config, trm.cooccurrence)
            assert found.index.kind == "hnsw"
        if "grown" in state:
            found.add_items(new_items())
        if "loaded" in state:
            found.save(tmp_path)
            found = TRM.load(tmp_path)
        return found


# What it learns


def test_it_learns_the_genres_better_than_popularity(dataset, trm):
    tasks, targets = dataset.tasks("test"), dataset.targets("test")
    popularity = PopularityRetriever.fit(dataset.train_sequences(), len(dataset.catalog))
    queries = [Query(task.history, exclude=frozenset(task.history)) for task in tasks]

    def ndcg(retriever):
        found = retriever.retrieve(queries, 10)
        ranks = [
            [hit.item for hit in hits].index(targets[task.id]) if targets[task.id] in [h.item for h in hits] else None
            for hits, task in zip(found, tasks, strict=True)
        ]
        return np.mean([0 if rank is None else 1 / np.log2(rank + 2) for rank in ranks])

    assert ndcg(trm) > 1.15 * ndcg(popularity)


def genre_share(trm, queries, genre, k=8):
    found = [hit.item for hits in trm.retrieve(queries, k) for hit in hits]
    return np.mean([item % len(GENRES) == GENRES.index(genre) for item in found])


def test_a_preference_raises_the_share_of_its_genre_by_its_weight(dataset, trm):
    histories = [task.history for task in dataset.tasks("test")[:40]]

    def shares_at(weight):
        queries = {genre: [Query(h, genre, preference_weight=weight) for h in histories] for genre in GENRES}
        return np.array([genre_share(trm, queries[genre], genre) for genre in GENRES])

    shares = {weight: shares_at(weight) for weight in (0.0, 0.25, 1.0)}
    assert (shares[1.0] > shares[0.0] + 0.2).all()
    assert (shares[0.0] < shares[0.25]).all()
    assert (shares[0.25] <= shares[1.0]).all()  # all films of a genre may be found already
    assert shares[0.25].mean() < shares[1.0].mean() - 0.05


def test_a_preference_matters_to_a_user_without_history(trm):
    """Training never shows it an empty history, so only the mean over the genres is asked for; chance is 0.2."""
    assert np.mean([genre_share(trm, [Query((), genre, preference_weight=1.0)], genre) for genre in GENRES]) > 0.35


def test_scores_move_steadily_with_the_preference_weight(dataset, trm):
    histories = [task.history for task in dataset.tasks("test")[:8]]
    weights = (0.0, 0.25, 0.5, 0.75, 1.0)
    queries = [Query(history, "Horror; 1990s", preference_weight=weight) for history in histories for weight in weights]
    scores_HWI = trm.scores(queries).reshape(len(histories), len(weights), -1)
    moves_HWI = np.diff(scores_HWI, axis=1)
    whole_HI = scores_HWI[:, -1] - scores_HWI[:, 0]
    assert np.abs(whole_HI).max() > 0.5
    assert (moves_HWI * np.sign(whole_HI)[:, None] > -1e-4).all()
    clear_HI = np.abs(whole_HI) > 0.1
    assert (np.abs(moves_HWI) > 0.01)[np.broadcast_to(clear_HI[:, None], moves_HWI.shape)].all()


def test_a_preference_of_weight_zero_is_none(dataset, trm):
    """Exactly, and also beside a query whose preference has a weight."""
    histories = [task.history for task in dataset.tasks("test")[:5]]
    blank = [Query(history) for history in histories]
    ignored = [Query(history, "War; 1990s", preference_weight=0.0) for history in histories]
    np.testing.assert_array_equal(trm.scores(ignored), trm.scores(blank))
    assert trm.retrieve(ignored, 9) == trm.retrieve(blank, 9)
    applied = Query(histories[0], "War; 1990s")
    both = trm.scores([ignored[0], applied])
    np.testing.assert_allclose(both, [trm.scores(blank[:1])[0], trm.scores([applied])[0]], atol=1e-4)
    assert np.abs(both[0] - both[1]).max() > 0.1


@pytest.mark.parametrize("blank", ["", " ", "\n\t ", ";", " ;\n; "])
def test_a_blank_preference_is_none(dataset, trm, blank):
    class Other(HashedWords):
        def encode(self, texts):
            return -super().encode(texts)

    other = TRM(trm.model, trm.catalog, Other(), trm.config, trm.cooccurrence, trm.index)
    queries = [Query(task.history) for task in dataset.tasks("test")[:5]]
    blanks = [Query(query.history, blank) for query in queries]
    np.testing.assert_array_equal(trm.scores(blanks), trm.scores(queries))
    np.testing.assert_array_equal(trm.scores(blanks), other.scores(blanks))  # its vector plays no part
    war = [Query(queries[0].history, "War")]
    assert np.abs(trm.scores(war) - trm.scores(queries[:1])).max() > 0.01
    assert np.abs(trm.scores(war) - other.scores(war)).max() > 0.01


def test_the_order_of_phrases_has_no_effect(trm):
    history = items(3, 8, 21)
    orders = ("War; Drama; 1990s", "1990s;War\nDrama", " Drama;; 1990s ; War")
    one, *others = trm.scores([Query(history, preference) for preference in (*orders, "War")])
    np.testing.assert_allclose(others[:2], [one, one], atol=1e-4)
    assert np.abs(others[2] - one).max() > 0.01


def test_bm25_counts_in_full_from_a_preference_weight_of_a_tenth_on(trm):
    """`trm.bm25` times BM25 is added; nothing at preference weight 0 or without a preference."""
    with_bm25, without = copy_of(trm, bm25=2.0), copy_of(trm, bm25=0.0)
    for step in range(2):
        queries = [
            Query(items(3, 8), preference, preference_weight=weight)
            for preference in ("Film 7; 1977", "")
            for weight in (0.0, 0.05, 0.1, 0.75)
        ]
        bm25_QI = with_bm25.bm25.scores([query.preference for query in queries]).toarray()
        assert bm25_QI[0].any()
        factors_Q = [0, 1, 2, 2, 0, 0, 0, 0]
        expected_QI = np.array(factors_Q)[:, None] * bm25_QI
        np.testing.assert_allclose(with_bm25.scores(queries) - without.scores(queries), expected_QI, atol=1e-5)
        if not step:  # and the same with items that were added
            with_bm25.add_items(new_items())
            without.add_items(new_items())


def test_a_preference_takes_up_to_half_of_the_co_occurrence_offsets(dataset, trm):
    """By its weight times its novelty, between 0 and 1; without a preference they count in full."""
    queries = [Query(task.history) for task in dataset.tasks("test")[:5]]
    with_offsets, without = copy_of(trm, cooccurrence=1.0, bm25=0.0), copy_of(trm, cooccurrence=0.0, bm25=0.0)

    def added(queries):
        return with_offsets.scores(queries) - without.scores(queries)

    offsets_QI = trm.cooccurrence.score_offsets([query.history for query in queries]).toarray()
    np.testing.assert_allclose(added(queries), offsets_QI, atol=1e-5)
    conditioned = [dataclasses.replace(query, preference="Noir", preference_weight=1.0) for query in queries]
    shares = added(conditioned)[offsets_QI > 0.5] / offsets_QI[offsets_QI > 0.5]
    assert ((shares > 0.499) & (shares < 0.8)).all()


# What it answers


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_answers_are_the_best_of_all_scores(dataset, trm, weight, kind):
    """Index and score offsets together find what comparing every item finds."""
    if kind == "hnsw":
        pytest.importorskip("faiss")
    config = trm.config.model_copy(update={"cooccurrence": weight, "index": kind})
    trm_ = TRM(trm.model, trm.catalog, trm.encoder, config, trm.cooccurrence)
    queries = [
        Query(task.history, preference, frozenset(task.history))
        for task in dataset.tasks("test")[:30]
        for preference in ("", "War")
    ]
    scores_QI = trm_.scores(queries)
    assert (np.abs(scores_QI - copy_of(trm_, cooccurrence=0.0).scores(queries)).max() > 0.1) == bool(weight)
    for query, scores_I, hits in zip(queries, scores_QI, trm_.retrieve(queries, 7), strict=True):
        scores_I[list(query.exclude)] = -np.inf
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores_I)[::-1][:7], atol=1e-4)
        np.testing.assert_allclose(scores_I[[hit.item for hit in hits]], [hit.score for hit in hits], atol=1e-4)


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
@pytest.mark.parametrize("shared", [True, False])
def test_under_a_filter_answers_are_the_best_of_its_scores(dataset, trm, kind, shared):
    """No item that is left out comes in by its co-occurrence or its words, and ranks count none of them."""
    if kind == "hnsw":
        pytest.importorskip("faiss")
    trm_ = TRM(trm.model, trm.catalog, trm.encoder, trm.config.model_copy(update={"index": kind}), trm.cooccurrence)
    rng = np.random.default_rng(0)
    one = ItemSet.of(rng.choice(40, 20, replace=False))
    queries = [
        Query(
            task.history,
            preference,
            frozenset(task.history[:4]),
            include=one if shared else frozenset(rng.choice(40, rng.integers(30), replace=False).tolist()),
        )
        for task in dataset.tasks("test")[:30]
        for preference in ("", "War; film 31")
    ]
    queries[7] = dataclasses.replace(queries[7], include=None)
    scores_QI = trm_.scores(queries)
    targets = rng.integers(40, size=len(queries))
    ranks = trm_.ranks(queries, targets).tolist()
    for query, scores_I, hits, rank, target in zip(
        queries, scores_QI, trm_.retrieve(queries, 40), ranks, targets.tolist(), strict=True
    ):
        allowed = set(range(40) if query.include is None else query.include) - query.exclude
        assert {hit.item for hit in hits} == allowed
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores_I[list(allowed)])[::-1], atol=1e-4)
        assert rank == (sum(scores_I[i] > scores_I[target] for i in allowed) if target in allowed else -1)


# Recommendations for many users


def test_recommend_gives_a_row_for_each_item(trm):
    """As `retrieve` with the history excluded."""
    history = items(3, 8, 21)
    table = trm.recommend({"ann": history}, k=4)
    hits = trm.retrieve([Query(history, exclude=history)], 4)[0]
    assert table.schema == {
        "user": pl.String,
        "item": pl.String,
        "title": pl.String,
        "rank": pl.Int64,
        "score": pl.Float64,
    }
    assert table.rows() == [
        ("ann", f"i{hit.item}", f"Film {hit.item} ({1970 + hit.item})", rank, hit.score)
        for rank, hit in enumerate(hits, start=1)
    ]


def test_recommend_by_hand():
    """Item vectors e_i * (i + 1) and a state of ones: scores are 1 to 8 without co-occurrence, so 8 is best."""
    catalog = catalog_of([("War",)] * 8)
    cooccurrence = CoOccurrence.fit(Sequences(np.array([0, 1], dtype=np.int32), np.array([0, 2])), 8)
    config = CONFIG.model_copy(update={"width": 8, "cooccurrence": 1.0, "bm25": 0.0})

    class Ones(PreferenceSASRec):
        def encode(self, items_ID, rows_BT):
            return torch.ones(*rows_BT.shape, items_ID.shape[1])

        def condition(self, states_ND, preferences_NE, frequent_NE, preference_weight_N):
            return states_ND, preference_weight_N

    model = Ones(config, torch.zeros(8, HashedWords.width))
    index = Index.build(np.diag(np.arange(1, 9, dtype=np.float32)))
    trm = TRM(model, catalog, HashedWords(), config, cooccurrence, index)
    # Item 1 followed 0 once: a share of 1 / (1 + 5), an offset of log(1 + 400 / 6), and half of it with a preference.
    offset = np.log1p(400 / 6)

    def scores(**options):
        return {row["item"]: row["score"] for row in trm.recommend([["Film 0"]], k=3, **options).iter_rows(named=True)}

    assert list(scores()) == ["i7", "i6", "i1"]
    assert scores() == pytest.approx({"i7": 8, "i6": 7, "i1": 2 + offset})
    half = scores(preference="War", preference_weight=1.0)
    assert half == pytest.approx({"i7": 8, "i6": 7, "i5": 6})
    assert 2 + offset / 2 < 6 < 2 + offset
    by_default = trm.recommend([["Film 0"]], k=7, preference="War")
    assert by_default.filter(pl.col("item") == "i1")["score"].item() == pytest.approx(2 + offset * (1 - 0.75 / 2))


def test_recommend_takes_a_data_set_a_mapping_or_a_sequence(dataset, trm):
    histories = [tuple(dataset.sequence(u).tolist()) for u in range(len(dataset.users))]
    by_dataset = trm.recommend(dataset, k=3)
    assert by_dataset["user"].unique(maintain_order=True).to_list() == list(dataset.users)
    assert by_dataset.equals(trm.recommend(dict(zip(dataset.users, histories, strict=True)), k=3))
    by_number = trm.recommend(histories, k=3)
    assert by_number["user"].to_list() == [str(u) for u in range(len(histories)) for _ in range(3)]
    assert by_number.drop("user").equals(by_dataset.drop("user"))


def test_recommend_reads_titles_ids_and_numbers(trm):
    """Of one history, mixed; an empty one is answered too."""
    table = trm.recommend([["Film 3 (1973)", "i8", ItemIdx(21)], items(3, 8, 21), np.array([3, 8, 21]), []], k=5)
    lists = [part.drop("user") for part in table.partition_by("user", maintain_order=True)]
    assert len(lists) == 4
    assert lists[0].equals(lists[1])
    assert lists[0].equals(lists[2])
    assert not lists[0].equals(lists[3])


def test_recommend_can_give_the_history_too(trm):
    history = items(*range(38))
    assert sorted(trm.recommend([history])["item"]) == ["i38", "i39"]
    everything = trm.recommend([history], k=50, exclude_history=False)
    assert everything["rank"].to_list() == list(range(1, 41))
    assert everything["score"].is_sorted(descending=True)


def test_recommend_applies_the_preference(trm):
    histories = [items(3, 8, 21), items(0, 1)]
    queries = [Query(history, "Horror", history, 0.4) for history in histories]
    table = trm.recommend(histories, k=5, preference="Horror", preference_weight=0.4)
    assert table["score"].to_list() == [hit.score for hits in trm.retrieve(queries, 5) for hit in hits]
    assert not table.equals(trm.recommend(histories, k=5))
    default = trm.recommend(histories, k=5, preference="Horror")
    assert default.equals(trm.recommend(histories, k=5, preference="Horror", preference_weight=0.75))


def test_recommend_takes_a_filter(trm):
    history = items(3, 8, 21)
    wanted = ItemFilter(categories=["war"], years=(1980, 2009))  # Film 14, 19, 24, 29, 34, 39
    table = trm.recommend([history, items(14)], k=10, filter=wanted)
    allowed = items(14, 19, 24, 29, 34, 39)
    expected = [
        [f"i{hit.item}" for hit in hits]
        for hits in trm.retrieve(
            [Query(history, exclude=history, include=allowed), Query(items(14), exclude=items(14), include=allowed)], 10
        )
    ]
    assert [table.filter(pl.col("user") == user)["item"].to_list() for user in "01"] == expected
    assert [len(found) for found in expected] == [6, 5]
    with pytest.raises(DeepRecError, match="No item has the category 'Wars': did you mean 'War'"):
        trm.recommend([history], filter=ItemFilter(["Wars"]))


def test_recommend_reports_progress_by_batch(trm):
    calls = []
    table = trm.recommend([items(n % 40) for n in range(300)], k=1, on_batch=lambda *counts: calls.append(counts))
    assert calls == [(256, 300), (300, 300)]
    assert len(table) == 300
    alone = trm.recommend([items(299 % 40)], k=1)
    assert table["item"][299] == alone["item"][0]
    assert table["score"][299] == pytest.approx(alone["score"][0])
    assert trm.recommend([]).is_empty()


def test_recommend_reads_a_data_set_by_ids(trm):
    """Whose catalogue may be in another order; an item that the TRM lacks is refused."""
    other = toy_dataset(n_users=5)
    frame = other.catalog.to_frame()
    reversed_ = dataclasses.replace(other, catalog=Catalog.from_frame(frame.reverse()), items_N=39 - other.items_N)
    assert trm.recommend(reversed_, k=3).equals(trm.recommend(other, k=3))
    with pytest.raises(DeepRecError, match="no item with the id 'i40'"):
        trm.recommend(toy_dataset(n_users=5, n_items=41))


@pytest.mark.parametrize(
    ("users", "options", "message"),
    [
        ([["Film 3", "Nothing"]], {}, "no item with the title or id 'Nothing'"),
        (["Film 3"], {}, "A history is a list of titles or ids, not the text 'Film 3'"),
        ([[40]], {}, "position 40: the catalogue has 0 to 39"),
        ([[-1]], {}, "position -1"),
        ([[1]], {"k": 0}, "at least 1, not 0"),
        ([[1]], {"preference_weight": 1.5}, "between 0 and 1, not 1.5"),
    ],
)
def test_recommend_refuses_what_it_cannot_read(trm, users, options, message):
    with pytest.raises(DeepRecError, match=message):
        trm.recommend(users, **options)


def test_no_queries_no_scores(trm):
    assert trm.scores([]).shape == (0, 40)
    assert trm.ranks([], []).tolist() == []


def test_only_the_latest_items_are_read(trm):
    history = items(*range(30))
    latest = history[-max(CONFIG.history, WINDOW) :]
    long, short, other = trm.scores([Query(history), Query(latest), Query(history[-3:])])
    np.testing.assert_allclose(long, short, atol=1e-5)
    assert np.abs(short - other).max() > 0.01


def test_any_history_is_answered(trm):
    for history in (items(), items(7), items(3, 3, 3), items(39, 0, 12, 5)):
        hits = trm.retrieve([Query(history, exclude=frozenset(history))], 5)[0]
        assert len(hits) == 5
        assert np.isfinite([hit.score for hit in hits]).all()


def test_ranks_agree_with_the_full_retrieval(dataset, trm):
    rng = np.random.default_rng(0)
    queries, targets = [], []
    for task in dataset.tasks("test"):
        preference = ["", "Horror", "War; 1990s"][rng.integers(3)]
        queries.append(Query(task.history, preference, frozenset(task.history)))
        targets.append(ItemIdx(int(rng.integers(40))))  # excluded for some
    ranks_Q = trm.ranks(queries, targets)
    expected = []
    for hits, target in zip(trm.retrieve(queries, 40), targets, strict=True):
        found = [hit.item for hit in hits]
        expected.append(found.index(target) if target in found else -1)
    assert ranks_Q.tolist() == expected
    assert -1 in expected
    assert len(set(expected)) > 10


def test_equal_scores_rank_by_lower_index(trm):
    flat = copy_of(trm, np.zeros_like(trm.index.vectors_ID), cooccurrence=0.0)
    assert flat.ranks([Query(items(0))] * 3, [0, 1, 39]).tolist() == [0, 1, 39]
    assert flat.ranks([Query(items(0), exclude=items(0, 5))] * 3, [1, 6, 0]).tolist() == [0, 4, -1]
    assert [hit.item for hit in flat.retrieve([Query(items(0))], 3)[0]] == [0, 1, 2]


def test_more_queries_than_a_batch(dataset, trm):
    tasks = dataset.tasks("test") * 3  # 360: two batches
    queries = [Query(task.history) for task in tasks]
    targets = [i % 40 for i in range(len(tasks))]
    ranks_Q = trm.ranks(queries, targets)
    assert ranks_Q[300:].tolist() == trm.ranks(queries[300:], targets[300:]).tolist()
    assert [h.item for h in trm.retrieve(queries, 3)[-1]] == [h.item for h in trm.retrieve(queries[-1:], 3)[0]]


def test_a_state_reads_no_later_item(trm):
    rows_BT = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 9, 40]])
    with torch.inference_mode():
        states_BTD = trm.model.encode(torch.from_numpy(trm.index.vectors_ID), rows_BT)
    torch.testing.assert_close(states_BTD[0, :3], states_BTD[1, :3])
    assert (states_BTD[0, 3] - states_BTD[1, 3]).abs().max() > 0.01


def test_in_training_some_items_are_known_by_their_text_alone(monkeypatch):
    """A random share loses the ids in each step; in use none does."""
    monkeypatch.setattr("deeprec.trm.network.ID_DROPOUT", 0.25)
    torch.manual_seed(0)
    text_ID = torch.randn(2000, 5)
    model = PreferenceSASRec(CONFIG, text_ID)
    with torch.no_grad():
        whole_ID = model.eval().items()
        assert torch.equal(model.items(), whole_ID)
        lost_2I = torch.stack([(model.train().items() != whole_ID).any(1) for _ in range(2)])
    assert lost_2I.double().mean(1).tolist() == pytest.approx([0.25, 0.25], abs=0.04)
    assert lost_2I.all(0).double().mean() == pytest.approx(0.25**2, abs=0.03)


# New items


def test_new_items_change_nothing_for_the_old_ones(dataset, trm):
    grown = copy_of(trm)
    queries = [Query(task.history, preference) for task in dataset.tasks("test")[:10] for preference in ("", "War")]
    before, scores_QI = trm.retrieve(queries, 40), trm.scores(queries)
    grown.add_items(new_items())
    after = grown.retrieve(queries, 45)
    assert [[hit for hit in hits if hit.item < 40] for hits in after] == before
    assert all(sorted(hit.item for hit in hits) == list(range(45)) for hits in after)
    np.testing.assert_allclose(grown.scores(queries)[:, :40], scores_QI, atol=1e-5)
    assert grown.catalog.titles == (*dataset.catalog.titles, *new_items().titles)
    assert grown.catalog.index("i42") == 42
    assert len(trm.catalog) == len(trm.index) == 40  # what it was copied from


def test_new_items_are_found_by_a_preference_that_names_their_genre(dataset, trm):
    """Of five new items that differ in genre and number, the one of the genre is mostly the best.

    It is among the ten best of 45 without co-occurrence, of which it has none.
    """
    grown = copy_of(trm, cooccurrence=0.0)
    grown.add_items(new_items())
    histories = [task.history for task in dataset.tasks("test")[:40]]
    found, ranks = [], []
    for number, genre in enumerate(GENRES):
        queries = [Query(history, genre, frozenset(history), preference_weight=1.0) for history in histories]
        found += [scores_I[40:].argmax() == number for scores_I in grown.scores(queries)]
        ranks += grown.ranks(queries, [40 + number] * len(queries)).tolist()
    assert np.mean(found) > 0.8
    assert np.median(ranks) < 10


def test_new_items_can_be_a_history(trm):
    """A user of two new films of a genre gets more of that genre than a user of another one."""
    grown = copy_of(trm)
    grown.add_items(new_items(genres=("Horror", "Horror", "War", "War")))
    scores_2I = grown.scores([Query(items(40, 41)), Query(items(42, 43))])
    gains_G = [(scores_2I[1] - scores_2I[0])[genre:40:5].mean() for genre in range(5)]
    assert max(gains_G) == gains_G[GENRES.index("War")]
    assert gains_G[GENRES.index("Horror")] < np.median(gains_G)


def test_items_can_be_added_again_and_again(trm):
    twice, once = copy_of(trm), copy_of(trm)
    twice.add_items(new_items(40, GENRES[:2]))
    twice.add_items(new_items(42, GENRES[2:]))
    once.add_items(new_items())
    assert twice.catalog.ids == once.catalog.ids
    query = [Query(items(1, 41), "War")]
    np.testing.assert_allclose(twice.scores(query), once.scores(query), atol=1e-6)


@pytest.mark.parametrize("ids", [("i7", "i50"), ("i50", "i39"), ("i50", "i50")])
def test_known_items_are_refused(trm, ids):
    """As a whole: none of them is added."""
    grown = copy_of(trm)
    with pytest.raises(DeepRecError, match=f"item '{ids[1] if ids[0] == 'i50' else ids[0]}'"):
        grown.add_items(dataclasses.replace(new_items(genres=GENRES[:2]), ids=ids))
    assert grown.catalog.ids == trm.catalog.ids
    assert len(grown.index) == 40


# Saving and loading


def test_a_saved_model_gives_identical_answers(tmp_path, dataset, trm, stand_in):
    trm.save(tmp_path / "new" / "trm")
    loaded = TRM.load(tmp_path / "new" / "trm")
    queries = [Query(task.history, preference) for task in dataset.tasks("test")[:9] for preference in ("", "War")]
    np.testing.assert_array_equal(loaded.scores(queries), trm.scores(queries))
    assert loaded.retrieve(queries, 40) == trm.retrieve(queries, 40)
    assert loaded.config == trm.config
    assert loaded.catalog.to_frame().equals(trm.catalog.to_frame())
    assert not loaded.model.training


def test_weights_are_saved_without_ids(tmp_path, trm):
    """The index has the vectors that they are part of."""
    trm.save(tmp_path)
    saved = load_file(file_of(tmp_path, "model.safetensors"))
    assert saved.keys() == trm.model.state_dict().keys() - {"ids.weight"}
    assert all(40 not in tensor.shape for tensor in saved.values())  # nothing has a row for each item


def test_added_items_are_saved_and_more_can_follow(tmp_path, trm, stand_in):
    """Into the folder that the index is read from while it is written."""
    grown = copy_of(trm)
    grown.add_items(new_items(40, GENRES[:2]))
    grown.save(tmp_path)
    loaded = TRM.load(tmp_path)
    query = [Query(items(3, 41), "War")]
    assert loaded.retrieve(query, 42) == grown.retrieve(query, 42)
    for trm_ in (loaded, grown):
        trm_.add_items(new_items(42, GENRES[2:]))
    loaded.save(tmp_path)
    again = TRM.load(tmp_path)
    assert again.catalog.titles[-5:] == new_items().titles
    assert again.retrieve(query, 45) == loaded.retrieve(query, 45) == grown.retrieve(query, 45)


def refused(folder):
    with pytest.raises(DeepRecError) as caught:
        TRM.load(folder)
    sentence = str(caught.value)
    assert str(folder) in sentence
    assert "\n" not in sentence
    return sentence


def file_of(folder, name):
    """Where a saved TRM keeps it."""
    record = folder / "trm.json"
    return record if name == record.name else folder / json.loads(record.read_text())["folder"] / name


FILES = ("trm.json", "catalog.parquet", "model.safetensors", "cooccurrence.safetensors")


def test_a_missing_folder_is_refused(tmp_path, stand_in):
    assert "holds no trained TRM (trm.json is missing)" in refused(tmp_path / "nothing")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(tmp_path, trm, stand_in, name):
    trm.save(tmp_path)
    file_of(tmp_path, name).unlink()
    assert f"holds no trained TRM ({name} is missing)" in refused(tmp_path)


def garble(content):
    return b"\x00garbage"


def cut(content):
    return content[: len(content) // 2]


def widen(content):
    return json.dumps({**json.loads(content), "config": json.loads(content)["config"] | {"width": 32}}).encode()


def surprise(content):
    return json.dumps({**json.loads(content), "config": json.loads(content)["config"] | {"surprise": 1}}).encode()


@pytest.mark.parametrize(
    ("name", "damage"),
    [*((name, damage) for name in FILES for damage in (garble, cut)), ("trm.json", widen), ("trm.json", surprise)],
)
def test_a_damaged_file_is_refused(tmp_path, trm, stand_in, name, damage):
    trm.save(tmp_path)
    path = file_of(tmp_path, name)
    path.write_bytes(damage(path.read_bytes()))
    assert "holds a damaged or unfit TRM" in refused(tmp_path)


DAMAGES = {
    "no folder": shutil.rmtree,
    "no record": lambda folder: (folder / "index.json").unlink(),
    "no JSON": lambda folder: (folder / "index.json").write_bytes(garble(b"")),
    "no vectors": lambda folder: next(folder.glob("*/vectors.npy")).unlink(),
    "half the vectors": lambda folder: os.truncate(next(folder.glob("*/vectors.npy")), 1500),
    "fewer items": lambda folder: Index.build(np.ones((39, 16))).save(folder),
    "more items": lambda folder: Index.build(np.ones((41, 16))).save(folder),
    "another width": lambda folder: Index.build(np.ones((40, 8))).save(folder),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_refused(tmp_path, trm, stand_in, damage):
    trm.save(tmp_path)
    DAMAGES[damage](file_of(tmp_path, "index"))
    assert "holds a damaged or unfit TRM" in refused(tmp_path)


@pytest.mark.parametrize("change", [{"format_version": FORMAT_VERSION - 1}, {"format_version": None}])
def test_a_trm_of_another_version_is_refused(tmp_path, trm, stand_in, change):
    trm.save(tmp_path)
    path = tmp_path / "trm.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    sentence = refused(tmp_path)
    assert "trained by another version of DeepRec" in sentence
    assert "train it again with `deeprec trm train --again`" in sentence


def test_files_of_two_models_are_refused(tmp_path, trm, stand_in):
    trm.save(tmp_path)
    toy_dataset(n_items=20).catalog.to_frame().write_parquet(file_of(tmp_path, "catalog.parquet"))
    assert "holds a damaged or unfit TRM" in refused(tmp_path)


@pytest.mark.parametrize("step", ["safetensors", "index", "catalog", "record"])
def test_a_save_that_fails_leaves_the_old_model(tmp_path, dataset, trm, stand_in, monkeypatch, step):
    """In one sentence; and the next that does not fail leaves nothing of both but itself."""
    trm.save(tmp_path)
    grown = copy_of(trm)
    grown.add_items(new_items())

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    where = {
        "safetensors": ("deeprec.trm.trm.save_file", full),
        "index": ("deeprec.retrieval.index.np.save", full),
        "catalog": ("polars.DataFrame.write_parquet", full),
        "record": ("deeprec.retrieval.saving.os.replace", full),
    }
    with monkeypatch.context() as patched:
        patched.setattr(*where[step])
        if step == "record":
            patched.setattr(grown.index, "save", lambda folder: folder.mkdir())  # it replaces a record too
        with pytest.raises(DeepRecError, match="No space left on device"):
            grown.save(tmp_path)
    assert len(TRM.load(tmp_path).catalog) == 40
    (tmp_path / "20261122").mkdir()
    assert len([path for path in tmp_path.glob("trm-*") if path.is_dir()]) == 1
    grown.save(tmp_path)
    assert len(TRM.load(tmp_path).catalog) == 45
    assert len(list(tmp_path.iterdir())) == 3  # what is not ours is kept


# Interruptions


def fit(dataset, checkpoint, config=SHORT, on_epoch=lambda epoch: None):
    trm = TRM.fit(dataset, config, HashedWords(), checkpoint=checkpoint, on_epoch=on_epoch)
    curve = trm.curve
    weights = {name: tensor.clone() for name, tensor in trm.model.state_dict().items()}
    return [(epoch.epoch, epoch.loss, epoch.ndcg) for epoch in curve], weights


def assert_same(fitted, other):
    assert fitted[0] == other[0]
    assert fitted[1].keys() == other[1].keys()
    for name, tensor in fitted[1].items():
        assert torch.equal(tensor, other[1][name]), name


@pytest.fixture(scope="module")
def unbroken(dataset):
    return fit(dataset, None)


def test_training_repeats_itself(dataset, unbroken):
    assert_same(fit(dataset, None), unbroken)


def test_the_curve_and_the_best_epoch(unbroken):
    curve, _ = unbroken
    assert [number for number, _, _ in curve] == [1, 2, 3, 4]
    assert curve[-1][1] < curve[0][1]


@pytest.mark.parametrize("last", [1, 3, 4])
def test_interrupted_and_resumed_is_as_unbroken(tmp_path, dataset, unbroken, last):
    def interrupt(epoch):
        if epoch.epoch == last:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "last.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(dataset, checkpoint, on_epoch=interrupt)
    epochs = []
    resumed = fit(dataset, checkpoint, on_epoch=lambda epoch: epochs.append(epoch.epoch))
    assert epochs == list(range(last + 1, 5))
    assert_same(resumed, unbroken)


def fit_and_die_while_saving(checkpoint, epoch):
    """In a process of its own: SIGKILL when the checkpoint of `epoch` is half written."""
    calls = []
    save_file = training.save_file

    def half_save(tensors, path, metadata):
        save_file(tensors, path, metadata)
        calls.append(path)
        if len(calls) == epoch:
            os.truncate(path, Path(path).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        set_constants(patch)
        patch.setattr(training, "save_file", half_save)
        fit(toy_dataset(n_users=120), Path(checkpoint))


def test_killed_while_saving_and_resumed_is_as_unbroken(tmp_path, dataset, unbroken):
    checkpoint = tmp_path / "last.safetensors"
    code = f"import test_trm; test_trm.fit_and_die_while_saving({str(checkpoint)!r}, 3)"
    command = [sys.executable, "-c", code]
    died = subprocess.run(command, env=processes.environment(), capture_output=True, text=True, timeout=120)
    assert died.returncode == -signal.SIGKILL, died.stderr
    epochs = []
    resumed = fit(dataset, checkpoint, on_epoch=lambda epoch: epochs.append(epoch.epoch))
    assert epochs == [3, 4]
    assert_same(resumed, unbroken)


def test_the_checkpoint_of_another_configuration_is_refused(tmp_path, dataset):
    checkpoint = tmp_path / "last.safetensors"
    fit(dataset, checkpoint, config=SHORT.model_copy(update={"epochs": 1}))
    before = checkpoint.read_bytes()
    with pytest.raises(DeepRecError, match=r"another \[trm\] configuration"):
        fit(dataset, checkpoint, config=SHORT.model_copy(update={"epochs": 1, "learning_rate": 0.02}))
    assert checkpoint.read_bytes() == before


def lose_a_tensor(path):
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        metadata = file.metadata()
    del tensors[max(name for name in tensors if name.startswith("model."))]
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(garble(b"")),
        lambda path: path.write_bytes(cut(path.read_bytes())),
        lambda path: save_file({"model.x": torch.zeros(1)}, path),
        lose_a_tensor,
    ],
    ids=["garbage", "half", "another file", "a tensor is missing"],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, dataset, damage):
    checkpoint = tmp_path / "last.safetensors"
    fit(dataset, checkpoint, config=SHORT.model_copy(update={"epochs": 1}))
    damage(checkpoint)
    with pytest.raises(DeepRecError, match=r"last\.safetensors is a damaged checkpoint .* remove it to start anew"):
        fit(dataset, checkpoint, config=SHORT.model_copy(update={"epochs": 1}))


def test_a_finished_training_is_not_trained_on(tmp_path, dataset, unbroken, monkeypatch):
    checkpoint = tmp_path / "last.safetensors"
    fit(dataset, checkpoint)
    monkeypatch.setattr(training, "_run_epoch", lambda *_: pytest.fail("trained on"))
    assert_same(fit(dataset, checkpoint), unbroken)


def test_a_loss_that_diverges_is_refused(dataset):
    with pytest.raises(DeepRecError, match=r"loss became .* lower trm.learning_rate"):
        fit(dataset, None, config=SHORT.model_copy(update={"learning_rate": 1e30}))


def test_a_loss_of_nan_keeps_the_checkpoint(tmp_path, dataset, unbroken, monkeypatch):
    checkpoint = tmp_path / "last.safetensors"
    run_epoch, losses = training._run_epoch, iter([None, None, float("nan")])

    def broken(state, *rest):
        loss = run_epoch(state, *rest)
        return loss if (forced := next(losses)) is None else forced

    with monkeypatch.context() as patch:
        patch.setattr(training, "_run_epoch", broken)
        with pytest.raises(DeepRecError, match="loss became nan in epoch 3"):
            fit(dataset, checkpoint)
    assert_same(fit(dataset, checkpoint), unbroken)


def test_training_stops_when_validation_no_longer_improves(dataset, monkeypatch):
    values = iter([0.1, 0.3, 0.2, 0.3, 0.9])
    states = []

    def validate(model):
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return next(values)

    monkeypatch.setattr(training, "PATIENCE", 2)
    model, curve = training.train(dataset.train_sequences(), dataset.catalog, HashedWords(), CONFIG, validate)
    assert [epoch.ndcg for epoch in curve] == [0.1, 0.3, 0.2, 0.3]
    weights = model.state_dict()
    assert weights.keys() == states[1].keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in states[1].items())  # the best, not the last
    assert any(not torch.equal(weights[name], tensor) for name, tensor in states[3].items())


@pytest.mark.parametrize("averaged_epochs", [0.0, 1.0])
def test_the_average_of_the_weights_is_kept(dataset, monkeypatch, averaged_epochs):
    """Which is the weights themselves if it spans no epoch."""
    run_epoch, last = training._run_epoch, {}

    def spied(state, *rest):
        loss = run_epoch(state, *rest)
        last.update({name: tensor.clone() for name, tensor in state.model.state_dict().items()})
        return loss

    monkeypatch.setattr(training, "_run_epoch", spied)
    monkeypatch.setattr(training, "AVERAGED_EPOCHS", averaged_epochs)
    _, kept = fit(dataset, None, SHORT.model_copy(update={"epochs": 1}))
    assert kept.keys() == last.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in last.items()) == (averaged_epochs == 0)


def test_training_stops_when_its_time_is_over(tmp_path, dataset):
    """After the current epoch; a resumed training has no more time than an unbroken one."""
    config = SHORT.model_copy(update={"minutes": 1e-9})
    for _ in range(2):
        curve, _ = fit(dataset, tmp_path / "last.safetensors", config)
        assert [number for number, _, _ in curve] == [1]
    curve, _ = fit(dataset, None, SHORT.model_copy(update={"epochs": 2, "minutes": 60.0}))
    assert len(curve) == 2


def test_training_without_any_preference(tmp_path, dataset):
    """The weights that read preferences get no gradient, and the checkpoint holds them all the same."""
    config = SHORT.model_copy(update={"epochs": 2, "preferences": False})

    def interrupt(epoch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(dataset, tmp_path / "last.safetensors", config, interrupt)
    assert_same(fit(dataset, tmp_path / "last.safetensors", config), fit(dataset, None, config))


def test_too_little_data_is_refused():
    dataset = toy_dataset(n_users=4, length=2)
    with pytest.raises(DeepRecError, match="3 interactions"):
        fit(dataset, None)
    with pytest.raises(DeepRecError, match="nothing to train on"):
        fit(toy_dataset(n_users=4, length=3), None)


# What reaches training


def test_validation_and_test_items_never_reach_training(dataset, unbroken):
    """The last two items of every user replaced: the same losses. `test_batches` looks at the batches."""
    items_N = dataset.items_N.copy()
    ends_U = dataset.starts_U1[1:]
    for back in (1, 2):
        items_N[ends_U - back] = (items_N[ends_U - back] + 7) % len(dataset.catalog)
    other = dataclasses.replace(dataset, items_N=items_N)
    assert other.targets("test") != dataset.targets("test")
    curve, _ = fit(other, None)
    assert [loss for _, loss, _ in curve] == [loss for _, loss, _ in unbroken[0]]
    assert [ndcg for _, _, ndcg in curve] != [ndcg for _, _, ndcg in unbroken[0]]


# Its configuration


@pytest.mark.parametrize(
    "option",
    [
        {"width": 7},
        {"bm25": -0.1},
        {"learning_rate": 0},
        {"index": "flat"},
        {"minutes": 0},
        {"batch_size": 16},
    ],
)
def test_options_out_of_bounds_are_refused(option):
    with pytest.raises(ValidationError, match=next(iter(option))):
        TRMConfig(**option)


def test_a_fitted_trm_has_a_calibrated_preference_weight_and_saves_it(stand_in, dataset, trm, tmp_path):
    tasks, targets = dataset.tasks("validation"), dataset.targets("validation")
    targets_Q = np.array([targets[task.id] for task in tasks])
    assert trm.preference_weight == calibrate_preference_weight(trm.ranks, dataset.catalog, tasks, targets_Q)
    assert trm.preference_weight in CANDIDATE_WEIGHTS
    trm.save(tmp_path)
    assert TRM.load(tmp_path).preference_weight == trm.preference_weight
    record = json.loads((tmp_path / "trm.json").read_text())
    del record["preference_weight"]
    (tmp_path / "trm.json").write_text(json.dumps(record))
    assert "holds a damaged or unfit TRM" in refused(tmp_path)
