"""A small catalogue, a small data set, and a recording retriever, for the tests of all rooms."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from deeprec.data.catalog import Catalog, ItemIdx, UserId, build_catalog
from deeprec.data.dataset import Dataset
from deeprec.data.report import LoadReport
from deeprec.retrieval.retriever import Hit, Query, Retriever

GENRES = ("Comedy", "Drama", "Horror", "Sci-Fi", "War")


def catalog_of(
    categories: Sequence[Sequence[str]],
    *,
    years: Sequence[int | None] | None = None,
    brands: Sequence[str] | None = None,
    first: int = 0,
) -> Catalog:
    """Items `Film 0`, `Film 1`, ... with ids `i0`, `i1`, ..., counted from `first`; one for each of `categories`."""
    n = len(categories)
    return build_catalog(
        ids=[f"i{first + i}" for i in range(n)],
        titles=[f"Film {first + i}" for i in range(n)],
        years=years or [None] * n,
        brands=brands or [""] * n,
        categories=categories,
        descriptions=[""] * n,
        title_chars=80,
    )


def toy_dataset(n_users: int = 60, n_items: int = 40, length: int = 12, seed: int = 0) -> Dataset:
    """Users of `length` interactions who mostly stay in one genre; items are `Film 0 (1970)`, `Film 1 (1971)`, ...

    Item i is of genre i mod 5; items without a repeat in any sequence, no times.
    """
    rng = np.random.default_rng(seed)
    catalog = catalog_of([(GENRES[i % len(GENRES)],) for i in range(n_items)], years=[1970 + i for i in range(n_items)])
    sequences = []
    for _ in range(n_users):
        weights_I = np.where(np.arange(n_items) % len(GENRES) == rng.integers(len(GENRES)), 10.0, 1.0)
        sequences.append(rng.choice(n_items, length, replace=False, p=weights_I / weights_I.sum()))
    return Dataset(
        name="toy",
        catalog=catalog,
        users=tuple(UserId(f"u{u}") for u in range(n_users)),
        items_N=np.concatenate(sequences).astype(np.int32),
        starts_U1=np.arange(0, n_users * length + 1, length, dtype=np.int64),
        times_N=None,
        report=LoadReport({}, (), 0, "first", 0, 0, 0, ()),
    )


class RecordingRetriever(Retriever):
    """Returns the lowest items that are allowed, and records every query and answer.

    Attributes:
        never: items that are never returned.
        batches: the queries of each call of `retrieve`.
        answers: the hits of each query, in the order of the queries.
    """

    def __init__(self, n_items: int, never: Collection[int] = ()) -> None:
        self.n_items = n_items
        self.never = frozenset(never)
        self.batches: list[list[Query]] = []
        self.answers: list[list[Hit]] = []

    @property
    def queries(self) -> list[Query]:
        return [query for batch in self.batches for query in batch]

    def retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        self.batches.append(list(queries))
        hits = []
        for query in queries:
            excluded = self.never.union(query.exclude)
            included = range(self.n_items) if query.include is None else query.include
            allowed = [ItemIdx(i) for i in range(self.n_items) if i in included and i not in excluded]
            hits.append([Hit(item, 1 / (1 + item)) for item in allowed[:k]])
        self.answers += hits
        return hits
