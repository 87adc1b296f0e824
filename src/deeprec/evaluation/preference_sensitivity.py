"""How a TRM listens: what preferences of known quality do to its ranking, and to a pool of several lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.data.dataset import Task
from deeprec.evaluation.metrics import Floats, ndcg_at, recall_at
from deeprec.retrieval.retriever import Query, Retriever, queries_of
from deeprec.trm.preferences import frequent_phrases, item_phrases, recent_titles
from deeprec.trm.trm import TRM

CALLS = 3
PER_CALL = 20


@dataclass(frozen=True)
class Heard:
    """NDCG@10 and Recall@10 of every user (U,) with one kind of preference at one trust."""

    kind: str
    preference_weight: float
    ndcg_U: Floats
    recall_U: Floats


@dataclass(frozen=True)
class Pool:
    """1 for every user (U,) whose target is in the pool of several preferences, and in the blank list of its size."""

    preference_weight: float
    pooled_U: Floats
    blank_U: Floats


def item_preference(catalog: Catalog, item: ItemIdx) -> str:
    """All that the item's own text says: of the target, the best preference there is in the catalogue's words."""
    return "; ".join(item_phrases(catalog, item))


def preferences(
    catalog: Catalog, tasks: Sequence[Task], targets: Mapping[str, ItemIdx], seed: int
) -> dict[str, list[str]]:
    """A preference of each kind for each task.

    'oracle' is of the target, 'wrong' the oracle of another user drawn at random, 'theme' and 'recent' of the history
    alone.
    """
    oracle = [item_preference(catalog, targets[task.id]) for task in tasks]
    others = np.roll(order := np.random.default_rng(seed).permutation(len(tasks)), 1)
    wrong = [""] * len(tasks)
    for own, other in zip(order.tolist(), others.tolist(), strict=True):
        wrong[own] = oracle[other]
    return {
        "oracle": oracle,
        "theme": ["; ".join(frequent_phrases(catalog, task.history)) for task in tasks],
        "recent": ["; ".join(recent_titles(catalog, task.history)) for task in tasks],
        "wrong": wrong,
    }


def condition(
    trm: TRM,
    tasks: Sequence[Task],
    targets: Mapping[str, ItemIdx],
    said: Mapping[str, Sequence[str]],
    preference_weights: Sequence[float],
) -> list[Heard]:
    """The TRM without a preference first, then each kind of `said` (a preference for each task) at each trust."""
    wanted = [targets[task.id] for task in tasks]

    def heard(kind: str, texts: Sequence[str], preference_weight: float) -> Heard:
        ranks_U = trm.ranks(queries_of(tasks, texts, preference_weight), wanted)
        return Heard(kind, preference_weight, ndcg_at(ranks_U, 10), recall_at(ranks_U, 10))

    blank = heard("none", [""] * len(tasks), 0.0)
    return [blank] + [
        heard(kind, said[kind], preference_weight) for kind in said for preference_weight in preference_weights
    ]


def pool(
    retriever: Retriever,
    catalog: Catalog,
    tasks: Sequence[Task],
    targets: Mapping[str, ItemIdx],
    preference_weight: float,
) -> Pool:
    """One call of 20 items for what each of the user's last three items is, nothing shown twice, as an explorer that
    knows no better would, against the list of as many items that the TRM gives without a preference."""
    shown = [list[ItemIdx]() for _ in tasks]
    for turn in range(CALLS):
        queries = [
            Query(
                task.history,
                item_preference(catalog, task.history[-1 - turn]) if turn < len(task.history) else "",
                {*task.history, *items},
                preference_weight,
            )
            for task, items in zip(tasks, shown, strict=True)
        ]
        for items, hits in zip(shown, retriever.retrieve(queries, PER_CALL), strict=True):
            items += [hit.item for hit in hits]
    queries = queries_of(tasks)
    lists = retriever.retrieve(queries, CALLS * PER_CALL)
    pooled_U = np.array([targets[task.id] in items for task, items in zip(tasks, shown, strict=True)], dtype=float)
    blank_U = np.array(
        [targets[task.id] in {hit.item for hit in hits} for task, hits in zip(tasks, lists, strict=True)], dtype=float
    )
    return Pool(preference_weight, pooled_U, blank_U)
