"""A trained TRM goes on with newer data: new items, new interactions, and nothing lost of the old one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from deeprec.config import Config, TRMConfig
from deeprec.data.catalog import ItemIdx
from deeprec.errors import DeepRecError
from deeprec.retrieval.retriever import Query
from deeprec.runs import Run
from deeprec.trm.run import load_or_update_trm
from deeprec.trm.text_encoder import TextEncoder
from deeprec.trm.trm import TRM
from deeprec.trm.update import start_from, update_trm
from stand_ins import HashedWords
from toys import GENRES, catalog_of, toy_dataset

CONFIG = TRMConfig(width=16, layers=1, history=6, epochs=6, learning_rate=0.01)
SHORT = CONFIG.model_copy(update={"epochs": 2})


def shifted(dataset, by):
    """The same sequences over items `i{by}`, `i{by + 1}`, ...: `40 - by` of them are known to a TRM of the toys."""
    n = len(dataset.catalog)
    catalog = catalog_of(
        [(GENRES[(by + i) % len(GENRES)],) for i in range(n)], years=[1970 + by + i for i in range(n)], first=by
    )
    return dataclasses.replace(dataset, catalog=catalog)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(TextEncoder, "load", lambda **_: HashedWords())


@pytest.fixture(scope="module")
def old():
    return TRM.fit(toy_dataset(), CONFIG, HashedWords())


@pytest.fixture(scope="module")
def newer():
    """Ten items are gone, ten are new."""
    return shifted(toy_dataset(seed=1), 10)


def test_the_weights_go_on_where_they_were(old, newer):
    """Known items have their vectors, whatever their new positions; new ones have those of their text."""
    catalog = update_trm(old, newer, config=SHORT)[0].catalog
    start = start_from(old, catalog)
    ids_ID = start.weights["ids.weight"]
    for item in ("i12", "i39", "i3"):
        position = catalog.index(item)
        (text_D,) = old.model.text(torch.from_numpy(old.encoder.encode([catalog.text(position)]))).detach()
        before_D = old.index.vectors_ID[old.catalog.index(item)]
        np.testing.assert_allclose(ids_ID[position] + text_D, before_D, atol=1e-5)
    assert not ids_ID[catalog.index("i45")].any()
    saved = old.model.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in start.weights.items() if name != "ids.weight")


def test_it_says_what_changed(old, newer):
    fresh = catalog_of([("War",), ("War",)], years=[1990, 1991], first=49)  # one that the data have, and one beside
    updated, changes = update_trm(old, newer, fresh, SHORT)
    assert (changes.known, changes.kept, changes.learned, changes.by_text) == (30, 10, 10, 1)
    assert updated.catalog.ids[:40] == newer.catalog.ids
    assert set(updated.catalog.ids[40:50]) == {f"i{i}" for i in range(10)}
    assert updated.catalog.ids[50:] == ("i50",)
    assert len(updated.index) == 51
    assert changes.ndcg_after >= changes.ndcg_before == updated.curve[0].ndcg
    assert updated.curve[0].epoch == 0


def test_every_item_is_recommended(old, newer):
    updated, _ = update_trm(old, newer, catalog_of([("War",)], first=77), SHORT)
    (hits,) = updated.retrieve([Query((ItemIdx(0),), "War")], 100)
    assert sorted(hit.item for hit in hits) == list(range(51))


def test_going_on_is_better_than_beginning_anew(old):
    """After one epoch on other users of the same items."""
    same, one = toy_dataset(seed=2), CONFIG.model_copy(update={"epochs": 1, "learning_rate": 1e-4})
    updated, changes = update_trm(old, same, config=one)
    fresh = TRM.fit(same, one, HashedWords())
    assert max(epoch.ndcg for epoch in updated.curve) > max(epoch.ndcg for epoch in fresh.curve)
    assert changes.known == 40


def test_weights_that_training_makes_worse_are_not_taken(old):
    """A learning rate that ruins everything: the old weights stay, for the data as they are now."""
    wild = CONFIG.model_copy(update={"epochs": 1, "learning_rate": 300.0})
    updated, changes = update_trm(old, toy_dataset(), config=wild)
    assert changes.ndcg_after == changes.ndcg_before > max(epoch.ndcg for epoch in updated.curve[1:])
    np.testing.assert_allclose(updated.index.vectors_ID, old.index.vectors_ID, atol=1e-5)


def test_items_without_new_interactions_keep_their_co_occurrence(old, newer):
    updated, _ = update_trm(old, newer, config=SHORT)
    place = updated.catalog.index
    before, after = old.cooccurrence.shares_II.toarray(), updated.cooccurrence.shares_II.toarray()
    assert after[place("i3"), place("i12")] == before[3, 12] > 0 or before[3, 12] == 0
    np.testing.assert_allclose(after[place("i3")].sum(), before[3].sum(), rtol=1e-6)


def test_the_old_one_stays(old, newer):
    queries = [Query((ItemIdx(1), ItemIdx(2)), "War")]
    before, digest = old.retrieve(queries, 40), old.digest
    update_trm(old, newer, config=SHORT)
    assert (old.retrieve(queries, 40), old.digest, len(old.catalog)) == (before, digest, 40)


@pytest.mark.parametrize(("key", "value"), [("width", 32), ("layers", 2), ("history", 7)])
def test_what_the_weights_do_not_fit_is_refused(old, newer, key, value):
    with pytest.raises(DeepRecError, match=rf"trm\.{key}={value} does not fit the saved TRM, which has"):
        update_trm(old, newer, config=CONFIG.model_copy(update={key: value}))


def test_a_saved_one_is_updated_in_a_run_of_its_own(old, newer, tmp_path):
    old.save(tmp_path / "old")
    files = {path: path.read_bytes() for path in sorted((tmp_path / "old").rglob("*")) if path.is_file()}
    config = Config(trm=TRMConfig(epochs=2))
    updated, changes, folder = load_or_update_trm(tmp_path / "old", newer, newer.catalog, config, tmp_path / "runs")
    assert {path: path.read_bytes() for path in sorted((tmp_path / "old").rglob("*")) if path.is_file()} == files
    assert updated.config == SHORT
    loaded = TRM.load(folder / "trm")
    queries = [Query((ItemIdx(1),), "War")]
    assert loaded.retrieve(queries, 50) == updated.retrieve(queries, 50)
    manifest = Run.open(folder).manifest
    assert (manifest["kind"], manifest["status"]) == ("trm-update", "finished")
    assert manifest["changes"] == dataclasses.asdict(changes)


def test_an_interrupted_update_goes_on(old, newer, tmp_path, monkeypatch):
    """To the same weights as an unbroken one."""
    old.save(tmp_path / "old")
    arguments = (tmp_path / "old", newer, newer.catalog, Config(trm=TRMConfig(epochs=3)))
    whole, _, _ = load_or_update_trm(*arguments, tmp_path / "unbroken")
    append = Run.append_metrics

    def interrupt(self, step, values):
        append(self, step, values)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "append_metrics", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_or_update_trm(*arguments, tmp_path / "runs")
    monkeypatch.setattr(Run, "append_metrics", append)
    resumed, _, folder = load_or_update_trm(*arguments, tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [folder.name]
    np.testing.assert_array_equal(resumed.index.vectors_ID, whole.index.vectors_ID)
