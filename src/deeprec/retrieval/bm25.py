"""BM25 between a preference and an item's text: names and rare words, which text vectors blur."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.retrieval.retriever import flatten

MAX_ITEM_SHARE = 0.1  # words in a larger share of the items are ignored: they hardly tell items apart, and cost time
MAX_ITEMS = 10_000  # words in more items than this are ignored, so that a preference is quick in a large catalogue
_K1, _B = 1.5, 0.75
# Lucene's English stop words.
_STOP = (
    "an|and|are|as|at|be|but|by|for|if|in|into|is|it|no|not|of|on|or|such|that|the|their|then|there|these|they|this|to|"
    "was|will|with"
)
_WORD = re.compile(rf"\b(?!(?:{_STOP})\b)\w\w+")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without stop words and single characters."""
    return _WORD.findall(text.lower())


class BM25:
    """BM25 (Robertson and Zaragoza 2009, Lucene's variant) over titles, brands, categories and decades."""

    def __init__(self, catalog: Catalog) -> None:
        counts = [
            Counter(words(" ".join([title, *catalog.phrases(ItemIdx(item))])))
            for item, title in enumerate(catalog.titles)
        ]
        n_items = len(counts)
        rows: dict[str, int] = {}
        rows_N = np.array([rows.setdefault(word, len(rows)) for words in counts for word in words], dtype=np.int64)
        items_N = np.repeat(np.arange(n_items), [len(words) for words in counts])
        times_N = np.array([times for words in counts for times in words.values()], dtype=np.float64)
        lengths_I = np.array([words.total() for words in counts], dtype=np.float64)
        items_W = np.bincount(rows_N, minlength=len(rows))
        idf_W = np.log1p((n_items - items_W + 0.5) / (items_W + 0.5))
        norms_I = _K1 * (1 - _B + _B * lengths_I * n_items / max(1.0, lengths_I.sum()))
        scores_N = (idf_W[rows_N] * times_N / (times_N + norms_I[items_N])).astype(np.float32)
        self.scores_WI = csr_array((scores_N, (rows_N, items_N)), shape=(len(rows), n_items))
        max_items = max(1.0, min(MAX_ITEM_SHARE * n_items, MAX_ITEMS))
        self._rows = {word: row for word, row in rows.items() if items_W[row] <= max_items}

    def scores(self, preferences: Sequence[str]) -> csr_array:
        """BM25 (Q, I) of each preference and the items that share words with it: 0 or more, each word counted once."""
        rows_of = [sorted({self._rows[word] for word in words(text) if word in self._rows}) for text in preferences]
        where, shape = flatten(rows_of), (len(rows_of), self.scores_WI.shape[0])
        words_QW = csr_array((np.ones(len(where[0]), np.float32), where), shape=shape)
        scores_QI = csr_array(words_QW @ self.scores_WI)
        scores_QI.sort_indices()
        return scores_QI
