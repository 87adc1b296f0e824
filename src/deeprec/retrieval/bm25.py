"""The words that a preference and an item's text share: names and kinds of things, which vectors of meaning blur."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from deeprec.data.catalog import Catalog, ItemIdx

COMMON = 0.1
"""A word in more than this share of the items tells few of them apart, and naming its items costs much."""
MOST = 10_000
"""Nor may a word be in more items than this, or a preference would take long in a large catalogue."""
_K1, _B = 1.5, 0.75
# None of Lucene's English stop words.
_STOP = (
    "an|and|are|as|at|be|but|by|for|if|in|into|is|it|no|not|of|on|or|such|that|the|their|then|there|these|they|this|to|"
    "was|will|with"
)
_WORD = re.compile(rf"\b(?!(?:{_STOP})\b)\w\w+")


class BM25:
    """BM25 (Robertson and Zaragoza 2009, as Lucene has it) over titles, brands, categories and decades."""

    def __init__(self, catalog: Catalog) -> None:
        counts = [
            Counter(_WORD.findall(" ".join([title, *catalog.phrases(ItemIdx(item))]).lower()))
            for item, title in enumerate(catalog.titles)
        ]
        n_items = len(counts)
        rows: dict[str, int] = {}
        rows_N = np.array([rows.setdefault(word, len(rows)) for own in counts for word in own], dtype=np.int64)
        items_N = np.repeat(np.arange(n_items), [len(own) for own in counts])
        times_N = np.array([times for own in counts for times in own.values()], dtype=np.float64)
        lengths_I = np.array([own.total() for own in counts], dtype=np.float64)
        items_W = np.bincount(rows_N, minlength=len(rows))
        idf_W = np.log1p((n_items - items_W + 0.5) / (items_W + 0.5))
        norms_I = _K1 * (1 - _B + _B * lengths_I * n_items / max(1.0, lengths_I.sum()))
        scores_N = (idf_W[rows_N] * times_N / (times_N + norms_I[items_N])).astype(np.float32)
        self.scores_WI = csr_array((scores_N, (rows_N, items_N)), shape=(len(rows), n_items))
        most = max(1.0, min(COMMON * n_items, MOST))
        self._rows = {word: row for word, row in rows.items() if items_W[row] <= most}

    def scores(self, preferences: Sequence[str]) -> csr_array:
        """For each preference (Q) the score (Q, I), 0 or more, of the items that share words with it."""
        said = [
            sorted({self._rows[word] for word in _WORD.findall(text.lower()) if word in self._rows})
            for text in preferences
        ]
        starts = np.cumsum([0, *map(len, said)])
        rows = np.array([row for own in said for row in own], dtype=np.int64)
        shape = (len(said), self.scores_WI.shape[0])
        found_QI = csr_array(csr_array((np.ones(len(rows), np.float32), rows, starts), shape=shape) @ self.scores_WI)
        found_QI.sort_indices()
        return found_QI
