"""Interactions as sequences over a Catalog, and the leave-one-out tasks made from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from deeprec.config import Exclude
from deeprec.data.catalog import Catalog, ItemIdx, UserId
from deeprec.data.item_set import ItemSet
from deeprec.data.report import LoadReport
from deeprec.errors import DeepRecError

Split = Literal["validation", "test"]

_FROM_END: dict[Split, int] = {"test": 1, "validation": 2}
_EARLIEST_DATE = 1e8  # smaller times are counters, not seconds since 1970


@dataclass(frozen=True, slots=True)
class Task:
    """A user at a moment: recommend what comes next. The target is not in it; `Dataset.targets` has it, by `id`.

    With `exclude_history`, what comes next is an item that the history lacks. `include` has the only items that may be
    recommended; None for all.
    """

    id: str
    user: UserId
    history: tuple[ItemIdx, ...]
    exclude_history: bool = True
    include: ItemSet | None = None

    @classmethod
    def new(cls, history: Sequence[ItemIdx], exclude_history: bool = True, include: ItemSet | None = None) -> Task:
        """Of a user who is not in the data."""
        return cls("new:you", UserId("you"), tuple(history), exclude_history, include)

    @property
    def excluded(self) -> frozenset[ItemIdx]:
        """Items that may not be recommended."""
        return frozenset(self.history if self.exclude_history else ())


@dataclass(frozen=True, eq=False, slots=True)
class Sequences:
    """Item sequences end to end: number u is `items_N[starts_U1[u]:starts_U1[u + 1]]` (int32, int64)."""

    items_N: npt.NDArray[np.int32]
    starts_U1: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts_U1) - 1

    def __getitem__(self, u: int) -> npt.NDArray[np.int32]:
        if not 0 <= u < len(self):
            raise IndexError(u)
        return self.items_N[self.starts_U1[u] : self.starts_U1[u + 1]]

    def __iter__(self) -> Iterator[npt.NDArray[np.int32]]:
        return (self[u] for u in range(len(self)))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Interactions of U users with the items of a Catalog, each user's in order.

    Attributes:
        items_N: ItemIdx of all interactions, user after user (int32).
        starts_U1: where each user's interactions begin, and N (int64).
        times_N: seconds since 1970 or the source's own counter, equal ones in its order; None if it has positions only.
        cuts: times at which training ends, and validation, for all users; None if each user's last two are left out.
        exclude_history: whether a user's history is not recommended; not so where targets repeat items of it.
        parts_U2: where validation and test begin in each user's sequence (int64), if the source came split.
    """

    name: str
    catalog: Catalog
    users: tuple[UserId, ...]
    items_N: npt.NDArray[np.int32]
    starts_U1: npt.NDArray[np.int64]
    times_N: npt.NDArray[np.float64] | None
    report: LoadReport
    cuts: tuple[float, float] | None = None
    exclude_history: bool = True
    parts_U2: npt.NDArray[np.int64] | None = None

    def sequence(self, u: int) -> npt.NDArray[np.int32]:
        """All items of user number `u` in order (int32, a view)."""
        return Sequences(self.items_N, self.starts_U1)[u]

    def train_sequences(self) -> Sequences:
        """What may be trained on: each user's items without the last two, or all items of users with fewer than three.

        With `cuts` or `parts_U2`, everything before the validation begins, which may be nothing of a user.
        """
        lengths_U = np.diff(self.starts_U1)
        begins = self._begins()
        kept_U = np.where(lengths_U >= 3, lengths_U - 2, lengths_U) if begins is None else begins[0]
        position_N = np.arange(len(self.items_N)) - np.repeat(self.starts_U1[:-1], lengths_U)
        return Sequences(self.items_N[position_N < np.repeat(kept_U, lengths_U)], starts_of(kept_U))

    def tasks(self, split: Split, exclude: Exclude | None = None) -> list[Task]:
        """Leave one out: the history is everything before the target.

        The target of 'test' is a user's last item, of 'validation' the second last, for users with at least three
        interactions. With `cuts`, it is a user's first item after the second cut, or between the two, for users who
        have one and something before it; with `parts_U2`, likewise the first of the part. Ids are '{split}:{user}'.
        `exclude` says whether the history may be recommended; default: as the data do.
        """
        # One list of Python ints for all histories: their slices share the objects.
        items = self.items_N.tolist()
        starts = self.starts_U1.tolist()
        excludes = excludes_history(exclude, self.exclude_history)
        return [
            Task(f"{split}:{self.users[u]}", self.users[u], tuple(items[starts[u] : position]), excludes)
            for u, position in self._left_out(split)
        ]

    def targets(self, split: Split) -> dict[str, ItemIdx]:
        """The item that each task of `tasks(split)` leaves out, by task id."""
        left_out = self._left_out(split)
        return {f"{split}:{self.users[u]}": ItemIdx(int(self.items_N[position])) for u, position in left_out}

    def repeated_targets(self, split: Split) -> tuple[str, ...]:
        """Ids of the tasks whose target is an item of their history."""
        left_out, lengths_U = self._left_out(split), np.diff(self.starts_U1)
        target_U, end_U = np.full_like(lengths_U, -1), np.zeros_like(lengths_U)
        for u, position in left_out:
            target_U[u], end_U[u] = self.items_N[position], position
        before_N = np.arange(len(self.items_N)) < np.repeat(end_U, lengths_U)
        same_N = before_N & (self.items_N == np.repeat(target_U, lengths_U))
        repeated_U = np.diff(starts_of(same_N)[self.starts_U1]) > 0
        return tuple(f"{split}:{self.users[u]}" for u, _ in left_out if repeated_U[u])

    def past_tasks(self, per_user: int) -> tuple[list[Task], dict[str, tuple[ItemIdx, ...]]]:
        """Tasks whose targets may be learned from: the last `per_user` items of each user's training sequence.

        A history has at least one item. Ids are 'train:{length of the history}:{user}'. Beside the tasks, by id, what
        followed in the training sequence: the target and the items after it.
        """
        tasks, followed = [], {}
        for user, sequence in zip(self.users, self.train_sequences(), strict=True):
            items = tuple(map(ItemIdx, sequence.tolist()))
            for length in range(max(1, len(items) - per_user), len(items)):
                tasks.append(Task(f"train:{length}:{user}", user, items[:length], self.exclude_history))
                followed[tasks[-1].id] = items[length:]
        return tasks, followed

    def divide(self, shares: Mapping[str, float], seed: int) -> tuple[dict[str, Dataset], Dataset]:
        """Disjoint parts of the users by name, and the rest of the users, all over the same catalogue.

        The seed and a user's id alone decide the user's part: other users and the order of rows change nothing.
        Shares are expected, not exact. DeepRecError if one is negative or they sum to more than 1.
        """
        if not (all(share >= 0 for share in shares.values()) and sum(shares.values()) <= 1 + 1e-9):
            raise DeepRecError(f"The shares of users, {dict(shares)}, are negative or sum to more than 1: mend them.")
        bounds = np.cumsum(list(shares.values()))
        parts_U = np.searchsorted(bounds, [_draw(seed, user) for user in self.users], side="right")
        parts = {name: self._only(parts_U == part) for part, name in enumerate(shares)}
        return parts, self._only(parts_U == len(shares))

    def _only(self, kept_U: npt.NDArray[np.bool_]) -> Dataset:
        lengths_U = np.diff(self.starts_U1)
        kept_N = np.repeat(kept_U, lengths_U)
        return replace(
            self,
            users=tuple(user for user, kept in zip(self.users, kept_U, strict=True) if kept),
            items_N=self.items_N[kept_N],
            starts_U1=starts_of(lengths_U[kept_U]),
            times_N=None if self.times_N is None else self.times_N[kept_N],
            parts_U2=None if self.parts_U2 is None else self.parts_U2[kept_U],
        )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the ids of users and items, all sequences, and their split, without titles and times."""
        digest = hashlib.sha256()
        for part in (self.users, self.catalog.ids):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update("\n".join(part).encode("utf-8", "surrogatepass"))
        digest.update(self.starts_U1.astype("<i8").tobytes())
        digest.update(self.items_N.astype("<i4").tobytes())
        if self.cuts is not None:
            digest.update(np.array(self.cuts, dtype="<f8").tobytes())
        if self.parts_U2 is not None:
            digest.update(self.parts_U2.astype("<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def text_digest(self) -> str:
        """sha256 (hex) of the catalogue: ids, titles, years, brands, categories, descriptions."""
        return self.catalog.digest

    def describe(self) -> dict[str, Any]:
        """Statistics of the set, ready for JSON.

        `interactions_per_user` and `interactions_per_item` are {min, median, max}; shares and density are in 0..1.
        `first_date` and `last_date` are None without real times. `tied_times`, the share of interactions at the same
        time as another of their user, is None without times. `samples` are titles, years and categories of three items.
        """
        catalog, titles = self.catalog, self.catalog.title_report()
        users, items, interactions = len(self.users), len(catalog), len(self.items_N)
        first_date, last_date = self._dates()
        texts = {"brand": catalog.brands, "categories": catalog.categories, "description": catalog.descriptions}
        return {
            "name": self.name,
            "users": users,
            "items": items,
            "interactions": interactions,
            "density": interactions / (users * items),
            "interactions_per_user": _spread(np.diff(self.starts_U1)),
            "interactions_per_item": _spread(np.bincount(self.items_N, minlength=items)),
            "first_date": first_date,
            "last_date": last_date,
            "tied_times": self._tied_share(),
            "with_year": sum(year is not None for year in catalog.years) / items,
            **{f"with_{what}": sum(map(bool, column)) / items for what, column in texts.items()},
            "distinct_titles": titles.distinct,
            "ambiguous_titles": titles.ambiguous,
            "empty_titles": titles.empty,
            "bad_rows": self.report.bad_count,
            "repeats": self.report.repeats,
            "repeated_targets": {split: len(self.repeated_targets(split)) for split in get_args(Split)},
            "samples": catalog.samples(3),
            "fingerprint": self.fingerprint,
        }

    def _left_out(self, split: Split) -> list[tuple[int, int]]:
        """Users, and the position in `items_N` of the item that the split leaves out of each."""
        begins = self._begins()
        if begins is None:
            users_T = np.flatnonzero(np.diff(self.starts_U1) >= 3)
            positions_T = self.starts_U1[users_T + 1] - _FROM_END[split]
        else:
            ends = (*begins, np.diff(self.starts_U1))
            begin_U, end_U = ends[:2] if split == "validation" else ends[1:]
            users_T = np.flatnonzero((begin_U < end_U) & (begin_U > 0))
            positions_T = self.starts_U1[users_T] + begin_U[users_T]
        return list(zip(users_T.tolist(), positions_T.tolist(), strict=True))

    def _begins(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
        """Where validation and test begin in each user's sequence (U,); None if the last two items are left out."""
        if self.parts_U2 is not None:
            return self.parts_U2[:, 0], self.parts_U2[:, 1]
        return None if self.cuts is None else (self._before(self.cuts[0]), self._before(self.cuts[1]))

    def _before(self, time: float) -> npt.NDArray[np.int64]:
        """How many interactions of each user (U,) are before a time."""
        assert self.times_N is not None, "cuts are of times"
        return np.diff(starts_of(self.times_N < time)[self.starts_U1])

    def _dates(self) -> tuple[str | None, str | None]:
        if self.times_N is None or not _EARLIEST_DATE <= self.times_N.min() <= self.times_N.max() < 2e11:
            return None, None
        first, last = (datetime.fromtimestamp(float(time), UTC) for time in (self.times_N.min(), self.times_N.max()))
        return first.date().isoformat(), last.date().isoformat()

    def _tied_share(self) -> float | None:
        if self.times_N is None:
            return None
        same = self.times_N[1:] == self.times_N[:-1]
        same[self.starts_U1[1:-1] - 1] = False  # between two users
        return float((np.append(same, False) | np.append(False, same)).mean())


def excludes_history(asked: Exclude | None, default: bool) -> bool:
    """Whether a history is not recommended: as asked, else by default, as a data set or a retriever has it."""
    return default if asked is None else asked == "history"


def starts_of(lengths: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Where parts of these lengths begin when laid end to end, and the end of the last."""
    return np.append(0, np.cumsum(lengths)).astype(np.int64)


def k_core(frame: pl.DataFrame, user_core: int, item_core: int) -> pl.DataFrame:
    """The largest part of `frame` (columns user and item, one row an interaction) in which every user has at
    least `user_core` rows and every item at least `item_core`; the order of rows is kept."""
    while True:
        height = frame.height
        frame = frame.filter(pl.len().over("item") >= item_core)
        frame = frame.filter(pl.len().over("user") >= user_core)
        if frame.height == height:
            return frame


def _draw(seed: int, user: str) -> float:
    """A number in [0, 1) that depends on the seed and the user's id alone."""
    digest = hashlib.blake2b(f"{seed}:{user}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def _spread(counts: npt.NDArray[np.int64]) -> dict[str, float]:
    return {"min": int(counts.min()), "median": float(np.median(counts)), "max": int(counts.max())}
