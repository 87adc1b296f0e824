"""What an evaluation keeps on disk: the users of each set, and each system's result and traces."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import TypeAdapter, ValidationError

from deeprec.config import EvalConfig
from deeprec.data.catalog import ItemIdx
from deeprec.data.dataset import Dataset, Task, excludes_history
from deeprec.errors import DeepRecError
from deeprec.evaluation.oracle_ablation import OracleAblation, rank_tuple
from deeprec.evaluation.plans import Seed, SetPlan, SystemPlan, slug
from deeprec.evaluation.rankings import Stream, Tick, check_targets
from deeprec.explore.trace import Origin, Stop, Trace
from deeprec.runs import JsonLines


class _Record:
    """What has a JSON file."""

    __slots__ = ()

    def save(self, path: Path) -> None:
        """In one step: a kill leaves the old file or the new."""
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.name}.part")
        scratch.write_bytes(TypeAdapter(type(self)).dump_json(self))
        scratch.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """None where there is no file; DeepRecError where it is damaged."""
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            raise DeepRecError(f"{path} is damaged, or of another version: remove it, and evaluate again.") from None


@dataclass(frozen=True, slots=True)
class Users(_Record):
    """The users of a set, and how often its items are chosen.

    Attributes:
        text: digest of the items' text.
        histories: items in each user's history.
        target_counts: training interactions of each user's target.
        item_counts: training interactions of each item.
        repeated: those whose target is an item of their history.
        exclude_history: whether no system may rank the history.
        of_files: whether the source came split into training, validation and test.
    """

    fingerprint: str
    text: str
    users: tuple[str, ...]
    histories: tuple[int, ...]
    target_counts: tuple[int, ...]
    item_counts: tuple[int, ...]
    repeated: tuple[str, ...] = ()
    exclude_history: bool = True
    of_files: bool = False

    @classmethod
    def of(cls, dataset: Dataset, config: EvalConfig) -> Users:
        """DeepRecError where the evaluation excludes every user's target."""
        tasks, targets = dataset.tasks(config.split, config.exclude), dataset.targets(config.split)
        check_targets(tasks, targets)
        counts = np.bincount(dataset.train_sequences().items_N, minlength=len(dataset.catalog)).tolist()
        return cls(
            fingerprint=dataset.fingerprint,
            text=dataset.text_digest,
            users=tuple(task.id for task in tasks),
            histories=tuple(len(task.history) for task in tasks),
            target_counts=tuple(counts[targets[task.id]] for task in tasks),
            item_counts=tuple(counts),
            repeated=dataset.repeated_targets(config.split),
            exclude_history=excludes_history(config.exclude, dataset.exclude_history),
            of_files=dataset.parts_U2 is not None,
        )


@dataclass(frozen=True, slots=True)
class Explorations:
    """Of a language model or a script, user by user, in the order of the result's users.

    Attributes:
        raw: rank of the target in the answer alone, from 0; -1 where it is absent.
        pooled: rank of the target among all retrieved items in the order in which they came; -1 where it is absent.
        found: the call that first retrieved the target, from 1; 0 where none did.
        retrieved: items that each call returned; empty for systems that call no tool.
        tokens: written by the policy.
        fallback: whether retrieved items filled up the answer.
        stops: how many ended for each reason.
        oracle_ablation: None for systems that call no TRM.
    """

    raw: tuple[int, ...]
    pooled: tuple[int, ...]
    found: tuple[int, ...]
    retrieved: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]
    well_formed: tuple[bool, ...]
    fallback: tuple[bool, ...]
    stops: dict[str, int]
    oracle_ablation: OracleAblation | None = None

    @classmethod
    def of(
        cls, traces: Sequence[Trace], targets: Sequence[ItemIdx], calls: bool, oracle_ablation: OracleAblation | None
    ) -> Explorations:
        """`calls` says whether the policy called the tool for what was retrieved."""
        first = [trace.first_found() for trace in traces]
        return cls(
            raw=rank_tuple([trace.raw_ranking for trace in traces], targets),
            pooled=rank_tuple([trace.pool for trace in traces], targets),
            found=tuple(seen[target][0] if target in seen else 0 for seen, target in zip(first, targets, strict=True)),
            retrieved=tuple(tuple(len(turn.hits) for turn in trace.turns) if calls else () for trace in traces),
            tokens=tuple(trace.policy_tokens for trace in traces),
            well_formed=tuple(trace.well_formed for trace in traces),
            fallback=tuple(bool(each.turns or each.fallback) and each.origin is not Origin.ANSWER for each in traces),
            stops=dict(Counter(trace.stop.value for trace in traces).most_common()),
            oracle_ablation=oracle_ablation,
        )


