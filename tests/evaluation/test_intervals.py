from __future__ import annotations

import math
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from deeprec.evaluation import intervals
from deeprec.evaluation.intervals import Interval, mean_interval, paired_interval, regression_estimator

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from ratios import ratio_interval


@pytest.fixture
def settings(monkeypatch):
    """Change the constants of the bootstrap."""

    def change(**values):
        for name, value in values.items():
            monkeypatch.setattr(intervals, name.upper(), value)

    return change


@pytest.fixture(autouse=True)
def as_in_reports(settings):
    settings(resamples=2000)


def test_known_toy(settings):
    """Hits of a coin: the bootstrap mean is Binomial(100, 0.3) / 100, 2.5 % each side of 0.21, 0.39."""
    hits_U = np.repeat([1.0, 0.0], [30, 70])
    settings(resamples=20_000, seed=1)
    found = mean_interval(hits_U)
    assert found.mean == pytest.approx(0.3)
    assert found.low == pytest.approx(0.21, abs=0.011)
    assert found.high == pytest.approx(0.39, abs=0.011)


def test_less_confidence_is_shorter(settings):
    values_U = np.random.default_rng(0).random(200)
    wide = mean_interval(values_U)
    settings(confidence=0.5)
    narrow = mean_interval(values_U)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    # Of a normal mean: 0.674 / 1.960.
    assert (narrow.high - narrow.low) / (wide.high - wide.low) == pytest.approx(0.344, abs=0.04)


def test_the_seed_decides(settings):
    values_U = np.random.default_rng(0).random(50)
    before = mean_interval(values_U)
    assert mean_interval(values_U) == before
    settings(seed=1)
    assert mean_interval(values_U) != before


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_constant_values_have_no_width(value):
    assert mean_interval(np.full(7, value)) == Interval(value, value, value)


def test_one_user_has_no_interval():
    found = mean_interval(np.array([0.5]))
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("values_U", [np.array([]), np.array([0.1, math.nan]), np.zeros((2, 2))])
def test_refuses_what_has_no_mean(values_U):
    with pytest.raises(ValueError, match="finite"):
        mean_interval(values_U)


def test_covers_the_true_mean_as_often_as_it_says(settings):
    """NDCG-like values: a miss for most, 1 / log2(rank + 2) for the rest."""
    rng = np.random.default_rng(3)
    chances = np.array([0.8, 0.05, 0.05, 0.05, 0.05])
    values = np.array([0, 1, 0.63, 0.5, 0.43])
    truth = float(chances @ values)
    trials = 400
    covered = 0
    for trial in range(trials):
        drawn_U = rng.choice(values, size=150, p=chances)
        settings(confidence=0.9, resamples=400, seed=trial)
        found = mean_interval(drawn_U)
        covered += found.low <= truth <= found.high
    # The binomial error at 400 trials is 0.015.
    assert covered / trials == pytest.approx(0.9, abs=0.045)


def test_paired_known_toy():
    ours_U, theirs_U = np.array([1.0, 0.5, 0.5, 0.0]), np.array([0.5, 0.5, 0.0, 0.0])
    found = paired_interval(ours_U, theirs_U)
    assert found.difference == 0.25
    assert found.ratio == 1.0
    assert found.users == 4
    # Two of four users gained 0.5: the resampled mean is Binomial(4, 1/2) / 8, 1/16 of it at each end.
    assert (found.low, found.high) == (0, 0.5)


def test_paired_is_symmetric():
    rng = np.random.default_rng(1)
    ours_U, theirs_U = rng.random(80), rng.random(80)
    there = paired_interval(ours_U, theirs_U)
    back = paired_interval(theirs_U, ours_U)
    assert there.difference == pytest.approx(-back.difference)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_identical_systems_do_not_differ():
    values_U = np.random.default_rng(1).random(80)
    found = paired_interval(values_U, values_U.copy())
    assert (found.difference, found.low, found.high, found.ratio) == (0, 0, 0, 0)


def test_no_ratio_to_a_mean_of_zero():
    assert math.isnan(paired_interval(np.array([1.0, 0.0]), np.zeros(2)).ratio)


def test_pairing_sees_a_small_steady_gain():
    """Users differ by far more than the systems do: each mean's interval hides what pairing shows."""
    rng = np.random.default_rng(2)
    theirs_U = rng.random(200)
    ours_U = theirs_U + rng.normal(0.01, 0.02, 200)
    assert mean_interval(ours_U).low < theirs_U.mean()
    assert paired_interval(ours_U, theirs_U).low > 0.005


