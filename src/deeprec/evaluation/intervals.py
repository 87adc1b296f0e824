"""Bootstrap intervals over users for a mean, and for the mean difference of two systems on the same users.

The percentile method (docs/decisions/0006-percentile-bootstrap.md says why not BCa). Under about 30 users the interval
is somewhat too short, and a sample without a single hit gives [0, 0]: read the number of users first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from deeprec.evaluation.metrics import Floats, Ints

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0
_BATCH_VALUES = 2**21  # resampled values in memory at once: 16 MiB, and as much again for their indices


@dataclass(frozen=True)
class Interval:
    """A mean over users and its interval, in the unit of the values; the bounds are nan for a single user."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedInterval:
    """Mean of ours minus theirs over the same users, with its interval.

    Attributes:
        ratio: difference / base (0.1 is ten per cent better); nan where the base is 0.
        users: how many were paired.
        base: mean of theirs.
    """

    difference: float
    low: float
    high: float
    ratio: float
    users: int
    base: float


def mean_interval(values_U: Floats) -> Interval:
    """The mean of one value per user (U,), and its interval: of no width for constant values, nan for a single user."""
    if values_U.ndim != 1 or not len(values_U) or not np.isfinite(values_U).all():
        raise ValueError("an interval needs a non-empty vector of finite values, one per user")
    mean = float(np.mean(values_U))
    if len(values_U) == 1:
        return Interval(mean, math.nan, math.nan)
    if np.all(values_U == values_U[0]):
        return Interval(*[float(values_U[0])] * 3)
    result = stats.bootstrap(
        (values_U,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_VALUES // len(values_U)),
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(SEED),  # `rng` only since scipy 1.15
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))


def paired_interval(ours_U: Floats, theirs_U: Floats) -> PairedInterval:
    """How much better ours is than theirs; both of shape (U,), the users in the same order and resampled in pairs."""
    if ours_U.shape != theirs_U.shape:
        raise ValueError(f"paired values have one shape, not {ours_U.shape} and {theirs_U.shape}")
    change, base = mean_interval(ours_U - theirs_U), float(np.mean(theirs_U))
    ratio = change.mean / base if base else math.nan
    return PairedInterval(change.mean, change.low, change.high, ratio, len(ours_U), base)


def regression_estimator(ours_U: Floats, controls_UK: Floats, base_U: Floats) -> PairedInterval:
    """Estimate how much better ours is than a base on all users, from a random sample on which ours ran.

    The regression estimator of survey sampling (Cochran, Sampling Techniques, 1977, chapter 7): the sample gives a
    regression of ours on the controls, whose mean over all users stands for that of ours. Every resample of the users
    fits it anew. The bias falls with the sample's size; the more ours resembles a control, the shorter the interval.

    Args:
        ours_U: nan where ours did not run.
        controls_UK: what K other systems have on all users.
    """
    if not (len(ours_U) == len(controls_UK) == len(base_U)) or controls_UK.ndim != 2:
        raise ValueError(f"not of the same users: {ours_U.shape}, {controls_UK.shape} and {base_U.shape}")
    if (~np.isnan(ours_U)).sum() < controls_UK.shape[1] + 2:
        raise ValueError("ours ran on too few users")
    if not (np.isfinite(controls_UK).all() and np.isfinite(base_U).all()):
        raise ValueError("a control or the base is not known of all users")
    terms_UK = np.column_stack([np.ones(len(ours_U)), controls_UK])

    def difference(drawn_U: Ints) -> float:
        ran_S = drawn_U[~np.isnan(ours_U[drawn_U])]
        # With a constant among the terms the residuals have a mean of 0.
        weights_K = np.linalg.lstsq(terms_UK[ran_S], ours_U[ran_S], rcond=None)[0]
        return float(terms_UK[drawn_U].mean(axis=0) @ weights_K - base_U[drawn_U].mean())

    rng, users = np.random.default_rng(SEED), len(ours_U)
    drawn = [difference(rng.integers(0, users, users)) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    base, found = float(base_U.mean()), difference(np.arange(users))
    return PairedInterval(found, float(low), float(high), found / base if base else math.nan, users, base)
