"""EASE (Steck, WWW 2019): every item scored by a linear function of the items in the history, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import inv
from scipy.sparse import csr_array

from deeprec.data.dataset import Sequences
from deeprec.errors import DeepRecError
from deeprec.retrieval.retriever import Hit, Query, top_hits

MOST_ITEMS = 20_000  # two dense matrices of as many rows and columns are made


class EASERetriever:
    """Items by `weights_II[history].sum(0)`, each item of the history once. Order and preference count for nothing."""

    def __init__(self, weights_II: NDArray[np.float32]) -> None:
        self.weights_II = weights_II

    @classmethod
    def fit(cls, sequences: Sequences, n_items: int, regularization: float) -> EASERetriever:
        """Least squares with `regularization` times the squared weights, and no item explaining itself.

        Raises:
            DeepRecError: the catalogue is too large for a dense matrix.
        """
        if n_items > MOST_ITEMS:
            raise DeepRecError(f"EASE takes at most {MOST_ITEMS:,} items, and there are {n_items:,}: leave it out.")
        users_N = np.repeat(np.arange(len(sequences)), np.diff(sequences.starts_U1))
        seen_UI = csr_array(
            (np.ones(sequences.items_N.size), (users_N, sequences.items_N)), shape=(len(sequences), n_items)
        )
        seen_UI.data[:] = 1.0  # an interaction that is repeated is one
        gram_II = (seen_UI.T @ seen_UI).toarray()
        gram_II[np.diag_indices(n_items)] += regularization
        # Symmetric, so its transpose is itself, in the order that LAPACK inverts in place.
        weights_II = inv(gram_II.T, overwrite_a=True, check_finite=False)
        weights_II /= -np.diag(weights_II)
        np.fill_diagonal(weights_II, 0.0)
        return cls(weights_II.astype(np.float32))

    def retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        scores_BI = np.zeros((len(queries), len(self.weights_II)), dtype=np.float32)
        for row, query in enumerate(queries):
            scores_BI[row] = self.scores(query.history)
        return top_hits(scores_BI, queries, k)

    def scores(self, history: Sequence[int]) -> NDArray[np.float32]:
        """Of all items (I), those of the history too."""
        scores_I: NDArray[np.float32] = self.weights_II[sorted(set(history))].sum(0)
        return scores_I
