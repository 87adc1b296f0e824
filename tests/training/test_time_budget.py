"""A training within a time: shared among its parts, kept over interruptions, said afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import LONGER, Heard, config_of, fresh, one_thread, task_sets  # noqa: F401 (fixtures)

from deeprec.training import time_budget as clock_module
from deeprec.training.schedule import SFT
from deeprec.training.task_sets import TaskSets
from deeprec.training.time_budget import TimeBudget, time_spent
from deeprec.training.trainer import first_parts, train

PLANNED = {"a": 100, "b": 60, "c": 40}


class Hand:
    """A clock that is set by hand, or goes on by so much whenever it is read."""

    def __init__(self, pace: float = 0.0) -> None:
        self.now, self.pace = 1000.0, pace

    def __call__(self) -> float:
        self.now += self.pace
        return self.now


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    hand = Hand()
    monkeypatch.setattr(clock_module, "monotonic", hand)
    return hand


def seconds_of(time_budget: TimeBudget, part: str, hand: Hand, step: float = 10.0) -> float:
    """How long a part goes on, in steps of so many seconds."""
    started, number = hand.now, 0
    assert time_budget.begin(part, 1000)
    while True:
        hand.now, number = hand.now + step, number + 1
        if time_budget.end_step(number, 1000):
            return hand.now - started


def test_each_part_has_its_explorations_share_of_what_is_left(hand: Hand, tmp_path: Path) -> None:
    time_budget = TimeBudget(tmp_path, PLANNED, minutes=10)
    assert seconds_of(time_budget, "a", hand) == 300  # 100 of 200
    assert seconds_of(time_budget, "b", hand, step=70) == 210  # 60 of 100 of 300 s, and what its last step took
    assert seconds_of(time_budget, "c", hand) == 90  # what is left
    assert time_spent(tmp_path) == "a 30 of 1000 steps, b 3 of 1000 steps, c 9 of 1000 steps; 10.0 minutes"


def test_what_a_part_leaves_is_the_later_ones(hand: Hand, tmp_path: Path) -> None:
    time_budget = TimeBudget(tmp_path, PLANNED, minutes=10)
    time_budget.begin("a", 2)
    hand.now += 60
    assert not time_budget.end_step(2, 2)  # its steps are done
    assert seconds_of(time_budget, "b", hand) == 330  # 0.6 of 540 s are 324


def test_a_part_for_which_no_time_is_left_does_not_begin(hand: Hand, tmp_path: Path) -> None:
    time_budget = TimeBudget(tmp_path, PLANNED, minutes=10)
    seconds_of(time_budget, "a", hand)
    seconds_of(time_budget, "b", hand, step=300)
    assert not time_budget.begin("c", 7)
    assert time_spent(tmp_path).endswith("c 0 of 7 steps; 10.0 minutes")


def test_what_was_spent_counts_after_an_interruption(hand: Hand, tmp_path: Path) -> None:
    time_budget = TimeBudget(tmp_path, PLANNED, minutes=10)
    seconds_of(time_budget, "a", hand)
    time_budget.begin("b", 9)
    hand.now += 100
    time_budget.end_step(1, 9)
    hand.now += 5000  # the machine was off
    again = TimeBudget(tmp_path, PLANNED, minutes=10)
    assert seconds_of(again, "b", hand) == 80
    assert json.loads((tmp_path / "time_budget.json").read_text())["b"]["seconds"] == 180


def test_it_says_how_many_steps_are_to_be_expected(hand: Hand, tmp_path: Path) -> None:
    time_budget = TimeBudget(tmp_path, {"a": 1}, minutes=1)
    time_budget.begin("a", 100)
    assert time_budget.reachable(0, 100) == 100
    found = []
    for step, seconds in ((1, 7), (2, 7), (9, 7), (10, 100)):
        hand.now += seconds
        time_budget.end_step(step, 100)
        found.append(time_budget.reachable(step, 100))
    assert found == [9, 9, 26, 10]  # 60/7; 120/14; 540/21; its time is up
    assert time_budget.reachable(10, 10) == 10


def test_without_a_limit_it_only_keeps_the_time(hand: Hand, tmp_path: Path) -> None:
    time_budget = TimeBudget(tmp_path, PLANNED, minutes=None)
    assert time_budget.begin("a", 9)
    hand.now += 1e9
    assert not time_budget.end_step(4, 9)
    assert time_budget.reachable(4, 9) == 9
    assert time_spent(tmp_path).startswith("a 4 of 9 steps; ")
    assert time_spent(tmp_path / "nowhere") == ""


def test_a_training_ends_each_part_when_its_time_is_up(task_sets: TaskSets, hand: Hand, tmp_path: Path) -> None:  # noqa: F811
    """Of 8 lessons and two times 12 samples, with a step a second: 1, 1.5 and then 1 s are theirs."""
    hand.pace, heard = 1.0, Heard()
    config = within(4)
    assert train(fresh(), task_sets, config, tmp_path, heard) == tmp_path / "two"
    assert list(heard.steps) == [(SFT, 1), ("one", 1), ("one", 2), ("two", 1)]
    assert time_spent(tmp_path) == "warm-start 1 of 2 steps, one 2 of 3 steps, two 1 of 3 steps; 0.1 minutes"
    assert not list((tmp_path / "checkpoints").iterdir())
    again = Heard()
    train(fresh(), task_sets, config, tmp_path, again)
    assert not again.steps
    assert first_parts(config.train, config.train) == []  # how far another came is its machine's doing


def test_a_training_that_was_killed_goes_on_with_the_time_that_was_left(
    task_sets: TaskSets,  # noqa: F811
    hand: Hand,
    tmp_path: Path,
) -> None:
    """The step that was lost took its time too, so that none is left for the last part: it changes nothing."""
    hand.pace, config = 1.0, within(4)
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), task_sets, config, tmp_path, Heard(("one", 2)))
    heard = Heard()
    last = train(fresh(), task_sets, config, tmp_path, heard)
    assert list(heard.steps) == [("one", 2)]
    assert time_spent(tmp_path).startswith("warm-start 1 of 2 steps, one 2 of 3 steps, two 0 of 3 steps; ")
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "one", last))
    assert all(torch.equal(two[name], weight) for name, weight in one.items())


def test_the_warm_start_s_rate_falls_with_the_time(task_sets: TaskSets, hand: Hand, tmp_path: Path) -> None:  # noqa: F811
    hand.pace, heard = 1.0, Heard()
    settings = config_of().train
    idle = [stage.model_copy(update={"steps": 0}) for stage in settings.stages]
    config = within(4, sft=settings.sft.model_copy(update={"batch_size": 2}), stages=idle, rows=1)
    train(fresh(), task_sets, config, tmp_path, heard)
    rates = [numbers["learning_rate"] / settings.sft.learning_rate for numbers in heard.steps.values()]
    # Four steps, the first to rise in: 0, 1, 2/3, 1/3. Of four seconds a quarter had passed when the third was chosen.
    assert rates == pytest.approx([0, 1, 2 / 3, 1 / 3])
    longer = {"sft": settings.sft.model_copy(update={"batch_size": 1}), "stages": idle, "rows": 1}
    heard = Heard()
    train(fresh(), task_sets, within(4, **longer), tmp_path / "longer", heard)
    rates = [numbers["learning_rate"] / settings.sft.learning_rate for numbers in heard.steps.values()]
    assert rates == pytest.approx([0, 1, 3 / 4, 1 / 2])  # of eight steps: 0, 1, 6/7, 5/7


def within(seconds: float, **more: Any) -> Any:
    return config_of(**{"stages": LONGER.train.stages, **more}, minutes=seconds / 60)
