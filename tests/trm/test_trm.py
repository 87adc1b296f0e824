"""The TRM on the toy data set, with a stand-in for MiniLM."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprec.config import TRMConfig
from deeprec.data.catalog import ItemIdx
from deeprec.data.dataset import Sequences
from deeprec.errors import DeepRecError
from deeprec.testing import GENRES, RetrieverContract, toy_dataset
from deeprec.trm import training
from deeprec.trm.retriever import PopularityRetriever, Query
from deeprec.trm.text_encoder import TextEncoder
from deeprec.trm.training import Batches, preference_texts
from deeprec.trm.trm import TRM

CONFIG = TRMConfig(
    width=16,
    layers=1,
    heads=2,
    dropout=0.1,
    history=6,
    epochs=8,
    patience=8,
    batch_size=16,
    learning_rate=0.01,
    preference_dropout=0.4,
)
SHORT = CONFIG.model_copy(update={"epochs": 5})


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
    return TRM.fit(dataset, Words(), CONFIG)[0]


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(TextEncoder, "load", lambda **_: Words())


def items(*numbers):
    return tuple(map(ItemIdx, numbers))


class TestContract(RetrieverContract):
    @pytest.fixture
    def n_items(self, dataset):
        return len(dataset.catalog)

    @pytest.fixture
    def retriever(self, trm):
        return trm


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

    assert ndcg(trm) > 1.3 * ndcg(popularity)


def genre_share(trm, queries, genre, k=8):
    found = [hit.item for hits in trm.retrieve(queries, k) for hit in hits]
    return np.mean([item % len(GENRES) == GENRES.index(genre) for item in found])


@pytest.mark.parametrize("genre", GENRES)
def test_a_preference_raises_the_share_of_its_genre(dataset, trm, genre):
    histories = [task.history for task in dataset.tasks("test")[:40]]
    without = genre_share(trm, [Query(history) for history in histories], genre)
    within = genre_share(trm, [Query(history, genre) for history in histories], genre)
    assert within > without + 0.2


def test_a_preference_matters_to_a_user_without_history(trm):
    """Training never shows it an empty history, so only the mean over the genres is asked for; chance is 0.2."""
    assert np.mean([genre_share(trm, [Query((), genre)], genre) for genre in GENRES]) > 0.35


@pytest.mark.parametrize("blank", ["", " ", "\n\t "])
def test_a_blank_preference_is_none(dataset, trm, blank):
    class Other(Words):
        def encode(self, texts):
            return -super().encode(texts)

    other = TRM(trm.model, trm.catalog, Other(), trm.config)
    queries = [Query(task.history) for task in dataset.tasks("test")[:5]]
    blanks = [Query(query.history, blank) for query in queries]
    np.testing.assert_array_equal(trm.scores(blanks), trm.scores(queries))
    np.testing.assert_array_equal(trm.scores(blanks), other.scores(blanks))  # its vector plays no part
    war = [Query(queries[0].history, "War")]
    assert np.abs(trm.scores(war) - trm.scores(queries[:1])).max() > 0.01
    assert np.abs(trm.scores(war) - other.scores(war)).max() > 0.01


# What it answers


def test_only_the_latest_items_are_read(trm):
    history = items(*range(30))
    long, short, other = trm.scores([Query(history), Query(history[-CONFIG.history :]), Query(history[-3:])])
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
    assert trm.ranks([], []).tolist() == []


def test_equal_scores_rank_by_lower_index(dataset, trm):
    flat = TRM(trm.model, trm.catalog, trm.encoder, trm.config)
    flat.items_ID = torch.zeros_like(trm.items_ID)
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
        states_BTD = trm.model.encode(trm.items_ID, rows_BT)
    torch.testing.assert_close(states_BTD[0, :3], states_BTD[1, :3])
    assert (states_BTD[0, 3] - states_BTD[1, 3]).abs().max() > 0.01


# Saving and loading


def test_a_saved_model_gives_identical_scores(tmp_path, dataset, trm, stand_in):
    trm.save(tmp_path / "new" / "trm")
    loaded = TRM.load(tmp_path / "new" / "trm")
    queries = [Query(task.history, "War") for task in dataset.tasks("test")[:9]]
    np.testing.assert_array_equal(loaded.scores(queries), trm.scores(queries))
    assert loaded.config == trm.config
    assert loaded.catalog.titles == trm.catalog.titles
    assert not loaded.model.training


def refused(folder):
    with pytest.raises(DeepRecError) as caught:
        TRM.load(folder)
    sentence = str(caught.value)
    assert str(folder) in sentence
    assert "\n" not in sentence
    return sentence


FILES = ("trm.json", "catalog.parquet", "model.safetensors")


def test_a_missing_folder_is_refused(tmp_path, stand_in):
    assert "holds no trained TRM (trm.json is missing)" in refused(tmp_path / "nothing")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(tmp_path, trm, stand_in, name):
    trm.save(tmp_path)
    (tmp_path / name).unlink()
    assert f"holds no trained TRM ({name} is missing)" in refused(tmp_path)


def garble(content):
    return b"\x00garbage"


def cut(content):
    return content[: len(content) // 2]


def widen(content):
    return json.dumps(json.loads(content) | {"width": 32}).encode()


def surprise(content):
    return json.dumps(json.loads(content) | {"surprise": 1}).encode()


@pytest.mark.parametrize(
    ("name", "damage"),
    [*((name, damage) for name in FILES for damage in (garble, cut)), ("trm.json", widen), ("trm.json", surprise)],
)
def test_a_damaged_file_is_refused(tmp_path, trm, stand_in, name, damage):
    trm.save(tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    assert "holds a damaged TRM" in refused(tmp_path)


def test_files_of_two_models_are_refused(tmp_path, trm, stand_in):
    trm.save(tmp_path)
    toy_dataset(n_items=20).catalog.to_frame().write_parquet(tmp_path / "catalog.parquet")
    assert "holds a damaged TRM" in refused(tmp_path)


# Interruptions


def fit(dataset, checkpoint, config=SHORT, on_epoch=lambda epoch: None):
    trm, curve = TRM.fit(dataset, Words(), config, checkpoint, on_epoch)
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
    assert [number for number, _, _ in curve] == [1, 2, 3, 4, 5]
    assert curve[-1][1] < curve[0][1]


@pytest.mark.parametrize("last", [1, 4, 5])
def test_interrupted_and_resumed_is_as_unbroken(tmp_path, dataset, unbroken, last):
    def interrupt(epoch):
        if epoch.epoch == last:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "last.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(dataset, checkpoint, on_epoch=interrupt)
    told = []
    resumed = fit(dataset, checkpoint, on_epoch=lambda epoch: told.append(epoch.epoch))
    assert told == list(range(last + 1, 6))
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
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    died = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert died.returncode == -signal.SIGKILL, died.stderr
    told = []
    resumed = fit(dataset, checkpoint, on_epoch=lambda epoch: told.append(epoch.epoch))
    assert told == [3, 4, 5]
    assert_same(resumed, unbroken)


def test_the_checkpoint_of_another_configuration_is_refused(tmp_path, dataset):
    checkpoint = tmp_path / "last.safetensors"
    fit(dataset, checkpoint, config=SHORT.model_copy(update={"epochs": 1}))
    before = checkpoint.read_bytes()
    with pytest.raises(DeepRecError, match=r"another \[trm\] configuration"):
        fit(dataset, checkpoint, config=SHORT.model_copy(update={"epochs": 1, "learning_rate": 0.02}))
    assert checkpoint.read_bytes() == before


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
        states.append(model.ids.weight.detach().clone())
        return next(values)

    config = CONFIG.model_copy(update={"patience": 2})
    model, curve = training.train(dataset.train_sequences(), dataset.catalog, Words(), config, validate)
    assert [epoch.ndcg for epoch in curve] == [0.1, 0.3, 0.2, 0.3]
    assert torch.equal(model.ids.weight, states[1])  # the best model, not the last


def test_too_little_data_is_refused():
    dataset = toy_dataset(n_users=4, length=2)
    with pytest.raises(DeepRecError, match="3 interactions"):
        fit(dataset, None)
    with pytest.raises(DeepRecError, match="nothing to train on"):
        fit(toy_dataset(n_users=4, length=3), None)


# What reaches training


def test_validation_and_test_items_never_reach_training(dataset, unbroken):
    """The last two items of every user replaced: the same batches, the same losses."""
    items_N = dataset.items_N.copy()
    ends_U = dataset.starts_U1[1:]
    for back in (1, 2):
        items_N[ends_U - back] = (items_N[ends_U - back] + 7) % len(dataset.catalog)
    other = dataclasses.replace(dataset, items_N=items_N)
    assert other.targets("test") != dataset.targets("test")
    for number in range(3):
        one, two = (Batches(d.train_sequences(), 40, CONFIG).epoch(number) for d in (dataset, other))
        assert len(one) == len(two)
        for batch, batch_of_other in zip(one, two, strict=True):
            for tensor, tensor_of_other in zip(batch, batch_of_other, strict=True):
                assert torch.equal(tensor, tensor_of_other)
    curve, _ = fit(other, None)
    assert [loss for _, loss, _ in curve] == [loss for _, loss, _ in unbroken[0]]
    assert [ndcg for _, _, ndcg in curve] != [ndcg for _, _, ndcg in unbroken[0]]


def numbered(lengths):
    """Sequences in which every place has an item of its own, so that an item tells its place."""
    starts_U1 = np.cumsum([0, *lengths])
    return Sequences(np.arange(starts_U1[-1], dtype=np.int32), starts_U1)


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 23), min_size=1, max_size=12).filter(lambda found: max(found) > 1),
    history=st.integers(1, 7),
    batch_size=st.integers(1, 5),
    window=st.integers(1, 6),
    ahead=st.booleans(),
    number=st.integers(0, 3),
)
def test_every_pair_once_an_epoch_with_a_preference_of_the_same_user(
    lengths, history, batch_size, window, ahead, number
):
    sequences = numbered(lengths)
    n_items = int(sequences.starts_U1[-1])
    config = TRMConfig(
        history=history,
        batch_size=batch_size,
        preference_window=window,
        history_preference=0.0 if ahead else 1.0,
        preference_dropout=0.0,
    )
    pairs = Counter()
    for inputs_BT, targets_BT, wanted_BT, given_BT in Batches(sequences, n_items, config).epoch(number):
        assert inputs_BT.shape == targets_BT.shape == wanted_BT.shape == given_BT.shape
        assert inputs_BT.shape[0] <= batch_size
        assert inputs_BT.shape[1] <= history
        assert given_BT.all()
        padded_BT = inputs_BT == n_items
        assert torch.equal(padded_BT, targets_BT == n_items)
        assert not padded_BT[:, 0].any()
        assert not (padded_BT[:, :-1] & ~padded_BT[:, 1:]).any()  # on the right only
        for place, target, wanted in zip(
            inputs_BT[~padded_BT].tolist(), targets_BT[~padded_BT].tolist(), wanted_BT[~padded_BT].tolist(), strict=True
        ):
            pairs[place, target] += 1
            user = int(np.searchsorted(sequences.starts_U1, place, side="right")) - 1
            start, end = sequences.starts_U1[user], sequences.starts_U1[user + 1]
            source = wanted // 4  # four texts an item
            if ahead:
                assert place < source < end
                assert source <= place + window
            else:
                assert start <= source <= place
                assert source > place - 10
    expected = {
        (place, place + 1)
        for start, end in zip(sequences.starts_U1[:-1], sequences.starts_U1[1:], strict=True)
        for place in range(start, end - 1)
    }
    assert pairs == dict.fromkeys(expected, 1)


def test_windows_and_preferences_move_from_epoch_to_epoch_and_repeat_by_number():
    config = TRMConfig(history=5)
    sequences = numbered([30, 40, 12])
    first, again, second = (Batches(sequences, 82, config).epoch(number) for number in (0, 0, 1))
    assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
    rows = [{tuple(row) for batch in epoch for row in batch[0].tolist()} for epoch in (first, second)]
    assert rows[0] != rows[1]


def test_shares_of_preferences():
    config = TRMConfig(preference_dropout=0.25, history_preference=0.4, preference_window=3)
    given, behind, variants, places = 0, 0, Counter(), 0
    for inputs_BT, _, wanted_BT, given_BT in Batches(numbered([50] * 200), 10_000, config).epoch(0):
        real_BT = inputs_BT < 10_000
        places += int(real_BT.sum())
        given += int(given_BT[real_BT].sum())
        behind += int((wanted_BT // 4 <= inputs_BT)[real_BT].sum())
        variants.update((wanted_BT % 4)[real_BT].tolist())
    assert given / places == pytest.approx(0.75, abs=0.02)
    assert behind / places == pytest.approx(0.4, abs=0.02)
    assert all(count / places == pytest.approx(0.25, abs=0.02) for count in variants.values())


def test_preference_texts_come_from_the_items_own_phrases(dataset):
    texts = preference_texts(dataset.catalog, seed=0)
    assert len(texts) == len(dataset.catalog)
    for place, variants in enumerate(texts):
        assert len(variants) == 4
        for text in variants:
            phrases = text.split("; ")
            assert set(phrases) <= set(dataset.catalog.phrases(ItemIdx(place)))
            assert len(set(phrases)) == len(phrases) <= 3
    assert preference_texts(dataset.catalog, seed=0) == texts
    assert preference_texts(dataset.catalog, seed=1) != texts
