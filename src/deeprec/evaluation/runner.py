"""Running an experiment: what is done is kept, what is missing is made, one part after another."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape

from deeprec.cli.workbench import TRAINED_BY, Workbench
from deeprec.config import Config, ExploreConfig, items_of, preference_weight_of, weight_note
from deeprec.data.dataset import Dataset, Task
from deeprec.errors import DeepRecError
from deeprec.evaluation.cached_results import (
    Explorations,
    Part,
    Population,
    load_part,
    part_file,
    population_file,
    save,
)
from deeprec.evaluation.evaluate import evaluation_tasks, explored, rankings_of, resume
from deeprec.evaluation.external_rankings import external_file, read_external_rankings
from deeprec.evaluation.metrics import ndcg_at, ranks_of
from deeprec.evaluation.one_shot import fused, recall_titles, rerank
from deeprec.evaluation.oracle_ablation import OracleAblation
from deeprec.evaluation.plans import (
    HEARD,
    PLAN_FILE,
    WITH_MODEL,
    Plan,
    SetPlan,
    SystemPlan,
    dump_plan,
    plan_of,
    refuse_namesake,
    slug,
)
from deeprec.evaluation.report import write_report
from deeprec.evaluation.worker_processes import Stream, spread
from deeprec.explore.environment import segment_tokens_of
from deeprec.explore.explorer import Explorer, resolve_defaults
from deeprec.explore.protocol import PROTOCOL
from deeprec.explore.trace import Stop, Trace
from deeprec.policies.adapters import adapter_folder, digests_of, read_prompt_defaults
from deeprec.retrieval.baselines import PopularityRetriever, TransitionRetriever
from deeprec.retrieval.retriever import Retriever
from deeprec.runs import JsonLines, environment, lock

if TYPE_CHECKING:  # torch stays out of a report
    from deeprec.explore.policy import Policy
    from deeprec.trm.trm import TRM

_EASE_GRID = (20.0, 50.0, 200.0, 500.0, 1000.0)
_CLOCK = ""
"""The system of the lines of a log that hold seconds, not traces: a name that no system has."""

_CALLING = ("script", "explore")
"""Kinds that call the tool."""

_ONE_SHOT = {"history", "answer", "answer_size", "segment_tokens", "context_tokens"}
_READS: dict[str, dict[str, set[str] | None]] = {
    "popularity": {},
    "transitions": {},
    "ease": {},
    "lists": {},
    "trm": {"trm": None},
    "themes": {"trm": None, "explore": {"preference_weight"}},
    "recent": {"trm": None, "explore": {"preference_weight"}},
    "script": {"trm": None, "explore": None},
    "fusion": {"trm": None, "explore": None},
    "titles": {"policy": None, "explore": _ONE_SHOT - {"answer"}},
    "rerank": {"trm": None, "policy": None, "explore": _ONE_SHOT},
    "explore": {"trm": None, "policy": None, "explore": None},
}
"""Sections of the configuration that decide what a kind of system does, and which of their keys where not all do."""
_DECIDES_NOTHING = {
    "policy": {"adapter", "gpu_share", "url"},
    "explore": {"batch_size"},
}


def run_experiment(
    bench: Workbench, plan: Path | None, sources: Sequence[str], folder: Path | None
) -> tuple[Path, Path]:
    """Run what is missing of the plan in a file, or of the built-in one, and write its report; the report's two files.

    Raises:
        DeepRecError: the plan is wrong, or some of its systems could not be run. The others are, and are reported.
    """
    found = plan_of(plan, bench.config, sources)
    names = [found.name, *([] if plan is not None and not sources else [set_.label for set_ in found.sets])]
    if folder is None:
        folder = bench.runs / "-".join(["experiment", *map(slug, names)])
        refuse_namesake(found, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        (folder / PLAN_FILE).write_text(dump_plan(found), encoding="utf-8")
        bench.console.print(f"Experiment in {folder}; if interrupted, the same command goes on", soft_wrap=True)
        failed = Experiment(found, folder, bench).run()
        try:
            report = write_report(folder)
        except DeepRecError as error:  # nothing is there to report, for a reason
            raise DeepRecError(failed[0] if failed else str(error)) from None
    if failed:
        raise DeepRecError(
            f"{len(failed)} of the experiment's parts failed, the others are in {report[0]}: {failed[0]}"
        )
    return report


@dataclass
class Experiment:
    """A plan at work in a folder of its own.

    Args:
        bench: lends its runs folder, console and progress; each system has its own configuration.
    """

    plan: Plan
    folder: Path
    bench: Workbench
    _trms: dict[str, TRM] = field(default_factory=dict)
    _policy: tuple[str, Policy] | None = None

    def run(self) -> list[str]:
        """Make all parts that are missing or were made otherwise; says what went wrong with those that failed."""
        self._warn_of_missing_lists()
        failed = []
        for set_ in self.plan.sets:
            systems = self.plan.systems_of(set_)
            config = self.plan.config_of(set_, systems[0], self.plan.seeds[0])
            try:
                dataset = replace(self.bench, config=config).dataset()
            except DeepRecError as error:
                failed.append(f"{set_.label}: {error}")
                self.bench.console.print(escape(failed[-1]), soft_wrap=True)
                continue
            save(Population.of(dataset, config.eval), population_file(self.folder, set_))
            for seed in self.plan.seeds:
                self._trms.clear()  # each has its seed
                for system in systems:
                    where = f"{set_.label}, seed {seed}: {system.name}"
                    try:
                        passed_over = self.plan.left_out(system, len(dataset.catalog))
                        told = passed_over or self._part(set_, system, seed, dataset, where)
                    except DeepRecError as error:
                        told = f"failed: {error}"
                        failed.append(f"{where}: {error}")
                    self.bench.console.print(f"{escape(where)}: {escape(told)}", soft_wrap=True)
        return failed

    def _warn_of_missing_lists(self) -> None:
        """At once: there may be hours until it is their turn, in which they can be made."""
        for set_ in self.plan.sets:
            for system in self.plan.systems_of(set_):
                for seed in self.plan.seeds if system.file is not None else ():
                    try:
                        external_file(system, set_, seed)
                    except DeepRecError as error:
                        self.bench.console.print(escape(str(error)), soft_wrap=True)

    def _part(self, set_: SetPlan, system: SystemPlan, seed: int, dataset: Dataset, where: str) -> str:
        """Make a part where it is not there yet; says how it went."""
        config, note = self.plan.config_of(set_, system, seed), ""
        if system.train is not None:
            weights = self._trained(set_, system, seed, dataset)
            config, note = _with_weights(config, weights), _training_note(weights)
        bench = replace(self.bench, config=config, seconds={})
        users = config.eval.users if system.kind in WITH_MODEL and config.eval.users is not None else system.users
        tasks = evaluation_tasks(dataset, config.eval.model_copy(update={"users": users}))[1]
        key, plan = _key(system, set_, seed, dataset, config, tasks), self.plan.digest(set_, system, seed)
        path = part_file(self.folder, set_, system, seed)
        log = JsonLines(path.with_name(f"{path.stem}-{key[:12]}.traces.jsonl"))
        for other in dict.fromkeys((seed, *self.plan.seeds)):  # a system without a seed is run for the first alone
            old = load_part(part_file(self.folder, set_, system, other))
            if old is not None and old.key == key:
                now = self._with_oracle_ablation(replace(old, plan=plan), bench, system, dataset, tasks, log)
                if other != seed or old != now:
                    save(now, path)
                return "done before"
        k, targets = max(config.eval.cutoffs), dataset.targets(config.eval.split)
        explore = self._explore(bench, system, dataset) if system.kind in HEARD else config.explore
        part = partial(
            Part.of, key, plan, dataset.fingerprint, tasks, targets=targets, environment=environment(sys.argv)
        )
        if system.kind in ("script", *WITH_MODEL):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = self._stream(bench, system, dataset)
            with bench.progress(f"{escape(where)}, users", len(tasks)) as (bar, mark):
                traces = resume(tasks, system.name, log, _clocked(stream, log), partial(bar.advance, mark))
            if broken := [trace for trace in traces if trace.stop is Stop.FAILED]:
                raise DeepRecError(
                    f"{len(broken)} of {len(traces)} explorations failed (first: {broken[0].error}); they are explored "
                    "again when the experiment is run again."
                )
            calls, filled = system.kind in _CALLING, system.kind != "titles"
            rankings = [trace.with_fallback()[0] if filled else trace.answered for trace in traces]
            rankings = [ranking[:k] for ranking in rankings]
            oracle_ablation = self._oracle_ablation(bench, system, dataset, tasks, traces) if calls else None
            explorations = Explorations.of(traces, targets, calls, filled, oracle_ablation)
            made = part(rankings=rankings, seconds_per_user=_rate(log), note=note, explorations=explorations)
        elif system.kind == "lists":
            file = external_file(system, set_, seed)
            lists = read_external_rankings(file, dataset, tasks)
            made = part(rankings=[each[:k] for each in lists], seconds_per_user=None, note=f"from {file}")
        else:
            retriever, note = self._retriever(bench, system, dataset)
            preference_weight = preference_weight_of(explore)
            started = time.perf_counter()
            if system.kind == "fusion":
                traces = Explorer(bench.script(), retriever, dataset.catalog, config.explore).run(tasks)
                found = fused(retriever, tasks, traces, k, preference_weight)
            else:
                found = rankings_of(retriever, tasks, k, _says(system, dataset), preference_weight)
            made = part(rankings=found, seconds_per_user=(time.perf_counter() - started) / len(tasks), note=note)
        if system.kind in HEARD and config.explore.preference_weight is None:
            made = replace(made, note="; ".join(filter(None, [made.note, weight_note(explore)])))
        save(made, path)
        return f"NDCG@{k} {ndcg_at(np.array(made.ranks), k).mean():.4f}"

    def _oracle_ablation(
        self, bench: Workbench, system: SystemPlan, dataset: Dataset, tasks: Sequence[Task], traces: Sequence[Trace]
    ) -> OracleAblation:
        """The explorations with one link replaced."""
        explore, targets = self._explore(bench, system, dataset), dataset.targets(bench.config.eval.split)
        return OracleAblation.of(self._trm(bench, dataset), dataset.catalog, tasks, traces, targets, explore)

    def _explore(self, bench: Workbench, system: SystemPlan, dataset: Dataset) -> ExploreConfig:
        """What an exploration really has."""
        adapter = adapter_folder(bench.config.policy) if system.kind == "explore" else None
        return resolve_defaults(bench.config.explore, read_prompt_defaults(adapter), self._trm(bench, dataset))

    def _with_oracle_ablation(
        self, part: Part, bench: Workbench, system: SystemPlan, dataset: Dataset, tasks: Sequence[Task], log: JsonLines
    ) -> Part:
        """A part of before there were links gets them from its traces, where these are still there."""
        if system.kind not in _CALLING or part.explorations is None or part.explorations.oracle_ablation is not None:
            return part
        traces = explored(system.name, log)
        if any(task.id not in traces for task in tasks):
            return part
        oracle_ablation = self._oracle_ablation(bench, system, dataset, tasks, [traces[task.id] for task in tasks])
        return replace(part, explorations=replace(part.explorations, oracle_ablation=oracle_ablation))

    def _stream(self, bench: Workbench, system: SystemPlan, dataset: Dataset) -> Stream:
        """What explores, or asks once, and yields `(place, trace)` of tasks."""
        config, catalog = bench.config.explore, dataset.catalog
        if system.kind == "script":
            return Explorer(bench.script(), self._trm(bench, dataset), catalog, config).stream
        return spread(self._asking(bench, system, dataset), self._loaded(bench), bench.config)

    def _asking(self, bench: Workbench, system: SystemPlan, dataset: Dataset) -> Stream:
        """What asks a language model."""
        config, catalog, policy = bench.config.explore, dataset.catalog, self._loaded(bench)
        if system.kind == "explore":
            return Explorer(policy, self._trm(bench, dataset), catalog, config).stream
        if system.kind == "rerank":
            trm = self._trm(bench, dataset)
            return lambda missing: rerank(policy, trm, catalog, missing, config, system.candidates)
        from deeprec.trm.text_encoder import TextEncoder

        encode = TextEncoder.load(offline=bench.offline).encode
        titles_IE = encode(catalog.titles)
        return lambda missing: recall_titles(policy, encode, titles_IE, catalog, missing, config)

    def _retriever(self, bench: Workbench, system: SystemPlan, dataset: Dataset) -> tuple[Retriever, str]:
        """And a note on how it was made."""
        sequences, n_items = dataset.train_sequences(), len(dataset.catalog)
        if system.kind == "popularity":
            return PopularityRetriever.fit(sequences, n_items), ""
        if system.kind == "transitions":
            return TransitionRetriever.fit(sequences, n_items), ""
        if system.kind == "ease":
            return _best_ease(dataset)
        return self._trm(bench, dataset), ""

    def _trm(self, bench: Workbench, dataset: Dataset) -> TRM:
        key = bench.config.trm.model_dump_json()
        if key not in self._trms:
            self._trms[key] = bench.trm(dataset)[0]
        return self._trms[key]

    def _loaded(self, bench: Workbench) -> Policy:
        """The language model; the last one is kept, for most systems of a plan share one."""
        limits = bench.config.explore.model_dump(include={"context_tokens", "batch_size", "answer_size"})
        key = bench.config.policy.model_dump_json() + json.dumps(limits)
        if self._policy is None or self._policy[0] != key:
            self._policy = None
            self._policy = (key, bench.policy())
        return self._policy[1]

    def _trained(self, set_: SetPlan, system: SystemPlan, seed: int, dataset: Dataset) -> Path:
        """The weights of a part of a training, which goes on first where it has not come so far."""
        bench = replace(self.bench, config=self.plan.training_of(set_, system, seed))
        if system.train_on not in (None, set_.label):
            dataset = bench.dataset()
        known = bench.latest("train", dataset, TRAINED_BY)
        if known is not None and (known.path / str(system.train)).is_dir():
            return known.path / str(system.train)
        self._policy = None  # its memory is the training's now
        return bench.train(dataset).parent / str(system.train)


def _with_weights(config: Config, weights: Path) -> Config:
    """A configuration that asks with an adapter, or with a whole model where the training made one."""
    adapter = (weights / "adapter_config.json").is_file()
    own = {"adapter": str(weights)} if adapter else {"model": str(weights), "adapter": "none"}
    return config.model_copy(update={"policy": config.policy.model_copy(update=own)})


def _training_note(weights: Path) -> str:
    from deeprec.training.time_budget import time_spent

    came = time_spent(weights.parent)
    return f"its training came to {came}" if came else ""


def _says(system: SystemPlan, dataset: Dataset) -> Callable[[Task], str]:
    """The preference of each task."""
    if system.kind not in ("themes", "recent"):
        return lambda task: ""
    from deeprec.trm.preferences import frequent_phrases, recent_titles

    phrases = frequent_phrases if system.kind == "themes" else recent_titles
    return lambda task: "; ".join(phrases(dataset.catalog, task.history))


def _clocked(stream: Stream, log: JsonLines) -> Stream:
    """The same, with a line in the log for the seconds that it took and for how many: an experiment is interrupted."""

    def clocked(tasks: Sequence[Task]) -> Iterator[tuple[int, Trace]]:
        started, done = time.perf_counter(), 0
        try:
            for pair in stream(tasks):
                done += 1
                yield pair
        finally:
            log.append({"system": _CLOCK, "seconds": time.perf_counter() - started, "explored": done})

    return clocked


def _rate(log: JsonLines) -> float | None:
    """Seconds a user over all that the log knows the time of."""
    lines = [entry for entry in log if "seconds" in entry]
    explored = sum(line["explored"] for line in lines)
    return sum(line["seconds"] for line in lines) / explored if explored else None


def _best_ease(dataset: Dataset) -> tuple[Retriever, str]:
    """EASE with the regularisation that is best on the validation targets."""
    from deeprec.retrieval.baselines import EASERetriever

    tasks, targets = dataset.tasks("validation"), dataset.targets("validation")
    wanted = [targets[task.id] for task in tasks]
    best: tuple[float, float, Retriever] | None = None
    for value in _EASE_GRID:
        retriever = EASERetriever.fit(dataset.train_sequences(), len(dataset.catalog), value)
        ndcg = float(ndcg_at(ranks_of(rankings_of(retriever, tasks, 10), wanted), 10).mean())
        if best is None or ndcg > best[0]:
            best = (ndcg, value, retriever)
    assert best is not None
    grid = ", ".join(f"{value:g}" for value in _EASE_GRID)
    return best[2], f"regularisation {best[1]:g} of {grid}, by validation NDCG@10"


def _key(system: SystemPlan, set_: SetPlan, seed: int, dataset: Dataset, config: Config, tasks: Sequence[Task]) -> str:
    """Digest of all that decides what a part holds."""
    reads = _READS[system.kind]
    configuration = {
        name: getattr(config, name).model_dump(mode="json", include=keys, exclude=_DECIDES_NOTHING.get(name))
        for name, keys in reads.items()
    }
    explore = configuration.get("explore", {})
    if explore.get("answer") in (None, "free"):  # as before there was a choice
        explore.pop("answer", None)
    record = {
        "kind": system.kind,
        "data": dataset.fingerprint,
        "users": [task.id for task in tasks],
        "cutoff": max(config.eval.cutoffs),
        "configuration": configuration,
    }
    if reads:
        record["text"] = dataset.text_digest
    if "explore" in reads:
        record |= {"protocol": PROTOCOL, "preference_weight": config.explore.preference_weight}
    if system.kind in ("script", "fusion", "explore"):
        record["items"] = items_of(config.explore)
    if "policy" in reads:
        folders = (adapter_folder(config.policy), Path(config.policy.model).expanduser())
        record["weights"] = [digest for folder in folders for digest in digests_of(folder)]
        if config.explore.segment_tokens is None:
            record["room"] = segment_tokens_of(config.explore, dataset.catalog)
    if system.kind == "rerank":
        record["candidates"] = system.candidates
    if system.kind == "lists":
        record["lists"] = hashlib.sha256(external_file(system, set_, seed).read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
