"""A KV cache of many contexts of different lengths, each in a slot of preallocated memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class _SlottedLayer(CacheLayerMixin):
    """One layer's keys and values of all rows, in place. Reads and writes the rows that the cache opened."""

    is_sliding = False
    keys: Any
    values: Any

    def __init__(self, cache: SlottedKVCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = self._room(key_states[:0]), self._room(value_states[:0])
        self.is_initialized = True

    def grow(self) -> None:
        if self.is_initialized:
            self.keys, self.values = self._room(self.keys), self._room(self.values)

    def _room(self, states_BHTD: Tensor) -> Tensor:
        rows, length = self.cache.capacity
        used, heads, filled, width = states_BHTD.shape
        room = states_BHTD.new_zeros((rows, heads, length, width))
        room[:used, :, :filled] = states_BHTD
        return room

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, length = self.cache.rows, self.cache.length
        keys, values = self.keys[rows, :, :length], self.values[rows, :, :length]
        index_B1, positions_BT = self.cache.index_B1, self.cache.positions_BT
        keys[index_B1, :, positions_BT] = key_states.transpose(1, 2)
        values[index_B1, :, positions_BT] = value_states.transpose(1, 2)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.length, 0

    def get_seq_length(self) -> int:
        return self.cache.length

    def get_max_length(self) -> int:
        return -1


class SlottedKVCache(Cache):
    """Keys and values of many contexts, one row each; any run of rows can be advanced."""

    def __init__(self, n_layers: int, rows: int) -> None:
        self.capacity = (rows, 256)
        self.rows = slice(0, 0)
        self.length = 0
        self.positions_BT = torch.empty(0)
        self.index_B1 = torch.empty(0)
        self.states = [_SlottedLayer(self) for _ in range(n_layers)]
        super().__init__(layers=list(self.states))

    def open(self, rows: slice, positions_BT: Tensor) -> None:
        """Set the rows that the next forward pass advances, and the position of each of its tokens."""
        self.rows, self.positions_BT = rows, positions_BT
        self.length = int(positions_BT.max()) + 1
        self.index_B1 = torch.arange(rows.stop - rows.start, device=positions_BT.device)[:, None]
        self.reserve(rows.stop, self.length)

    def reserve(self, rows: int, length: int) -> None:
        old_rows, old_length = self.capacity
        if rows > old_rows or length > old_length:
            new_length = -(-length * 5 // 4 // 256) * 256 if length > old_length else old_length
            self.capacity = (max(rows, old_rows), new_length)
            for layer in self.states:
                layer.grow()

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of row `source` to row `target`."""
        for states in self._tensors():
            states[target, :, :length] = states[source, :, :length]

    def swap(self, a: int, b: int, length: int) -> None:
        for states in self._tensors():
            saved = states[a, :, :length].clone()
            states[a, :, :length] = states[b, :, :length]
            states[b, :, :length] = saved

    def _tensors(self) -> list[Tensor]:
        return [states for layer in self.states for states in (layer.keys, layer.values)]
