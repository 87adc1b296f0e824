"""Item co-occurrence in the training sequences, which short vectors can't store exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array, vstack

from deeprec.data.dataset import Sequences
from deeprec.retrieval.retriever import flatten

WINDOW = 20  # steps of a sequence within which two items co-occur, and last items of a history that are looked up
MAX_PARTNERS = 100  # co-occurring items that are kept of each item, the nearest
_BLOCK = 50_000  # interactions that are counted at once
_STEP_DECAY = 0.7  # weight of each further step between two items
_POSITION_DECAY = 0.85  # weight of each earlier item of a history
_SMOOTHING = 5.0  # added to each item's total, so that items seen once or twice get small shares
_SCALE = 400.0  # a sum of shares becomes the score offset log(1 + 400 * sum)


@dataclass(frozen=True, eq=False)
class CoOccurrence:
    """Row j of shares_II (I, I): each item's co-occurrence with j, before or after it, divided by the total plus 5.

    An item that a sequence repeats co-occurs with itself.
    """

    shares_II: csr_array

    @classmethod
    def fit(cls, sequences: Sequences, n_items: int) -> CoOccurrence:
        """Counts some items at a time, so that memory holds little more than what is kept."""
        items_N = sequences.items_N.astype(np.int32)
        users_N = np.repeat(np.arange(len(sequences)), np.diff(sequences.starts_U1))
        order_N = np.argsort(items_N, kind="stable")
        ends_I = np.cumsum(np.bincount(items_N, minlength=n_items))
        steps_O = np.array([step for step in range(-WINDOW, WINDOW + 1) if step])
        weights_O = _STEP_DECAY ** (np.abs(steps_O) - 1.0)
        blocks, first = [], 0
        while first < n_items:
            begin = ends_I[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends_I, begin + _BLOCK, side="right")))
            positions_M = order_N[begin : ends_I[last - 1]]
            near_MO = positions_M[:, None] + steps_O
            inside_MO = (near_MO >= 0) & (near_MO < items_N.size)
            near_MO[~inside_MO] = 0
            counts_MO = inside_MO & (users_N[near_MO] == users_N[positions_M, None])
            rows_P, offsets_P = counts_MO.nonzero()
            pairs_P = items_N[positions_M[rows_P]] - first, items_N[near_MO[counts_MO]]
            blocks.append(_shares(csr_array((weights_O[offsets_P], pairs_P), shape=(last - first, n_items))))
            first = last
        return cls(csr_array(vstack(blocks, format="csr")) if blocks else csr_array((0, 0), dtype=np.float32))

    def score_offsets(self, histories: Sequence[Sequence[int]]) -> csr_array:
        """For each history a score offset (Q, I), 0 to below 8, of the items that co-occur with its last ones."""
        recent = [history[: -WINDOW - 1 : -1] for history in histories]
        _, positions_N = flatten([range(len(items)) for items in recent])
        shape = (len(recent), self.shares_II.shape[0])
        offsets_QI = csr_array((_POSITION_DECAY**positions_N, flatten(recent)), shape=shape) @ self.shares_II
        offsets_QI.sort_indices()
        offsets_QI.data = np.log1p(_SCALE * offsets_QI.data)
        return offsets_QI

    def moved(self, positions_I: NDArray[np.int64], n_items: int) -> CoOccurrence:
        """The known items at their positions in another catalogue, whose other items co-occur with nothing."""
        shares_II = self.shares_II.tocoo()
        pairs = positions_I[shares_II.row], positions_I[shares_II.col]
        return CoOccurrence(csr_array((shares_II.data, pairs), shape=(n_items, n_items)))

    def filled(self, earlier: CoOccurrence, first: int) -> CoOccurrence:
        """With the earlier shares of the items from position `first` on, which have none here."""
        missing_I = (np.arange(self.shares_II.shape[0]) >= first).astype(np.float32)
        return CoOccurrence(csr_array(self.shares_II + diags_array(missing_I) @ earlier.shares_II))

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Arrays to be saved."""
        return {"shares": self.shares_II.data, "items": self.shares_II.indices, "starts": self.shares_II.indptr}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.generic]]) -> CoOccurrence:
        """The inverse of `to_arrays`; ValueError where they don't fit together."""
        n_items = len(arrays["starts"]) - 1
        shares_II = csr_array((arrays["shares"], arrays["items"], arrays["starts"]), shape=(n_items, n_items))
        shares_II.check_format(full_check=True)
        return cls(shares_II)


def _shares(counts_BI: csr_array) -> csr_array:
    """The shares of the `MAX_PARTNERS` largest counts of each row."""
    counts_BI.sum_duplicates()
    totals_B = counts_BI.sum(axis=1) + _SMOOTHING
    rows_M = np.repeat(np.arange(counts_BI.shape[0], dtype=np.int32), np.diff(counts_BI.indptr))
    order_M = np.lexsort((-counts_BI.data, rows_M))  # stable: of equal counts the lower item comes first
    order_M = order_M[np.arange(order_M.size) - counts_BI.indptr[rows_M] < MAX_PARTNERS]
    rows_M = rows_M[order_M]
    shares_M = (counts_BI.data[order_M] / totals_B[rows_M]).astype(np.float32)
    return csr_array((shares_M, (rows_M, counts_BI.indices[order_M])), shape=counts_BI.shape)
