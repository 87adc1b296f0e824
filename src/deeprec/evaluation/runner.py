"""Runs a plan: results that exist are kept, missing ones are made, one system after another."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from deeprec.data.catalog import ItemIdx
from deeprec.data.dataset import Dataset, Task
from deeprec.errors import DeepRecError
from deeprec.evaluation.cached_results import CachedResult, Explorations, TraceLog, Users, result_file, users_file
from deeprec.evaluation.external_rankings import external_file
from deeprec.evaluation.metrics import ndcg_at
from deeprec.evaluation.models import Models
from deeprec.evaluation.oracle_ablation import OracleAblation, rank_tuple
from deeprec.evaluation.plans import PLAN_FILE, Plan, Seed, SetPlan, SystemPlan, dump_plan
from deeprec.evaluation.rankings import check_targets, evaluation_tasks
from deeprec.evaluation.report import Report
from deeprec.evaluation.systems import KINDS, PlannedSystem, System
from deeprec.runs import environment
from deeprec.runs.progress import Progress


def run_plan(plan: Plan, folder: Path, models: Models, *, same_data: bool = False) -> Report:
    """Make what is missing of a plan's results in a folder, which the caller has locked, and write the report there. It
    says what failed; DeepRecError where there is nothing to report.

    Args:
        same_data: whether to refuse data that differ from those of the folder's results.
    """
    (folder / PLAN_FILE).write_text(dump_plan(plan), encoding="utf-8")
    failed = Runner(plan, folder, models, same_data).run()
    try:
        report = Report.read(folder)
    except DeepRecError as error:  # nothing to report, for a reason
        raise DeepRecError(failed[0] if failed else str(error)) from None
    report.save(folder)
    return replace(report, failed=tuple(failed))


@dataclass
class Runner:
    """A plan at work in a folder of its own."""

    plan: Plan
    folder: Path
    models: Models
    same_data: bool = False

    def run(self) -> list[str]:
        """Make all results that are missing or have another key; what went wrong with those that failed."""
        self._warn_of_missing_files()
        failed, say = [], self.models.progress.message
        for set_ in self.plan.sets:
            config = self.plan.config_of(set_, self.plan.systems_of(set_)[0], self.plan.runs[0])
            try:
                dataset = self.models.dataset(config)
                users, path = Users.of(dataset, config.eval), users_file(self.folder, set_)
            except DeepRecError as error:
                failed.append(f"{set_.label}: {error}")
                say(failed[-1])
                continue
            if self.same_data and Users.load(path) not in (None, users):
                raise DeepRecError(f"{self.folder} was made on other data than {set_.source} now gives.")
            users.save(path)
            for seed, system in product(self.plan.runs, self.plan.systems_of(set_)):
                where = self._name(set_, system, seed)
                try:
                    told = self.plan.left_out(system, len(dataset.catalog)) or self._run(set_, system, seed, dataset)
                except DeepRecError as error:
                    told = f"failed: {error}"
                    failed.append(f"{where}: {error}")
                say(f"{where}: {told}")
        return failed

    def _name(self, set_: SetPlan, system: SystemPlan, seed: Seed) -> str:
        parts = [set_.label] if len(self.plan.sets) > 1 else []
        parts += [f"seed {seed}"] if len(self.plan.runs) > 1 else []
        return f"{', '.join(parts)}: {system.name}" if parts else system.name

    def _warn_of_missing_files(self) -> None:
        """Before anything runs, so that missing rankings can be made before their turn."""
        for set_, seed in product(self.plan.sets, self.plan.runs):
            for system in [system for system in self.plan.systems_of(set_) if system.file is not None]:
                try:
                    external_file(system, set_, seed)
                except DeepRecError as error:
                    self.models.progress.message(str(error))

    def _run(self, set_: SetPlan, plan: SystemPlan, seed: Seed, dataset: Dataset) -> str:
        """Make a result where it is not there yet; how it went."""
        system, note = self._system(set_, plan, seed, dataset)
        limits = system.config.eval
        users = limits.users if system.on_sample and limits.users is not None else plan.users
        tasks, k = evaluation_tasks(dataset, limits.model_copy(update={"users": users}))[1], max(limits.cutoffs)
        targets = dataset.targets(limits.split)
        check_targets(tasks, targets)
        decides = system.cache_key() | {"users": [task.id for task in tasks], "cutoff": k}
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        path, digest = result_file(self.folder, set_, plan, seed), self.plan.digest(set_, plan, seed)
        for other in dict.fromkeys((seed, *self.plan.runs)):  # a system without a seed runs for the first alone
            old = CachedResult.load(result_file(self.folder, set_, plan, other))
            if old is not None and old.key == key:
                if other != seed or old.plan != digest:
                    replace(old, plan=digest).save(path)
                return "done before"
        log = TraceLog(path.with_name(f"{path.stem}-{key[:12]}.traces.jsonl"))
        made = evaluate_system(system, tasks, targets, k, log, self.models.progress)
        notes = "; ".join(filter(None, [note, made.note]))
        replace(made, key=key, plan=digest, fingerprint=dataset.fingerprint, note=notes).save(path)
        return f"NDCG@{k} {ndcg_at(np.array(made.ranks), k).mean():.4f}"

    def _system(self, set_: SetPlan, plan: SystemPlan, seed: Seed, dataset: Dataset) -> tuple[PlannedSystem, str]:
        """And a note on its training."""
        config, note = self.plan.config_of(set_, plan, seed), ""
        if plan.train is not None:
            from deeprec.training.time_budget import time_spent

            weights = self.models.trained(self.plan.training_of(set_, plan, seed), plan.train)
            adapter = (weights / "adapter_config.json").is_file()  # or a whole model
            own = {"adapter": str(weights)} if adapter else {"model": str(weights), "adapter": "none"}
            config = config.model_copy(update={"policy": config.policy.model_copy(update=own)})
            spent = time_spent(weights.parent)
            note = f"time of its training: {spent}" if spent else ""
        file = None if plan.file is None else external_file(plan, set_, seed)
        return KINDS[plan.kind](plan, config, dataset, self.models, file), note


def evaluate_system(
    system: System, tasks: Sequence[Task], targets: Mapping[str, ItemIdx], k: int, log: TraceLog, progress: Progress
) -> CachedResult:
    """The system's result for these tasks, without a key."""
    ranked, wanted = system.rank(tasks, k, log, progress), [targets[task.id] for task in tasks]
    explorations, explorer, ablation = None, ranked.explorer, None
    if ranked.traces is not None:
        if explorer is not None:
            from deeprec.trm.trm import TRM

            if isinstance(explorer.retriever, TRM):
                ablation = OracleAblation.of(explorer.retriever, explorer, tasks, ranked.traces, wanted)
        explorations = Explorations.of(ranked.traces, wanted, explorer is not None, ablation)
    return CachedResult(
        key="",
        plan="",
        fingerprint="",
        users=tuple(task.id for task in tasks),
        ranks=rank_tuple(ranked.rankings, wanted),
        rankings=tuple(tuple(map(int, ranking)) for ranking in ranked.rankings),
        seconds_per_user=ranked.seconds_per_user,
        note=system.note,
        environment=environment(sys.argv),
        explorations=explorations,
    )
