"""Running an experiment: what is done is kept, what is missing is made, one part after another."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeprec.config import Config
from deeprec.data.catalog import ItemIdx
from deeprec.data.dataset import Dataset, Task
from deeprec.errors import DeepRecError
from deeprec.eval.baselines import recall_titles, rerank
from deeprec.eval.evaluate import evaluation_tasks, resume
from deeprec.eval.metrics import ndcg_at, ranks_of
from deeprec.experiments.parts import Part, Population, load_part, part_file, population_file, save
from deeprec.experiments.plan import PLAN_FILE, WITH_MODEL, Plan, SetPlan, SystemPlan, dump_plan, load_plan, slug
from deeprec.experiments.report import write_report
from deeprec.explore.explorer import Explorer
from deeprec.explore.protocol import PROTOCOL
from deeprec.runs import JsonLines, environment
from deeprec.trm.retriever import PopularityRetriever, Query, Retriever, TransitionRetriever
from deeprec.workbench import TRAINED_BY, Workbench

if TYPE_CHECKING:  # torch stays out of a report
    from deeprec.policies.policy import Policy
    from deeprec.trm.trm import TRM

BUILT_IN = Path(__file__).with_name("comparison.toml")

_BATCH = 256
_EASE_GRID = (20.0, 50.0, 200.0, 500.0, 1000.0)
_READS = {
    "popularity": (),
    "transitions": (),
    "ease": (),
    "lists": (),
    "trm": ("trm",),
    "themes": ("trm", "explore"),
    "script": ("trm", "explore"),
    "titles": ("policy", "explore"),
    "rerank": ("trm", "policy", "explore"),
    "explore": ("trm", "policy", "explore"),
}
"""Sections of the configuration that decide what a kind of system does."""


def run_experiment(
    bench: Workbench, plan: Path | None, sources: Sequence[str], folder: Path | None
) -> tuple[Path, Path]:
    """Run what is missing of the plan in a file, or of the built-in one, and write its report; the report's two files.

    Raises:
        DeepRecError: the plan, or one of its systems, can't be run; what was done before is kept.
    """
    found = load_plan(plan or BUILT_IN, bench.config, sources)
    folder = folder or bench.runs / f"experiment-{slug(found.name)}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLAN_FILE).write_text(dump_plan(found), encoding="utf-8")
    bench.console.print(f"Experiment in {folder}; if interrupted, the same command goes on", soft_wrap=True)
    Experiment(found, folder, bench).run()
    return write_report(folder)


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

    def run(self) -> None:
        """Make all parts that are missing or were made otherwise.

        Raises:
            DeepRecError: a system can't be run; what was done before it is kept.
        """
        for set_ in self.plan.sets:
            systems = self.plan.systems_of(set_)
            config = self.plan.config_of(set_, systems[0], self.plan.seeds[0])
            dataset = replace(self.bench, config=config).dataset()
            save(Population.of(dataset, config.eval), population_file(self.folder, set_))
            self._trms.clear()
            for seed in self.plan.seeds:
                for system in systems:
                    self._part(set_, system, seed, dataset)

    def _part(self, set_: SetPlan, system: SystemPlan, seed: int, dataset: Dataset) -> None:
        path = part_file(self.folder, set_, system, seed)
        bench = replace(self.bench, config=self.plan.config_of(set_, system, seed), seconds={})
        if system.train is not None:
            bench = replace(bench, config=self._trained(set_, system, seed))
        config = bench.config
        users = config.eval.model_copy(update={"users": system.users})
        tasks = evaluation_tasks(dataset, users)[1]
        key = _key(system, seed, dataset, config, tasks)
        old = load_part(path)
        where = f"{set_.label}, seed {seed}: {system.name}"
        if old is not None and old.key == key:
            self.bench.console.print(f"{where}: done before", soft_wrap=True)
            return
        targets, k = dataset.targets(config.eval.split), max(config.eval.cutoffs)
        log = JsonLines(path.with_name(f"{path.stem}-{key[:12]}.traces.jsonl"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with bench.progress(f"{where}, users", len(tasks)) as (bar, mark):
            advance = partial(bar.advance, mark)
            if system.kind in ("script", *WITH_MODEL):
                explore, note = self._explore(bench, system, dataset), ""
                started, before = time.perf_counter(), sum(1 for _ in log)
                traces = resume(tasks, system.name, log, explore, advance)
                done = sum(1 for _ in log) - before  # what an interrupted run had explored took time of its own
                rankings: Sequence[Sequence[int]] = [trace.served()[0] for trace in traces]
                if system.kind == "titles":
                    rankings = [trace.answered for trace in traces]
            else:
                ask, note = self._ask(bench, system, dataset, set_, seed)
                started, traces, rankings, done = time.perf_counter(), None, [], len(tasks)
                for first in range(0, len(tasks), _BATCH):
                    rankings = [*rankings, *ask(tasks[first : first + _BATCH], k)]
                    advance(len(tasks[first : first + _BATCH]))
        seconds = time.perf_counter() - started
        part = Part.of(
            key=key,
            tasks=tasks,
            rankings=[ranking[:k] for ranking in rankings],
            targets=targets,
            seconds_per_user=seconds / done if done else None,
            note=note,
            environment=environment(sys.argv),
            traces=traces,
        )
        save(part, path)
        ndcg = ndcg_at(np.array(part.ranks), k).mean()
        self.bench.console.print(f"{where}: NDCG@{k} {ndcg:.4f}, {seconds:.1f} s", soft_wrap=True)

    def _explore(self, bench: Workbench, system: SystemPlan, dataset: Dataset) -> Any:
        """What gives `(place, trace)` of tasks."""
        config, catalog = bench.config.explore, dataset.catalog
        if system.kind == "script":
            return Explorer(bench.script(), self._trm(bench, dataset), catalog, config).stream
        policy = self._loaded(bench)
        if system.kind == "explore":
            return Explorer(policy, self._trm(bench, dataset), catalog, config).stream
        if system.kind == "rerank":
            trm = self._trm(bench, dataset)
            return lambda missing: rerank(policy, trm, catalog, missing, config, system.candidates)
        from deeprec.trm.text_encoder import TextEncoder

        encode = TextEncoder.load(offline=bench.offline).encode
        titles_IE = encode(catalog.titles)
        return lambda missing: recall_titles(policy, encode, titles_IE, catalog, missing, config)

    def _ask(self, bench: Workbench, system: SystemPlan, dataset: Dataset, set_: SetPlan, seed: int) -> tuple[Any, str]:
        """What ranks `k` items for tasks, and a note on it."""
        if system.kind == "lists":
            assert system.file is not None
            lists = read_lists(Path(system.file.format(set=set_.label, seed=seed)), dataset)
            return lambda tasks, k: [_of_user(lists, task)[:k] for task in tasks], f"from {system.file}"
        sequences, n_items, note = dataset.train_sequences(), len(dataset.catalog), ""
        retriever: Retriever
        if system.kind == "popularity":
            retriever = PopularityRetriever.fit(sequences, n_items)
        elif system.kind == "transitions":
            retriever = TransitionRetriever.fit(sequences, n_items)
        elif system.kind == "ease":
            retriever, note = _best_ease(dataset)
        else:
            retriever = self._trm(bench, dataset)
        trust = bench.config.explore.trust

        def ask(tasks: Sequence[Task], k: int) -> list[list[ItemIdx]]:
            from deeprec.trm.preferences import themes

            said = ["; ".join(themes(dataset.catalog, t.history)) if system.kind == "themes" else "" for t in tasks]
            queries = [
                Query(task.history, text, frozenset(task.history), trust)
                for task, text in zip(tasks, said, strict=True)
            ]
            return [[hit.item for hit in hits] for hits in retriever.retrieve(queries, k)]

        return ask, note

    def _trm(self, bench: Workbench, dataset: Dataset) -> TRM:
        key = bench.config.trm.model_dump_json()
        if key not in self._trms:
            self._trms[key] = bench.trm(dataset)[0]
        return self._trms[key]

    def _loaded(self, bench: Workbench) -> Policy:
        """The language model; the last one is kept, for most systems of a plan share one."""
        key = bench.config.policy.model_dump_json()
        if self._policy is None or self._policy[0] != key:
            self._policy = None
            self._policy = (key, bench.policy())
        return self._policy[1]

    def _trained(self, set_: SetPlan, system: SystemPlan, seed: int) -> Config:
        """The system's configuration with the weights of a training, which first goes on if it has not come so far."""
        on = next(each for each in self.plan.sets if each.label == (system.train_on or set_.label))
        bench = replace(self.bench, config=self.plan.config_of(on, system, seed))
        dataset = bench.dataset()
        known = bench.latest("train", dataset, TRAINED_BY)
        weights = (known.path if known is not None else Path()) / str(system.train)
        if known is None or not weights.is_dir():
            weights = bench.train(dataset).parent / str(system.train)
        if not weights.is_dir():
            raise DeepRecError(
                f"System {system.name!r}: the training in {weights.parent} has no part {system.train!r}."
            )
        key = "adapter" if bench.config.train.lora_rank else "model"
        own = self.plan.config_of(set_, system, seed)
        return own.model_copy(update={"policy": own.policy.model_copy(update={key: str(weights)})})


