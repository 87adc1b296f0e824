"""The items: ids, display titles, text, and the one way from a title back to an item."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import repeat
from typing import Any, NewType

import polars as pl
from rapidfuzz import fuzz, process

from deeprec.errors import DeepRecError

ItemId = NewType("ItemId", str)
"""An item's id in the source."""
UserId = NewType("UserId", str)
"""A user's id in the source."""
ItemIdx = NewType("ItemIdx", int)
"""An item's position in its Catalog, 0..n-1."""

DESCRIPTION_CHARS = 1000
TEXT_DESCRIPTION_CHARS = 300
COMMON_SHARE = 0.5
NO_CATEGORIES = frozenset({"unknown", "(no genres listed)"})

# Full-width and small forms too: tokenizers that normalise by NFKC would turn them back into tags.
_BRACKETS = str.maketrans({"<": "‹", ">": "›", "＜": "‹", "＞": "›", "﹤": "‹", "﹥": "›"})
_BLANKED = {"Cc": " ", "Zl": " ", "Zp": " ", "Zs": " ", "Cf": "", "Cs": ""}  # by category of Unicode
_JOINERS = re.compile("[\u200c\u200d]+")  # zero-width non-joiner and joiner
_VIRAMA = 9  # the combining class of the mark that takes a letter's vowel away
_SIGNS = frozenset({"So", "Sm", "Cn"})  # emoji among them; those newer than Python's Unicode have no category yet
_QUOTES = "\"'`´“”„‟‘’‚‛«»‹› "
_TRAILING = _QUOTES + ".,;:!?…"
_EXAMPLES = 5


def neutralise(text: str) -> str:
    """Item text made safe for a prompt.

    Control characters and line breaks become spaces. Format characters (bidi marks, zero-width characters) and lone
    surrogates go, but for joiners where they join: they belong to the spelling of Persian and Malayalam words, and to
    emoji of several parts. Angle brackets become '‹' and '›', so that no protocol tag and no special token survives.
    Whitespace is collapsed. Idempotent.
    """
    text = text.translate(_BRACKETS)
    if not text.isprintable():
        kept = ((char, unicodedata.category(char)) for char in text)
        text = "".join(char if _JOINERS.match(char) else _BLANKED.get(category, char) for char, category in kept)
        text = _JOINERS.sub(_joiner, text)
    return " ".join(text.split())


def _joiner(run: re.Match[str]) -> str:
    """The first of adjacent joiners where it changes how its neighbours are written, else nothing.

    That is beside a virama or another mark of a letter without case (Unicode Standard Annex 31, contexts A2 and B),
    between letters or digits of which one is of a right-to-left script (context A1), and between emoji (Unicode
    Technical Standard 51). A joiner also gives a right-to-left letter its connected form before anything.
    """
    text, joiner = run.string, run[0][0]
    last, following = text[run.start() - 1] if run.start() else " ", text[run.end() : run.end() + 1] or " "
    marked = (char for char in reversed(text[: run.start()]) if unicodedata.category(char) not in ("Mn", "Me", "Sk"))
    base = next(marked, " ")
    kinds, sides = [unicodedata.category(char) for char in (base, following)], (base, following)
    cursive = [unicodedata.bidirectional(char) in ("AL", "R") for char in sides]
    joins = (
        unicodedata.combining(last) == _VIRAMA
        or (kinds[0] == "Lo" and kinds[1].startswith("M"))
        or (any(cursive) and all(char.isalnum() for char in sides))
        or (cursive[0] and base.isalpha() and joiner == "\u200d")
        or _SIGNS.issuperset(kinds)
    )
    return joiner if joins else ""


def normalise_title(text: str) -> str:
    """The form in which titles are compared. Idempotent.

    Neutralised, without joiners, NFKC and case folded (Unicode's NFKC_Casefold), whitespace collapsed; surrounding
    quotes and trailing punctuation stripped, unless nothing else remains.
    """
    folded = unicodedata.normalize("NFD", _JOINERS.sub("", neutralise(text))).casefold()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", folded).casefold())
    folded = neutralise(folded)
    return folded.rstrip(_TRAILING).lstrip(_QUOTES) or folded