@dataclass(frozen=True, slots=True)
class CachedResult(_Record):
    """What one system did on one set with one seed.

    Attributes:
        key: digest of everything that decides the result; the runner replaces a result with another key.
        plan: digest of what the plan says of it (`Plan.digest`); a report omits results with another digest.
        ranks: of each user's target in the ranking, from 0; -1 where it is absent.
        rankings: with fallback, for systems that explore.
        seconds_per_user: of ranking, without training; None where unknown.
        note: what the system found out, as a parameter chosen on validation.
    """

    key: str
    plan: str
    fingerprint: str
    users: tuple[str, ...]
    ranks: tuple[int, ...]
    rankings: tuple[tuple[int, ...], ...]
    seconds_per_user: float | None
    note: str
    environment: dict[str, str]
    explorations: Explorations | None = None


class TraceLog:
    """Traces of one system as they end, and the seconds they took; in a file, it survives an interruption."""

    def __init__(self, path: Path | None = None) -> None:
        self._entries = deque[Mapping[str, Any]](maxlen=0) if path is None else JsonLines(path)
        self._traces: dict[str, Trace] = {}
        self._seconds, self._explored = 0.0, 0
        for entry in self._entries:
            if "trace" in entry:
                self._keep(Trace.from_json(entry["trace"]))
            else:
                self._seconds += entry["seconds"]
                self._explored += entry["explored"]

    @property
    def seconds_per_user(self) -> float | None:
        return self._seconds / self._explored if self._explored else None

    def explore(self, tasks: Sequence[Task], stream: Stream, tick: Tick) -> list[Trace]:
        """Traces of all tasks in order: those that the log holds, and the others explored and logged at once.

        DeepRecError where some failed: they are logged as failed, and explored again next time.
        """
        missing = [task for task in tasks if task.id not in self._traces]
        known, explored, failed, started = len(tasks) - len(missing), 0, [], time.perf_counter()
        tick(known)
        try:
            for explored, (_, trace) in enumerate(stream(missing) if missing else (), start=1):
                self._entries.append({"trace": trace.to_json()})
                self._keep(trace)
                if trace.stop is Stop.FAILED:
                    failed.append(trace)
                tick(known + explored)
        finally:
            if missing:
                seconds = time.perf_counter() - started
                self._seconds, self._explored = self._seconds + seconds, self._explored + explored
                self._entries.append({"seconds": seconds, "explored": explored})
        if failed:
            told = f"{len(failed)} of {len(tasks)} explorations failed (first: {failed[0].error})"
            raise DeepRecError(f"{told}: evaluate again to repeat these.")
        return [self._traces[task.id] for task in tasks]

    def _keep(self, trace: Trace) -> None:
        if trace.stop is not Stop.FAILED:
            self._traces[trace.task] = trace


def result_file(folder: Path, set_: SetPlan, system: SystemPlan, seed: Seed) -> Path:
    name = slug(system.name) if seed is None else f"{slug(system.name)}-{seed}"
    return folder / "results" / slug(set_.label) / f"{name}.json"


def users_file(folder: Path, set_: SetPlan) -> Path:
    return folder / "results" / slug(set_.label) / "_users.json"  # no slug begins like this
