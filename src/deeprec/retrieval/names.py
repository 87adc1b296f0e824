"""What a request asks for by name: titles, and words that few items bear. They lead; all else is a matter of taste."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from deeprec.data.catalog import Catalog, ItemIdx, normalise_title, without_year
from deeprec.retrieval.bm25 import MAX_ITEM_SHARE, MAX_ITEMS, words
from deeprec.retrieval.retriever import phrases_of

FEW, FEW_SHARE = 10, 0.005  # a name is in at most so many titles, or in at most this share of them
_TITLE_WORD = 2.0  # a word of a phrase that is a title counts so many times: in "Batman; dark" Batman is the name
_LONGEST = 10  # phrases of a title with semicolons, and words before and after a title, that are looked at
# They say that something is asked for, and name it only if nothing else does.
_ASKING = frozenset(
    words(
        "about anything any book books brand film films find get give good item items kind like looking me model more "
        "movie movies my need one please product products recommend search see series show shows similar some "
        "something song songs story suggest thing things title titles type want watch what where which who would you"
    )
)
_MARKS = re.compile("[\u0300-\u036f]")  # those of Latin, Greek and Cyrillic: Indic, Thai and kana ones tell words apart
_LETTERS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ı": "i", "æ": "ae", "œ": "oe"})
_JOINED = re.compile(r"\w+(?:[-‐–'’.*/&+]\w+)+")  # one word to some and several to others: Spider-Man, WD-40, M*A*S*H
_ARTICLES = "the|a|an|l['’]?|la|le|les|lo|los|las|el|il|i|gli|un|una|une|der|die|das|den|det"
_ARTICLE_LAST = re.compile(rf"^(.+?), ({_ARTICLES})(?= \(|$)")
_ARTICLE_FIRST = re.compile(r"^(?:the|an?) (?=.)")
_NO_LETTERS = re.compile("[^a-z0-9]+")
_BRACKETED = re.compile(r"\s*(?:\([^()]*\)|\[[^\[\]]*\])")


class Names:
    """The titles of a catalogue, and the words of its titles and brands; accents and punctuation make no difference.

    A word is a name if it is in few titles and brands, and in no more categories and decades than these.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        n_items = len(catalog)
        categories: Counter[str] = Counter()
        all_phrases: set[str] = set()
        self._titled: defaultdict[str, list[int]] = defaultdict(list)
        rows: dict[str, int] = {}
        rows_of: list[list[int]] = []
        for item, (title, year, brand) in enumerate(zip(catalog.titles, catalog.years, catalog.brands, strict=True)):
            folded = _fold(title)
            for key in _title_keys(folded, year):
                self._titled[key].append(item)
            borne = _words(folded) | _phrase_words(brand)
            rows_of.append([rows.setdefault(word, len(rows)) for word in sorted(borne)])
            phrases = {*catalog.categories[item], *catalog.phrases(ItemIdx(item))} - {brand}
            all_phrases |= phrases
            categories.update(frozenset[str]().union(*map(_phrase_words, phrases)))
        self._categories = set(map(_fold, all_phrases))
        rows_N = np.array([row for found in rows_of for row in found], dtype=np.int64)
        items_N = np.repeat(np.arange(n_items), [len(found) for found in rows_of])
        items_W = np.bincount(rows_N, minlength=len(rows))
        # Words of more items are ignored, so that a request is quick in a large catalogue.
        kept_W = items_W <= max(FEW, min(MAX_ITEM_SHARE * n_items, MAX_ITEMS))
        categories_W = np.array([categories[word] for word in rows], dtype=np.int64)
        self._is_name_W = (items_W <= max(FEW, FEW_SHARE * n_items)) & (categories_W <= items_W)
        self._idf_W = np.log1p((n_items - items_W + 0.5) / (items_W + 0.5))
        kept_N = kept_W[rows_N]
        pairs = rows_N[kept_N], items_N[kept_N]
        self._bears_WI = csr_array((np.ones(len(pairs[0]), np.bool_), pairs), shape=(len(rows), n_items))
        self._rows = {word: row for word, row in rows.items() if kept_W[row]}

    def levels(self, requests: Sequence[str]) -> csr_array:
        """How far (Q, I) each item comes before those that a request does not name: in steps of 1, from 1 on.

        On top are items whose title, with or without its year, is a phrase of the request; then those whose title is
        one but for accents, punctuation, articles and brackets; then items that bear a name, by the sum of the inverse
        document frequencies of all words that they share with the request. No item depends on another request.
        """
        found = [self._levels(request) for request in requests]
        ends = np.cumsum([0, *(len(items_N) for items_N, _ in found)])
        items_N = np.concatenate([np.empty(0, np.int64), *(items_N for items_N, _ in found)])
        levels_N = np.concatenate([np.empty(0), *(levels_N for _, levels_N in found)])
        return csr_array((levels_N, items_N, ends), shape=(len(found), len(self.catalog)))

    def _levels(self, request: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Items (N,), ascending, and their levels."""
        phrases = phrases_of(request)
        titled, of_titles = self._find_titles(phrases)
        asked = {word for phrase in phrases for word in _asked(phrase)}
        weights = {self._rows[w]: 1 + (_TITLE_WORD - 1) * (w in of_titles) for w in sorted(asked) if w in self._rows}
        bearers = {row: self._bears_WI.indices[slice(*self._bears_WI.indptr[row : row + 2])] for row in weights}
        named = [bearers[row] for row in weights if self._is_name_W[row]]
        items_N = np.unique(np.concatenate([np.array(list(titled), dtype=np.int64), *named])).astype(np.int64)
        sums_N = np.zeros(len(items_N))
        for row, weight in weights.items():
            sums_N += weight * self._idf_W[row] * np.isin(items_N, bearers[row])
        titled_N = np.array([titled.get(item, 0) for item in items_N.tolist()])
        sums_N[titled_N > 0] = 0  # of several titles the usual score chooses
        _, levels_N = np.unique(np.array([titled_N, sums_N.round(6)]), axis=1, return_inverse=True)
        return items_N, levels_N.reshape(-1).astype(np.float64) + 1

    def _find_titles(self, phrases: Sequence[str]) -> tuple[dict[int, int], set[str]]:
        """Items whose title is a phrase, or several in a row: 2 if exactly, 1 if nearly; and the words of these."""
        titled: dict[int, int] = {}
        of_titles: set[str] = set()
        for first in range(len(phrases)):
            for last in range(first + 1, min(first + _LONGEST, len(phrases)) + 1):
                for phrase in _rests("; ".join(phrases[first:last])):
                    folded = _fold(phrase)
                    near = () if folded in self._categories else self._titled.get(_key(folded), ())
                    exact = self.catalog.titled(phrase)
                    if near or exact:
                        titled = dict.fromkeys(near, 1) | titled | dict.fromkeys(exact, 2)
                        of_titles |= _words(folded)
                        break
        return titled, of_titles


def _fold(text: str) -> str:
    """In lower case, normalised as titles are, and without accents. Idempotent."""
    if text.isascii():  # most are, and a catalogue may hold millions
        return " ".join(text.lower().split())
    bare = _MARKS.sub("", unicodedata.normalize("NFD", normalise_title(text)))
    return unicodedata.normalize("NFC", bare).translate(_LETTERS)


def _words(folded: str) -> frozenset[str]:
    """BM25's, and hyphenated ones as one."""
    return frozenset(words(folded)) | {_squash(joined) for joined in _JOINED.findall(folded)}


@lru_cache(maxsize=1 << 16)  # brands and categories repeat
def _phrase_words(text: str) -> frozenset[str]:
    return _words(_fold(text))


def _asked(phrase: str) -> frozenset[str]:
    """The words of a phrase, without those that only ask."""
    found = _words(_fold(phrase))
    return found - _ASKING or found


def _squash(folded: str) -> str:
    """Letters, marks and digits alone."""
    if folded.isascii():
        return _NO_LETTERS.sub("", folded)
    return "".join(character for character in folded if unicodedata.category(character)[0] in "LMN")


def _key(folded: str) -> str:
    """What a title is looked up by: 'matrix, the' is 'the matrix' is 'matrix'."""
    return _squash(_ARTICLE_FIRST.sub("", _ARTICLE_LAST.sub(r"\2 \1", folded)))


def _title_keys(title: str, year: int | None) -> set[str]:
    """With and without what stands in brackets, and with and without the year."""
    bare = without_year(title, year)
    short = _BRACKETED.sub("", bare)
    names = {title, bare, short, f"{short} ({year})"} if short and year else {title, bare, short}
    return set(map(_key, names)) - {""}


def _rests(phrase: str) -> Iterator[str]:
    """The phrase, then what is left of it without words at its ends that only ask, the longest first."""
    tokens = phrase.split()
    asking = [set(words(_fold(token))) <= _ASKING for token in tokens]
    heads, tails = (len(list(takewhile(bool, ends[:_LONGEST]))) for ends in (asking, asking[::-1]))
    cuts = sorted((head + tail, head, tail) for head in range(heads + 1) for tail in range(tails + 1))
    yield from (" ".join(tokens[head : len(tokens) - tail]) for cut, head, tail in cuts if cut < len(tokens))
