"""Which part of an exploration loses: preference, retrieval or ranking. Explorations with one part replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deeprec.data.catalog import ItemIdx
from deeprec.data.dataset import Task
from deeprec.evaluation.metrics import ranks_of
from deeprec.evaluation.rankings import BATCH, Rankings, rankings_of
from deeprec.explore.explorer import Explorer
from deeprec.explore.trace import Trace
from deeprec.retrieval.retriever import Query, Retriever

if TYPE_CHECKING:  # a report reads ranks, and needs no torch
    from deeprec.trm.trm import TRM


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
        cls, trm: TRM, explorer: Explorer, tasks: Sequence[Task], traces: Sequence[Trace], targets: Sequence[ItemIdx]
    ) -> OracleAblation:
        """Of the explorer's traces of these tasks, which used this TRM."""
        from deeprec.trm.preferences import FREQUENT_PHRASES, item_phrases

        explore, pools = explorer.config, [list(trace.pool) for trace in traces]
        alone = rankings_of(trm, tasks, max(map(len, pools), default=0))
        # Without a call nothing better can be retrieved: alone in its list, the target would be first.
        completed = [[*dict.fromkeys((*pool, item))] if pool else [] for pool, item in zip(pools, targets, strict=True)]
        oracle = []
        for trace, target in zip(traces, targets, strict=True):
            first = "; ".join(item_phrases(explorer.catalog, target)[:FREQUENT_PHRASES])
            oracle.append([first, *(turn.preference for turn in trace.turns[1:])] if trace.turns else [])
        lists = (
            [ranking[: len(pool)] for ranking, pool in zip(alone, pools, strict=True)],
            in_own_order(trm, tasks, pools),
            in_own_order(trm, tasks, completed),
            *(replay(trm, tasks, oracle, explore.items_per_call, weight) for weight in (explore.preference_weight, 1)),
        )
        return cls(*(rank_tuple(each, targets) for each in lists))


def rank_tuple(rankings: Sequence[Sequence[int]], targets: Sequence[ItemIdx]) -> tuple[int, ...]:
    """`ranks_of`, as results keep it."""
    return tuple(ranks_of(rankings, targets).tolist())


def in_own_order(trm: TRM, tasks: Sequence[Task], lists: Sequence[Sequence[ItemIdx]]) -> Rankings:
    """Each task's list as the TRM ranks it without a preference."""
    found: Rankings = []
    for start in range(0, len(tasks), BATCH):
        part = slice(start, start + BATCH)
        scores_BI = trm.scores([Query(task.history) for task in tasks[part]])
        for scores_I, items in zip(scores_BI, lists[part], strict=True):
            items_P = np.array(items, dtype=np.int64)
            found.append([items[position] for position in np.lexsort((items_P, -scores_I[items_P]))])
    return found


def replay(
    retriever: Retriever, tasks: Sequence[Task], preferences: Sequence[Sequence[str]], per_call: int, weight: float
) -> Rankings:
    """What the calls of each task would retrieve, list after list."""
    pools: Rankings = [[] for _ in tasks]
    for call in range(max(map(len, preferences), default=0)):
        calling = [each for each in zip(tasks, preferences, pools, strict=True) if call < len(each[1])]
        queries = [
            Query(task.history, stated[call], frozenset([*task.excluded, *pool]), weight)
            for task, stated, pool in calling
        ]
        for (*_, pool), hits in zip(calling, retriever.retrieve(queries, per_call), strict=True):
            pool += [hit.item for hit in hits]
    return pools
