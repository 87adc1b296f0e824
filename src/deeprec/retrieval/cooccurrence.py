"""What stood near what in the training sequences: sharp memories that vectors of some dozen numbers can't keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

from deeprec.data.dataset import Sequences
from deeprec.retrieval.retriever import pairs

REACH = 20
"""Steps of a sequence over which two items are neighbours, and items of a history whose neighbours count."""
KEPT = 100
"""Neighbours kept of each item, the nearest."""
_BLOCK = 50_000
"""Interactions whose neighbours are counted at once."""
_NEARNESS = 0.7
"""Each step apart counts so much of the last."""
_RECENCY = 0.85
"""Each item of a history counts so much of the next."""
_DOUBT = 5.0
"""Nearness added to the total of each item, so that items met once or twice promise little."""
_LOUDNESS = 400.0
"""What makes of small shares a score: log(1 + 400 * share)."""


@dataclass(frozen=True, eq=False)
class CoOccurrence:
    """shares_II: row j holds each neighbour's share of all nearness to item j, in either direction, and 5."""

    shares_II: csr_array

    @classmethod
    def of(cls, sequences: Sequences, n_items: int) -> CoOccurrence:
        """Counted for some items at a time, so that memory holds what is kept and little more."""
        items_N = sequences.items_N.astype(np.int32)
        users_N = np.repeat(np.arange(len(sequences.starts_U1) - 1), np.diff(sequences.starts_U1))
        order_N = np.argsort(items_N, kind="stable")
        ends_I = np.cumsum(np.bincount(items_N, minlength=n_items))
        steps_O = np.array([step for step in range(-REACH, REACH + 1) if step])
        nearness_O = _NEARNESS ** (np.abs(steps_O) - 1.0)
        blocks, first = [], 0
        while first < n_items:
            begin = ends_I[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends_I, begin + _BLOCK, side="right")))
            positions_M = order_N[begin : ends_I[last - 1]]
            near_MO = positions_M[:, None] + steps_O
            inside_MO = (near_MO >= 0) & (near_MO < items_N.size)
            near_MO[~inside_MO] = 0
            counts_MO = inside_MO & (users_N[near_MO] == users_N[positions_M, None])
            counts_MO &= items_N[near_MO] != items_N[positions_M, None]
            rows_MO = np.broadcast_to(items_N[positions_M, None] - first, near_MO.shape)
            weights_MO = np.broadcast_to(nearness_O, near_MO.shape)
            pairs_P = rows_MO[counts_MO], items_N[near_MO[counts_MO]]
            blocks.append(_nearest(csr_array((weights_MO[counts_MO], pairs_P), shape=(last - first, n_items))))
            first = last
        return cls(csr_array(vstack(blocks, format="csr")) if blocks else csr_array((0, 0), dtype=np.float32))

    def score_offsets(self, histories: Sequence[Sequence[int]]) -> csr_array:
        """For each history (Q) the score (Q, I), 0 to below 8, of the items that stood near its last ones."""
        recent = [history[: -REACH - 1 : -1] for history in histories]
        rows_N, items_N = pairs(recent)
        positions_N = np.concatenate([np.arange(len(items)) for items in recent]) if recent else rows_N
        weights_QI = csr_array((_RECENCY**positions_N, (rows_N, items_N)), shape=(len(recent), self.shares_II.shape[0]))
        found_QI = weights_QI @ self.shares_II
        found_QI.sort_indices()
        found_QI.data = np.log1p(_LOUDNESS * found_QI.data)
        return found_QI

    def grown(self, n_items: int) -> CoOccurrence:
        """With items after those there are, which have no neighbours."""
        shares, items, starts = self.parts().values()
        starts = np.pad(starts, (0, n_items - self.shares_II.shape[0]), mode="edge")
        return CoOccurrence(csr_array((shares, items, starts), shape=(n_items, n_items)))

    def parts(self) -> dict[str, NDArray[np.generic]]:
        """Arrays to be saved."""
        return {"shares": self.shares_II.data, "items": self.shares_II.indices, "starts": self.shares_II.indptr}

    @classmethod
    def from_parts(cls, parts: dict[str, NDArray[np.generic]]) -> CoOccurrence:
        """The inverse of `parts`; ValueError where they don't fit together."""
        n_items = len(parts["starts"]) - 1
        shares_II = csr_array((parts["shares"], parts["items"], parts["starts"]), shape=(n_items, n_items))
        shares_II.check_format(full_check=True)
        return cls(shares_II)


def _nearest(near_BI: csr_array) -> csr_array:
    """The shares of the nearest items of each row."""
    near_BI.sum_duplicates()
    totals_B = near_BI.sum(axis=1) + _DOUBT
    rows_M = np.repeat(np.arange(near_BI.shape[0], dtype=np.int32), np.diff(near_BI.indptr))
    order_M = np.lexsort((-near_BI.data, rows_M))  # stable: of equals the lower item is the nearer
    order_M = order_M[np.arange(order_M.size) - near_BI.indptr[rows_M] < KEPT]
    rows_M = rows_M[order_M]
    shares_M = (near_BI.data[order_M] / totals_B[rows_M]).astype(np.float32)
    return csr_array((shares_M, (rows_M, near_BI.indices[order_M])), shape=near_BI.shape)
