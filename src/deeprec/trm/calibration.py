"""The preference weight that fits guessed preferences, which differs between catalogues."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from deeprec.data.catalog import Catalog
from deeprec.data.dataset import Task
from deeprec.evaluation.metrics import ndcg_at
from deeprec.retrieval.retriever import Query, queries_of
from deeprec.trm.preferences import recent_titles

CANDIDATE_WEIGHTS = (0.02, 0.1, 0.4)
_MAX_USERS = 4000
_ROUNDING = 1e-12  # a gain of one user alone is exactly one standard error, but for rounding

Ranks = Callable[[Sequence[Query], NDArray[np.int64]], NDArray[np.int64]]


def calibrate_preference_weight(
    ranks: Ranks, catalog: Catalog, tasks: Sequence[Task], targets_U: NDArray[np.int64]
) -> float:
    """The candidate weight at which a history's last titles, as a preference, rank its next item best by NDCG@10.

    The titles stand for the guesses of a small language model. The lowest weight within one standard error of the best
    is taken (Breiman et al., Classification and Regression Trees, 1984, 3.4.3; our error is that of the difference,
    paired by user), so few users give a low weight. `ranks` gives 0-based ranks of targets, as `TRM.ranks`. Of more
    than 4,000 validation tasks an evenly spaced part is used.
    """
    step = -(-len(tasks) // _MAX_USERS)
    tasks, targets_U = tasks[::step], targets_U[::step]
    preferences = ["; ".join(recent_titles(catalog, task.history)) for task in tasks]
    candidates = [queries_of(tasks, preferences, weight) for weight in CANDIDATE_WEIGHTS]
    ndcg_WU = np.array([ndcg_at(ranks(queries, targets_U), 10) for queries in candidates])
    behind_WU = ndcg_WU[ndcg_WU.mean(axis=1).argmax()] - ndcg_WU
    errors_W = behind_WU.std(axis=1) / np.sqrt(len(tasks) - 1) if len(tasks) > 1 else np.inf
    return CANDIDATE_WEIGHTS[int(np.argmax(behind_WU.mean(axis=1) <= errors_W + _ROUNDING))]
