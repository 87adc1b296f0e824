"""What a server answers from: the data, the TRM, and a worker for each policy. This file knows no transport."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz, process, utils

from deeprec.config import Exclude, ExploreConfig
from deeprec.data.catalog import Catalog, ItemId, ItemIdx
from deeprec.data.dataset import Dataset, Task, excludes_history
from deeprec.data.filters import ItemFilter, allowed_items, attributes_of
from deeprec.data.item_set import ItemSet
from deeprec.errors import DeepRecError
from deeprec.explore.settings import first_weight
from deeprec.explore.trace import Origin, Trace
from deeprec.retrieval.retriever import Hit, Query, Retriever
from deeprec.serving import schemas
from deeprec.serving.available import AvailableFile
from deeprec.serving.batcher import Batcher
from deeprec.serving.worker import CLOSING, FAILED, TIMED_OUT, Worker

_LOG = logging.getLogger("deeprec.serving")
TRM_ALONE = "trm-alone"  # the policy that asks the TRM once, without a preference
_MIN_SIMILARITY = 60  # of a title to a search, out of 100
_CHOICES = 500  # categories, and brands, that are offered for a filter


@dataclass(frozen=True)
class Service:
    """See the module.

    Args:
        workers: by the name of their policy; the first is the default.
        explore: limits of an exploration. A request may ask for fewer calls and for another preference weight.
        points_I2: the items' points on the map, in the unit square.
        max_queries: queries that may wait for the retriever; more are refused.
        available: what may be recommended at all; None for everything.
        exclude: items that are not recommended; default: as the data have it.
    """

    dataset: Dataset
    retriever: Retriever
    workers: Mapping[str, Worker]
    explore: ExploreConfig
    points_I2: NDArray[np.float32]
    max_queries: int = 1024
    available: AvailableFile | None = None
    exclude: Exclude | None = None

    @cached_property
    def batcher(self) -> Batcher:
        return Batcher(self.retriever, self.max_queries)

    @property
    def catalog(self) -> Catalog:
        return self.retriever.catalog or self.dataset.catalog

    @property
    def exclude_history(self) -> bool:
        return excludes_history(self.exclude, self.dataset.exclude_history)

    @cached_property
    def _tasks(self) -> dict[str, Task]:
        return {task.user: task for task in self.dataset.tasks("test", self.exclude)}

    @cached_property
    def _titles(self) -> list[str]:
        return [utils.default_process(title) for title in self.catalog.titles]

    @cached_property
    def projection(self) -> schemas.Projection:
        points = self.points_I2.astype(float).round(4).tolist()
        return schemas.Projection(ids=self.catalog.ids, titles=self.catalog.titles, points=points)

    def policies(self) -> list[str]:
        return [*self.workers, TRM_ALONE]

    def users(self, n: int) -> list[str]:
        return list(self._tasks)[:n]

    @cached_property
    def filter_choices(self) -> schemas.FilterChoices:
        attributes = attributes_of(self.catalog)
        categories, brands = (group.names[:_CHOICES] for group in (attributes.categories, attributes.brands))
        return schemas.FilterChoices(categories=categories, brands=brands, years=attributes.years)

    def allowed(self, body: schemas.Filter | None) -> ItemSet | None:
        """The items that pass the filter and are available, None for all; errors as `allowed_items`."""
        available = None if self.available is None else self.available.ids()
        return allowed_items(self.catalog, ItemFilter(**(body.model_dump() if body else {}), available=available))

    def task(self, user: str | None, history: Sequence[str] = ()) -> Task:
        """That of a user of the data or, for None, of a new one with these ids and titles; DeepRecError if unknown."""
        if user is None:
            return Task.new(self._find(history), self.exclude_history)
        if user not in self._tasks:
            some = ", ".join(self.users(3))
            raise DeepRecError(f"There is no user {user!r} with a history; users are for instance {some}.")
        return self._tasks[user]

    def _find(self, names: Sequence[str]) -> tuple[ItemIdx, ...]:
        return tuple(map(self._named, names))

    def _named(self, name: str) -> ItemIdx:
        """The item with this id or title. An id counts as it is; DeepRecError for a title with invisible characters."""
        item = self.catalog.find(name, id_first=True)
        if name != self.catalog.ids[item]:
            try:
                schemas.check_visible(name)
            except ValueError as error:
                raise DeepRecError(f"{name!r} is no item's id, and as a title {error}.") from None
        return item

    def query(self, body: schemas.RetrieveQuery, user: str | None = None) -> Query:
        """The query with positions for ids and titles, of a user of the data if there is one in place of a history;
        DeepRecError where there are both, or one is unknown."""
        if body.history and user is not None:
            raise DeepRecError("Give a history or a user, and not both.")
        task = self.task(user, body.history)
        exclude = task.excluded.union(self._find(body.exclude))
        weight = first_weight(body.preference_weight, self.explore.preference_weight)
        allowed = self.allowed(body.filter)
        return Query(task.history, body.preference, exclude, weight, allowed, requested=True)

    def search(self, query: str, n: int) -> tuple[schemas.Item, ...]:
        """Items with similar titles, the most similar first; letters may be wrong, missing or swapped. A title without
        letters, as of emoji, is found if it is the same."""
        wanted = utils.default_process(query)
        found = process.extract(wanted, self._titles, scorer=fuzz.WRatio, limit=n, score_cutoff=_MIN_SIMILARITY)
        same = () if wanted else self.catalog.namesakes(query)
        return tuple(map(self.item, [*same, *(ItemIdx(position) for _, _, position in found)][:n]))

    def item(self, item: ItemIdx) -> schemas.Item:
        return schemas.Item(**self._fields(item))

    def details(self, item: ItemId) -> schemas.ItemDetails:
        """By its id; DeepRecError for an unknown one."""
        return schemas.ItemDetails(**self._fields(self.catalog.index(item)))

    def _fields(self, item: ItemIdx) -> dict[str, Any]:
        """What an answer may say of an item; each kind of answer takes the fields that it has."""
        catalog = self.catalog
        return {
            "id": catalog.ids[item],
            "title": catalog.titles[item],
            "categories": catalog.categories[item],
            "year": catalog.years[item],
            "brand": catalog.brands[item],
            "description": catalog.descriptions[item],
        }

    def scored(self, hits: Sequence[Hit]) -> tuple[schemas.ScoredItem, ...]:
        return tuple(schemas.ScoredItem(**self._fields(hit.item), score=hit.score) for hit in hits)

    def ranking(self, trace: Trace, k: int, seconds: float, include: ItemSet | None = None) -> schemas.Ranking:
        """The ranking with fallback, extended to `k` items by other retrieved ones, then by the TRM alone from the
        included items."""
        items, origin = trace.ranking, trace.origin
        if origin is Origin.ANSWER and len(items) < k:
            origin = Origin.COMPLETED
        ranked = list(dict.fromkeys((*items, *trace.pool)))[:k]
        if len(ranked) < k:
            excluded = Task.new(trace.history, self.exclude_history).excluded
            rest = Query(trace.history, exclude=excluded.union(ranked), include=include)
            ranked += [hit.item for hit in self.retriever.retrieve([rest], k - len(ranked))[0]]
        found, turns = [], trace.first_found()
        for item in ranked:
            call, turn = turns.get(item, (None, None))
            found.append(schemas.RankedItem(**self._fields(item), call=call, preference=turn and turn.preference))
        return schemas.Ranking(
            items=tuple(found),
            origin=origin,
            stop=trace.stop,
            faults=trace.faults,
            error=_public_error(trace.error),
            thought=trace.thought,
            tokens=trace.policy_tokens,
            usage=trace.usage,
            seconds=seconds,
        )


def _public_error(error: str | None) -> str | None:
    """The error that clients see. A policy's own text may name another server, so it goes to the log only."""
    if error is None or error in (FAILED, CLOSING) or error.startswith(TIMED_OUT):
        return error
    _LOG.warning("a policy failed: %s", error)
    return FAILED