def test_paired_refuses_different_shapes():
    with pytest.raises(ValueError, match="one shape"):
        paired_interval(np.zeros(3), np.zeros(4))


def test_what_a_sample_says_of_all_by_hand():
    """A control of two groups: in the sample ours has 0.6 and 0.2 there, and of all users a quarter is in the first."""
    control_U = np.repeat([1.0, 0.0], [20, 60])
    ours_U = np.full(80, math.nan)
    ours_U[:10], ours_U[20:30] = 0.6, 0.2
    found = regression_estimator(ours_U, control_U[:, None], np.full(80, 0.2))
    assert found.difference == pytest.approx(0.25 * 0.6 + 0.75 * 0.2 - 0.2)
    assert found.ratio == pytest.approx(0.5)
    assert (found.users, found.base) == (80, pytest.approx(0.2))
    # What is left to chance is the share of the first group, Binomial(80, 1/4) / 80, times 0.4.
    assert (found.high - found.low) / 0.4 == pytest.approx(2 * 1.96 * math.sqrt(0.25 * 0.75 / 80), rel=0.1)


def test_who_does_as_a_control_does_is_known_of_all():
    rng = np.random.default_rng(4)
    base_U, control_U, other_U = rng.random((3, 300))
    ours_U = np.where(np.arange(300) % 3 == 0, control_U, math.nan)
    found = regression_estimator(ours_U, np.column_stack([control_U, other_U]), base_U)
    known = paired_interval(control_U, base_U)
    assert found.difference == pytest.approx(known.difference)
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=0.005)


def test_an_estimate_covers_the_truth_and_is_shorter(settings):
    """Ours does as a control of 400 users does for two in three, on 100 of them."""
    rng = np.random.default_rng(5)
    covered, widths, paired = 0, [], []
    trials = 150
    for trial in range(trials):
        base_U = np.where(rng.random(400) < 0.2, rng.random(400), 0.0)
        control_U = np.where(rng.random(400) < 0.25, rng.random(400), 0.0)
        all_U = np.where(rng.random(400) < 0.67, control_U, base_U)
        truth = 0.67 * (0.125 - 0.1)
        ours_U = np.where(np.arange(400) < 100, all_U, math.nan)
        settings(confidence=0.9, resamples=200, seed=trial)
        found = regression_estimator(ours_U, np.column_stack([base_U, control_U]), base_U)
        covered += found.low <= truth <= found.high
        widths.append(found.high - found.low)
        direct = paired_interval(all_U[:100], base_U[:100])
        paired.append(direct.high - direct.low)
    assert covered / trials == pytest.approx(0.9, abs=0.075)  # three errors of 150 trials
    assert np.mean(widths) < 0.8 * np.mean(paired)


def test_estimating_refuses_what_is_not_known():
    known_U = np.array([1.0, 0.0, 1.0, math.nan])
    with pytest.raises(ValueError, match="too few"):
        regression_estimator(np.array([1.0, 1.0, math.nan]), np.zeros((3, 1)), np.zeros(3))
    with pytest.raises(ValueError, match="not known"):
        regression_estimator(known_U, known_U[:, None], np.zeros(4))
    with pytest.raises(ValueError, match="same users"):
        regression_estimator(known_U, np.zeros((3, 1)), np.zeros(4))


def test_memory_is_bounded():
    """All resamples of 25,000 users at once would be 400 MB of values and as much of indices."""
    values_U = np.random.default_rng(0).random(25_000)
    tracemalloc.start()
    mean_interval(values_U)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80e6


def test_a_ratio_of_means_by_hand():
    """One user at 3 / 1 and one at 1 / 1: the means give 2, the draws 1, 2 or 3."""
    found = ratio_interval(np.array([3.0, 1.0]), np.array([1.0, 1.0]))
    assert (found.mean, found.low, found.high) == (2.0, 1.0, 3.0)


def test_a_ratio_is_of_pairs():
    """Ours is always twice theirs: no draw of users changes that."""
    theirs_U = np.random.default_rng(0).random(50)
    found = ratio_interval(2 * theirs_U, theirs_U)
    np.testing.assert_allclose([found.mean, found.low, found.high], 2.0)


def test_a_ratio_to_nothing_is_nan():
    found = ratio_interval(np.ones(3), np.zeros(3))
    assert math.isnan(found.mean)


def test_a_ratio_needs_pairs():
    for ours_U, theirs_U in ((np.ones(2), np.ones(3)), (np.ones(0), np.ones(0))):
        with pytest.raises(ValueError, match="one shape and are not empty"):
            ratio_interval(ours_U, theirs_U)
