from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from deeprec.errors import DeepRecError
from deeprec.eval.intervals import Interval, mean_interval, paired_interval, paired_on_users, ratio_interval

SETTINGS = {"confidence": 0.95, "resamples": 2000, "seed": 0}


def test_known_toy():
    """Hits of a coin: the bootstrap mean is Binomial(100, 0.3) / 100, 2.5 % each side of 0.21, 0.39."""
    hits_U = np.repeat([1.0, 0.0], [30, 70])
    found = mean_interval(hits_U, confidence=0.95, resamples=20_000, seed=1)
    assert found.mean == pytest.approx(0.3)
    assert found.low == pytest.approx(0.21, abs=0.011)
    assert found.high == pytest.approx(0.39, abs=0.011)


def test_less_confidence_is_shorter():
    values_U = np.random.default_rng(0).random(200)
    wide, narrow = (mean_interval(values_U, confidence=c, resamples=2000, seed=0) for c in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    # Of a normal mean: 0.674 / 1.960.
    assert (narrow.high - narrow.low) / (wide.high - wide.low) == pytest.approx(0.344, abs=0.04)


def test_the_seed_decides():
    values_U = np.random.default_rng(0).random(50)
    assert mean_interval(values_U, **SETTINGS) == mean_interval(values_U, **SETTINGS)
    assert mean_interval(values_U, **SETTINGS) != mean_interval(values_U, **{**SETTINGS, "seed": 1})


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_constant_values_have_no_width(value):
    assert mean_interval(np.full(7, value), **SETTINGS) == Interval(value, value, value)


def test_one_user_has_no_interval():
    found = mean_interval(np.array([0.5]), **SETTINGS)
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("values_U", [np.array([]), np.array([0.1, math.nan]), np.zeros((2, 2))])
def test_refuses_what_has_no_mean(values_U):
    with pytest.raises(ValueError, match="finite"):
        mean_interval(values_U, **SETTINGS)


def test_covers_the_true_mean_as_often_as_it_says():
    """NDCG-like values: a miss for most, 1 / log2(rank + 2) for the rest."""
    rng = np.random.default_rng(3)
    chances = np.array([0.8, 0.05, 0.05, 0.05, 0.05])
    values = np.array([0, 1, 0.63, 0.5, 0.43])
    truth = float(chances @ values)
    trials = 400
    covered = 0
    for trial in range(trials):
        drawn_U = rng.choice(values, size=150, p=chances)
        found = mean_interval(drawn_U, confidence=0.9, resamples=400, seed=trial)
        covered += found.low <= truth <= found.high
    # The binomial error at 400 trials is 0.015.
    assert covered / trials == pytest.approx(0.9, abs=0.045)


def test_paired_known_toy():
    ours_U, theirs_U = np.array([1.0, 0.5, 0.5, 0.0]), np.array([0.5, 0.5, 0.0, 0.0])
    found = paired_interval(ours_U, theirs_U, **SETTINGS)
    assert found.difference == 0.25
    assert found.ratio == 1.0
    assert found.users == 4
    # Two of four users gained 0.5: the resampled mean is Binomial(4, 1/2) / 8, 1/16 of it at each end.
    assert (found.low, found.high) == (0, 0.5)


def test_paired_is_symmetric():
    rng = np.random.default_rng(1)
    ours_U, theirs_U = rng.random(80), rng.random(80)
    there = paired_interval(ours_U, theirs_U, **SETTINGS)
    back = paired_interval(theirs_U, ours_U, **SETTINGS)
    assert there.difference == pytest.approx(-back.difference)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_identical_systems_do_not_differ():
    values_U = np.random.default_rng(1).random(80)
    found = paired_interval(values_U, values_U.copy(), **SETTINGS)
    assert (found.difference, found.low, found.high, found.ratio) == (0, 0, 0, 0)


def test_no_ratio_to_a_mean_of_zero():
    assert math.isnan(paired_interval(np.array([1.0, 0.0]), np.zeros(2), **SETTINGS).ratio)


def test_pairing_sees_a_small_steady_gain():
    """Users differ by far more than the systems do: each mean's interval hides what pairing shows."""
    rng = np.random.default_rng(2)
    theirs_U = rng.random(200)
    ours_U = theirs_U + rng.normal(0.01, 0.02, 200)
    assert mean_interval(ours_U, **SETTINGS).low < theirs_U.mean()
    assert paired_interval(ours_U, theirs_U, **SETTINGS).low > 0.005


def test_paired_refuses_different_shapes():
    with pytest.raises(ValueError, match="one shape"):
        paired_interval(np.zeros(3), np.zeros(4), **SETTINGS)


def test_memory_is_bounded():
    """All resamples of 25,000 users at once would be 400 MB of values and as much of indices."""
    values_U = np.random.default_rng(0).random(25_000)
    tracemalloc.start()
    mean_interval(values_U, **SETTINGS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80e6


def test_users_are_paired_by_id_and_not_by_place():
    ours_U, theirs_U = paired_on_users({"x": 1.0, "y": 2.0}, {"y": 20.0, "x": 10.0})
    assert ours_U.tolist() == [1, 2]
    assert theirs_U.tolist() == [10, 20]


def test_different_users_are_an_error_that_counts_them():
    a = {"x": 1.0, "y": 1.0, "z": 1.0}
    b = {"z": 1.0, "w": 1.0}
    with pytest.raises(DeepRecError, match=r"2 of the first's 3 .* 1 of the second's 2"):
        paired_on_users(a, b)


def test_a_ratio_of_means_by_hand():
    """One user at 3 / 1 and one at 1 / 1: the means give 2, the draws 1, 2 or 3."""
    found = ratio_interval(np.array([3.0, 1.0]), np.array([1.0, 1.0]), confidence=0.95, resamples=500, seed=0)
    assert (found.mean, found.low, found.high) == (2.0, 1.0, 3.0)


def test_a_ratio_is_of_pairs():
    """Ours is always twice theirs: no draw of users changes that."""
    theirs_U = np.random.default_rng(0).random(50)
    found = ratio_interval(2 * theirs_U, theirs_U, confidence=0.9, resamples=200, seed=1)
    np.testing.assert_allclose([found.mean, found.low, found.high], 2.0)


def test_a_ratio_to_nothing_is_nan():
    found = ratio_interval(np.ones(3), np.zeros(3), confidence=0.95, resamples=100, seed=0)
    assert math.isnan(found.mean)


def test_a_ratio_needs_pairs():
    for ours_U, theirs_U in ((np.ones(2), np.ones(3)), (np.ones(0), np.ones(0))):
        with pytest.raises(ValueError, match="one shape and are not empty"):
            ratio_interval(ours_U, theirs_U, confidence=0.95, resamples=100, seed=0)
