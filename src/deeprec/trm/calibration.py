"""How far a guess at what a user wants is worth believing, which differs from one catalogue to the next."""

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
_USERS = 4000
"""Asked at most, each at every trust."""
_ROUNDING = 1e-12
"""What one user gains alone is one standard error."""

Ranks = Callable[[Sequence[Query], NDArray[np.int64]], NDArray[np.int64]]


def calibrate_preference_weight(
    ranks: Ranks, catalog: Catalog, tasks: Sequence[Task], targets_U: NDArray[np.int64]
) -> float:
    """Of `TRUSTS` the one at which the last titles of a history, as a preference, rank its next item best.

    They stand for what a small model says of a history. The lowest trust is taken that is not behind the best by more
    than one standard error: with few users little is believed. (The rule is that of Breiman et al., Classification and
    Regression Trees, 1984, 3.4.3; our error is that of the difference, paired by user.)

    Args:
        ranks: the 0-based places of targets, as `TRM.ranks`.
        tasks, targets_U: of the validation; of many, some evenly spread.
    """
    step = -(-len(tasks) // _USERS)
    tasks, targets_U = tasks[::step], targets_U[::step]
    said = ["; ".join(recent_titles(catalog, task.history)) for task in tasks]
    gains_TU = np.array(
        [
            ndcg_at(ranks(queries_of(tasks, said, preference_weight), targets_U), 10)
            for preference_weight in CANDIDATE_WEIGHTS
        ]
    )
    behind_TU = gains_TU[gains_TU.mean(axis=1).argmax()] - gains_TU
    errors_T = behind_TU.std(axis=1) / np.sqrt(len(tasks) - 1) if len(tasks) > 1 else np.inf
    return CANDIDATE_WEIGHTS[int(np.argmax(behind_TU.mean(axis=1) <= errors_T + _ROUNDING))]
