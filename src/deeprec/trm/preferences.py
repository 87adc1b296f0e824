"""Preferences as sets of phrases: what a text says, and what training says in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

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

PHRASES = 6
"""Phrases of an item that training may use, and that one training preference holds at most."""
RECENT = 20
"""A history's themes are those of its last items."""
FREQUENT_PHRASES = 3
"""Phrases of a theme, at most."""
TITLES = 3
"""Latest titles that stand for a history."""
PREFERENCE_DROPOUT = 0.3
"""Share of training positions without a preference."""
FREQUENT_SHARE = 0.3
"""Share of training positions whose preference is made of the history."""
LOOKAHEAD = 5
"""All other preferences come from one of this many next items."""
EXACT_SHARE = 0.3
"""Share of these that come from the very next item."""
_BLOCK = 8192
"""Places whose themes are counted at once."""


@lru_cache(maxsize=1 << 16)
def item_phrases(catalog: Catalog, item: ItemIdx) -> tuple[str, ...]:
    """The phrases of an item that a preference may be made of, as a preference is read; its title where it has none."""
    phrases = [phrase for text in catalog.phrases(item) for phrase in phrases_of(text)]
    return tuple(dict.fromkeys(phrases))[:PHRASES] or (catalog.titles[item],)


def frequent_phrases(catalog: Catalog, history: Sequence[ItemIdx]) -> list[str]:
    """The three phrases that the last 20 items of a history share most; equal counts by the more recent."""
    counts = Counter(phrase for item in reversed(history[-RECENT:]) for phrase in item_phrases(catalog, item))
    return [phrase for phrase, _ in counts.most_common(FREQUENT_PHRASES)]


def recent_titles(catalog: Catalog, history: Sequence[ItemIdx]) -> list[str]:
    """The titles of the last three items, the latest first."""
    return [catalog.titles[item] for item in reversed(history[-TITLES:])]


