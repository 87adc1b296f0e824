"""Windows of training sequences in batches of about equal work, made by whole-array operations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deeprec.config import TRMConfig
from deeprec.data.dataset import Sequences
from deeprec.errors import DeepRecError
from deeprec.trm.preferences import IntArray, PhraseTable, PreferenceSampler

BATCH_POSITIONS = 2048  # training positions in a step
_ALIKE = 8  # windows whose lengths differ by less than this may share a batch, so that little of it is padding


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Training positions, N of them in B rows, in the order of `real_BT`."""

    inputs_BT: Tensor  # items, padded on the right with the number of items
    real_BT: Tensor  # which are no padding
    targets_N: Tensor  # the next items
    phrases_NL: IntArray  # rows of the phrase table that make the preference
    frequent_NL: IntArray  # those of the history's frequent phrases


class Batches:
    """The training batches of an epoch, of windows whose borders move from epoch to epoch.

    All randomness follows from the seed and the epoch's number: a resumed training sees what an unbroken one would.
    DeepRecError if no user has two training interactions.
    """

    def __init__(self, sequences: Sequences, phrase_table: PhraseTable, config: TRMConfig) -> None:
        self.config, self.n_items = config, len(phrase_table.items_IL)
        self.starts_U1 = sequences.starts_U1
        self.users_U = np.flatnonzero(np.diff(self.starts_U1) >= 2)
        if not self.users_U.size:
            raise DeepRecError("The TRM has nothing to train on: no user has two training interactions.")
        inputs = int((np.diff(self.starts_U1)[self.users_U] - 1).sum())
        self.steps = max(1, round(inputs / BATCH_POSITIONS))  # about how many batches an epoch has
        self.sampler = PreferenceSampler(phrase_table, sequences, config)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch, counted from 0: every item but each sequence's first is a target once."""
        rng = np.random.default_rng([self.config.seed, 2, number])
        begins_W, lengths_W, users_W = self._windows(rng)
        order_W = rng.permutation(begins_W.size)
        order_W = order_W[np.argsort(-lengths_W[order_W] // _ALIKE, kind="stable")]
        ends_W = np.cumsum(lengths_W[order_W])
        cuts = np.searchsorted(ends_W, np.arange(BATCH_POSITIONS, ends_W[-1], BATCH_POSITIONS), "right")
        groups = [group for group in np.split(order_W, cuts) if group.size]
        items_N = self.sampler.items_N
        for group in rng.permutation(len(groups)):
            rows = groups[group]
            steps_BT = np.arange(lengths_W[rows].max()) + np.zeros_like(rows)[:, None]
            real_BT = steps_BT < lengths_W[rows, None]
            positions_N = (begins_W[rows, None] + steps_BT)[real_BT]
            inputs_BT = np.full(real_BT.shape, self.n_items)
            inputs_BT[real_BT] = items_N[positions_N]
            users_N = np.broadcast_to(users_W[rows, None], real_BT.shape)[real_BT]
            yield Batch(
                torch.from_numpy(inputs_BT),
                torch.from_numpy(real_BT),
                torch.from_numpy(items_N[positions_N + 1]),
                self.sampler.draw(rng, positions_N, users_N),
                self.sampler.frequent_N3[positions_N],
            )

    def _windows(self, rng: np.random.Generator) -> tuple[IntArray, IntArray, IntArray]:
        """First position, number of inputs and user of each window; windows hold at most `history` inputs."""
        T, users_U = self.config.history, self.users_U
        starts_U, inputs_U = self.starts_U1[users_U], np.diff(self.starts_U1)[users_U] - 1
        # A sequence that fits is one window; of a longer one the first window is shortened at random.
        shifts_U = np.where(inputs_U > T, rng.integers(0, T, users_U.size), 0)
        counts_U = -(-(inputs_U + shifts_U) // T)
        users_W = np.repeat(np.arange(users_U.size), counts_U)
        nth_W = np.arange(users_W.size) - np.repeat(np.cumsum(counts_U) - counts_U, counts_U)
        cuts_W = nth_W * T - shifts_U[users_W]
        begins_W = np.maximum(cuts_W, 0)
        lengths_W = np.minimum(cuts_W + T, inputs_U[users_W]) - begins_W
        return starts_U[users_W] + begins_W, lengths_W, users_U[users_W]
