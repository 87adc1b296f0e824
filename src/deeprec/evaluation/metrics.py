"""Ranking metrics for one relevant item per user over the full ranking.

A rank is the 0-based position of the target in the list a system returned, -1 where the list lacks it. With one
relevant item the ideal DCG is 1, so NDCG@k is 1 / log2(rank + 2) (Järvelin and Kekäläinen, 2002), Recall@k is
the hit rate, and MRR@k is 1 / (rank + 1); each is 0 when the rank is -1 or not below k.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def ranks_of(rankings: Sequence[Sequence[int]], targets: Sequence[int]) -> Ints:
    """The rank of each target in its ranking (U,); ValueError where a ranking names an item twice."""
    ranks_U = np.full(len(targets), -1, dtype=np.int64)
    for user, (ranking, target) in enumerate(zip(rankings, targets, strict=True)):
        if len(set(ranking)) != len(ranking):
            raise ValueError(f"ranking {user} names an item twice")
        if target in ranking:
            ranks_U[user] = ranking.index(target)
    return ranks_U


def recall_at(ranks_U: Ints, k: int) -> Floats:
    """1 where the target is among the first k, else 0; shape (U,)."""
    return _hits(ranks_U, k).astype(np.float64)


def ndcg_at(ranks_U: Ints, k: int) -> Floats:
    """1 / log2(rank + 2) where the target is among the first k, else 0; shape (U,)."""
    return np.where(_hits(ranks_U, k), 1 / np.log2(np.maximum(ranks_U, 0) + 2), 0.0)


def mrr_at(ranks_U: Ints, k: int) -> Floats:
    """1 / (rank + 1) where the target is among the first k, else 0; shape (U,)."""
    return np.where(_hits(ranks_U, k), 1 / (np.maximum(ranks_U, 0) + 1), 0.0)


METRICS = {"NDCG": ndcg_at, "Recall": recall_at, "MRR": mrr_at}


def per_user(ranks_U: Ints, cutoffs: Sequence[int]) -> dict[str, Floats]:
    """Every metric at every cutoff for every user: 'NDCG@10', 'Recall@10', 'MRR@10', ... to shape (U,)."""
    return {f"{name}@{k}": metric(ranks_U, k) for name, metric in METRICS.items() for k in cutoffs}


def _hits(ranks_U: Ints, k: int) -> NDArray[np.bool_]:
    if k < 1:
        raise ValueError(f"a cutoff is at least 1, not {k}")
    return (ranks_U >= 0) & (ranks_U < k)
