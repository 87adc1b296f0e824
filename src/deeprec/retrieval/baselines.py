"""Baselines that need no training loop: popularity, transitions, and EASE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import inv
from scipy.sparse import csr_array

from deeprec.data.dataset import Sequences
from deeprec.errors import DeepRecError
from deeprec.retrieval.retriever import Hit, Query, Retriever, top_hits

MOST_ITEMS = 20_000  # EASE makes two dense matrices with a row and a column for each item


@dataclass(eq=False, repr=False)
class PopularityRetriever(Retriever):
    """Items by their number of training interactions (the score), whatever the query says."""

    counts_I: NDArray[np.floating]

    @classmethod
    def fit(cls, sequences: Sequences, n_items: int) -> PopularityRetriever:
        return cls(np.bincount(sequences.items_N, minlength=n_items).astype(np.float64))

    def retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        return top_hits(np.tile(self.counts_I, (len(queries), 1)), queries, k)


class TransitionRetriever(Retriever):
    """Items by how often they directly followed the query's last item in training, then by popularity.

    A score is that count plus a share below 1 of the most popular item's interactions.
    """

    def __init__(self, counts_II: csr_array, counts_I: NDArray[np.floating]) -> None:
        self.counts_II = counts_II
        self.tie_break_I = counts_I / (counts_I.max(initial=0) + 1)

    @classmethod
    def fit(cls, sequences: Sequences, n_items: int) -> TransitionRetriever:
        items_N, users_N = sequences.items_N, np.repeat(np.arange(len(sequences)), np.diff(sequences.starts_U1))
        same = users_N[1:] == users_N[:-1]  # the first item of a sequence follows nothing
        pairs = items_N[:-1][same], items_N[1:][same]
        counts_II = csr_array((np.ones(same.sum()), pairs), shape=(n_items, n_items))
        return cls(counts_II, np.bincount(items_N, minlength=n_items).astype(np.float64))

    def retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        scores_BI = np.tile(self.tie_break_I, (len(queries), 1))
        for row, query in enumerate(queries):
            if query.history:
                scores_BI[row] += self.counts_II[[query.history[-1]]].toarray()[0]
        return top_hits(scores_BI, queries, k)


@dataclass(eq=False, repr=False)
class EASERetriever(Retriever):
    """EASE (Steck, WWW 2019): items by `weights_II[history].sum(0)`, each item of the history counted once.

    Order and preference have no effect.
    """

    weights_II: NDArray[np.float32]

    @classmethod
    def fit(cls, sequences: Sequences, n_items: int, regularization: float) -> EASERetriever:
        """Least squares with `regularization` times the squared weights, where no item predicts itself.

        DeepRecError if the catalogue has more than `MOST_ITEMS` items.
        """
        if n_items > MOST_ITEMS:
            raise DeepRecError(f"EASE takes at most {MOST_ITEMS:,} items, and there are {n_items:,}: leave it out.")
        pairs = np.repeat(np.arange(len(sequences)), np.diff(sequences.starts_U1)), sequences.items_N
        seen_UI = csr_array((np.ones(sequences.items_N.size), pairs), shape=(len(sequences), n_items))
        seen_UI.data[:] = 1.0  # a repeated interaction counts once
        gram_II = (seen_UI.T @ seen_UI).toarray()
        gram_II[np.diag_indices(n_items)] += regularization
        # The matrix is symmetric; its transpose has the memory order that LAPACK inverts in place.
        weights_II = inv(gram_II.T, overwrite_a=True, check_finite=False)
        weights_II /= -np.diag(weights_II)
        np.fill_diagonal(weights_II, 0.0)
        return cls(weights_II.astype(np.float32))

    def retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        scores_BI = np.array([self.scores(query.history) for query in queries]).reshape(-1, len(self.weights_II))
        return top_hits(scores_BI, queries, k)

    def scores(self, history: Sequence[int]) -> NDArray[np.float32]:
        """Scores (I,) of all items, those of the history too."""
        scores_I: NDArray[np.float32] = self.weights_II[sorted(set(history))].sum(0)
        return scores_I
