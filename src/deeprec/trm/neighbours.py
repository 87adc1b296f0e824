"""What stood near what in the training sequences: sharp memories that vectors of some dozen numbers can't keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from deeprec.data.dataset import Sequences
from deeprec.trm.retriever import pairs

REACH = 20
"""Steps of a sequence over which two items are neighbours, and items of a history whose neighbours count."""
KEPT = 100
"""Neighbours kept of each item, the nearest."""
_NEARNESS = 0.7
"""Each step apart counts so much of the last."""
_RECENCY = 0.85
"""Each item of a history counts so much of the next."""
_DOUBT = 5.0
"""Nearness added to the total of each item, so that items met once or twice promise little."""
_LOUDNESS = 400.0
"""What makes of small shares a score: log(1 + 400 * share)."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """shares_II: row j holds the share of item j's nearness that each of its neighbours has, in either direction."""

    shares_II: csr_array

    @classmethod
    def of(cls, sequences: Sequences, n_items: int) -> Neighbours:
        items_N = sequences.items_N.astype(np.int64)
        users_N = np.repeat(np.arange(len(sequences.starts_U1) - 1), np.diff(sequences.starts_U1))
        near_II = csr_array((n_items, n_items))
        for step in range(1, min(REACH, items_N.size - 1) + 1):
            before_N, after_N = items_N[:-step], items_N[step:]
            of_one = (users_N[:-step] == users_N[step:]) & (before_N != after_N)
            weights_M = np.full(int(of_one.sum()), _NEARNESS ** (step - 1))
            near_II = near_II + csr_array((weights_M, (before_N[of_one], after_N[of_one])), shape=near_II.shape)
        near_II = csr_array(near_II + near_II.T)
        totals_I = near_II.sum(axis=1) + _DOUBT
        rows_M = np.repeat(np.arange(n_items), np.diff(near_II.indptr))
        order_M = np.lexsort((-near_II.data, rows_M))  # stable: of equals the lower item is the nearer
        order_M = order_M[np.arange(order_M.size) - near_II.indptr[rows_M] < KEPT]
        rows_M, items_M = rows_M[order_M], near_II.indices[order_M]
        shares_M = (near_II.data[order_M] / totals_I[rows_M]).astype(np.float32)
        return cls(csr_array((shares_M, (rows_M, items_M)), shape=near_II.shape))

    def bonuses(self, histories: Sequence[Sequence[int]]) -> csr_array:
        """For each history (Q) the score (Q, I), 0 to about 6, of the items that stood near its last ones."""
        recent = [history[: -REACH - 1 : -1] for history in histories]
        rows_N, items_N = pairs(recent)
        places_N = np.concatenate([np.arange(len(items)) for items in recent]) if recent else rows_N
        weights_QI = csr_array((_RECENCY**places_N, (rows_N, items_N)), shape=(len(recent), self.shares_II.shape[0]))
        found_QI = weights_QI @ self.shares_II
        found_QI.sort_indices()
        found_QI.data = np.log1p(_LOUDNESS * found_QI.data)
        return found_QI

    def grown(self, n_items: int) -> Neighbours:
        """With items after those there are, which have no neighbours."""
        parts = self.parts()
        starts = np.pad(parts["starts"], (0, n_items - self.shares_II.shape[0]), mode="edge")
        return Neighbours.from_parts(parts | {"starts": starts})

    def parts(self) -> dict[str, NDArray[np.generic]]:
        """Arrays to be saved."""
        return {"shares": self.shares_II.data, "items": self.shares_II.indices, "starts": self.shares_II.indptr}

    @classmethod
    def from_parts(cls, parts: dict[str, NDArray[np.generic]]) -> Neighbours:
        """The inverse of `parts`; ValueError where they don't fit together."""
        n_items = len(parts["starts"]) - 1
        shares_II = csr_array((parts["shares"], parts["items"], parts["starts"]), shape=(n_items, n_items))
        shares_II.check_format(full_check=True)
        return cls(shares_II)
