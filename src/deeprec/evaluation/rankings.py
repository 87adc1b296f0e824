"""Whom an evaluation ranks for, and how retrievers rank for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from deeprec.config import DEFAULT_PREFERENCE_WEIGHT, EvalConfig
from deeprec.data.catalog import ItemIdx
from deeprec.data.dataset import Dataset, Task
from deeprec.errors import DeepRecError
from deeprec.explore.trace import Trace
from deeprec.retrieval.retriever import Retriever, queries_of

Rankings = list[list[ItemIdx]]
"""Items of each task, best first."""
Stream = Callable[[Sequence[Task]], Iterable[tuple[int, Trace]]]
"""Yields `(position of the task, trace)` as explorations end."""
Tick = Callable[[int], None]
"""Is told how many users are done, in all."""

BATCH = 256
_SEED = 0
_FUSED = 100  # items of each list that is fused
_DAMPING = 60  # of reciprocal-rank fusion, as in its source


def evaluation_tasks(dataset: Dataset, config: EvalConfig) -> tuple[list[Task], list[Task]]:
    """All tasks of the split, and the seeded sample of `config.users` that costly systems run on, of which a larger
    sample holds a smaller one."""
    tasks = dataset.tasks(config.split, config.exclude)
    if not tasks:
        raise DeepRecError(f"{dataset.name} has no {config.split} users: each needs 3 interactions.")
    if config.users is None or config.users >= len(tasks):
        return tasks, tasks
    chosen = np.random.default_rng(_SEED).permutation(len(tasks))[: config.users]
    return tasks, [tasks[position] for position in sorted(chosen)]


def check_targets(tasks: Sequence[Task], targets: Mapping[str, ItemIdx]) -> None:
    """DeepRecError where every task excludes its target: all metrics would be 0 for any system."""
    if tasks and all(targets[task.id] in task.excluded for task in tasks):
        raise DeepRecError(
            f"All {len(tasks):,} targets were chosen before, so with the history excluded every metric can only be 0: "
            "set eval.exclude = 'none'."
        )


def rankings_of(
    retriever: Retriever,
    tasks: Sequence[Task],
    k: int,
    preference: Callable[[Task], str] = lambda task: "",
    preference_weight: float = DEFAULT_PREFERENCE_WEIGHT,
) -> Rankings:
    """The retriever's best `k` items for each task, without those that it excludes."""
    rankings: Rankings = []
    for batch in (tasks[start : start + BATCH] for start in range(0, len(tasks), BATCH)):
        queries = queries_of(batch, map(preference, batch), preference_weight)
        rankings += [[hit.item for hit in hits] for hits in retriever.retrieve(queries, k)]
    return rankings


def fused(
    retriever: Retriever, tasks: Sequence[Task], traces: Sequence[Trace], k: int, preference_weight: float
) -> Rankings:
    """The best `k` items by reciprocal-rank fusion (Cormack et al., SIGIR 2009) of each trace's preferences, each asked
    of all that its task does not exclude. Of equals the first found comes first."""
    asking = [task for task, trace in zip(tasks, traces, strict=True) for _ in trace.turns]
    preferences: Iterator[str] = iter([turn.preference for trace in traces for turn in trace.turns])  # in this order
    lists = iter(rankings_of(retriever, asking, _FUSED, lambda _: next(preferences), preference_weight))
    rankings = []
    for trace in traces:
        scores: defaultdict[ItemIdx, float] = defaultdict(float)
        for ranking in islice(lists, len(trace.turns)):
            for position, item in enumerate(ranking, start=1):
                scores[item] += 1 / (_DAMPING + position)
        rankings.append(sorted(scores, key=scores.__getitem__, reverse=True)[:k])
    return rankings
