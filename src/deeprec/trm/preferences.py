"""Preferences as sets of phrases: from text, from items, and sampled for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from deeprec.config import TRMConfig
from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.data.dataset import Sequences
from deeprec.retrieval.retriever import phrases_of
from deeprec.trm.text_encoder import TextEncoder

PHRASES = 6  # phrases of an item that training may use, and that a training preference holds at most
RECENT = 20  # last items of a history that its frequent phrases are counted in
FREQUENT_PHRASES = 3  # frequent phrases of a history, at most
TITLES = 3  # latest titles that stand for a history
PREFERENCE_DROPOUT = 0.3  # share of training positions without a preference
FREQUENT_SHARE = 0.3  # share of training positions whose preference is the history's frequent phrases
LOOKAHEAD = 5  # the other positions take the phrases of one of this many next items
EXACT_SHARE = 0.3  # share of these that take the very next item
_BLOCK = 8192  # positions whose frequent phrases are counted at once
IntArray = NDArray[np.int64]


@lru_cache(maxsize=1 << 16)
def item_phrases(catalog: Catalog, item: ItemIdx) -> tuple[str, ...]:
    """Up to six phrases of an item that can make a preference; its title where it has none."""
    phrases = [phrase for text in catalog.phrases(item) for phrase in phrases_of(text)]
    return tuple(dict.fromkeys(phrases))[:PHRASES] or (catalog.titles[item],)


def frequent_phrases(catalog: Catalog, history: Sequence[ItemIdx]) -> list[str]:
    """The three most frequent phrases of a history's last 20 items; of equal counts the more recent come first."""
    counts = Counter(phrase for item in reversed(history[-RECENT:]) for phrase in item_phrases(catalog, item))
    return [phrase for phrase, _ in counts.most_common(FREQUENT_PHRASES)]


def recent_titles(catalog: Catalog, history: Sequence[ItemIdx]) -> list[str]:
    """The titles of the last three items, the latest first."""
    return [catalog.titles[item] for item in reversed(history[-TITLES:])]


