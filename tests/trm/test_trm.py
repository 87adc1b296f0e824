"""The TRM on the toy data set, with a stand-in for MiniLM."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import processes
from deeprec.config import TRMConfig
from deeprec.data.catalog import ItemIdx
from deeprec.errors import DeepRecError
from deeprec.retrieval.baselines import PopularityRetriever
from deeprec.retrieval.cooccurrence import REACH
from deeprec.retrieval.index import Index
from deeprec.retrieval.retriever import Query
from deeprec.testing import GENRES, RetrieverContract, catalog_of, toy_dataset
from deeprec.trm import training
from deeprec.trm.calibration import CANDIDATE_WEIGHTS, calibrate_preference_weight
from deeprec.trm.network import PreferenceSASRec
from deeprec.trm.text_encoder import TextEncoder
from deeprec.trm.trm import TRM

CONFIG = TRMConfig(
    width=16,
    layers=1,
    heads=2,
    dropout=0.1,
    history=6,
    epochs=20,
    patience=20,
    batch_positions=96,
    learning_rate=0.01,
    averaging=0.9,
    history_preference=0.1,
    exact_preference=1.0,
)
SHORT = CONFIG.model_copy(update={"epochs": 4, "batch_places": 160})


class Words:
    """Stands in for MiniLM: hashed bags of words, so that texts which share words are similar."""

    width = 24

    def encode(self, texts):
        vectors_ND = np.zeros((len(texts), self.width), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.replace(".", " ").replace(";", " ").split() or [""]:
                vectors_ND[row] += np.random.default_rng(zlib.crc32(word.lower().encode())).normal(size=self.width)
        return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two would wait for each other longer than such small matrices take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset():
    return toy_dataset(n_users=120)


@pytest.fixture(scope="module")
def trm(dataset):
    return TRM.fit(dataset, CONFIG, Words())


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(TextEncoder, "load", lambda **_: Words())


def items(*numbers):
    return tuple(map(ItemIdx, numbers))


def copy_of(trm, vectors_ID=None, **options):
    """The same network with an index of its own, which may grow."""
    vectors_ID = trm.index.vectors_ID.copy() if vectors_ID is None else vectors_ID
    config = trm.config.model_copy(update=options)
    return TRM(trm.model, trm.catalog, trm.encoder, config, Index.build(vectors_ID), trm.cooccurrence)


def new_items(first=40, genres=GENRES):
    """An item of each genre: `Film 40`, `Film 41`, ..., all of 1985."""
    return catalog_of([(genre,) for genre in genres], years=[1985] * len(genres), first=first)


class Listening:
    """Every query with a preference, half believed."""

    def __init__(self, trm):
        self.trm = trm

    def retrieve(self, queries, k):
        heard = [dataclasses.replace(query, preference="War; 1990s", preference_weight=0.5) for query in queries]
        return self.trm.retrieve(heard, k)


@pytest.mark.parametrize("state", ["trained", "listening", "grown", "loaded", "grown and loaded", "hnsw"])
class TestContract(RetrieverContract):
    @pytest.fixture
    def n_items(self, state):
        return 45 if "grown" in state else 40

    @pytest.fixture
    def retriever(self, state, trm, tmp_path, stand_in):
        found = copy_of(trm)
        if state == "listening":
            return Listening(trm)
        if state == "hnsw":
            pytest.importorskip("faiss")
            config = trm.config.model_copy(update={"index": "hnsw"})
            found = TRM.of(trm.model, trm.catalog, trm.encoder, config, trm.cooccurrence)
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


def test_a_preference_raises_the_share_of_its_genre_as_far_as_it_is_trusted(dataset, trm):
    histories = [task.history for task in dataset.tasks("test")[:40]]
    shares = {
        preference_weight: np.array(
            [
                genre_share(trm, [Query(h, genre, preference_weight=preference_weight) for h in histories], genre)
                for genre in GENRES
            ]
        )
        for preference_weight in (0.0, 0.25, 1.0)
    }
    assert (shares[1.0] > shares[0.0] + 0.2).all()
    assert (shares[0.0] < shares[0.25]).all()
    assert (shares[0.25] <= shares[1.0]).all()  # all films of a genre may be found already
    assert shares[0.25].mean() < shares[1.0].mean() - 0.05


def test_a_preference_matters_to_a_user_without_history(trm):
    """Training never shows it an empty history, so only the mean over the genres is asked for; chance is 0.2."""
    assert np.mean([genre_share(trm, [Query((), genre, preference_weight=1.0)], genre) for genre in GENRES]) > 0.35


def test_scores_move_steadily_from_no_trust_to_full_trust(dataset, trm):
    histories = [task.history for task in dataset.tasks("test")[:8]]
    preference_weights = (0.0, 0.25, 0.5, 0.75, 1.0)
    queries = [
        Query(history, "Horror; 1990s", preference_weight=preference_weight)
        for history in histories
        for preference_weight in preference_weights
    ]
    scores_HTI = trm.scores(queries).reshape(len(histories), len(preference_weights), -1)
    moves_HTI = np.diff(scores_HTI, axis=1)
    whole_HI = scores_HTI[:, -1] - scores_HTI[:, 0]
    assert np.abs(whole_HI).max() > 0.5
    assert (moves_HTI * np.sign(whole_HI)[:, None] > -1e-4).all()
    clear_HI = np.abs(whole_HI) > 0.1
    assert (np.abs(moves_HTI) > 0.01)[np.broadcast_to(clear_HI[:, None], moves_HTI.shape)].all()


def test_without_trust_a_preference_is_none(dataset, trm):
    """Exactly, and also beside a query whose preference is believed."""
    histories = [task.history for task in dataset.tasks("test")[:5]]
    blank = [Query(history) for history in histories]
    ignored = [Query(history, "War; 1990s", preference_weight=0.0) for history in histories]
    np.testing.assert_array_equal(trm.scores(ignored), trm.scores(blank))
    assert trm.retrieve(ignored, 9) == trm.retrieve(blank, 9)
    believed = Query(histories[0], "War; 1990s")
    beside = trm.scores([ignored[0], believed])
    np.testing.assert_allclose(beside, [trm.scores(blank[:1])[0], trm.scores([believed])[0]], atol=1e-4)
    assert np.abs(beside[0] - beside[1]).max() > 0.1


@pytest.mark.parametrize("blank", ["", " ", "\n\t ", ";", " ;\n; "])
def test_a_blank_preference_is_none(dataset, trm, blank):
    class Other(Words):
        def encode(self, texts):
            return -super().encode(texts)

    other = TRM(trm.model, trm.catalog, Other(), trm.config, trm.index, trm.cooccurrence)
    queries = [Query(task.history) for task in dataset.tasks("test")[:5]]
    blanks = [Query(query.history, blank) for query in queries]
    np.testing.assert_array_equal(trm.scores(blanks), trm.scores(queries))
    np.testing.assert_array_equal(trm.scores(blanks), other.scores(blanks))  # its vector plays no part
    war = [Query(queries[0].history, "War")]
    assert np.abs(trm.scores(war) - trm.scores(queries[:1])).max() > 0.01
    assert np.abs(trm.scores(war) - other.scores(war)).max() > 0.01


def test_the_order_of_phrases_is_nothing(trm):
    history = items(3, 8, 21)
    orders = ("War; Drama; 1990s", "1990s;War\nDrama", " Drama;; 1990s ; War")
    one, *others = trm.scores([Query(history, preference) for preference in (*orders, "War")])
    np.testing.assert_allclose(others[:2], [one, one], atol=1e-4)
    assert np.abs(others[2] - one).max() > 0.01


def test_words_in_common_count_by_their_weight_from_a_tenth_of_trust_on(trm):
    """What `trm.bm25` adds is the lexical score, so many times; nothing at trust 0, or without a preference."""
    heard, deaf = copy_of(trm, bm25=2.0), copy_of(trm, bm25=0.0)
    for step in range(2):
        queries = [
            Query(items(3, 8), said, preference_weight=t)
            for said in ("Film 7; 1977", "")
            for t in (0.0, 0.05, 0.1, 0.75)
        ]
        found_QI = heard.bm25.scores([query.preference for query in queries]).toarray()
        assert found_QI[0].any()
        weights_Q = [0, 1, 2, 2, 0, 0, 0, 0]
        expected_QI = np.array(weights_Q)[:, None] * found_QI
        np.testing.assert_allclose(heard.scores(queries) - deaf.scores(queries), expected_QI, atol=1e-5)
        if not step:  # and so it is with items that were added
            heard.add_items(new_items())
            deaf.add_items(new_items())


# What it answers


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_answers_are_the_best_of_all_scores(dataset, trm, weight, kind):
    """What is asked of the index and of the neighbours is what comparing every item finds."""
    if kind == "hnsw":
        pytest.importorskip("faiss")
    config = trm.config.model_copy(update={"neighbours": weight, "index": kind})
    trm_ = TRM.of(trm.model, trm.catalog, trm.encoder, config, trm.cooccurrence)
    queries = [
        Query(task.history, said, frozenset(task.history))
        for task in dataset.tasks("test")[:30]
        for said in ("", "War")
    ]
    scores_QI = trm_.scores(queries)
    assert (np.abs(scores_QI - copy_of(trm_, cooccurrence=0.0).scores(queries)).max() > 0.1) == bool(weight)
    for query, scores_I, hits in zip(queries, scores_QI, trm_.retrieve(queries, 7), strict=True):
        scores_I[list(query.exclude)] = -np.inf
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores_I)[::-1][:7], atol=1e-4)
        np.testing.assert_allclose(scores_I[[hit.item for hit in hits]], [hit.score for hit in hits], atol=1e-4)


def test_no_queries_no_scores(trm):
    assert trm.scores([]).shape == (0, 40)
    assert trm.ranks([], []).tolist() == []


def test_only_the_latest_items_are_read(trm):
    history = items(*range(30))
    latest = history[-max(CONFIG.history, REACH) :]
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


def test_in_training_some_items_are_known_by_their_text_alone():
    """They lose their ids, others in every step; in use none does."""
    torch.manual_seed(0)
    text_ID = torch.randn(2000, 5)
    model = PreferenceSASRec(CONFIG.model_copy(update={"id_dropout": 0.25}), text_ID)
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
    """Of five new items, which differ in the genre and a number, the one that is asked for is mostly the best; it
    stands among the ten best of 45 where neighbours, of which it has none, do not count.
    """
    grown = copy_of(trm, cooccurrence=0.0)
    grown.add_items(new_items())
    histories = [task.history for task in dataset.tasks("test")[:40]]
    found, positions = [], []
    for position, genre in enumerate(GENRES):
        queries = [Query(history, genre, frozenset(history), preference_weight=1.0) for history in histories]
        found += [scores_I[40:].argmax() == position for scores_I in grown.scores(queries)]
        positions += grown.ranks(queries, [40 + position] * len(queries)).tolist()
    assert np.mean(found) > 0.8
    assert np.median(positions) < 10


def test_new_items_can_be_a_history(trm):
    """Who saw two new films of a genre gets more of it than who saw two of another."""
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
    return record if name == record.name else folder / json.loads(record.read_text())["files"] / name


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
    "no vectors": lambda folder: next(folder.glob("vectors-*")).unlink(),
    "half the vectors": lambda folder: os.truncate(next(folder.glob("vectors-*")), 1500),
    "fewer items": lambda folder: Index.build(np.ones((39, 16))).save(folder),
    "more items": lambda folder: Index.build(np.ones((41, 16))).save(folder),
    "another width": lambda folder: Index.build(np.ones((40, 8))).save(folder),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_refused(tmp_path, trm, stand_in, damage):
    trm.save(tmp_path)
    DAMAGES[damage](file_of(tmp_path, "index"))
    assert "holds a damaged or unfit TRM" in refused(tmp_path)


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
        "record": ("deeprec.trm.trm.os.replace", full),
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
    trm = TRM.fit(dataset, config, Words(), checkpoint=checkpoint, on_epoch=on_epoch)
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
    told = []
    resumed = fit(dataset, checkpoint, on_epoch=lambda epoch: told.append(epoch.epoch))
    assert told == list(range(last + 1, 5))
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

    training.save_file = half_save
    torch.set_num_threads(1)
    fit(toy_dataset(n_users=120), Path(checkpoint))


def test_killed_while_saving_and_resumed_is_as_unbroken(tmp_path, dataset, unbroken):
    checkpoint = tmp_path / "last.safetensors"
    code = f"import test_trm; test_trm.fit_and_die_while_saving({str(checkpoint)!r}, 3)"
    command = [sys.executable, "-c", code]
    died = subprocess.run(command, env=processes.environment(), capture_output=True, text=True, timeout=120)
    assert died.returncode == -signal.SIGKILL, died.stderr
    told = []
    resumed = fit(dataset, checkpoint, on_epoch=lambda epoch: told.append(epoch.epoch))
    assert told == [3, 4]
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


def test_a_loss_that_explodes_is_refused(dataset):
    with pytest.raises(DeepRecError, match=r"loss became .* lower trm.learning_rate"):
        fit(dataset, None, config=SHORT.model_copy(update={"learning_rate": 1e30}))


def test_a_loss_of_nan_keeps_the_checkpoint(tmp_path, dataset, unbroken, monkeypatch):
    checkpoint = tmp_path / "last.safetensors"
    run_epoch, losses = training._run_epoch, iter([None, None, float("nan")])

    def spoilt(model, *rest):
        loss = run_epoch(model, *rest)
        return loss if (forced := next(losses)) is None else forced

    with monkeypatch.context() as patch:
        patch.setattr(training, "_run_epoch", spoilt)
        with pytest.raises(DeepRecError, match="loss became nan in epoch 3"):
            fit(dataset, checkpoint)
    assert_same(fit(dataset, checkpoint), unbroken)


def test_training_stops_when_validation_no_longer_improves(dataset, monkeypatch):
    values = iter([0.1, 0.3, 0.2, 0.3, 0.9])
    states = []

    def validate(model):
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return next(values)

    config = CONFIG.model_copy(update={"patience": 2})
    model, curve = training.train(dataset.train_sequences(), dataset.catalog, Words(), config, validate)
    assert [epoch.ndcg for epoch in curve] == [0.1, 0.3, 0.2, 0.3]
    weights = model.state_dict()
    assert weights.keys() == states[1].keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in states[1].items())  # the best, not the last
    assert any(not torch.equal(weights[name], tensor) for name, tensor in states[3].items())


@pytest.mark.parametrize("averaging", [0.0, 1.0])
def test_what_is_kept_is_the_average_of_the_weights(dataset, monkeypatch, averaging):
    """Or the weights themselves where it spans no time."""
    run_epoch, last = training._run_epoch, {}

    def spied(model, *rest):
        loss = run_epoch(model, *rest)
        last.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return loss

    monkeypatch.setattr(training, "_run_epoch", spied)
    _, kept = fit(dataset, None, SHORT.model_copy(update={"epochs": 1, "averaging": averaging}))
    assert kept.keys() == last.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in last.items()) == (averaging == 0)


def test_training_stops_when_its_time_is_over(tmp_path, dataset):
    """After the epoch that is under way; a resumed training has no more time than an unbroken one."""
    config = SHORT.model_copy(update={"minutes": 1e-9})
    for _ in range(2):
        curve, _ = fit(dataset, tmp_path / "last.safetensors", config)
        assert [number for number, _, _ in curve] == [1]
    curve, _ = fit(dataset, None, SHORT.model_copy(update={"epochs": 2, "minutes": 60.0}))
    assert len(curve) == 2


def test_training_without_any_preference(tmp_path, dataset):
    """The weights that listen have nothing to learn from, and are kept in the checkpoint all the same."""
    config = SHORT.model_copy(update={"epochs": 2, "preference_dropout": 1.0, "history_preference": 0.0})

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
    "shares",
    [(0.5, 0.6), (1.0, 0.1), (0.0, 1.1), (-0.1, 0.5), (0.7, 0.4)],
)
def test_shares_of_preferences_that_make_no_whole_are_refused(shares):
    names = ("preference_dropout", "history_preference")
    with pytest.raises(ValidationError, match=r"sum to more than 1|less than or equal to 1|greater than or equal to 0"):
        TRMConfig(**dict(zip(names, shares, strict=True)))


@pytest.mark.parametrize("shares", [(1.0, 0.0), (0.3, 0.3), (0.0, 0.0), (0.45, 0.55)])
def test_shares_of_preferences_up_to_a_whole_are_taken(shares):
    dropped, history = shares
    config = TRMConfig(preference_dropout=dropped, history_preference=history)
    assert (config.preference_dropout, config.history_preference) == shares


@pytest.mark.parametrize(
    "option",
    [
        {"batch_places": 0},
        {"id_dropout": 1.0},
        {"preference_window": 0},
        {"exact_preference": 1.5},
        {"index": "flat"},
        {"minutes": 0},
        {"batch_size": 16},
    ],
)
def test_options_out_of_bounds_are_refused(option):
    with pytest.raises(ValidationError, match=next(iter(option))):
        TRMConfig(**option)


def test_a_trained_trm_knows_what_guesses_are_worth_and_keeps_it(stand_in, dataset, trm, tmp_path):
    tasks, targets = dataset.tasks("validation"), dataset.targets("validation")
    wanted = np.array([targets[task.id] for task in tasks])
    assert trm.preference_weight == calibrate_preference_weight(trm.ranks, dataset.catalog, tasks, wanted)
    assert trm.preference_weight in CANDIDATE_WEIGHTS
    trm.save(tmp_path)
    assert TRM.load(tmp_path).preference_weight == trm.preference_weight
    record = json.loads((tmp_path / "trm.json").read_text())
    del record["preference_weight"]
    (tmp_path / "trm.json").write_text(json.dumps(record))
    assert "holds a damaged or unfit TRM" in refused(tmp_path)