def read_lists(path: Path, dataset: Dataset) -> dict[str, list[ItemIdx]]:
    """Rankings by user from a file of lines `user<TAB>item<TAB>item...`, by the ids of the data, best first.

    Raises:
        DeepRecError: there is no such file, an id is unknown, or a user comes twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DeepRecError(f"{path} can't be read as rankings ({error}): check the path of `file`.") from None
    places = {str(item): ItemIdx(place) for place, item in enumerate(dataset.catalog.ids)}
    found: dict[str, list[ItemIdx]] = {}
    for number, line in enumerate(lines, start=1):
        user, *items = line.split("\t")
        if unknown := [item for item in items if item not in places]:
            raise DeepRecError(f"{path}, line {number}: {dataset.name} has no item {unknown[0]!r}.")
        if user in found or len(set(items)) < len(items):
            raise DeepRecError(f"{path}, line {number}: user {user!r}, or one of the items, comes twice.")
        found[user] = [places[item] for item in items]
    return found


def _of_user(lists: dict[str, list[ItemIdx]], task: Task) -> list[ItemIdx]:
    if task.user not in lists:
        raise DeepRecError(f"The file of rankings has no line for user {task.user!r}: it needs one for each.")
    return lists[task.user]


def _best_ease(dataset: Dataset) -> tuple[Retriever, str]:
    """EASE with the regularisation that is best on the validation targets."""
    from deeprec.trm.ease import EASERetriever

    tasks, targets = dataset.tasks("validation"), dataset.targets("validation")
    wanted = [targets[task.id] for task in tasks]

    best: tuple[float, float, Retriever] | None = None
    for value in _EASE_GRID:
        retriever = EASERetriever.fit(dataset.train_sequences(), len(dataset.catalog), value)
        lists = []
        for first in range(0, len(tasks), _BATCH):
            queries = [Query(task.history, exclude=frozenset(task.history)) for task in tasks[first : first + _BATCH]]
            lists += [[hit.item for hit in hits] for hits in retriever.retrieve(queries, 10)]
        ndcg = float(ndcg_at(ranks_of(lists, wanted), 10).mean())
        if best is None or ndcg > best[0]:
            best = (ndcg, value, retriever)
    assert best is not None
    grid = ", ".join(f"{value:g}" for value in _EASE_GRID)
    return best[2], f"regularisation {best[1]:g} of {grid}, by validation NDCG@10"


def _key(system: SystemPlan, seed: int, dataset: Dataset, config: Config, tasks: Sequence[Task]) -> str:
    sections = config.model_dump(mode="json", include=set(_READS[system.kind]))
    own = system.model_dump(mode="json", include={"kind", "file", "candidates"})
    record = {
        "system": own,
        "seed": seed if _READS[system.kind] else 0,
        "data": dataset.fingerprint,
        "split": config.eval.split,
        "cutoff": max(config.eval.cutoffs),
        "users": hashlib.sha256("\n".join(task.id for task in tasks).encode()).hexdigest(),
        "protocol": PROTOCOL,
        "configuration": sections,
        "weights": _weights(config) if "policy" in _READS[system.kind] else None,
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _weights(config: Config) -> str | None:
    """Digest of the adapter: a name may stand for other weights tomorrow."""
    if config.policy.adapter is None:
        return None
    path = Path(config.policy.adapter) / "adapter_model.safetensors"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        raise DeepRecError(f"There is no adapter in {path.parent}: check policy.adapter.") from None
