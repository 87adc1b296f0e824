"""The words that a preference and an item's text share: what vectors of meaning blur, as names and kinds of things."""

from __future__ import annotations

from collections.abc import Sequence

import bm25s
import numpy as np
from scipy.sparse import csr_array

from deeprec.data.catalog import Catalog, ItemIdx

COMMON = 0.1
"""A word in more than this share of the items tells few of them apart, and naming its items costs much."""


class Words:
    """BM25 (Lucene's, k1 1.5, b 0.75; Robertson and Zaragoza 2009) over titles, brands, categories and decades."""

    def __init__(self, catalog: Catalog) -> None:
        texts = [" ".join([title, *catalog.phrases(ItemIdx(item))]) for item, title in enumerate(catalog.titles)]
        index = bm25s.BM25()
        self._rows: dict[str, int] = {}
        self.scores_WI = csr_array((0, len(texts)), dtype=np.float32)
        words = bm25s.tokenize(texts, stopwords="en", show_progress=False)
        if not words.vocab:  # which bm25s does not index
            return
        index.index(words, show_progress=False)
        parts = index.scores["data"], index.scores["indices"], index.scores["indptr"]
        self.scores_WI = csr_array(parts, shape=(len(parts[2]) - 1, len(texts)))
        most = max(1.0, COMMON * len(texts))
        items_W = np.diff(self.scores_WI.indptr)
        self._rows = {word: row for word, row in words.vocab.items() if word and items_W[row] <= most}

    def scores(self, preferences: Sequence[str]) -> csr_array:
        """For each preference (Q) the score (Q, I), 0 or more, of the items that share words with it."""
        said = bm25s.tokenize(list(preferences), stopwords="en", return_ids=False, show_progress=False)
        rows = [sorted({self._rows[word] for word in words if word in self._rows}) for words in said]
        starts = np.cumsum([0, *map(len, rows)])
        named = np.array([row for own in rows for row in own], dtype=np.int64)
        shape = (len(preferences), self.scores_WI.shape[0])
        said_QW = csr_array((np.ones(len(named), dtype=np.float32), named, starts), shape=shape)
        found_QI = csr_array(said_QW @ self.scores_WI)
        found_QI.sort_indices()
        return found_QI
