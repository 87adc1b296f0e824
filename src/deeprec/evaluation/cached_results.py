"""What an experiment keeps: of each set its users, of each system on a set what it did, a file each."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeprec.config import EvalConfig
from deeprec.data.catalog import ItemIdx
from deeprec.data.dataset import Dataset, Task
from deeprec.errors import DeepRecError
from deeprec.evaluation.metrics import ranks_of
from deeprec.evaluation.oracle_ablation import OracleAblation
from deeprec.evaluation.plans import SetPlan, SystemPlan, slug
from deeprec.explore.trace import Origin, Trace


@dataclass(frozen=True, slots=True)
class Population:
    """The users of a set, and what its items are chosen how often.

    Attributes:
        users: ids of the tasks.
        histories: items that each user's history has.
        target_counts: training interactions of each user's target.
        item_counts: of each item.
    """

    fingerprint: str
    users: tuple[str, ...]
    histories: tuple[int, ...]
    target_counts: tuple[int, ...]
    item_counts: tuple[int, ...]

    @classmethod
    def of(cls, dataset: Dataset, config: EvalConfig) -> Population:
        tasks, targets = dataset.tasks(config.split), dataset.targets(config.split)
        counts = np.bincount(dataset.train_sequences().items_N, minlength=len(dataset.catalog)).tolist()
        return cls(
            fingerprint=dataset.fingerprint,
            users=tuple(task.id for task in tasks),
            histories=tuple(len(task.history) for task in tasks),
            target_counts=tuple(counts[targets[task.id]] for task in tasks),
            item_counts=tuple(counts),
        )


@dataclass(frozen=True, slots=True)
class Explorations:
    """Of a language model or a script, user by user, in the order of the part's users. One-shot systems make no calls.

    Attributes:
        answered: rank of the target in the answer alone, -1 where it is not there.
        pooled: place of the target among all that was retrieved, in the order in which it came; -1 where it was not.
        found: the call that retrieved the target first, from 1; 0 where none did.
        fallback: whether fewer items were answered than asked for: what was served was filled up where it could be.
        retrieved: items that each call brought.
        tokens: written by the policy.
        stops: how many ended for each reason.
        links: with one link replaced; None where no call was made, and in parts of before there were links.
    """

    answered: tuple[int, ...]
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
        cls,
        traces: Sequence[Trace],
        targets: Mapping[str, ItemIdx],
        calls: bool,
        filled: bool,
        oracle_ablation: OracleAblation | None = None,
    ) -> Explorations:
        """`calls` says whether what was retrieved was asked for by the policy, `filled` whether it was served as
        completed."""
        wanted = [targets[trace.task] for trace in traces]
        first = [trace.first_found() for trace in traces]
        return cls(
            answered=_ranks([list(trace.answered) for trace in traces], wanted),
            pooled=_ranks([list(trace.pool) for trace in traces], wanted),
            found=tuple(seen[target][0] if target in seen else 0 for seen, target in zip(first, wanted, strict=True)),
            retrieved=tuple(tuple(len(turn.hits) for turn in trace.turns) if calls else () for trace in traces),
            tokens=tuple(trace.policy_tokens for trace in traces),
            well_formed=tuple(trace.well_formed for trace in traces),
            fallback=tuple(filled and trace.with_fallback()[1] is not Origin.ANSWER for trace in traces),
            stops=dict(Counter(trace.stop.value for trace in traces).most_common()),
            oracle_ablation=oracle_ablation,
        )


@dataclass(frozen=True, slots=True)
class Part:
    """What one system did on one set with one seed.

    Attributes:
        key: digest of everything that decides the result; a part with another is made anew.
        plan: digest of what the plan said of it (`Plan.digest`); a report leaves a part with another out.
        ranks: 0-based place of each user's target in what the user was served, -1 where it is not there.
        rankings: the items served.
        seconds_per_user: of asking, training apart; None where nobody was left to ask after an interruption.
        fingerprint: of the data.
        note: what the run found out about itself, as a parameter that was chosen on validation.
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

    @classmethod
    def of(
        cls,
        key: str,
        plan: str,
        fingerprint: str,
        tasks: Sequence[Task],
        rankings: Sequence[Sequence[int]],
        targets: Mapping[str, ItemIdx],
        seconds_per_user: float | None,
        note: str,
        environment: dict[str, str],
        explorations: Explorations | None = None,
    ) -> Part:
        return cls(
            key=key,
            plan=plan,
            fingerprint=fingerprint,
            users=tuple(task.id for task in tasks),
            ranks=_ranks(rankings, [targets[task.id] for task in tasks]),
            rankings=tuple(tuple(int(item) for item in ranking) for ranking in rankings),
            seconds_per_user=seconds_per_user,
            note=note,
            environment=environment,
            explorations=explorations,
        )


def part_file(folder: Path, set_: SetPlan, system: SystemPlan, seed: int) -> Path:
    return folder / "parts" / slug(set_.label) / f"{slug(system.name)}-{seed}.json"


def population_file(folder: Path, set_: SetPlan) -> Path:
    return folder / "parts" / slug(set_.label) / "population.json"


def save(record: Part | Population, path: Path) -> None:
    """In one step: a kill leaves the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.part")
    scratch.write_text(json.dumps(asdict(record)), encoding="utf-8")
    os.replace(scratch, path)


def load_part(path: Path) -> Part | None:
    """The part in a file; None where there is no file.

    Raises:
        DeepRecError: the file is damaged.
    """
    tree = _tree(path)
    if tree is None:
        return None
    try:
        explored = tree.pop("explorations")
        if explored is None:
            return Part(**_tuples(tree))
        oracle_ablation = explored.pop("links", None)
        oracle_ablation = None if oracle_ablation is None else OracleAblation(**_tuples(oracle_ablation))
        return Part(**_tuples(tree), explorations=Explorations(**_tuples(explored), oracle_ablation=oracle_ablation))
    except (TypeError, KeyError, AttributeError):
        raise _damaged(path) from None


def load_population(path: Path) -> Population | None:
    """Likewise."""
    tree = _tree(path)
    try:
        return None if tree is None else Population(**_tuples(tree))
    except (TypeError, AttributeError):
        raise _damaged(path) from None


def _tree(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise _damaged(path) from None


def _damaged(path: Path) -> DeepRecError:
    return DeepRecError(f"{path} is damaged, or of another version: remove it, and run the experiment again.")


def _tuples(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _tuple(value) if isinstance(value, list) else value for name, value in tree.items()}


def _tuple(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(_tuple(value) if isinstance(value, list) else value for value in values)


def _ranks(rankings: Sequence[Sequence[int]], wanted: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(rank) for rank in ranks_of(rankings, wanted))