def encode_preferences(encoder: TextEncoder, preferences: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Vectors (Q, E) of preferences, and which of them (Q,) say anything; the vector of one that does not is zero.

    A preference is the direction of the sum of its phrases' vectors, so that the order of phrases is nothing, and
    a phrase that was never seen beside another one still counts.
    """
    parts = [list(dict.fromkeys(phrases_of(preference))) for preference in preferences]
    vectors_NE = torch.from_numpy(encoder.encode([phrase for phrases in parts for phrase in phrases]))
    sums_QE = torch.zeros(len(parts), encoder.width)
    owners_N = torch.tensor([row for row, phrases in enumerate(parts) for _ in phrases], dtype=torch.long)
    sums_QE.index_add_(0, owners_N, vectors_NE)
    return F.normalize(sums_QE, dim=-1), torch.tensor([bool(phrases) for phrases in parts])


@dataclass(frozen=True, eq=False)
class PhraseTable:
    """The vectors of all phrases of a catalogue, and which of them each item has.

    vectors_PE: unit vectors and, last, a zero one for padding. items_IL: up to `PHRASES` rows of it for each item,
    padded. counts_I: how many. They come from the items' own text alone; an item without phrases has its title.
    """

    vectors_PE: Tensor
    items_IL: NDArray[np.int64]
    counts_I: NDArray[np.int64]

    @classmethod
    def of(cls, catalog: Catalog, encoder: TextEncoder) -> PhraseTable:
        phrases = [item_phrases(catalog, ItemIdx(item)) for item in range(len(catalog))]
        rows = {phrase: row for row, phrase in enumerate(dict.fromkeys(p for own in phrases for p in own))}
        counts_I = np.array([len(own) for own in phrases], dtype=np.int64)
        items_IL = np.full((len(catalog), PHRASES), len(rows), dtype=np.int64)
        for item, own in enumerate(phrases):
            items_IL[item, : len(own)] = [rows[phrase] for phrase in own]
        vectors_PE = F.pad(torch.from_numpy(encoder.encode(list(rows))), (0, 0, 0, 1))
        return cls(vectors_PE, items_IL, counts_I)

    def vectors(self, rows_NL: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """As `encode_preferences`, for preferences given as rows of phrases; nothing but padding says nothing."""
        said_NL = rows_NL != self.padding
        starts_N = torch.from_numpy(np.cumsum(said_NL.sum(1)) - said_NL.sum(1))
        sums_NE = F.embedding_bag(torch.from_numpy(rows_NL[said_NL]), self.vectors_PE, starts_N, mode="sum")
        return F.normalize(sums_NE, dim=-1), torch.from_numpy(said_NL.any(1))

    @property
    def padding(self) -> int:
        return self.vectors_PE.shape[0] - 1


class PreferenceSampler:
    """What a user might have said at each place of a training sequence, had anyone asked.

    Nothing (so that the TRM works alone), the themes of the history (they tell nothing new, and must not hurt), or some
    phrases of the next item or of one of the next few (a preference is seldom exact). Shares are the configuration's.
    """

    def __init__(self, phrase_table: PhraseTable, sequences: Sequences, config: TRMConfig) -> None:
        self.phrase_table = phrase_table
        self.items_N = sequences.items_N.astype(np.int64)
        self.starts_U1 = sequences.starts_U1
        self.config = config
        # Counted once, for they are the same in every epoch.
        positions_N = np.arange(self.items_N.size)
        firsts_N = np.repeat(self.starts_U1[:-1], np.diff(self.starts_U1))
        blocks = range(0, positions_N.size, _BLOCK)
        self.frequent_N3 = np.concatenate(
            [self._frequent_phrases(positions_N[b : b + _BLOCK], firsts_N[b : b + _BLOCK]) for b in blocks]
        )

    def draw(
        self, rng: np.random.Generator, positions_N: NDArray[np.int64], users_N: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Rows of phrases (N, PHRASES) for the places of `items_N` after which they might be said."""
        config, n = self.config, positions_N.size
        draws_N = rng.random(n)
        silent_N = draws_N < (PREFERENCE_DROPOUT if config.preferences else 1.0)
        frequent_N = ~silent_N & (draws_N < PREFERENCE_DROPOUT + FREQUENT_SHARE)
        ahead_N = positions_N + rng.integers(1, LOOKAHEAD + 1, n)
        ahead_N = np.where(rng.random(n) < EXACT_SHARE, positions_N + 1, ahead_N)
        items_N = self.items_N[np.minimum(ahead_N, self.starts_U1[users_N + 1] - 1)]
        rows_NL = self._some(rng, items_N)
        counts_N1 = np.minimum(rng.integers(1, FREQUENT_PHRASES + 2, (n, 1)), FREQUENT_PHRASES)
        frequent_N3 = np.where(
            np.arange(FREQUENT_PHRASES) < counts_N1, self.frequent_N3[positions_N], self.phrase_table.padding
        )
        rows_NL[silent_N | frequent_N] = self.phrase_table.padding
        rows_NL[frequent_N, :FREQUENT_PHRASES] = frequent_N3[frequent_N]
        return rows_NL

    def _some(self, rng: np.random.Generator, items_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """A random part, never empty, of each item's phrases."""
        counts_N = self.phrase_table.counts_I[items_N]
        order_NL = rng.random((items_N.size, PHRASES))
        order_NL[np.arange(PHRASES) >= counts_N[:, None]] = 2
        kept_N1 = rng.integers(1, counts_N + 1)[:, None]
        rows_NL = self.phrase_table.items_IL[items_N]
        return np.where(order_NL.argsort(1).argsort(1) < kept_N1, rows_NL, self.phrase_table.padding)

    def _frequent_phrases(self, positions_N: NDArray[np.int64], firsts_N: NDArray[np.int64]) -> NDArray[np.int32]:
        """The phrases (N, THEMES) that each place's last items share most, as `themes` finds them, padded."""
        n, padding = positions_N.size, self.phrase_table.padding
        back_NR = positions_N[:, None] - np.arange(RECENT)
        said_NRL = self.phrase_table.items_IL[self.items_N[np.maximum(back_NR, firsts_N[:, None])]]
        said_NRL[back_NR < firsts_N[:, None]] = padding
        keys_M = (np.arange(n)[:, None, None] * (padding + 1) + said_NRL)[said_NRL != padding]
        keys_M, first_M, counts_M = np.unique(keys_M, return_index=True, return_counts=True)
        rows_M = keys_M // (padding + 1)
        order_M = np.lexsort((first_M, -counts_M, rows_M))
        nth_M = np.arange(rows_M.size) - np.searchsorted(rows_M, np.arange(n))[rows_M]
        wanted_M = nth_M < FREQUENT_PHRASES
        rows_N3 = np.full((n, FREQUENT_PHRASES), padding, dtype=np.int32)  # kept for every place of the training
        rows_N3[rows_M[wanted_M], nth_M[wanted_M]] = keys_M[order_M][wanted_M] % (padding + 1)
        return rows_N3
