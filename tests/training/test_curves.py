"""Curves of a training: how they are read, and when a metric counts as risen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deeprec.config import Config
from deeprec.errors import DeepRecError
from deeprec.runs import Run
from deeprec.training.curves import plot_curves, read_curves, trend, trends


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path, None, Config(), ["deeprec"], kind="train")
    for step in range(1, 6):
        metrics = {
            "reward": step / 2,
            "reward_over_trm": step / 4,
            "reward/format": -1.0,
            "well-formed": 0.5,
            "turns": 2.0,
            "tokens": 90.0,
        }
        run.append_metrics(step, {f"one/{name}": value for name, value in metrics.items()})
    return run


@pytest.mark.parametrize(
    ("values", "begin", "end", "tau", "p"),
    [
        ([1, 2, 3, 4, 5], 1, 5, 1, 1 / 120),  # one of 5! orders always rises
        ([5, 4, 3, 2, 1], 5, 1, -1, 1),
        ([1, 3, 2], 1, 2, 1 / 3, 1 / 2),  # 3 of 6 orders have so high a tau
        ([0, 0, 0, 0, 1, 1, 1, 1, 9, 1], 0, 5, None, None),
        ([1, np.nan, 2], 1, 2, 1, 1 / 2),
    ],
)
def test_trends_by_hand(values, begin, end, tau, p):
    found = trend(np.array(values, dtype=np.float64))
    assert (found.begin, found.end) == (begin, end)
    if tau is not None:
        assert (found.tau, found.p) == (pytest.approx(tau), pytest.approx(p))


def test_a_constant_has_no_trend():
    assert np.isnan(trend(np.ones(5)).tau)


def test_of_a_repeated_step_the_later_record_counts(run):
    run.append_metrics(5, {"one/reward": -3.0, "one/turns": 1.0})
    curves = read_curves(run.path)
    assert curves["one"]["reward"].tolist() == [0.5, 1.0, 1.5, 2.0, -3.0]
    assert np.isnan(curves["one"]["tokens"][4])


def test_rewards_are_listed_and_plotted(run, tmp_path):
    run.append_metrics(1, {"two/reward": 1.0, "two/seconds/decode": 3.0} | dict.fromkeys(PANELS, 1.0))
    curves = read_curves(run.path)
    shown = [(stage, name) for stage, name, _ in trends(curves)]
    assert {("one", "reward"), ("one", "reward_over_trm"), ("one", "reward/format"), ("two", "turns")} <= set(shown)
    assert ("two", "seconds/decode") not in shown
    plot_curves(curves, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DeepRecError, match=r"end its name in \.png or \.svg"):
        plot_curves(curves, tmp_path / "curves.tune")


PANELS = ("two/well-formed", "two/turns", "two/tokens")


def test_a_run_without_steps_is_refused(tmp_path):
    run = Run.create(tmp_path, None, Config(), ["deeprec"], kind="train")
    with pytest.raises(DeepRecError, match="holds no steps"):
        read_curves(run.path)
