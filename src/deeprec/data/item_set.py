"""A set of items as a sorted array, which retrievers read without a loop."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Set
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprec.data.catalog import ItemIdx
from deeprec.errors import DeepRecError


class ItemSet(Set[ItemIdx]):
    """Items by position in a catalogue. It equals any other set of them, and can be a key.

    A retriever prepares any other collection anew for each batch of queries, so make an ItemSet of a large one that is
    used again.

    Attributes:
        items_N: ascending, each once (int64).
    """

    def __init__(self, items_N: NDArray[np.int64]) -> None:
        """From positions that ascend strictly; `of` takes any collection."""
        self.items_N = items_N

    @classmethod
    def of(cls, items: Iterable[int] | NDArray[np.integer[Any]]) -> ItemSet:
        """A set of these items, in any order and however often each."""
        if isinstance(items, ItemSet):
            return items
        if isinstance(items, np.ndarray):
            return cls(np.unique(items).astype(np.int64))
        size = len(items) if isinstance(items, Collection) else -1
        return cls(np.unique(np.fromiter(items, dtype=np.int64, count=size)))

    def within(self, n_items: int) -> ItemSet:
        """The set itself; DeepRecError if it holds others than the positions below `n_items`."""
        if len(self) and not (self.items_N[0] >= 0 and self.items_N[-1] < n_items):
            asked = f"Items {self.items_N[0]} to {self.items_N[-1]} are to be included of {n_items}"
            raise DeepRecError(f"{asked}: name positions in this catalogue.")
        return self

    def contains(self, items_N: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Which of the items (N,) are in the set."""
        return contains(self.items_N, items_N)

    def __len__(self) -> int:
        return len(self.items_N)

    def __iter__(self) -> Iterator[ItemIdx]:
        return iter(self.items_N.tolist())

    def __contains__(self, item: object) -> bool:
        position = np.searchsorted(self.items_N, item)  # type: ignore[call-overload]
        return bool(position < len(self.items_N) and self.items_N[position] == item)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ItemSet):
            return self is other or np.array_equal(self.items_N, other.items_N)
        return super().__eq__(other)

    def __hash__(self) -> int:
        return self._key

    @cached_property
    def _key(self) -> int:
        return self._hash()  # that of an equal frozenset

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> ItemSet:  # type: ignore[override]  # of items alone
        return cls.of(it)

    def __repr__(self) -> str:
        return f"ItemSet({len(self)} items)"


def contains(sorted_M: NDArray[np.integer[Any]], keys_N: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Which keys are among the sorted numbers; five times as fast as `np.isin`."""
    positions_N = np.searchsorted(sorted_M, keys_N)
    found_N: NDArray[np.bool_] = positions_N < sorted_M.size
    found_N[found_N] = sorted_M[positions_N[found_N]] == keys_N[found_N]
    return found_N
