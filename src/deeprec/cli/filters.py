"""Options that restrict what may be recommended."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deeprec.errors import DeepRecError

if TYPE_CHECKING:
    from deeprec.data.catalog import Catalog
    from deeprec.data.filters import ItemFilter
    from deeprec.data.item_set import ItemSet

_YEARS = re.compile(r"(\d{1,4})?\s*(-)?\s*(\d{1,4})?")
_LAST_YEAR = 9999


@dataclass
class FilterOptions:
    """What the options say that restrict a command to some items."""

    category: Annotated[
        list[str] | None, typer.Option("--category", help="Only items of this category, or of one of several.")
    ] = None
    brand: Annotated[
        list[str] | None, typer.Option("--brand", help="Only items of this brand, or of one of several.")
    ] = None
    years: Annotated[str | None, typer.Option("--years", help="Only items of these years: 1990-1999, or 1994.")] = None
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only these items: an id, or a file with one id a line.")
    ] = None
    available: Annotated[
        Path | None, typer.Option("--available", help="File of the ids that are available, one a line; no others.")
    ] = None

    def allowed(self, catalog: Catalog) -> ItemSet | None:
        """The items that pass; None without any of the options. DeepRecError where `ItemFilter` or a file has one."""
        from deeprec.data.filters import allowed_items

        return allowed_items(catalog, self.wanted(catalog))

    def wanted(self, catalog: Catalog) -> ItemFilter:
        """What the options say; DeepRecError as in `allowed`."""
        from deeprec.data.filters import ItemFilter, read_ids

        return ItemFilter(
            categories=self.category or (),
            brands=self.brand or (),
            years=_read_years(self.years) if self.years else None,
            ids=[name for value in self.only for name in _names(catalog, value)] if self.only else None,
            available=read_ids(self.available) if self.available else None,
        )


def _read_years(text: str) -> tuple[int, int]:
    match = _YEARS.fullmatch(text.strip())
    if match is None or not (match[1] or match[3]):
        raise DeepRecError(f"--years {text} can't be read: give years as in 1990-1999, 1994, 1990- or -1999.")
    first = int(match[1] or 0)
    return first, int(match[3] or (_LAST_YEAR if match[2] else first))


def _names(catalog: Catalog, value: str) -> list[str]:
    """The item itself if there is one of this id or title, else what the file of this name holds."""
    from deeprec.data.filters import read_ids

    try:
        catalog.find(value, id_first=True)
    except DeepRecError as error:
        if Path(value).is_file():
            return read_ids(value)
        raise DeepRecError(f"{error} Nor is there a file of this name.") from None
    return [value]
