"""Outcome rewards: how good the answer is, given the target.

Departures from the paper's code: items are compared by id, never by a substring of the title. A malformed trace earns
nothing, so an invented or repeated title never pays (there it was scored as item 0).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deeprec.data.catalog import ItemIdx
from deeprec.explore.trace import Trace


def hit_reward(trace: Trace, target: ItemIdx, *, value: float = 1.0) -> float:
    """`value` where the target is in the answer."""
    return value if trace.well_formed and target in trace.raw_ranking else 0.0


def rank_reward(trace: Trace, target: ItemIdx, *, step: float = 0.2) -> float:
    """`step` · (K − i) where the target is at 0-based position i of the answer of K items."""
    ahead = trace.raw_ranking.index(target) if hit_reward(trace, target) else trace.answer_size
    return step * (trace.answer_size - ahead)


def pointwise_reward(
    trace: Trace,
    target: ItemIdx,
    text_ID: NDArray[np.float32],
    collaborative_ID: NDArray[np.float32],
    *,
    scale: float = 10.0,
) -> float:
    """`scale` · Σ w_i s_i / Σ w_i over the K positions, w_i = (1 − i/K)².

    s_i is the mean of two cosines of the item at position i with the target: of their texts (unit vectors text_ID), and
    of their TRM vectors (collaborative_ID, unit vectors too).
    """
    answer = list(trace.raw_ranking)
    if not trace.well_formed or not answer:
        return 0.0
    weights_K = (1 - np.arange(len(answer)) / len(answer)) ** 2
    text_K = text_ID[answer] @ text_ID[target]
    collaborative_K = collaborative_ID[answer] @ collaborative_ID[target]
    return scale * float(weights_K @ (text_K + collaborative_K) / 2 / weights_K.sum())