class ResolutionStatus(StrEnum):
    FOUND = "found"
    UNKNOWN = "unknown"
    AMBIGUOUS = "ambiguous"


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a title means; `item` is there exactly if the status is FOUND."""

    item: ItemIdx | None
    status: ResolutionStatus


@dataclass(frozen=True, slots=True)
class TitleReport:
    """How well titles name items. Counts are of items; examples are display titles."""

    distinct: int  # different display titles
    empty: int  # items without a title in the source; 'Untitled item {id}' stands in
    empty_examples: tuple[str, ...]
    ambiguous: int  # items whose title resolves to several
    ambiguous_examples: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Catalog:
    """The items of a Dataset, aligned by ItemIdx; all text is neutralised.

    `titles` are the display titles ('Toy Story (1995)'), the only form in which a model meets an item.
    Missing brands and descriptions are '', missing years None, missing categories ().
    """

    ids: tuple[ItemId, ...]
    titles: tuple[str, ...]
    years: tuple[int | None, ...]
    brands: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    descriptions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def index(self, item: ItemId) -> ItemIdx:
        """The position of an item; DeepRecError if none has this id."""
        if item not in self._positions:
            raise _no_item("id", item, close_names(item, self.ids))
        return self._positions[item]

    def resolve(self, text: str, within: Collection[ItemIdx] | None = None) -> Resolution:
        """The item that a title names, by normalised exact match and never by substring.

        It is looked for among the full titles in `within`, then among the titles without their year in `within`, then
        likewise in the whole catalogue. The first step that matches anything decides: one match is FOUND, several are
        AMBIGUOUS.
        """
        key = normalise_title(text)
        full = [self._by_title.get(key, ()), self._by_yearless.get(key, ())]
        near = [] if within is None else [tuple(item for item in step if item in within) for step in full]
        for matches in near + full:
            if len(matches) == 1:
                return Resolution(matches[0], ResolutionStatus.FOUND)
            if matches:
                return Resolution(None, ResolutionStatus.AMBIGUOUS)
        return Resolution(None, ResolutionStatus.UNKNOWN)

    def namesakes(self, text: str) -> tuple[ItemIdx, ...]:
        """All items that have this full title, normalised."""
        return self._by_title.get(normalise_title(text), ())

    def titled(self, text: str) -> tuple[ItemIdx, ...]:
        """All items that have this title, with or without its year, normalised."""
        key = normalise_title(text)
        return (*self._by_title.get(key, ()), *self._by_yearless.get(key, ()))

    def find(self, name: str, *, id_first: bool = False) -> ItemIdx:
        """The item that a person names, by its title or its id; where they are two items', `id_first` decides.

        DeepRecError if it is neither, or the title of several items; the message suggests others.
        """
        if id_first and (item := self._positions.get(ItemId(name))) is not None:
            return item  # without a look at the titles: a filter may name many thousands
        found = [self.resolve(name).item, self._positions.get(ItemId(name))]
        for item in found:
            if item is not None:
                return item
        same = self.namesakes(name) or self.titled(name)
        if same:
            ids = ", ".join(self.ids[item] for item in same[:_EXAMPLES])
            raise DeepRecError(f"{name!r} is the title of {len(same)} items: give the id of one, as {ids}.")
        known = self._by_yearless | self._by_title
        meant = dict.fromkeys(self.titles[known[key][0]] for key in close_names(normalise_title(name), known))
        raise _no_item("title or id", name, meant or close_names(name, self.ids))

    def history(self, names: Sequence[str | int]) -> tuple[ItemIdx, ...]:
        """The items of a history given as titles, ids or positions; DeepRecError as `find`."""
        if isinstance(names, str):
            raise DeepRecError(f"A history is a list of titles or ids, not the text {names!r}: put it in a list.")
        if wrong := [name for name in names if not isinstance(name, str) and not 0 <= name < len(self)]:
            raise DeepRecError(f"There is no item at position {wrong[0]}: the catalogue has 0 to {len(self) - 1}.")
        return tuple(self.find(name) if isinstance(name, str) else ItemIdx(int(name)) for name in names)

    def known(self, ids: Iterable[str]) -> list[ItemIdx]:
        """The positions of the ids that the catalogue has."""
        return [self._positions[ItemId(item)] for item in ids if item in self._positions]

    def phrases(self, item: ItemIdx) -> tuple[str, ...]:
        """Short preferences that the item's own text supports: its categories, its decade, its brand.

        Categories of more than half of the catalogue are left out: the root of a shop's category path says
        nothing about an item. Decades always stay.
        """
        categories = [category for category in self.categories[item] if category not in self._common]
        phrases = (*categories, _decade(self.years[item]), self.brands[item])
        return tuple(dict.fromkeys(filter(None, phrases)))

    def text(self, item: ItemIdx) -> str:
        """One line for a text encoder: title, brand, categories, decade, start of the description."""
        description = _cut(self.descriptions[item], TEXT_DESCRIPTION_CHARS)
        parts = (self.titles[item], self.brands[item], ", ".join(self.categories[item]), _decade(self.years[item]))
        return ". ".join(filter(None, (*parts, description)))

    def texts(self) -> list[str]:
        """`text` of every item."""
        return [self.text(ItemIdx(item)) for item in range(len(self))]

    def title_report(self) -> TitleReport:
        """Empty titles, and titles that several items share, normalised."""
        empty = [title for title, item in zip(self.titles, self.ids, strict=True) if title == _untitled(item)]
        shared = [title for title in self.titles if len(self.namesakes(title)) > 1]
        return TitleReport(len(set(self.titles)), len(empty), _first(empty), len(shared), _first(shared))

    def samples(self, n: int) -> list[dict[str, Any]]:
        """Title, year and categories of `n` items from all over the catalogue, which show how the source was read."""
        items = dict.fromkeys(round(step * (len(self) - 1) / max(n - 1, 1)) for step in range(n) if len(self))
        return [
            {"title": self.titles[item], "year": self.years[item], "categories": list(self.categories[item])}
            for item in items
        ]

    def to_frame(self) -> pl.DataFrame:
        """One row an item, in order; can be saved as Parquet or JSON lines."""
        columns = (self.ids, self.titles, self.years, self.brands, list(map(list, self.categories)), self.descriptions)
        return pl.DataFrame(dict(zip(_SCHEMA, columns, strict=True)), schema=_SCHEMA)

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> Catalog:
        """The Catalog that `to_frame` wrote; DeepRecError if a column is missing."""
        if missing := [name for name in _SCHEMA if name not in frame.columns]:
            raise DeepRecError(f"A saved catalogue lacks the column {missing[0]!r}: save the run again.")
        columns = {name: frame[name].to_list() for name in _SCHEMA}
        columns["categories"] = list(map(tuple, columns["categories"]))
        return cls(*map(tuple, columns.values()))

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of all text."""
        return hashlib.sha256(self.to_frame().write_json().encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def long_title(self) -> int:
        """Bytes of a long title: longer than all but a twentieth; 0 without items."""
        lengths = sorted(len(title.encode()) for title in self.titles)
        return lengths[len(lengths) * 19 // 20] if lengths else 0

    @cached_property
    def _positions(self) -> dict[ItemId, ItemIdx]:
        return {item: ItemIdx(position) for position, item in enumerate(self.ids)}

    @cached_property
    def _by_title(self) -> dict[str, tuple[ItemIdx, ...]]:
        return _group(map(normalise_title, self.titles))

    @cached_property
    def _by_yearless(self) -> dict[str, tuple[ItemIdx, ...]]:
        return _group(map(normalise_title, map(without_year, self.titles, self.years)))

    @cached_property
    def _common(self) -> frozenset[str]:
        counts = Counter(category for row in self.categories for category in set(row))
        return frozenset(name for name, count in counts.items() if count > COMMON_SHARE * len(self))


_SCHEMA: dict[str, Any] = {
    "id": pl.String,
    "title": pl.String,
    "year": pl.Int32,
    "brand": pl.String,
    "categories": pl.List(pl.String),
    "description": pl.String,
}


def build_catalog(
    ids: Sequence[str],
    titles: Sequence[str],
    years: Sequence[int | None],
    brands: Sequence[str],
    categories: Sequence[Sequence[str]],
    descriptions: Sequence[str],
    title_chars: int,
) -> Catalog:
    """A Catalog from raw item text; all sequences are aligned.

    Text is neutralised. A title is cut to `title_chars` characters at a word and gets its ' (year)'. Categories that
    say nothing ('unknown', '(no genres listed)') are dropped, and descriptions cut to 1,000 characters.
    """
    return Catalog(
        ids=tuple(map(ItemId, ids)),
        titles=tuple(map(_display_title, ids, titles, years, repeat(title_chars))),
        years=tuple(years),
        brands=tuple(map(neutralise, brands)),
        categories=tuple(map(_clean_categories, categories)),
        descriptions=tuple(_cut(neutralise(text), DESCRIPTION_CHARS) for text in descriptions),
    )


def _decade(year: int | None) -> str:
    return "" if year is None else f"{year // 10 * 10}s"


def _display_title(item: str, title: str, year: int | None, title_chars: int) -> str:
    bare = _cut(without_year(neutralise(title), year), title_chars)
    if not bare:
        return _untitled(item)
    return bare if year is None else f"{bare} ({year})"


def _untitled(item: str) -> str:
    return neutralise(f"Untitled item {item}")


def without_year(title: str, year: int | None) -> str:
    """A title without the `(year)` at its end, unless nothing else would remain."""
    if year is None:
        return title
    return title.removesuffix(f"({year})").rstrip() or title


def _cut(text: str, chars: int) -> str:
    """At most `chars` characters, ending at a word unless that would lose half of them."""
    if len(text) <= chars:
        return text
    space = text.rfind(" ", 0, chars + 1)
    head = text[: space if space >= chars // 2 else chars]
    return neutralise(re.sub(r"[\s,;:(\[–—-]+$", "", head) or head)  # the cut may leave a joiner at the end


def _clean_categories(names: Iterable[str]) -> tuple[str, ...]:
    clean = dict.fromkeys(map(neutralise, names))
    return tuple(name for name in clean if name and name.casefold() not in NO_CATEGORIES)


def _no_item(what: str, name: str, meant: Collection[str]) -> DeepRecError:
    hint = f"did you mean {' or '.join(map(repr, meant))}?" if meant else f"use the {what} of an item."
    return DeepRecError(f"There is no item with the {what} {name!r} in the catalogue: {hint}")


def close_names(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of the known names that are spelt almost like this one; 0.02 s in 100,000 titles."""
    return [found for found, _, _ in process.extract(name, list(known), scorer=fuzz.ratio, limit=3, score_cutoff=60)]


def _group(keys: Iterable[str]) -> dict[str, tuple[ItemIdx, ...]]:
    groups: dict[str, list[ItemIdx]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(ItemIdx(position))
    return {key: tuple(positions) for key, positions in groups.items() if key}


def _first(titles: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(titles))[:_EXAMPLES]
