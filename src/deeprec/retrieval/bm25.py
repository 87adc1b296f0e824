"""BM25 between a preference and an item's text: names and rare words, which text vectors blur."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_array

from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.retrieval.retriever import flatten

MAX_ITEM_SHARE = 0.1  # words in a larger share of the items are ignored: they hardly tell items apart, and cost time
MAX_ITEMS = 10_000  # words in more items than this are ignored, so that a preference is quick in a large catalogue
_K1, _B = 1.5, 0.75
_STOP_WORDS = (  # Lucene's English ones
    "an and are as at be but by for if in into is it no not of on or such that the their then there these they this to "
    "was will with"
)
_STOP = frozenset(_STOP_WORDS.split())
_ASCII_WORD = re.compile(r"\w\w+", re.ASCII)
# Letters of languages whose words no spaces part: Chinese, Japanese, Thai, Lao, Burmese, Khmer. And of Korean, where a
# name and its particle are one word.
_UNSPACED = (
    "\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"  # Han and kana
    "\u0e01-\u0e4e\u0e80-\u0ece\u0edc-\u0edf"  # Thai and Lao
    "\u1000-\u103f\u1050-\u108f\u109a-\u109f\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17dd"  # Khmer
    "\u1100-\u11ff\u3131-\u318e\ua960-\ua97f\uac00-\ud7fb"  # Hangul
)
# Vowel signs and tone marks, which belong to the letter before them but are no `\w`. Those of Latin letters are not
# among them: they are composed with their letter.
_MARKS = "".join(char for char in map(chr, range(0x370, 0xFB1F)) if unicodedata.category(char) in ("Mn", "Mc"))
_LETTER = rf"(?=[{_UNSPACED}])[^\W\d_]"
_CHARACTER = re.compile(rf"{_LETTER}[{_MARKS}]*")
_RUN = re.compile(rf"(?P<unspaced>(?:{_CHARACTER.pattern})+)|(?:(?!{_LETTER})\w[{_MARKS}]*)+")
_COMPATIBLE = re.compile("[\u2e80-\u33ff\uf900-\ufaff\uff00-\uffef\U0002f800-\U0002fa1f]+")  # Han, kana, full width
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))  # hyphens and joiners that some type


def words(text: str, *, characters: bool = False) -> list[str]:
    """The words that BM25 counts, in order and in lower case; preferences and items go through it alike.

    A word has two characters or more and is no English stop word. Where spaces do not part words (Chinese, Japanese,
    Korean, Thai, Lao, Burmese, Khmer), two neighbouring characters make a word, as in Lucene's CJKBigramFilter, and a
    single one counts as itself; marks count with their letter. Full-width and half-width forms become the usual ones.
    With `characters` the single characters of such pairs are words too: in an item, for a preference that is only one.
    """
    if text.isascii():
        return [word for word in _ASCII_WORD.findall(text.lower()) if word not in _STOP]
    text = unicodedata.normalize("NFC", text.translate(_INVISIBLE))
    text = _COMPATIBLE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text).lower()
    found: list[str] = []
    for run in _RUN.finditer(text):
        if run["unspaced"]:
            single = _CHARACTER.findall(run[0])
            found += map("".join, pairwise(single))
            if characters or len(single) == 1:
                found += single
        elif len(run[0]) > 1 and run[0] not in _STOP:
            found.append(run[0])
    return found


class BM25:
    """BM25 (Robertson and Zaragoza 2009, Lucene's variant) over titles, brands, categories and decades."""

    def __init__(self, catalog: Catalog) -> None:
        counts = [
            Counter(words(" ".join([title, *catalog.phrases(ItemIdx(item))]), characters=True))
            for item, title in enumerate(catalog.titles)
        ]
        n_items = len(counts)
        rows: dict[str, int] = {}
        rows_N = np.array([rows.setdefault(word, len(rows)) for each in counts for word in each], dtype=np.int64)
        items_N = np.repeat(np.arange(n_items), [len(each) for each in counts])
        times_N = np.array([times for each in counts for times in each.values()], dtype=np.float64)
        lengths_I = np.array([each.total() for each in counts], dtype=np.float64)
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
