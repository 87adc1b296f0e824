"""Which part of an exploration loses: preference, retrieval or ranking. Explorations with one part replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.data.dataset import Task
from deeprec.evaluation.metrics import ranks_of
from deeprec.evaluation.rankings import Rankings, rankings_of
from deeprec.explore.settings import ExploreSettings
from deeprec.explore.trace import Trace
from deeprec.retrieval.retriever import Query, Retriever

if TYPE_CHECKING:  # a report reads ranks, and needs no torch
    from deeprec.trm.trm import TRM

_BATCH = 256


@dataclass(frozen=True, slots=True)
class OracleAblation:
    """Ranks of each user's target in a list, from 0; -1 where it is absent. The pool is what the calls retrieved.

    Attributes:
        alone: in the TRM's own list, cut to the length of the pool.
        reordered: in the pool, ranked by the TRM without a preference.
        completed: the same, with the target added to a pool that is not empty.
        preference: in what the calls retrieve, list after list, when the first states phrases of the target.
        full_preference: the same at preference weight 1.
    """

    alone: tuple[int, ...]
    reordered: tuple[int, ...]
    completed: tuple[int, ...]
    preference: tuple[int, ...]
    full_preference: tuple[int, ...]

    @classmethod
    def of(
        cls,
        trm: TRM,
        catalog: Catalog,
        tasks: Sequence[Task],
        traces: Sequence[Trace],
        targets: Mapping[str, ItemIdx],
        explore: ExploreSettings,
    ) -> OracleAblation:
        """Of the explorations of these tasks, which used this TRM and these settings."""
        wanted = [targets[task.id] for task in tasks]
        pools = [list(trace.pool) for trace in traces]
        stated = [[turn.preference for turn in trace.turns] for trace in traces]
        alone = rankings_of(trm, tasks, max(map(len, pools), default=0))
        # Without a call nothing better can be retrieved: alone in its list, the target would be first.
        completed = [
            [*dict.fromkeys((*pool, target))] if pool else [] for pool, target in zip(pools, wanted, strict=True)
        ]
        oracle = in_front(phrases_to(catalog, wanted), stated)
        lists = (
            [ranking[: len(pool)] for ranking, pool in zip(alone, pools, strict=True)],
            in_own_order(trm, tasks, pools),
            in_own_order(trm, tasks, completed),
            replay(trm, tasks, oracle, explore.items_per_call, explore.preference_weight),
            replay(trm, tasks, oracle, explore.items_per_call, 1.0),
        )
        return cls(*(tuple(ranks_of(each, wanted).tolist()) for each in lists))


def in_own_order(trm: TRM, tasks: Sequence[Task], lists: Sequence[Sequence[ItemIdx]]) -> Rankings:
    """Each task's list as the TRM ranks it without a preference."""
    found: Rankings = []
    for start in range(0, len(tasks), _BATCH):
        part = slice(start, start + _BATCH)
        scores_BI = trm.scores([Query(task.history) for task in tasks[part]])
        for scores_I, items in zip(scores_BI, lists[part], strict=True):
            items_P = np.array(items, dtype=np.int64)
            found.append([items[position] for position in np.lexsort((items_P, -scores_I[items_P]))])
    return found


def replay(
    retriever: Retriever,
    tasks: Sequence[Task],
    preferences: Sequence[Sequence[str]],
    per_call: int,
    preference_weight: float,
) -> Rankings:
    """What the calls of each task would retrieve, list after list."""
    pools: Rankings = [[] for _ in tasks]
    for call in range(max(map(len, preferences), default=0)):
        calling = [position for position, stated in enumerate(preferences) if call < len(stated)]
        queries = [
            Query(tasks[p].history, preferences[p][call], frozenset([*tasks[p].history, *pools[p]]), preference_weight)
            for p in calling
        ]
        for position, hits in zip(calling, retriever.retrieve(queries, per_call), strict=True):
            pools[position] += [hit.item for hit in hits]
    return pools


def in_front(first: Sequence[str], stated: Sequence[Sequence[str]]) -> list[list[str]]:
    """Each exploration's preferences with another for its first; one without a call stays without."""
    return [[new, *preferences[1:]] if preferences else [] for new, preferences in zip(first, stated, strict=True)]


def phrases_to(catalog: Catalog, items: Sequence[ItemIdx]) -> list[str]:
    """A preference that describes each item, in as many phrases as `frequent_phrases` gives."""
    from deeprec.trm.preferences import FREQUENT_PHRASES, item_phrases

    return ["; ".join(item_phrases(catalog, item)[:FREQUENT_PHRASES]) for item in items]
