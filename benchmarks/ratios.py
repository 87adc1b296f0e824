"""The ratio of two means over the same users, and its bootstrap interval."""

from __future__ import annotations

import math

import numpy as np

from deeprec.evaluation.intervals import CONFIDENCE, RESAMPLES, SEED, Interval
from deeprec.evaluation.metrics import Floats


def ratio_interval(ours_U: Floats, theirs_U: Floats) -> Interval:
    """The mean of ours divided by the mean of theirs, users resampled in pairs; nan where theirs is 0.

    Raises:
        ValueError: the shapes differ, or there are no users.
    """
    if ours_U.shape != theirs_U.shape or not len(ours_U):
        raise ValueError(f"paired values have one shape and are not empty: {ours_U.shape} and {theirs_U.shape}")
    rng = np.random.default_rng(SEED)
    drawn = (rng.integers(0, len(ours_U), len(ours_U)) for _ in range(RESAMPLES))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [np.divide(ours_U[drawn_U].mean(), theirs_U[drawn_U].mean()) for drawn_U in drawn]
        ratio = float(np.divide(ours_U.mean(), theirs_U.mean()))
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    # A draw without a hit of theirs is infinite and can't be interpolated; one without any hit says nothing.
    low, high = np.nanquantile(ratios, ends, method="nearest") if len(ours_U) > 1 else (math.nan, math.nan)
    return Interval(ratio if np.isfinite(ratio) else math.nan, float(low), float(high))
