"""Filters: which items may be recommended, by category, brand, year, id or what is available."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from weakref import WeakKeyDictionary, proxy

import numpy as np
from numpy.typing import NDArray

from deeprec.data.catalog import Catalog, ItemId, close_names, normalise_title
from deeprec.data.item_set import ItemSet
from deeprec.errors import DeepRecError, one_line

_KEPT = 16  # filters whose items a catalogue remembers, so that equal ones share a set
_EXAMPLES = 3
_NO_YEAR = np.iinfo(np.int64).min


@dataclass(frozen=True)
class ItemFilter:
    """Which items may be recommended: those that pass every part that is given.

    Names of categories and brands are compared as titles are: without case, Unicode form or outer punctuation.

    Attributes:
        categories: an item needs one of them.
        brands: an item needs one of them.
        years: the first and the last year, both included. An item without a year does not pass.
        ids: the only items that pass, by id or, where no item has this id, by title.
        available: ids of what may be recommended now, as a shop's stock. Those that the catalogue lacks are ignored.
    """

    categories: Sequence[str] = ()
    brands: Sequence[str] = ()
    years: tuple[int, int] | None = None
    ids: Collection[str] | None = None
    available: Collection[str] | None = None

    def __post_init__(self) -> None:
        for name in ("categories", "brands", "ids", "available"):
            kept = value = getattr(self, name)
            if value is not None:
                # A frozenset stays what it is: it remembers its hash, which takes long for a large stock.
                kept = value if isinstance(value, frozenset) else (value,) if isinstance(value, str) else tuple(value)
                object.__setattr__(self, name, kept)
            if any(not isinstance(part, str) for part in kept or ()):
                raise DeepRecError(f"The {name} of a filter are texts, as '28', not other values: write them so.")
        if self.years is not None:
            if len(self.years) != 2 or not all(isinstance(year, int | np.integer) for year in self.years):
                raise DeepRecError(f"The years of a filter are the first and the last, as (1980, 1989): {self.years}.")
            first, last = map(int, self.years)
            object.__setattr__(self, "years", (first, last))
            if first > last:
                raise DeepRecError(f"The years {first} to {last} run backwards: give the first year first.")

    def __bool__(self) -> bool:
        """Whether it leaves anything out."""
        return self != _EVERYTHING

    def __str__(self) -> str:
        parts = [*(f"category {name!r}" for name in self.categories), *(f"brand {name!r}" for name in self.brands)]
        if self.years is not None:
            parts.append(f"years {self.years[0]} to {self.years[1]}")
        parts += [
            f"{len(ids)} {what}"
            for ids, what in ((self.ids, "ids"), (self.available, "available ids"))
            if ids is not None
        ]
        return ", ".join(parts) or "nothing"


_EVERYTHING = ItemFilter()


def allowed_items(catalog: Catalog, wanted: ItemFilter | None) -> ItemSet | None:
    """The items of a catalogue that pass a filter; None without one, or with one that leaves nothing out.

    Recent equal filters give the same set. DeepRecError if no item passes, or the filter names a category, brand or
    item that is not there; the message suggests others.
    """
    return attributes_of(catalog).allowed(wanted) if wanted else None


def attributes_of(catalog: Catalog) -> Attributes:
    """Of a catalogue; made once, and kept as long as the catalogue."""
    return _ATTRIBUTES.get(catalog) or _ATTRIBUTES.setdefault(catalog, Attributes(catalog))


class Attributes:
    """The items of a catalogue by category, brand and year. Made once; then a filter takes milliseconds."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog: Catalog = proxy(catalog)  # or neither would ever be freed
        self.allowed = lru_cache(_KEPT)(self._allowed)
        """The items that pass a filter; see `allowed_items`."""
        self._years_I = np.array([_NO_YEAR if year is None else year for year in catalog.years], dtype=np.int64)

    @cached_property
    def categories(self) -> Groups:
        return Groups(self._catalog.categories, "category", "categories")

    @cached_property
    def brands(self) -> Groups:
        return Groups([(brand,) if brand else () for brand in self._catalog.brands], "brand", "brands")

    @cached_property
    def years(self) -> tuple[int, int] | None:
        """The first and the last year of all items; None if none has one."""
        known = self._years_I[self._years_I != _NO_YEAR]
        return (int(known.min()), int(known.max())) if known.size else None

    def _allowed(self, wanted: ItemFilter) -> ItemSet:
        allowed_I = np.ones(len(self._catalog), dtype=np.bool_)
        if wanted.categories:
            allowed_I &= self.categories.mask(wanted.categories)
        if wanted.brands:
            allowed_I &= self.brands.mask(wanted.brands)
        if wanted.years is not None:
            allowed_I &= self._in_years(*wanted.years)
        if wanted.ids is not None:
            allowed_I &= self._mask([self._catalog.find(name, id_first=True) for name in wanted.ids])
        if wanted.available is not None:
            allowed_I &= self._mask(self._catalog.known(wanted.available))
        if not allowed_I.any() and wanted == ItemFilter(available=wanted.available):
            raise DeepRecError("Nothing is available now: none of the available ids is an item's.")
        if not allowed_I.any():
            raise DeepRecError(f"No item passes the filter ({wanted}): leave a part of it out.")
        return ItemSet(np.flatnonzero(allowed_I))

    def _in_years(self, first: int, last: int) -> NDArray[np.bool_]:
        passed_I: NDArray[np.bool_] = (self._years_I >= first) & (self._years_I <= last)
        if not passed_I.any():
            has = "no item has a year" if self.years is None else "years go from {} to {}".format(*self.years)
            raise DeepRecError(f"No item is of the years {first} to {last}: in this catalogue {has}.")
        return passed_I

    def _mask(self, items: Sequence[int]) -> NDArray[np.bool_]:
        mask_I = np.zeros(len(self._catalog), dtype=np.bool_)
        mask_I[np.array(items, dtype=np.int64)] = True
        return mask_I