def encode_preferences(encoder: TextEncoder, preferences: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Vectors (Q, E) of preferences, and which of them (Q,) have a phrase; the vector of one without is zero.

    A vector is the normalised sum of the phrases' vectors, so the order of phrases has no effect.
    """
    rows = [list(dict.fromkeys(phrases_of(preference))) for preference in preferences]
    vectors_NE = torch.from_numpy(encoder.encode([phrase for phrases in rows for phrase in phrases]))
    sums_QE = torch.zeros(len(rows), encoder.width)
    rows_N = torch.tensor([row for row, phrases in enumerate(rows) for _ in phrases], dtype=torch.long)
    sums_QE.index_add_(0, rows_N, vectors_NE)
    return F.normalize(sums_QE, dim=-1), torch.tensor([bool(phrases) for phrases in rows])


@dataclass(frozen=True, eq=False)
class PhraseTable:
    """The vectors of all phrases of a catalogue, and which of them each item has (see `item_phrases`)."""

    vectors_PE: Tensor  # unit vectors and, last, a zero one for padding
    items_IL: IntArray  # up to `PHRASES` rows of `vectors_PE` for each item, padded

    @classmethod
    def build(cls, catalog: Catalog, encoder: TextEncoder) -> PhraseTable:
        phrases = [item_phrases(catalog, ItemIdx(item)) for item in range(len(catalog))]
        rows = {phrase: row for row, phrase in enumerate(dict.fromkeys(chain.from_iterable(phrases)))}
        items_IL = np.full((len(catalog), PHRASES), len(rows), dtype=np.int64)
        for item, row in enumerate(phrases):
            items_IL[item, : len(row)] = [rows[phrase] for phrase in row]
        vectors_PE = F.pad(torch.from_numpy(encoder.encode(list(rows))), (0, 0, 0, 1))
        return cls(vectors_PE, items_IL)

    def vectors(self, rows_NL: IntArray) -> tuple[Tensor, Tensor]:
        """As `encode_preferences`, for preferences given as rows of the table, padded."""
        real_NL = rows_NL != self.padding
        starts_N = torch.from_numpy(np.cumsum(real_NL.sum(1)) - real_NL.sum(1))
        sums_NE = F.embedding_bag(torch.from_numpy(rows_NL[real_NL]), self.vectors_PE, starts_N, mode="sum")
        return F.normalize(sums_NE, dim=-1), torch.from_numpy(real_NL.any(1))

    @property
    def padding(self) -> int:
        """The row that stands for no phrase."""
        return self.vectors_PE.shape[0] - 1


class PreferenceSampler:
    """Draws a preference for each position of the training sequences.

    It is empty (the TRM must work alone), the history's frequent phrases (they are nothing new and must not hurt), or
    some phrases of one of the next items (a preference is seldom exact). Without `trm.preferences` all are empty.
    """

    def __init__(self, phrase_table: PhraseTable, sequences: Sequences, config: TRMConfig) -> None:
        self.phrase_table, self.config = phrase_table, config
        self.items_N, self.starts_U1 = sequences.items_N.astype(np.int64), sequences.starts_U1
        # The same in every epoch, so counted once.
        firsts_N = np.repeat(self.starts_U1[:-1], np.diff(self.starts_U1))
        blocks = range(0, firsts_N.size, _BLOCK)
        self.frequent_N3 = np.concatenate([self._frequent_phrases(b, firsts_N[b : b + _BLOCK]) for b in blocks])

    def draw(self, rng: np.random.Generator, positions_N: IntArray, users_N: IntArray) -> IntArray:
        """Rows of the phrase table (N, PHRASES), padded: a preference to state after each of the positions."""
        n, padding = positions_N.size, self.phrase_table.padding
        draws_N = rng.random(n)
        empty_N = draws_N < (PREFERENCE_DROPOUT if self.config.preferences else 1.0)
        frequent_N = ~empty_N & (draws_N < PREFERENCE_DROPOUT + FREQUENT_SHARE)
        ahead_N = positions_N + rng.integers(1, LOOKAHEAD + 1, n)
        ahead_N = np.where(rng.random(n) < EXACT_SHARE, positions_N + 1, ahead_N)
        items_N = self.items_N[np.minimum(ahead_N, self.starts_U1[users_N + 1] - 1)]
        rows_NL = self._some(rng, items_N)
        counts_N1 = np.minimum(rng.integers(1, FREQUENT_PHRASES + 2, (n, 1)), FREQUENT_PHRASES)
        frequent_N3 = np.where(np.arange(FREQUENT_PHRASES) < counts_N1, self.frequent_N3[positions_N], padding)
        rows_NL[empty_N | frequent_N] = padding
        rows_NL[frequent_N, :FREQUENT_PHRASES] = frequent_N3[frequent_N]
        return rows_NL

    def _some(self, rng: np.random.Generator, items_N: IntArray) -> IntArray:
        """A random subset, never empty, of each item's phrases."""
        rows_NL = self.phrase_table.items_IL[items_N]
        order_NL = rng.random(rows_NL.shape)
        order_NL[rows_NL == self.phrase_table.padding] = 2
        kept_N1 = rng.integers(1, (order_NL < 2).sum(1) + 1)[:, None]
        return np.where(order_NL.argsort(1).argsort(1) < kept_N1, rows_NL, self.phrase_table.padding)

    def _frequent_phrases(self, start: int, firsts_N: IntArray) -> NDArray[np.int32]:
        """`frequent_phrases` (N, 3) of the history up to each position from `start` on, as padded rows of the table."""
        n, padding = firsts_N.size, self.phrase_table.padding
        back_NR = start + np.arange(n)[:, None] - np.arange(RECENT)
        rows_NRL = self.phrase_table.items_IL[self.items_N[np.maximum(back_NR, firsts_N[:, None])]]
        rows_NRL[back_NR < firsts_N[:, None]] = padding
        keys_M = (np.arange(n)[:, None, None] * (padding + 1) + rows_NRL)[rows_NRL != padding]
        keys_M, first_M, counts_M = np.unique(keys_M, return_index=True, return_counts=True)
        rows_M = keys_M // (padding + 1)
        order_M = np.lexsort((first_M, -counts_M, rows_M))
        nth_M = np.arange(rows_M.size) - np.searchsorted(rows_M, np.arange(n))[rows_M]
        wanted_M = nth_M < FREQUENT_PHRASES
        rows_N3 = np.full((n, FREQUENT_PHRASES), padding, dtype=np.int32)  # small: it is kept for all positions
        rows_N3[rows_M[wanted_M], nth_M[wanted_M]] = keys_M[order_M][wanted_M] % (padding + 1)
        return rows_N3
