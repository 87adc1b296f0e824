"""What a server answers from: the data, the TRM, and a worker for each policy. This file knows no transport."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz, process, utils

from deeprec.config import ExploreConfig
from deeprec.data.catalog import Catalog, ItemId, ItemIdx, UserId
from deeprec.data.dataset import Dataset, Task
from deeprec.errors import DeepRecError
from deeprec.explore.settings import first_weight
from deeprec.explore.trace import Origin, Trace, Turn
from deeprec.retrieval.retriever import Hit, Query, Retriever
from deeprec.serving import schemas
from deeprec.serving.batcher import Batcher
from deeprec.serving.worker import FAILED, TIMED_OUT, Worker

_LOG = logging.getLogger("deeprec.serving")
TRM_ALONE = "trm-alone"
"""The policy that asks the TRM once, without a preference."""
_MIN_SIMILARITY = 60
"""Of a title to a search, out of 100."""


@dataclass(frozen=True)
class Service:
    """See the module.

    Args:
        workers: by the name of their policy; the first is the default.
        explore: limits of an exploration. A request may ask for fewer calls and for another preference weight.
        points_I2: the items' points on the map, in the unit square.
        max_queries: queries that may wait for the retriever; more are refused.
    """

    dataset: Dataset
    retriever: Retriever
    workers: Mapping[str, Worker]
    explore: ExploreConfig
    points_I2: NDArray[np.float32]
    max_queries: int = 1024

    @cached_property
    def batcher(self) -> Batcher:
        return Batcher(self.retriever, self.max_queries)

    @property
    def catalog(self) -> Catalog:
        return self.dataset.catalog

    @cached_property
    def _tasks(self) -> dict[str, Task]:
        return {task.user: task for task in self.dataset.tasks("test")}

    @cached_property
    def _titles(self) -> list[str]:
        return [utils.default_process(title) for title in self.catalog.titles]

    @cached_property
    def projection(self) -> schemas.Projection:
        points = tuple(self.points_I2.astype(float).round(4).tolist())
        return schemas.Projection(ids=self.catalog.ids, titles=self.catalog.titles, points=points)

    def policies(self) -> list[str]:
        return [*self.workers, TRM_ALONE]

    def users(self, n: int) -> list[str]:
        """Some users of the data."""
        return list(self._tasks)[:n]

    def task(self, body: schemas.RecommendRequest) -> Task:
        """
        Raises:
            DeepRecError: the user or an item is unknown.
        """
        if body.user is None:
            return Task("new:you", UserId("you"), self._find(body.history))
        return self._task(body.user)

    def _task(self, user: str) -> Task:
        if user not in self._tasks:
            examples = ", ".join(self.users(3))
            raise DeepRecError(f"There is no user {user!r} with a history; users are for instance {examples}.")
        return self._tasks[user]

    def _find(self, names: Sequence[str]) -> tuple[ItemIdx, ...]:
        return tuple(self.catalog.find(name, id_first=True) for name in names)

    def history(self, user: str) -> tuple[schemas.Item, ...]:
        """
        Raises:
            DeepRecError: the user is unknown.
        """
        return tuple(map(self.item, self._task(user).history))

    def limits(self, body: schemas.RecommendRequest) -> ExploreConfig:
        """
        Raises:
            DeepRecError: the request has more calls than the server allows.
        """
        max_calls = min(body.max_calls or self.explore.max_calls, self.explore.max_calls)
        if len(body.calls) > max_calls:
            raise DeepRecError(f"There are {len(body.calls)} calls, and an exploration may make {max_calls}.")
        changed: dict[str, object] = {"max_calls": max_calls}
        if body.preference_weight is not None:
            changed["preference_weight"] = body.preference_weight
        return self.explore.model_copy(update=changed)

    def query(self, body: schemas.RetrieveQuery, user: str | None = None) -> Query:
        """
        Args:
            user: of the data, in place of a history.

        Raises:
            DeepRecError: there is both a user and a history, or the user or an item is unknown.
        """
        if body.history and user is not None:
            raise DeepRecError("Give a history or a user, and not both.")
        history = self._find(body.history) if user is None else self._task(user).history
        return Query(
            history,
            body.preference,
            exclude=frozenset((*history, *self._find(body.exclude))),
            preference_weight=first_weight(body.preference_weight, self.explore.preference_weight),
        )

    def search(self, query: str, n: int) -> tuple[schemas.Item, ...]:
        """Items with similar titles, the most similar first; letters may be wrong, missing or swapped."""
        wanted = utils.default_process(query)
        found = process.extract(wanted, self._titles, scorer=fuzz.WRatio, limit=n, score_cutoff=_MIN_SIMILARITY)
        return tuple(self.item(ItemIdx(position)) for _, _, position in found)

    def item(self, item: ItemIdx) -> schemas.Item:
        return schemas.Item(**self._fields(item))

    def _fields(self, item: ItemIdx) -> dict[str, object]:
        catalog = self.catalog
        return {"id": catalog.ids[item], "title": catalog.titles[item], "categories": catalog.categories[item]}

    def details(self, item: ItemId) -> schemas.ItemDetails:
        """
        Raises:
            DeepRecError: the id is unknown.
        """
        position, catalog = self.catalog.index(item), self.catalog
        return schemas.ItemDetails(
            **self._fields(position),
            year=catalog.years[position],
            brand=catalog.brands[position],
            description=catalog.descriptions[position],
        )

    def scored(self, hits: Sequence[Hit]) -> tuple[schemas.ScoredItem, ...]:
        return tuple(schemas.ScoredItem(**self._fields(hit.item), score=hit.score) for hit in hits)

    def turn(self, call: int, turn: Turn, *, by_policy: bool) -> schemas.Turn:
        return schemas.Turn(
            call=call,
            by_policy=by_policy,
            thought=turn.thought,
            preference=turn.preference,
            items=self.scored(turn.hits),
        )

    def ranking(self, trace: Trace, k: int, seconds: float) -> schemas.Ranking:
        """The ranking with fallback, extended to `k` items by other retrieved ones, then by the TRM alone."""
        items, origin = trace.ranking, trace.origin
        if origin is Origin.ANSWER and len(items) < k:
            origin = Origin.COMPLETED
        ranked = list(dict.fromkeys((*items, *trace.pool)))[:k]
        if len(ranked) < k:
            rest = Query(trace.history, exclude=frozenset((*trace.history, *ranked)))
            ranked += [hit.item for hit in self.retriever.retrieve([rest], k - len(ranked))[0]]
        found = trace.first_found()
        return schemas.Ranking(
            items=tuple(self._ranked(item, found.get(item)) for item in ranked),
            origin=origin.value,
            stop=trace.stop.value,
            faults=tuple(fault.value for fault in trace.faults),
            error=_public_error(trace.error),
            thought=trace.thought,
            tokens=trace.policy_tokens,
            usage=trace.usage,
            seconds=seconds,
        )

    def _ranked(self, item: ItemIdx, found: tuple[int, Turn] | None) -> schemas.RankedItem:
        call, preference = (found[0], found[1].preference) if found else (None, None)
        return schemas.RankedItem(**self._fields(item), call=call, preference=preference)


def _public_error(error: str | None) -> str | None:
    """The error that clients see. A policy's own text may name another server, so it goes to the log only."""
    if error is None or error == FAILED or error.startswith(TIMED_OUT):
        return error
    _LOG.warning("a policy failed: %s", error)
    return FAILED
