"""Full-ranking, leave-one-out evaluation of retrievers and explorers on the same users."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from deeprec.config import DEFAULT_PREFERENCE_WEIGHT, EvalConfig
from deeprec.data.catalog import ItemIdx
from deeprec.data.dataset import Dataset, Task
from deeprec.errors import DeepRecError
from deeprec.evaluation.eval_report import SystemResult
from deeprec.evaluation.metrics import coverage, ranks_of
from deeprec.evaluation.worker_processes import Stream
from deeprec.explore.trace import Origin, Stop, Trace
from deeprec.retrieval.retriever import Retriever, queries_of
from deeprec.runs import JsonLines

_BATCH = 256
SEED = 0
"""Of the sample of users."""

Targets = Mapping[str, ItemIdx]
Tick = Callable[[int], None]
"""Told how many users are done."""


def evaluation_tasks(dataset: Dataset, config: EvalConfig) -> tuple[list[Task], list[Task]]:
    """All tasks of the split, and the seeded sample of them that costly systems are run on.

    A smaller sample is a part of a larger one, so that systems with samples of two sizes have users in common.
    """
    tasks = dataset.tasks(config.split)
    if not tasks:
        raise DeepRecError(f"{dataset.name} has no {config.split} users: each needs 3 interactions.")
    if config.users is None or config.users >= len(tasks):
        return tasks, tasks
    chosen = np.random.default_rng(SEED).permutation(len(tasks))[: config.users]
    return tasks, [tasks[position] for position in sorted(chosen)]


def evaluate_retriever(
    name: str,
    retriever: Retriever,
    tasks: Sequence[Task],
    targets: Targets,
    n_items: int,
    config: EvalConfig,
    note: str = "",
) -> SystemResult:
    """Rank the whole catalogue for each task, the history excluded."""
    k = max(config.cutoffs)
    return score_rankings(name, tasks, rankings_of(retriever, tasks, k), targets, n_items, k, note=note)


def rankings_of(
    retriever: Retriever,
    tasks: Sequence[Task],
    k: int,
    preference: Callable[[Task], str] = lambda task: "",
    preference_weight: float = DEFAULT_PREFERENCE_WEIGHT,
    on_done: Tick = lambda count: None,
) -> list[list[ItemIdx]]:
    """The retriever's best `k` items for each task, the history excluded."""
    rankings: list[list[ItemIdx]] = []
    for start in range(0, len(tasks), _BATCH):
        batch = tasks[start : start + _BATCH]
        queries = queries_of(batch, map(preference, batch), preference_weight)
        rankings += [[hit.item for hit in hits] for hits in retriever.retrieve(queries, k)]
        on_done(len(batch))
    return rankings


def evaluate_traces(
    name: str,
    tasks: Sequence[Task],
    traces: Sequence[Trace],
    targets: Targets,
    n_items: int,
    config: EvalConfig,
    note: str = "",
) -> tuple[SystemResult, SystemResult]:
    """Two results of the same explorations: as answered (a failed answer is a miss), and as served."""
    k = max(config.cutoffs)
    with_fallback = [trace.with_fallback() for trace in traces]
    extras = {
        "well_formed": float(np.mean([trace.well_formed for trace in traces])),
        "fallback": float(np.mean([origin is not Origin.ANSWER for _, origin in with_fallback])),
        "calls": float(np.mean([len(trace.turns) for trace in traces])),
        "pool hit": float(np.mean([targets[trace.task] in trace.pool for trace in traces])),
        "tokens": float(np.mean([trace.policy_tokens for trace in traces])),
    }
    stops = dict(Counter(trace.stop.value for trace in traces).most_common())
    answered = [list(trace.answered) for trace in traces]
    return (
        score_rankings(f"{name}, as answered", tasks, answered, targets, n_items, k, extras, stops, note),
        score_rankings(
            f"{name}, as served", tasks, [list(r) for r, _ in with_fallback], targets, n_items, k, extras, stops
        ),
    )


def resume(
    tasks: Sequence[Task],
    system: str,
    log: JsonLines,
    explore: Stream,
    on_done: Tick,
) -> list[Trace]:
    """Traces of all tasks in order: those that the log holds already, and the rest explored and logged at once.

    A run that was killed goes on where it was when it is started again on its folder.
    """
    done = explored(system, log)
    missing = [task for task in tasks if task.id not in done]
    on_done(len(tasks) - len(missing))
    for _, trace in explore(missing) if missing else _nothing():
        log.append({"system": system, "trace": trace.to_json()})
        done[trace.task] = trace
        on_done(1)
    return [done[task.id] for task in tasks]


def explored(system: str, log: JsonLines) -> dict[str, Trace]:
    """The system's traces in a log, by task; those that failed are to be made again."""
    traces = (entry["trace"] for entry in log if entry["system"] == system)
    return {trace["task"]: Trace.from_json(trace) for trace in traces if trace["stop"] != Stop.FAILED}


def _nothing() -> Iterator[tuple[int, Trace]]:
    yield from ()


def score_rankings(
    name: str,
    tasks: Sequence[Task],
    rankings: Sequence[Sequence[int]],
    targets: Targets,
    n_items: int,
    k: int,
    extras: Mapping[str, float] | None = None,
    stops: Mapping[str, int] | None = None,
    note: str = "",
) -> SystemResult:
    ranks_U = ranks_of(rankings, [targets[task.id] for task in tasks])
    return SystemResult(
        name=name,
        users=tuple(task.id for task in tasks),
        ranks=tuple(int(rank) for rank in ranks_U),
        coverage=coverage(rankings, n_items, k),
        extras=dict(extras or {}),
        stops=dict(stops or {}),
        note=note,
    )
