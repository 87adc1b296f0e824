"""A TRM of data in which users choose items again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from command_line import deeprec
from deeprec.config import Config, TrainConfig, TRMConfig
from deeprec.retrieval.retriever import queries_of
from deeprec.runs import Run
from deeprec.training.task_sets import TARGETS_PER_USER, TaskSets
from deeprec.trm.run import load_or_train_trm, trm_origin
from deeprec.trm.trm import TRM
from repeats import BASKETS, PLAYS, SHOP, SINGLE, load
from stand_ins import HashedWords
from toys import toy_dataset

CONFIG = TRMConfig(width=16, layers=1, history=8, epochs=3, learning_rate=0.01)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load(tmp_path_factory.mktemp("shop"), SHOP)


@pytest.fixture(scope="module")
def trm(dataset):
    return TRM.fit(dataset, CONFIG, HashedWords())


@pytest.mark.parametrize(
    ("sequences", "options"),
    [(SHOP, {}), (PLAYS, {}), (BASKETS, {"time_split": [0.5, 0.7]}), (SINGLE, {})],
    ids=["shop", "plays", "baskets", "single"],
)
def test_early_stopping_and_calibration_rank_repeated_targets(tmp_path, sequences, options, monkeypatch):
    dataset, asked = load(tmp_path, sequences, **options), []
    ranks = TRM.ranks

    def recorded(self, queries, targets):
        asked.extend(ranks(self, queries, targets))
        assert not any(query.exclude for query in queries)
        return ranks(self, queries, targets)

    monkeypatch.setattr(TRM, "ranks", recorded)
    trm = TRM.fit(dataset, CONFIG, HashedWords())
    assert len(asked) == len(dataset.tasks("validation")) * (len(trm.curve) + 3)  # three candidate weights
    assert min(asked) >= 0
    assert min(epoch.ndcg for epoch in trm.curve) > 0
    assert not trm.exclude_history


def test_it_recommends_again_what_the_data_repeat(trm, dataset, tmp_path, stand_in):
    histories = {user: set(dataset.sequence(u)) for u, user in enumerate(dataset.users)}

    def again(**said):
        rows = trm.recommend(dataset, k=5, **said).select("user", "item").rows()
        return sum(dataset.catalog.index(item) in histories[user] for user, item in rows)

    assert again() == again(exclude_history=False) > 0
    assert again(exclude_history=True) == 0
    trm.save(tmp_path / "trm")
    loaded = TRM.load(tmp_path / "trm")
    assert not loaded.exclude_history
    assert loaded.recommend(dataset, k=5).equals(trm.recommend(dataset, k=5))


def test_a_trm_of_before_excludes_the_history(tmp_path, stand_in):
    trm = TRM.fit(toy_dataset(), CONFIG, HashedWords())
    assert trm.exclude_history
    trm.save(tmp_path / "trm")
    file = tmp_path / "trm" / "trm.json"
    record = json.loads(file.read_text())
    assert record.pop("exclude_history") is True
    file.write_text(json.dumps(record))
    assert TRM.load(tmp_path / "trm").exclude_history


def test_a_trm_that_was_stopped_on_zeros_is_trained_again(tmp_path, dataset, stand_in):
    """Its run says nothing of repeats, as those of before."""
    config = Config(trm=CONFIG)
    _, folder = load_or_train_trm(dataset, config, tmp_path)
    assert Run.open(folder).manifest["exclude_history"] is False
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["exclude_history"]
    file.write_text(json.dumps(manifest))
    assert load_or_train_trm(dataset, config, tmp_path)[1] != folder
    assert trm_origin(toy_dataset()).keys() == {"dataset", "text", "format_version"}


def test_the_command_recommends_as_the_trm_or_the_setting_says(trm, tmp_path, stand_in):
    trm.save(tmp_path / "trm")
    items = [part for item in (3, 4, 5) for part in ("--item", f"i{item}")]

    def listed(*more):
        found = deeprec("trm", "recommend", tmp_path / "trm", *items, "-k", "30", *more)
        assert found.code == 0, found.err
        rows = [line.split("│") for line in found.out.splitlines() if line.startswith("│ ")]
        return {int(row[2].strip().removeprefix("i")) for row in rows}

    assert listed() == listed("--set", "serve.exclude=none") == set(range(30))
    assert listed("--set", "serve.exclude=history") == set(range(30)) - {3, 4, 5}


def test_ranks_of_tasks_that_exclude_nothing(trm, dataset):
    tasks, targets = dataset.tasks("test"), dataset.targets("test")
    wanted = [targets[task.id] for task in tasks]
    assert (trm.ranks(queries_of(dataset.tasks("test", "history")), wanted) == -1).all()
    ranks_U = trm.ranks(queries_of(tasks), wanted)
    lists = trm.retrieve(queries_of(tasks), len(dataset.catalog))
    found_U = [[hit.item for hit in hits].index(target) for hits, target in zip(lists, wanted, strict=True)]
    np.testing.assert_array_equal(ranks_U, found_U)


def test_a_policy_trains_on_targets_that_repeat(tmp_path):
    dataset = load(tmp_path, PLAYS)
    trm = TRM.fit(dataset, CONFIG, HashedWords())

    def tasks(data):
        return TaskSets.prepare({"sft": data}, trm, data.catalog, TrainConfig()).tasks["sft"]

    candidates, followed = dataset.past_tasks(TARGETS_PER_USER)
    assert {task.id for task in tasks(dataset)} == {task.id for task in candidates}  # ten items are within 100
    new = {task.id for task in candidates if followed[task.id][0] not in task.history}
    assert {task.id for task in tasks(replace(dataset, exclude_history=True))} == new
    assert 0 < len(new) < len(candidates)
