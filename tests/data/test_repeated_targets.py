"""Targets that users chose before: how many there are, and that tasks then leave the history open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_line import deeprec
from deeprec.data.dataset import Dataset, Split, Task
from repeats import BASKETS, PLAYS, SHOP, SINGLE, load, write
from toys import toy_dataset


def repeated(dataset: Dataset, split: Split) -> list[str]:
    """Task by task, without the arrays."""
    targets = dataset.targets(split)
    return [task.id for task in dataset.tasks(split) if targets[task.id] in task.history]


@given(
    rows=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=8),
    cuts=st.none() | st.tuples(st.integers(1, 4), st.integers(5, 8)),
)
def test_repeated_targets_against_a_loop(rows: list[list[int]], cuts: tuple[float, float] | None) -> None:
    dataset = replace(
        toy_dataset(len(rows), 6, 3),
        items_N=np.array([item for row in rows for item in row], dtype=np.int32),
        starts_U1=np.cumsum([0, *map(len, rows)]),
        times_N=np.array([n for row in rows for n in range(len(row))], dtype=float),
        cuts=cuts,
    )
    for split in ("validation", "test"):
        assert list(dataset.repeated_targets(split)) == repeated(dataset, split)


@pytest.mark.parametrize(
    ("sequences", "options", "validation", "test"),
    [
        (SHOP, {}, (40, 40), (40, 40)),
        (PLAYS, {}, (30, 30), (20, 30)),
        (BASKETS, {"time_split": [0.5, 0.7]}, (24, 24), (24, 24)),
        (BASKETS, {"time_split": [0.4, 0.6]}, (24, 24), (0, 24)),
        (SINGLE, {}, (1, 21), (1, 21)),
    ],
    ids=["shop", "plays", "baskets by time", "baskets at another time", "one item only"],
)
def test_repeats_that_are_kept_may_be_recommended(
    tmp_path: Path,
    sequences: dict[str, list[int]],
    options: dict[str, object],
    validation: tuple[int, int],
    test: tuple[int, int],
) -> None:
    dataset = load(tmp_path, sequences, **options)
    assert not dataset.exclude_history
    for split, expected in (("validation", validation), ("test", test)):
        tasks = dataset.tasks(split)
        assert (len(dataset.repeated_targets(split)), len(tasks)) == expected
        assert {task.excluded for task in tasks} == {frozenset()}
        assert all(task.excluded == {*task.history} for task in dataset.tasks(split, "history"))
    assert dataset.describe()["repeated_targets"] == {"validation": validation[0], "test": test[0]}


@pytest.mark.parametrize("rule", ["first", "last"])
@pytest.mark.parametrize("sequences", [SHOP, PLAYS, BASKETS], ids=["shop", "plays", "baskets"])
def test_without_repeats_the_history_is_excluded(tmp_path: Path, rule: str, sequences: dict[str, list[int]]) -> None:
    dataset = load(tmp_path, sequences, repeats=rule, user_core=1)
    assert dataset.exclude_history
    assert dataset.describe()["repeated_targets"] == {"validation": 0, "test": 0}
    assert all(task.excluded == {*task.history} for task in dataset.tasks("test"))
    assert {task.excluded for task in dataset.tasks("test", "none")} == {frozenset()}


def test_repeats_that_are_no_targets_change_nothing(tmp_path: Path) -> None:
    dataset = load(tmp_path, {f"u{u}": [0, 1, 0, 2 + u, 12 + u] for u in range(10)})
    assert dataset.report.repeats == 10
    assert dataset.exclude_history


def test_parts_of_the_users_and_training_tasks_follow_the_whole(tmp_path: Path) -> None:
    dataset = load(tmp_path, SINGLE)
    parts, rest = dataset.divide({"some": 0.5}, 0)
    for part in (parts["some"], rest):
        assert not part.exclude_history
        tasks, _ = part.past_tasks(3)
        assert {task.exclude_history for task in tasks} == {False}
    assert {task.exclude_history for task in toy_dataset().past_tasks(3)[0]} == {True}


def test_a_new_user_excludes_the_history_unless_it_is_said() -> None:
    history = toy_dataset().tasks("test")[0].history
    assert Task.new(history).excluded == {*history}
    assert Task.new(history, exclude_history=False).excluded == frozenset()


def test_describe_says_how_many_targets_repeat(tmp_path: Path) -> None:
    table = write(tmp_path / "plays.csv", PLAYS)
    keep = ("--set", f"data.source={table}", "--set", "data.item_core=1", "--set", "data.repeats=keep")
    said = deeprec("data", "describe", *keep)
    assert said.code == 0, said.err
    assert "20 of 30 test targets (66.7 %) were chosen before; the history is not excluded\n" in said.out
    assert "30 of 30 validation targets (100.0 %) were chosen before; the history is not excluded\n" in said.out
    said = deeprec("data", "describe", *keep, "--set", "eval.exclude=history")
    told = "20 of 30 test targets (66.7 %) were chosen before; the history is excluded, so these can only score 0, and "
    assert f"{told}no metric can pass 0.3333\n" in said.out
    said = deeprec("data", "describe", *keep[:4])
    assert "chosen before" not in said.out