_ATTRIBUTES: WeakKeyDictionary[Catalog, Attributes] = WeakKeyDictionary()


class Groups:
    """The items (I) that bear each name of one kind; names that are equal when normalised are one.

    Attributes:
        names: as first spelt, the most frequent first.
    """

    def __init__(self, names_of: Sequence[Sequence[str]], what: str, plural: str) -> None:
        self._what, self._plural, self._n_items = what, plural, len(names_of)
        spelt: dict[str, str] = {}  # by normalised name
        keys = {name: normalise_title(name) for name in dict.fromkeys(chain.from_iterable(names_of))}
        for name, key in keys.items():
            spelt.setdefault(key, name)
        self._numbers = {key: number for number, key in enumerate(spelt)}
        number_of = {name: self._numbers[key] for name, key in keys.items()}
        groups_N = np.array([number_of[name] for names in names_of for name in names], dtype=np.int64)
        items_N = np.repeat(np.arange(len(names_of)), [len(names) for names in names_of])
        counts_G = np.bincount(groups_N, minlength=len(spelt))
        self._items_N = items_N[np.argsort(groups_N, kind="stable")]
        self._starts_G1 = np.concatenate([[0], np.cumsum(counts_G)])
        spellings = list(spelt.values())
        self.names = tuple(spellings[number] for number in np.argsort(-counts_G, kind="stable").tolist())

    def mask(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """Which items (I) bear at least one of the names; DeepRecError if no item bears one of them."""
        mask_I = np.zeros(self._n_items, dtype=np.bool_)
        for name in names:
            number = self._numbers.get(normalise_title(name))
            if number is None:
                raise DeepRecError(f"No item has the {self._what} {name!r}: {self._hint(name)}")
            mask_I[self._items_N[self._starts_G1[number] : self._starts_G1[number + 1]]] = True
        return mask_I

    def _hint(self, name: str) -> str:
        if not self.names:
            return f"this catalogue has no {self._plural}."
        if near := close_names(normalise_title(name), self._numbers):
            spelling = {normalise_title(known): known for known in self.names}
            return f"did you mean {' or '.join(repr(spelling[key]) for key in near)}?"
        return f"{self._plural} are for instance {', '.join(map(repr, self.names[:_EXAMPLES]))}."


def read_ids(path: Path | str) -> list[str]:
    """The ids of a text file (UTF-8) with one id a line, as for `ItemFilter.available`.

    Outer white space does not count, and empty lines are skipped. DeepRecError if the file can't be read or is empty.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DeepRecError(f"{path} can't be read ({one_line(error)}): give a text file with one id a line.") from None
    if not (ids := [ItemId(line.strip()) for line in lines if line.strip()]):
        raise DeepRecError(f"{path} names no item: write one id a line into it.")
    return list(ids)
