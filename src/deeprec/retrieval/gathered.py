"""The vectors of recent item sets side by side: a filter that comes again is compared without gathering them anew."""

from __future__ import annotations

import threading

import numpy as np
import torch
from numpy.typing import NDArray

from deeprec.data.item_set import ItemSet


class GatheredVectors:
    """See the module. It holds at most `capacity` vectors, and forgets the sets that were not used for longest."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._kept: dict[int, tuple[ItemSet, torch.Tensor]] = {}  # by identity of the set; the last used is last
        self._lock = threading.Lock()

    def of(self, items: ItemSet, vectors_ID: NDArray[np.float32]) -> torch.Tensor:
        """The vectors (N, D) of the items."""
        with self._lock:
            found = self._kept.pop(id(items), None)
            if found is not None:
                self._kept[id(items)] = found
                return found[1]
        gathered_ND = torch.from_numpy(vectors_ID).index_select(0, torch.from_numpy(items.items_N))
        with self._lock:
            self._kept[id(items)] = items, gathered_ND
            while sum(len(kept) for kept, _ in self._kept.values()) > self.capacity:
                del self._kept[next(iter(self._kept))]
        return gathered_ND

    def holds(self, items: ItemSet) -> bool:
        """Whether the vectors of the items need not be gathered."""
        return id(items) in self._kept

    def clear(self) -> None:
        """Forget all, since the vectors have changed."""
        with self._lock:
            self._kept.clear()
