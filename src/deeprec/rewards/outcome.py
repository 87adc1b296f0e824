"""Outcome rewards: what the answer is worth, given the target.

Departures from the paper's code: items are compared by id, never by a substring of the title; and nothing is paid on a
malformed trace, so that an invented or repeated title never pays (there it was scored as item 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from deeprec.data.catalog import ItemIdx
from deeprec.explore.trace import Trace
from deeprec.trm.retriever import Query

Ranks = Callable[[Sequence[Query], Sequence[ItemIdx]], NDArray[np.int64]]
"""The 0-based place (Q,) of each query's target in the whole ranking, as `TRM.ranks` tells it."""


def hit_reward(trace: Trace, target: ItemIdx, *, value: float = 1.0) -> float:
    """`value` where the target is in the answer."""
    return 0.0 if _place(trace, target) is None else value


def rank_reward(trace: Trace, target: ItemIdx, *, step: float = 0.2) -> float:
    """`step` · (K − i) where the target is at 0-based place i of the answer of K."""
    place = _place(trace, target)
    return 0.0 if place is None else step * (trace.answer_size - place)


def pointwise_reward(
    trace: Trace,
    target: ItemIdx,
    text_ID: NDArray[np.float32],
    collaborative_ID: NDArray[np.float32],
    *,
    scale: float = 10.0,
) -> float:
    """`scale` · Σ w_i s_i / Σ w_i over the K places, w_i = (1 − i/K)².

    s_i is the mean of the text cosine and the collaborative cosine of place i's item with the target.

    Args:
        text_ID, collaborative_ID: unit vectors of all items, of their texts and of the TRM.
    """
    answer = list(trace.answered)
    if not trace.well_formed or not answer:
        return 0.0
    weights_K = (1 - np.arange(len(answer)) / len(answer)) ** 2
    text_K = text_ID[answer] @ text_ID[target]
    collaborative_K = collaborative_ID[answer] @ collaborative_ID[target]
    return scale * float(weights_K @ (text_K + collaborative_K) / 2 / weights_K.sum())


def foresight_reward(
    trace: Trace, target: ItemIdx, ranks: Ranks, trust: float, *, scale: float = 0.5, least: float = -1.0
) -> float:
    """`scale` for every halving of the target's place in the retriever's whole ranking, the mean over the calls: what
    the words were worth, found or not. Not the paper's.

    Of explorations that find nothing, hit and rank can't tell a good preference from a bad one, and most find nothing.
    A call is compared with the same history and no words. It never costs more than `least`, so that, weighted as the
    format is, no fault comes cheaper; and a malformed trace is paid nothing for good words, but loses by bad ones. One
    good call is paid as much as several: pay for other calls beside it, or set a horizon.
    """
    if not trace.turns:
        return 0.0
    said = ["", *(turn.preference for turn in trace.turns)]
    queries = [Query(trace.history, words, frozenset(trace.history) - {target}, trust) for words in said]
    doublings_N = np.log2(1 + ranks(queries, [target] * len(queries)))
    value = max(least, scale * float((doublings_N[0] - doublings_N[1:]).mean()))
    return value if trace.well_formed else min(value, 0.0)


def _place(trace: Trace, target: ItemIdx) -> int | None:
    if not trace.well_formed or target not in trace.answered:
        return None
    return trace.answered.index(target)
