"""What an explorer asks: anything that answers queries with ranked items. And two simple ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from deeprec.data.catalog import ItemIdx
from deeprec.data.dataset import Sequences


@dataclass(frozen=True, slots=True)
class Query:
    """A question to a retriever.

    Attributes:
        history: the user's items, oldest first; may be empty, and of a user never seen before.
        preference: what to look for, in words; empty for none.
        exclude: items that must not be returned (usually the history, and what was shown already).
    """

    history: tuple[ItemIdx, ...]
    preference: str = ""
    exclude: Collection[ItemIdx] = frozenset()


@dataclass(frozen=True, slots=True)
class Hit:
    item: ItemIdx
    score: float


class Retriever(Protocol):
    """Implementations inherit the contract tests of `deeprec.testing.RetrieverContract`."""

    def retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        """For each query at most `k` hits, best first, none excluded and none twice.

        Fewer than `k` come back only where the catalogue has no more. The answer to a query does not depend on
        the other queries of the batch.
        """
        ...


def top_hits(scores_BI: NDArray[np.floating], queries: Sequence[Query], k: int) -> list[list[Hit]]:
    """The `k` best items of each row, excluded ones left out, equal scores by lower index. Overwrites scores."""
    results = []
    for scores_I, query in zip(scores_BI, queries, strict=True):
        if query.exclude:
            scores_I[np.fromiter(query.exclude, dtype=np.int64)] = -np.inf
        count = min(k, scores_I.size)
        # Everything at least as good as the k-th best: argpartition alone would split ties at random.
        threshold = scores_I[np.argpartition(-scores_I, count - 1)[count - 1]] if count else np.inf
        candidates = np.flatnonzero(scores_I >= threshold)
        order = candidates[np.argsort(-scores_I[candidates], kind="stable")][:count]
        results.append([Hit(ItemIdx(int(i)), float(scores_I[i])) for i in order if scores_I[i] > -np.inf])
    return results


class PopularityRetriever:
    """Items by their number of training interactions, whatever the query says."""

    def __init__(self, counts_I: NDArray[np.floating]) -> None:
        self.counts_I = counts_I

    @classmethod
    def fit(cls, sequences: Sequences, n_items: int) -> PopularityRetriever:
        return cls(np.bincount(sequences.items_N, minlength=n_items).astype(np.float64))

    def retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        return top_hits(np.tile(self.counts_I, (len(queries), 1)), queries, k)


class TransitionRetriever:
    """Items by how often they directly followed the query's last item in training, then by popularity."""

    def __init__(self, counts_II: csr_array, counts_I: NDArray[np.floating]) -> None:
        self.counts_II = counts_II
        self.tie_break_I = counts_I / (counts_I.max(initial=0) + 1)

    @classmethod
    def fit(cls, sequences: Sequences, n_items: int) -> TransitionRetriever:
        items_N, starts_U1 = sequences.items_N, sequences.starts_U1
        follows_N = np.ones(items_N.size, dtype=bool)
        follows_N[starts_U1[starts_U1 < items_N.size]] = False  # the first item of a sequence follows nothing
        followers = np.flatnonzero(follows_N)
        pairs = (items_N[followers - 1], items_N[followers])
        counts_II = csr_array((np.ones(followers.size), pairs), shape=(n_items, n_items))
        return cls(counts_II, np.bincount(items_N, minlength=n_items).astype(np.float64))

    def retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        scores_BI = np.tile(self.tie_break_I, (len(queries), 1))
        for row, query in enumerate(queries):
            if query.history:
                scores_BI[row] += self.counts_II[[query.history[-1]]].toarray()[0]
        return top_hits(scores_BI, queries, k)
