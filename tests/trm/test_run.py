"""The TRM of a configuration: trained once, then loaded; resumed after an interruption."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from deeprec.config import Config, TRMConfig
from deeprec.runs import Run
from deeprec.runs.progress import Progress
from deeprec.trm.run import load_or_train_trm
from deeprec.trm.text_encoder import TextEncoder
from deeprec.trm.trm import TRM
from stand_ins import HashedWords
from toys import toy_dataset

CONFIG = Config(trm=TRMConfig(width=16, layers=1, epochs=3))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(TextEncoder, "load", lambda **_: HashedWords())


@pytest.fixture(scope="module")
def dataset():
    return toy_dataset()


class Interrupt(Progress):
    """Ctrl-C after an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    @contextmanager
    def phase(self, name, total=None, *, unit=""):
        def advance(done, total=None, text=""):
            if unit == "epoch" and done == self.epoch:
                raise KeyboardInterrupt

        yield advance


def test_a_trm_is_trained_once(tmp_path, dataset, monkeypatch):
    trm, folder = load_or_train_trm(dataset, CONFIG, tmp_path)
    run = Run.open(folder)
    assert run.manifest["status"] == "finished"
    assert run.manifest["preference_weight"] == trm.preference_weight
    assert [record["loss"] for record in run.metrics] == [epoch.loss for epoch in trm.curve]
    fit = TRM.fit
    monkeypatch.setattr(TRM, "fit", lambda *_, **__: pytest.fail("trained again"))
    loaded, same = load_or_train_trm(dataset, CONFIG, tmp_path)
    assert same == folder
    assert loaded.recommend(dataset, k=3).equals(trm.recommend(dataset, k=3))
    monkeypatch.setattr(TRM, "fit", fit)
    _, other = load_or_train_trm(dataset, CONFIG, tmp_path, again=True)
    assert other != folder


def test_other_data_or_another_configuration_needs_a_training(tmp_path, dataset):
    _, folder = load_or_train_trm(dataset, CONFIG, tmp_path)
    changed = CONFIG.model_copy(update={"trm": CONFIG.trm.model_copy(update={"seed": 1})})
    assert load_or_train_trm(dataset, changed, tmp_path)[1] != folder
    assert load_or_train_trm(toy_dataset(seed=1), CONFIG, tmp_path)[1] != folder


def test_an_interrupted_training_is_resumed_in_its_folder(tmp_path, dataset):
    with pytest.raises(KeyboardInterrupt):
        load_or_train_trm(dataset, CONFIG, tmp_path, progress=Interrupt(2))
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert Run.open(folder).manifest["status"] == "interrupted"
    trm, same = load_or_train_trm(dataset, CONFIG, tmp_path)
    assert same == folder
    unbroken = TRM.fit(dataset, CONFIG.trm, HashedWords())
    assert [(epoch.loss, epoch.ndcg) for epoch in trm.curve] == [(epoch.loss, epoch.ndcg) for epoch in unbroken.curve]
