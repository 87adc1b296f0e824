"""The interface of retrievers, which answer queries with ranked items, and helpers to rank scores."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deeprec.config import DEFAULT_PREFERENCE_WEIGHT
from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.data.dataset import Task
from deeprec.data.item_set import ItemSet
from deeprec.errors import DeepRecError


@dataclass(frozen=True, slots=True)
class Query:
    """What a retriever is asked.

    Attributes:
        history: the user's items, oldest first; may be empty, and of a user never seen before.
        preference: what to look for, in words: phrases separated by `;`. Empty for none.
        exclude: items that must not be returned (usually the history and what was shown already).
        preference_weight: how far the preference moves the ranking, from 0 (not at all) to 1 (as in training).
        include: the only items that may be returned, but for those of `exclude`; None for all. `allowed_items`
            makes it from a filter. An `ItemSet` is quickest.
        requested: whether a person or an agent asks outright for what the preference says, so that what it names leads;
            otherwise it is a guess of what a user might like.
    """

    history: tuple[ItemIdx, ...]
    preference: str = ""
    exclude: Collection[ItemIdx] = frozenset()
    preference_weight: float = DEFAULT_PREFERENCE_WEIGHT
    include: Collection[ItemIdx] | None = None
    requested: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.preference_weight <= 1:
            raise DeepRecError(f"A preference weight is between 0 and 1, not {self.preference_weight}.")


def queries_of(
    tasks: Sequence[Task], preferences: Iterable[str] | None = None, weight: float = DEFAULT_PREFERENCE_WEIGHT
) -> list[Query]:
    """A query for each task, with its filter and what it excludes, and with its preference where there are any."""
    pairs = zip(tasks, [""] * len(tasks) if preferences is None else preferences, strict=True)
    return [Query(task.history, text, task.excluded, weight, task.include) for task, text in pairs]


def phrases_of(preference: str) -> list[str]:
    """The phrases of a preference, which `;` (also a full-width or an Arabic one) or a new line separates."""
    return [phrase for part in re.split(r"[;；؛\n]", preference) if (phrase := part.strip())]


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved item. Scores are the retriever's own, and comparable within one query only."""

    item: ItemIdx
    score: float


class Retriever(Protocol):
    """Anything that retrieves items. Subclass it, and inherit its tests, `deeprec.testing.RetrieverContract`.

    Attributes:
        catalog: the items that are retrieved; None where an explorer must be given them.
        preference_weight: calibrated weight (0..1) for a language model's preferences; None without a calibration.
        exclude_history: whether a new user's history is not recommended, where nothing else is said.
        digest: of what decides its rankings beside the catalogue's text; None where that is unknown.
    """

    catalog: Catalog | None = None
    preference_weight: float | None = None
    exclude_history: bool = True
    digest: str | None = None

    @abstractmethod
    def retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        """For each query at most `k` hits, best first, none excluded, all included and none twice.

        Fewer than `k` come back only where there are no more. An answer does not depend on the other queries.
        """
        ...


def top_hits(scores_BI: NDArray[np.floating], queries: Sequence[Query], k: int) -> list[list[Hit]]:
    """The `k` best items of each query that may come back, equal scores by lower index. Overwrites scores."""
    forbid(scores_BI, queries)
    rows_N, items_N = shortlist(scores_BI, k)
    return rank(len(queries), rows_N, items_N, scores_BI[rows_N, items_N], k)


def forbid(scores_BI: NDArray[np.floating], queries: Sequence[Query]) -> None:
    """Set the scores of the items that must not come back to minus infinity."""
    n_items = scores_BI.shape[1]
    for include, rows in rows_by_set([query.include for query in queries]):
        if include is not None:
            left_out_I = np.ones(n_items, dtype=np.bool_)
            left_out_I[include.within(n_items).items_N] = False
            scores_BI[np.ix_(np.array(rows), left_out_I)] = -np.inf
    scores_BI[flatten([query.exclude for query in queries])] = -np.inf


def rows_by_set(include: Sequence[Collection[int] | None]) -> list[tuple[ItemSet | None, list[int]]]:
    """Each of the collections once as a set, with the rows that share it; None with the rows that have none."""
    rows: dict[int, list[int]] = {}  # by identity, since a comparison of large sets takes long
    for row, collection in enumerate(include):
        rows.setdefault(id(collection), []).append(row)
    sets = ((include[same[0]], same) for same in rows.values())
    return [(None if collection is None else ItemSet.of(collection), same) for collection, same in sets]


def shortlist(
    scores_BI: NDArray[np.floating], k: int, margin_B: NDArray[np.floating] | float = 0.0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and items (N,), ascending, of all scores that are at most a margin below the k-th best of their row."""
    B, I = scores_BI.shape  # noqa: E741
    count = min(k, I)
    if not count * B:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    # The k-th best of the groups' maxima is a lower bound of the k-th best score, and close to it with many groups.
    groups = 8 * count
    depth = max(I // groups, 1)
    peaks_BG = scores_BI[:, : depth * groups].reshape(B, depth, -1).max(axis=1)
    least_B = np.partition(peaks_BG, -count, axis=1)[:, -count] - margin_B
    # Excluded items score -inf, so they stay below even if fewer than k others are left.
    least_B = np.maximum(least_B, np.finfo(scores_BI.dtype).min).astype(scores_BI.dtype)
    # Several times as fast as np.nonzero of the matrix.
    return np.divmod(np.flatnonzero(scores_BI >= least_B[:, None]), I)


def rank(
    n_rows: int, rows_N: NDArray[np.int64], items_N: NDArray[np.int64], scores_N: NDArray[np.floating], k: int
) -> list[list[Hit]]:
    """The `k` best hits of every row, from pairs of row and item in ascending order."""
    order_N = np.lexsort((-scores_N, rows_N))  # stable: ties keep the order of the items
    starts = np.searchsorted(rows_N, np.arange(n_rows + 1))
    order_N = order_N[np.arange(len(order_N)) - starts[rows_N] < k]
    hits = list(map(Hit, items_N[order_N].tolist(), scores_N[order_N].tolist()))
    ends = np.minimum(np.diff(starts), k).cumsum().tolist()
    return [hits[start:end] for start, end in pairwise([0, *ends])]


def flatten(collections: Sequence[Collection[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and items (N,) of all that the collections hold."""
    sizes = [len(collection) for collection in collections]
    items_N = np.fromiter(chain.from_iterable(collections), dtype=np.int64, count=sum(sizes))
    return np.repeat(np.arange(len(sizes)), sizes), items_N
