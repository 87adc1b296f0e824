"""A split by time: training before a moment that is the same for all users, tasks after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deeprec.config import DataConfig, TRMConfig, load_config
from deeprec.data.catalog import ItemIdx
from deeprec.data.sources import load_dataset
from deeprec.errors import DeepRecError
from stand_ins import HashedWords
from toys import toy_dataset

# Users a to d; item and time of each interaction. Cuts at 10 and 20.
TIMES = {
    "a": [(0, 1), (1, 5), (2, 12), (3, 19), (4, 20), (5, 30)],
    "b": [(1, 2), (2, 9)],
    "c": [(3, 10), (4, 11), (0, 25)],
    "d": [(5, 22), (1, 23)],
}


@pytest.fixture
def dataset():
    toy = toy_dataset(n_users=4, n_items=6, length=3)
    rows = list(TIMES.values())
    return replace(
        toy,
        users=tuple(TIMES),
        items_N=np.array([item for row in rows for item, _ in row], dtype=np.int32),
        starts_U1=np.cumsum([0, *map(len, rows)]),
        times_N=np.array([time for row in rows for _, time in row], dtype=float),
        cuts=(10.0, 20.0),
    )


def test_training_ends_at_the_first_cut(dataset):
    assert [sequence.tolist() for sequence in dataset.train_sequences()] == [[0, 1], [1, 2], [], []]


def test_targets_are_the_first_items_after_a_cut_of_users_with_a_history(dataset):
    assert dataset.targets("validation") == {"validation:a": 2}  # c has nothing before it
    assert dataset.targets("test") == {"test:a": 4, "test:c": 0}  # b has nothing after, d nothing before
    histories = {task.id: task.history for task in dataset.tasks("test")}
    assert histories == {"test:a": (0, 1, 2, 3), "test:c": (3, 4)}
    assert [task.history for task in dataset.tasks("validation")] == [(0, 1)]


def test_no_target_and_nothing_after_it_is_trained_on(dataset):
    latest = max(time for row in TIMES.values() for item, time in row if time < 10)
    trained = sum(len(sequence) for sequence in dataset.train_sequences())
    assert trained == sum(time <= latest for row in TIMES.values() for _, time in row)
    tasks, followed = dataset.past_tasks(5)
    assert [(task.history, followed[task.id]) for task in tasks] == [((0,), (1,)), ((1,), (2,))]


def test_parts_of_the_users_keep_the_cuts(dataset):
    parts, rest = dataset.divide({"one": 0.5}, 0)
    assert parts["one"].cuts == rest.cuts == dataset.cuts
    found = {**parts["one"].targets("test"), **rest.targets("test")}
    assert found == dataset.targets("test")


def test_the_split_is_part_of_the_fingerprint(dataset):
    other = replace(dataset, cuts=(10.0, 21.0))
    whole = replace(dataset, cuts=None)
    assert len({dataset.fingerprint, other.fingerprint, whole.fingerprint}) == 3


@pytest.fixture
def table(tmp_path):
    toy = toy_dataset()
    lines = ["user_id,item_id,timestamp,title"]
    moments = np.random.default_rng(0).permutation(60 * 12).reshape(60, 12)
    moments.sort(1)
    for u in range(60):
        lines += [
            f"u{u},i{item},{time + 1},Film {item}" for item, time in zip(toy.sequence(u), moments[u], strict=True)
        ]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_shares_of_the_configuration_become_moments(table):
    dataset = load_dataset(DataConfig(source=str(table), item_core=1, time_split=(0.8, 0.9)))
    assert dataset.cuts == (577.0, 649.0)  # of 720 interactions at 1 to 720: the first 576 and 648 come before
    assert sum(map(len, dataset.train_sequences())) == 576
    times = dict(zip(zip(np.repeat(np.arange(60), 12), dataset.items_N, strict=True), dataset.times_N, strict=True))
    for split, low, high in (("validation", 577, 649), ("test", 649, 721)):
        for user, target in ((task.split(":")[1], item) for task, item in dataset.targets(split).items()):
            assert low <= times[dataset.users.index(user), target] < high


def test_a_trm_trains_on_the_interactions_before_the_cut(table, monkeypatch):
    from deeprec.trm import batches
    from deeprec.trm.trm import TRM

    monkeypatch.setattr(batches, "BATCH_POSITIONS", 64)
    dataset = load_dataset(DataConfig(source=str(table), item_core=1, time_split=(0.3, 0.5)))
    assert min(map(len, dataset.train_sequences())) == 0
    trm = TRM.fit(dataset, TRMConfig(width=16, layers=1, epochs=2), HashedWords())
    assert len(trm.curve) == 2
    assert all(np.isfinite(epoch.loss) for epoch in trm.curve)
    assert trm.catalog.find("Film 3") == ItemIdx(dataset.catalog.find("Film 3"))


@pytest.mark.parametrize("value", ["[0.9, 0.8]", "[0.0, 0.5]", "[0.5, 1.0]", "[0.5]"])
def test_shares_that_do_not_rise_are_refused(value):
    with pytest.raises(DeepRecError, match=r"data\.time_split"):
        load_config(None, [f"data.time_split={value}"])


def test_data_without_times_is_not_split_by_time(tmp_path, table):
    lines = table.read_text().splitlines()
    (tmp_path / "bare.csv").write_text("\n".join([lines[0].replace("timestamp", "position"), *lines[1:]]) + "\n")
    with pytest.raises(DeepRecError, match="no times to split by"):
        load_dataset(DataConfig(source=str(tmp_path / "bare.csv"), item_core=1, time_split=(0.8, 0.9)))
    same = [lines[0], *(",".join([*line.split(",")[:2], "7", line.split(",")[3]]) for line in lines[1:])]
    (tmp_path / "same.csv").write_text("\n".join(same) + "\n")
    with pytest.raises(DeepRecError, match="too few to split"):
        load_dataset(DataConfig(source=str(tmp_path / "same.csv"), item_core=1, time_split=(0.8, 0.9)))
