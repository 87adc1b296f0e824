"""The items: ids, display titles, text, and the one way from a title back to an item."""

from __future__ import annotations

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
_QUOTES = "\"'`´“”„‟‘’‚‛«»‹› "
_TRAILING = _QUOTES + ".,;:!?…"
_EXAMPLES = 5


def neutralise(text: str) -> str:
    """Item text made safe for a prompt.

    Control characters and line breaks become spaces. Format characters (bidi marks, zero-width characters) and lone
    surrogates go. Angle brackets become '‹' and '›', so that no protocol tag and no special token survives.
    Whitespace is collapsed. Idempotent.
    """
    if not text.isprintable():
        text = "".join(_BLANKED.get(unicodedata.category(char), char) for char in text)
    return " ".join(text.translate(_BRACKETS).split())


def normalise_title(text: str) -> str:
    """The form in which titles are compared. Idempotent.

    Neutralised, NFKC and case folded (Unicode's NFKC_Casefold), whitespace collapsed; surrounding quotes and
    trailing punctuation stripped, unless nothing else remains.
    """
    folded = unicodedata.normalize("NFD", neutralise(text)).casefold()
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
            raise _no_item("id", item, _close(item, self.ids))
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

    def find(self, name: str, *, id_first: bool = False) -> ItemIdx:
        """The item that a person names, by its title or its id; where they are two items', `id_first` decides.

        DeepRecError if it is neither, or the title of several items; the message suggests others.
        """
        found = [self.resolve(name).item, self._positions.get(ItemId(name))]
        for item in reversed(found) if id_first else found:
            if item is not None:
                return item
        same = self.namesakes(name) or self._by_yearless.get(normalise_title(name), ())
        if same:
            ids = ", ".join(self.ids[item] for item in same[:_EXAMPLES])
            raise DeepRecError(f"{name!r} is the title of {len(same)} items: give the id of one, as {ids}.")
        known = self._by_yearless | self._by_title
        meant = dict.fromkeys(self.titles[known[key][0]] for key in _close(normalise_title(name), known))
        raise _no_item("title or id", name, meant)

    def history(self, names: Sequence[str | int]) -> tuple[ItemIdx, ...]:
        """The items of a history given as titles, ids or positions; DeepRecError as `find`."""
        if isinstance(names, str):
            raise DeepRecError(f"A history is a list of titles or ids, not the text {names!r}: put it in a list.")
        if wrong := [name for name in names if not isinstance(name, str) and not 0 <= name < len(self)]:
            raise DeepRecError(f"There is no item at position {wrong[0]}: the catalogue has 0 to {len(self) - 1}.")
        return tuple(self.find(name) if isinstance(name, str) else ItemIdx(int(name)) for name in names)

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
    return re.sub(r"[\s,;:(\[–—-]+$", "", head) or head


def _clean_categories(names: Iterable[str]) -> tuple[str, ...]:
    clean = dict.fromkeys(map(neutralise, names))
    return tuple(name for name in clean if name and name.casefold() not in NO_CATEGORIES)


def _no_item(what: str, name: str, meant: Collection[str]) -> DeepRecError:
    hint = f"did you mean {' or '.join(map(repr, meant))}?" if meant else f"use the {what} of an item."
    return DeepRecError(f"There is no item with the {what} {name!r} in the catalogue: {hint}")


def _close(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of the known names that are spelt almost like this one; 0.02 s in 100,000 titles."""
    return [found for found, _, _ in process.extract(name, list(known), scorer=fuzz.ratio, limit=3, score_cutoff=60)]


def _group(keys: Iterable[str]) -> dict[str, tuple[ItemIdx, ...]]:
    groups: dict[str, list[ItemIdx]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(ItemIdx(position))
    return {key: tuple(positions) for key, positions in groups.items() if key}


def _first(titles: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(titles))[:_EXAMPLES]
