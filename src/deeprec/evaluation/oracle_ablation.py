"""Which link of an exploration loses: preference, retrieval or ranking. Explorations with one link replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deeprec.config import ExploreConfig, items_of, preference_weight_of
from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.data.dataset import Task
from deeprec.evaluation.evaluate import rankings_of
from deeprec.evaluation.metrics import ranks_of
from deeprec.explore.trace import Trace
from deeprec.retrieval.retriever import Query, Retriever

if TYPE_CHECKING:  # a report reads places, and needs no torch
    from deeprec.trm.trm import TRM

_BATCH = 256

Lists = list[list[ItemIdx]]


@dataclass(frozen=True, slots=True)
class OracleAblation:
    """Places of each user's target in a list, -1 where it is not there; "pool" is what the exploration retrieved.

    Attributes:
        alone: in the TRM's own list, which is cut to the length of the pool.
        reordered: in the pool, as the TRM without a preference ranks it.
        completed: the same with the target in the pool, where there is one.
        told: in what the calls bring, one after another, if the first says phrases of the target.
        believed: the same at a trust of 1.
    """

    alone: tuple[int, ...]
    reordered: tuple[int, ...]
    completed: tuple[int, ...]
    told: tuple[int, ...]
    believed: tuple[int, ...]

    @classmethod
    def of(
        cls,
        trm: TRM,
        catalog: Catalog,
        tasks: Sequence[Task],
        traces: Sequence[Trace],
        targets: Mapping[str, ItemIdx],
        explore: ExploreConfig,
    ) -> OracleAblation:
        """Of the explorations of these tasks, which were made with this TRM and these settings."""
        wanted = [targets[task.id] for task in tasks]
        pools = [list(trace.pool) for trace in traces]
        said = [[turn.preference for turn in trace.turns] for trace in traces]
        alone = rankings_of(trm, tasks, max(map(len, pools), default=0))
        # Nothing was asked, so nothing better can come back: alone in its list, the target would be first.
        completed = [
            [*dict.fromkeys((*pool, target))] if pool else [] for pool, target in zip(pools, wanted, strict=True)
        ]
        right = in_front(phrases_to(catalog, wanted), said)
        lists = (
            [ranking[: len(pool)] for ranking, pool in zip(alone, pools, strict=True)],
            in_own_order(trm, tasks, pools),
            in_own_order(trm, tasks, completed),
            *(
                replay(trm, tasks, right, items_of(explore), preference_weight)
                for preference_weight in (preference_weight_of(explore), 1.0)
            ),
        )
        return cls(*(tuple(int(rank) for rank in ranks_of(each, wanted)) for each in lists))


def in_own_order(trm: TRM, tasks: Sequence[Task], lists: Sequence[Sequence[ItemIdx]]) -> Lists:
    """Each task's list as the TRM ranks it without a preference."""
    found: Lists = []
    for start in range(0, len(tasks), _BATCH):
        part = slice(start, start + _BATCH)
        scores_BI = trm.scores([Query(task.history) for task in tasks[part]])
        for scores_I, items in zip(scores_BI, lists[part], strict=True):
            items_P = np.array(items, dtype=np.int64)
            found.append([items[position] for position in np.lexsort((items_P, -scores_I[items_P]))])
    return found


def replay(
    retriever: Retriever, tasks: Sequence[Task], words: Sequence[Sequence[str]], per_call: int, preference_weight: float
) -> Lists:
    """What the calls would bring back, one call after another, at a trust."""
    pools: Lists = [[] for _ in tasks]
    for call in range(max(map(len, words), default=0)):
        open_ = [position for position, said in enumerate(words) if call < len(said)]
        queries = [
            Query(tasks[p].history, words[p][call], frozenset([*tasks[p].history, *pools[p]]), preference_weight)
            for p in open_
        ]
        for position, hits in zip(open_, retriever.retrieve(queries, per_call), strict=True):
            pools[position] += [hit.item for hit in hits]
    return pools


def in_front(first: Sequence[str], said: Sequence[Sequence[str]]) -> list[list[str]]:
    """The words of each exploration with others for its first; one that made no call still makes none."""
    return [[new, *words[1:]] if words else [] for new, words in zip(first, said, strict=True)]


def phrases_to(catalog: Catalog, items: Sequence[ItemIdx]) -> list[str]:
    """A preference for each item that says what it is, in as many phrases as a theme has."""
    from deeprec.trm.preferences import FREQUENT_PHRASES, item_phrases

    return ["; ".join(item_phrases(catalog, item)[:FREQUENT_PHRASES]) for item in items]
