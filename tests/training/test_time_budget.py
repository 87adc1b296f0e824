"""A training within a time limit: shared among its parts, kept across interruptions, reported afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_training import LONGER, StepLog, config_of, fresh

from deeprec.training import time_budget as time_budget_module
from deeprec.training.schedule import SFT, shared_parts
from deeprec.training.task_sets import TaskSets
from deeprec.training.time_budget import TimeBudget, time_spent
from deeprec.training.trainer import train

PLANNED = {"a": 100, "b": 60, "c": 40}


class FakeClock:
    """A clock that the test sets, or that advances by `pace` at every reading."""

    def __init__(self, pace: float = 0.0) -> None:
        self.now, self.pace = 1000.0, pace

    def __call__(self) -> float:
        self.now += self.pace
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(time_budget_module, "monotonic", clock)
    return clock


def seconds_of(time_budget: TimeBudget, part: str, clock: FakeClock, step: float = 10.0) -> float:
    """How long a part lasts, in steps of so many seconds."""
    started, number = clock.now, 0
    assert time_budget.begin(part, 1000)
    while True:
        clock.now, number = clock.now + step, number + 1
        if time_budget.end_step(number, 1000):
            return clock.now - started


def test_each_part_gets_its_share_of_the_time_that_is_left(clock: FakeClock, tmp_path: Path) -> None:
    time_budget = TimeBudget(tmp_path, PLANNED, minutes=10)
    assert seconds_of(time_budget, "a", clock) == 300  # 100 of 200
    assert seconds_of(time_budget, "b", clock, step=70) == 210  # 60 of 100 of 300 s, and what its last step took
    assert seconds_of(time_budget, "c", clock) == 90  # what is left
    assert time_spent(tmp_path) == "a 30 of 1000 steps, b 3 of 1000 steps, c 9 of 1000 steps; 10.0 minutes"


def test_later_parts_get_the_time_that_a_part_leaves(clock: FakeClock, tmp_path: Path) -> None:
    time_budget = TimeBudget(tmp_path, PLANNED, minutes=10)
    time_budget.begin("a", 2)
    clock.now += 60
    assert not time_budget.end_step(2, 2)  # its steps are done
    assert seconds_of(time_budget, "b", clock) == 330  # 0.6 of 540 s are 324


def test_a_part_without_time_left_does_not_begin(clock: FakeClock, tmp_path: Path) -> None:
    time_budget = TimeBudget(tmp_path, PLANNED, minutes=10)
    seconds_of(time_budget, "a", clock)
    seconds_of(time_budget, "b", clock, step=300)
    assert not time_budget.begin("c", 7)
    assert time_spent(tmp_path).endswith("c 0 of 7 steps; 10.0 minutes")


def test_time_spent_before_an_interruption_counts(clock: FakeClock, tmp_path: Path) -> None:
    time_budget = TimeBudget(tmp_path, PLANNED, minutes=10)
    seconds_of(time_budget, "a", clock)
    time_budget.begin("b", 9)
    clock.now += 100
    time_budget.end_step(1, 9)
    clock.now += 5000  # the machine was off
    again = TimeBudget(tmp_path, PLANNED, minutes=10)
    assert seconds_of(again, "b", clock) == 80
    assert json.loads((tmp_path / "time_budget.json").read_text())["b"]["seconds"] == 180


def test_it_estimates_how_many_steps_fit(clock: FakeClock, tmp_path: Path) -> None:
    time_budget = TimeBudget(tmp_path, {"a": 1}, minutes=1)
    time_budget.begin("a", 100)
    assert time_budget.expected_steps(0, 100) == 100
    found = []
    for step, seconds in ((1, 7), (2, 7), (9, 7), (10, 100)):
        clock.now += seconds
        time_budget.end_step(step, 100)
        found.append(time_budget.expected_steps(step, 100))
    assert found == [9, 9, 26, 10]  # 60/7; 120/14; 540/21; its time is up
    assert time_budget.expected_steps(10, 10) == 10


def test_without_a_limit_it_only_records_the_time(clock: FakeClock, tmp_path: Path) -> None:
    time_budget = TimeBudget(tmp_path, PLANNED, minutes=None)
    assert time_budget.begin("a", 9)
    clock.now += 1e9
    assert not time_budget.end_step(4, 9)
    assert time_budget.expected_steps(4, 9) == 9
    assert time_spent(tmp_path).startswith("a 4 of 9 steps; ")
    assert time_spent(tmp_path / "nowhere") == ""


def test_a_training_ends_each_part_when_its_time_is_up(task_sets: TaskSets, clock: FakeClock, tmp_path: Path) -> None:
    """Of 8 demonstrations and twice 12 explorations, with a step a second: 1, 1.5 and then 1 s are theirs."""
    clock.pace, log = 1.0, StepLog()
    config = within(4)
    assert train(fresh(), task_sets, config, tmp_path, log) == tmp_path / "two"
    assert list(log.steps) == [(SFT, 1), ("one", 1), ("one", 2), ("two", 1)]
    assert time_spent(tmp_path) == "sft 1 of 2 steps, one 2 of 3 steps, two 1 of 3 steps; 0.1 minutes"
    assert not list((tmp_path / "checkpoints").iterdir())
    again = StepLog()
    train(fresh(), task_sets, config, tmp_path, again)
    assert not again.steps
    assert shared_parts(config.train, config.train) == []  # how far another came depends on its machine


def test_a_killed_training_continues_with_the_time_that_is_left(
    task_sets: TaskSets,
    clock: FakeClock,
    tmp_path: Path,
) -> None:
    """The lost step took time too, so none is left for the last part: it changes nothing."""
    clock.pace, config = 1.0, within(4)
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), task_sets, config, tmp_path, StepLog(("one", 2)))
    log = StepLog()
    last = train(fresh(), task_sets, config, tmp_path, log)
    assert list(log.steps) == [("one", 2)]
    assert time_spent(tmp_path).startswith("sft 1 of 2 steps, one 2 of 3 steps, two 0 of 3 steps; ")
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "one", last))
    assert all(torch.equal(two[name], weight) for name, weight in one.items())


def test_the_learning_rate_of_sft_falls_with_the_time(task_sets: TaskSets, clock: FakeClock, tmp_path: Path) -> None:
    clock.pace, log = 1.0, StepLog()
    settings = config_of().train
    idle = [stage.model_copy(update={"steps": 0}) for stage in settings.stages]
    config = within(4, sft=settings.sft.model_copy(update={"batch_size": 2}), stages=idle, micro_batch_size=1)
    train(fresh(), task_sets, config, tmp_path, log)
    rates = [metrics["learning_rate"] / settings.sft.learning_rate for metrics in log.steps.values()]
    # Four steps, the first to rise in: 0, 1, 2/3, 1/3. Of four seconds a quarter had passed when the third was chosen.
    assert rates == pytest.approx([0, 1, 2 / 3, 1 / 3])
    longer = {"sft": settings.sft.model_copy(update={"batch_size": 1}), "stages": idle, "micro_batch_size": 1}
    log = StepLog()
    train(fresh(), task_sets, within(4, **longer), tmp_path / "longer", log)
    rates = [metrics["learning_rate"] / settings.sft.learning_rate for metrics in log.steps.values()]
    assert rates == pytest.approx([0, 1, 3 / 4, 1 / 2])  # of eight steps: 0, 1, 6/7, 5/7


def within(seconds: float, **more: Any) -> Any:
    return config_of(**{"stages": LONGER.train.stages, **more}, minutes=seconds / 60)
