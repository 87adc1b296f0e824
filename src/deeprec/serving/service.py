"""What a server holds: the data, the TRM, and a desk for each policy; and its answers, without HTTP."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz, process, utils

from deeprec.config import ExploreConfig, preference_weight_of
from deeprec.data.catalog import Catalog, ItemId, ItemIdx, UserId
from deeprec.data.dataset import Dataset, Task
from deeprec.errors import DeepRecError
from deeprec.explore.trace import Origin, Stop, Trace, Turn
from deeprec.retrieval.retriever import Hit, Query, Retriever
from deeprec.serving import schemas
from deeprec.serving.batcher import Batcher
from deeprec.serving.worker import FAILED, LATE, Worker

_LOG = logging.getLogger("deeprec.serving")
QUERIES = 1024
"""Queries that may wait for the retriever; one more is refused."""
ALONE = "trm-alone"
"""The policy that asks the TRM once, without a word."""


@dataclass(frozen=True)
class Service:
    """See the module.

    Args:
        desks: by the name under which a request asks for a policy; the first is the default.
        explore: limits of an exploration; a request may ask for fewer calls and for another trust.
        points_I2: the items' places on the map, in the unit square.
    """

    dataset: Dataset
    retriever: Retriever
    workers: Mapping[str, Worker]
    explore: ExploreConfig
    points_I2: NDArray[np.float32]

    @cached_property
    def batcher(self) -> Batcher:
        return Batcher(self.retriever, QUERIES)

    @property
    def catalog(self) -> Catalog:
        return self.dataset.catalog

    @cached_property
    def _tasks(self) -> dict[str, Task]:
        return {task.user: task for task in self.dataset.tasks("test")}

    @cached_property
    def _titles(self) -> list[str]:
        return [utils.default_process(title) for title in self.catalog.titles]

    def policies(self) -> list[str]:
        return [*self.workers, ALONE]

    def users(self, n: int) -> list[str]:
        """Some users of the data who can be asked for."""
        return list(self._tasks)[:n]

    def task(self, asked: schemas.Recommend) -> Task:
        """Whom to explore for.

        Raises:
            DeepRecError: there is no such user or item.
        """
        if asked.user is None:
            return Task("new:you", UserId("you"), self.known(asked.history, None))
        return self._task(asked.user)

    def known(self, history: Sequence[str], user: str | None) -> tuple[ItemIdx, ...]:
        """The items of a history of titles and ids, or of a user of the data.

        Raises:
            DeepRecError: there is no such user or item.
        """
        if history and user is not None:
            raise DeepRecError("Give a history or a user, and not both.")
        return tuple(map(self.find, history)) if user is None else self._task(user).history

    def history(self, user: str) -> list[schemas.Item]:
        """
        Raises:
            DeepRecError: there is no such user.
        """
        return [self.item(item) for item in self.known((), user)]

    def _task(self, user: str) -> Task:
        if user not in self._tasks:
            examples = ", ".join(self.users(3))
            raise DeepRecError(f"There is no user {user!r} with a history; users are for instance {examples}.")
        return self._tasks[user]

    @cached_property
    def projection(self) -> schemas.Projection:
        points = tuple(self.points_I2.astype(float).round(4).tolist())
        return schemas.Projection(ids=self.catalog.ids, titles=self.catalog.titles, points=points)

    def find(self, name: str) -> ItemIdx:
        """
        Raises:
            DeepRecError: no item has this id or title.
        """
        return self.catalog.find(name, id_first=True)

    def limits(self, asked: schemas.Recommend) -> ExploreConfig:
        """
        Raises:
            DeepRecError: more calls are given than the server allows.
        """
        most = min(asked.max_calls or self.explore.max_calls, self.explore.max_calls)
        if len(asked.calls) > most:
            raise DeepRecError(f"There are {len(asked.calls)} calls, and an exploration may make {most}.")
        preference_weight = (
            self.explore.preference_weight if asked.preference_weight is None else asked.preference_weight
        )
        return self.explore.model_copy(update={"max_calls": most, "preference_weight": preference_weight})

    def query(self, asked: schemas.RetrieveQuery, user: str | None = None) -> Query:
        """
        Args:
            user: of the data, in place of a history.

        Raises:
            DeepRecError: there is no such item or user.
        """
        history = self.known(asked.history, user)
        exclude = frozenset((*history, *map(self.find, asked.exclude)))
        return Query(history, asked.preference, exclude, self._preference_weight(asked))

    def _preference_weight(self, asked: schemas.Recommend | schemas.RetrieveQuery) -> float:
        return preference_weight_of(self.explore) if asked.preference_weight is None else asked.preference_weight

    def search(self, query: str, n: int) -> list[schemas.Item]:
        """Items whose titles are like the query, the likest first; letters may be wrong, missing or swapped."""
        wanted = utils.default_process(query)
        found = process.extract(wanted, self._titles, scorer=fuzz.WRatio, limit=n, score_cutoff=60)
        return [self.item(ItemIdx(position)) for _, _, position in found]

    def item(self, item: ItemIdx) -> schemas.Item:
        return schemas.Item(
            id=self.catalog.ids[item], title=self.catalog.titles[item], categories=self.catalog.categories[item]
        )

    def details(self, item: ItemId) -> schemas.Details:
        """
        Raises:
            DeepRecError: no item has this id.
        """
        position, catalog = self.catalog.index(item), self.catalog
        more = {"year": catalog.years[position], "brand": catalog.brands[position]}
        return schemas.Details(**self.item(position).model_dump(), **more, description=catalog.descriptions[position])

    def found(self, hits: Sequence[Hit]) -> tuple[schemas.Found, ...]:
        return tuple(schemas.Found(**self.item(hit.item).model_dump(), score=hit.score) for hit in hits)

    def turn(self, number: int, turn: Turn, *, by_policy: bool) -> schemas.TurnSchema:
        said = {"thought": turn.thought, "preference": turn.preference}
        return schemas.TurnSchema(call=number, by_policy=by_policy, **said, items=self.found(turn.hits))

    def ranking(self, trace: Trace, k: int, seconds: float) -> schemas.Ranking:
        """The served ranking, filled up to `k` with what else was retrieved and then by the TRM alone."""
        with_fallback, origin = trace.with_fallback()
        if origin is Origin.ANSWER and len(with_fallback) < k:
            origin = Origin.COMPLETED
        positions = list(dict.fromkeys((*with_fallback, *trace.pool)))[:k]
        if len(positions) < k:
            rest = Query(trace.history, exclude=frozenset((*trace.history, *positions)))
            positions += [hit.item for hit in self.retriever.retrieve([rest], k - len(positions))[0]]
        found = trace.first_found()
        return schemas.Ranking(
            items=tuple(self._ranked(item, found.get(item)) for item in positions),
            origin=origin.value,
            stop=trace.stop.value,
            faults=tuple(fault.value for fault in trace.faults),
            error=_told(trace.error),
            thought=trace.thought,
            tokens=trace.policy_tokens,
            usage=trace.usage,
            seconds=seconds,
        )

    def alone(self, hits: Sequence[Hit], seconds: float, error: str | None = None) -> schemas.Ranking:
        """What the TRM says without a word: asked for, or in place of an explorer that failed."""
        return schemas.Ranking(
            items=tuple(self._ranked(hit.item, None) for hit in hits),
            origin=Origin.RETRIEVER.value,
            stop=(Stop.FAILED if error else Stop.ANSWERED).value,
            faults=(),
            error=error,
            thought="",
            tokens=0,
            usage=None,
            seconds=seconds,
        )

    def _ranked(self, item: ItemIdx, by: tuple[int, Turn] | None) -> schemas.Ranked:
        call, preference = (by[0], by[1].preference) if by else (None, None)
        return schemas.Ranked(**self.item(item).model_dump(), call=call, preference=preference)


def _told(error: str | None) -> str | None:
    """What a client hears of an error: a policy's own words may name a server behind this one, and more."""
    if error is None or error.startswith(LATE):
        return error
    _LOG.warning("a policy failed: %s", error)
    return FAILED.error
