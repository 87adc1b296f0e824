"""What the commands do: fetch, train or load, explore, evaluate, each with its run folder and its progress."""

from __future__ import annotations

import shutil
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from deeprec.config import TRAINABLE, Columns, Config, dump_config, weight_note
from deeprec.data.dataset import Dataset, Task
from deeprec.data.sources import load_dataset
from deeprec.errors import DeepRecError
from deeprec.evaluation.eval_report import Report, SystemResult
from deeprec.evaluation.intervals import CONFIDENCE, RESAMPLES, SEED
from deeprec.explore.protocol import PROTOCOL
from deeprec.policies.adapters import adapter_folder, bare, digests_of, name_of
from deeprec.policies.loading import load_policy, load_transformers, load_vllm
from deeprec.runs import Run, environment, list_runs

if TYPE_CHECKING:  # torch stays out of commands that need none
    from deeprec.explore.policy import Policy
    from deeprec.serving.service import Service
    from deeprec.training.task_sets import TaskSets
    from deeprec.trm.trm import TRM


TRAINED_BY = ("data", "trm", "policy", "explore", "rewards", "train")
"""Sections that decide what a training of the policy gives."""
_SHOWN = ("reward", "well-formed", "turns", "loss")
"""Of a training step's numbers, those that the progress bar shows."""


@dataclass
class Workbench:
    """One configuration at work. Parts are made when first asked for."""

    config: Config
    runs: Path = Path("runs")
    offline: bool = False
    console: Console = field(default_factory=Console)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started

    def dataset(self) -> Dataset:
        with self.timed("load the data"):
            return load_dataset(self.config.data, offline=self.offline)

    def trm(self, dataset: Dataset, *, again: bool = False) -> tuple[TRM, Path]:
        """The TRM of this configuration and the folder of its run: loaded, resumed, or trained from the start."""
        from deeprec.trm.text_encoder import TextEncoder
        from deeprec.trm.training import Epoch
        from deeprec.trm.trm import TRM

        known = None if again else self.latest("trm", dataset, ("data", "trm"))
        if known is not None and known.manifest["status"] == "finished":
            return TRM.load(known.path / "trm", offline=self.offline), known.path
        with self.timed("load MiniLM"):
            encoder = TextEncoder.load(offline=self.offline)
        with (
            self.timed("encode the items' text"),
            self.progress("item texts encoded", len(dataset.catalog)) as (bar, task),
        ):
            encoder.encode(
                dataset.catalog.texts(),
                # Fewer texts than items where some are equal.
                lambda done, total: bar.update(task, completed=done, total=total),
            )
            bar.update(task, completed=bar.tasks[task].total)
        run = known or Run.create(self.runs, None, self.config, sys.argv, kind="trm", fingerprint=dataset.fingerprint)
        if known is None:
            run.record(**self._origin("trm", dataset))
        self.console.print(
            f"{'Resuming' if known else 'Training'} the TRM in {run.path} (Ctrl-C is safe)", soft_wrap=True
        )
        with run, self.timed("train the TRM"), self.progress("epoch", self.config.trm.epochs) as (bar, task):

            def on_epoch(epoch: Epoch) -> None:
                run.append_metrics(epoch.epoch, {"loss": epoch.loss, "validation NDCG@10": epoch.ndcg})
                text = f"epoch, loss {epoch.loss:.3f}, validation NDCG@10 {epoch.ndcg:.4f}"
                bar.update(task, completed=epoch.epoch, description=text)

            trm, curve = TRM.fit(dataset, encoder, self.config.trm, run.checkpoints / "last.safetensors", on_epoch)
            trm.save(run.path / "trm")
            run.record(preference_weight=trm.preference_weight)
        best = max(curve, key=lambda epoch: epoch.ndcg)
        self.console.print(
            f"TRM: best validation NDCG@10 {best.ndcg:.4f} in epoch {best.epoch} of {len(curve)}, "
            f"{sum(epoch.seconds for epoch in curve):.0f} s of training; guesses are worth believing to {trm.preference_weight}"
        )
        return trm, run.path

    def train(self, dataset: Dataset, *, tensorboard: bool = False) -> Path:
        """Train the policy of the configuration, or go on where that was interrupted; the folder of its weights.

        Args:
            tensorboard: write each step's numbers for it too, into the run's folder.

        Raises:
            DeepRecError: the policy is not one that can be trained, or its training failed.
        """
        kind = self.config.policy.kind
        if kind not in TRAINABLE:
            raise DeepRecError(f"policy.kind={kind!r} can't be trained: use transformers or vllm.")
        if self.config.policy.adapter not in ("shipped", "none"):
            raise DeepRecError(
                "policy.adapter can't be trained on; an adapter that a training goes on from is named in train.adapter."
            )
        from deeprec.training.callback import alarms, step_summary, tensorboard_in
        from deeprec.training.processes import main_process_first
        from deeprec.training.sampling import VllmSampler, in_process
        from deeprec.training.schedule import SFT, active
        from deeprec.training.task_sets import require_free_answers
        from deeprec.training.time_budget import time_spent
        from deeprec.training.trainer import train

        require_free_answers(self.config.explore)
        with main_process_first() as first:
            self.console.quiet |= not first
            with self.timed("load the language model"):
                policy = load_transformers(self.config, offline=self.offline, training=True)
                sampler = (
                    VllmSampler(load_vllm(self.config, offline=self.offline, training=True))
                    if kind == "vllm"
                    else in_process
                )
            task_sets = self.task_sets(dataset)
            sources = self.config.train.sft.extra_datasets if SFT in active(self.config.train) else ()
            beside = [other.task_sets(other.dataset(), (SFT,)) for other in map(self._on, sources)]
            origin, mark = self._origin("train", dataset), dataset.fingerprint
            known = next(self._runs("train", dataset, TRAINED_BY, origin), None)
            run = known or Run.create(self.runs, None, self.config, sys.argv, kind="train", fingerprint=mark)
            if known is None:
                self._take_over(run, self._runs("train", dataset, TRAINED_BY[:-1], origin))
                run.record(**origin)  # last: a run without is none to go on with
        began = "the bare model" if self.config.train.adapter is None else f"adapter {self.config.train.adapter}"
        doing = "Going on" if known else "Training"
        self.console.print(f"{doing} in {run.path}, from {began} (Ctrl-C is safe)", soft_wrap=True)
        told: set[str] = set()
        whole = run if first else nullcontext()  # the first process alone keeps the run's folder
        board = tensorboard_in(run.path) if tensorboard and first else nullcontext()
        with whole, board as board, self.timed("train the policy"), self.progress("", 1) as (bar, task):

            def on_step(stage: str, step: int, steps: int, numbers: Mapping[str, float]) -> None:
                run.append_metrics(step, {f"{stage}/{name}": value for name, value in numbers.items()})
                if board is not None:
                    for name, value in numbers.items():
                        board.add_scalar(f"{stage}/{name}", value, step)
                shown = [f"{name} {numbers[name]:.3f}" for name in _SHOWN if name in numbers]
                bar.update(task, total=steps, completed=step, description=f"{stage}: {', '.join(shown)}; step")
                if "reward" in numbers:  # a step of reinforcement learning takes long enough for a line of its own
                    self.console.print(f"{stage} {step}/{steps}: {step_summary(numbers)}", soft_wrap=True)
                for alarm in alarms(numbers, self.config.explore):
                    if alarm not in told:
                        told.add(alarm)
                        self.console.print(f"{stage}, step {step}: {alarm}")

            weights = train(policy, task_sets, self.config, run.path, on_step, sampler, beside)
        if came := time_spent(run.path):  # else all of it is an earlier training's
            self.console.print(f"The training came to {came}", soft_wrap=True)
        return weights

    def _on(self, source: str) -> Workbench:
        own = {"source": source, "items": None, "format": "auto", "columns": Columns()}
        data = self.config.data.model_copy(update=own)
        return replace(self, config=self.config.model_copy(update={"data": data}))

    def task_sets(self, dataset: Dataset, names: Sequence[str] = ()) -> TaskSets:
        """What the policy trains with: users of each part, or of those named, and a TRM that met none of any part."""
        from deeprec.training.schedule import shares
        from deeprec.training.task_sets import TaskSets

        config = self.config.train
        parts, rest = dataset.divide(shares(config), config.seed)
        self.console.print(f"The policy trains with users whom its TRM never met; that has {len(rest.users)} others.")
        trm, _ = self.trm(rest)
        with self.timed("rank the targets"):
            return TaskSets.prepare({name: parts[name] for name in names or parts}, trm, dataset.catalog, config)

    def _take_over(self, run: Run, others: Iterable[Run]) -> None:
        """Copy what other trainings have finished of the parts before the first that is another in this one."""
        from deeprec.training.trainer import first_parts

        best: list[Path] = []
        for other in others:
            done = [other.path / name for name in first_parts(self.config.train, other.config.train)]
            done = list(takewhile(Path.is_dir, done))
            best = max(best, done, key=len)
        for part in best:
            shutil.copytree(part, run.path / part.name)
            self.console.print(f"{part.name} is taken from {part.parent}, which began the same", soft_wrap=True)

    def script(self) -> Policy:
        """The scripted explorer within the configuration's limits."""
        from deeprec.policies.scripted import ScriptedWriter
        from deeprec.policies.text import TextPolicy

        return TextPolicy(ScriptedWriter(self.config.explore.answer_size))

    def policy(self, rows: int | None = None) -> Policy:
        """The policy of the configuration, for so many explorations at once (default: `explore.batch_size`).

        Raises:
            DeepRecError: it can't be loaded.
        """
        if self.config.policy.kind == "scripted":
            return self.script()
        with self.timed("load the language model"):
            return load_policy(self.config, rows=rows, offline=self.offline)

    def policies(self) -> dict[str, Policy]:
        """What a server offers: the configuration's policy, the same without its adapter, and the script."""
        policy = self.config.policy
        if policy.kind == "scripted":
            return {"script": self.script()}
        adapter = adapter_folder(policy)
        found = {"trained" if adapter else "untrained": self.policy(self.config.serve.slots)}
        if adapter:
            untrained = self.config.model_copy(update={"policy": bare(policy)})
            found["untrained"] = replace(self, config=untrained).policy(self.config.serve.slots)
        return {**found, "script": self.script()}

    @contextmanager
    def service(self) -> Iterator[Service]:
        """What a server answers from; closed at the end."""
        from deeprec.serving.server import service_of

        dataset = self.dataset()
        trm, folder = self.trm(dataset)
        with service_of(dataset, trm, folder, self.policies(), self.config) as service:
            yield service

    def task(self, dataset: Dataset, user: str | None, titles: Sequence[str]) -> Task:
        """The evaluation task of a user of the data, or one of the titles or ids that a new user names."""
        from deeprec.data.catalog import UserId

        if titles and user is not None:
            raise DeepRecError("--user and --item exclude each other: a user of the data, or a new one's history.")
        if titles:
            return Task("new:you", UserId("you"), tuple(map(dataset.catalog.find, titles)))
        tasks = dataset.tasks(self.config.eval.split)
        if user is None:
            from deeprec.evaluation.evaluate import evaluation_tasks

            return evaluation_tasks(dataset, self.config.eval.model_copy(update={"users": 1}))[1][0]
        if found := next((task for task in tasks if task.user == user), None):
            return found
        examples = ", ".join(task.user for task in tasks[:3])
        raise DeepRecError(
            f"{dataset.name} has no user {user!r} with a held-out item; users are for instance {examples}."
        )

    def evaluate(self, dataset: Dataset, trm: TRM, run: Run) -> Report:
        """All baselines and the policy of the configuration; writes report.json and report.md into the run."""
        from deeprec.evaluation.evaluate import evaluate_retriever, evaluate_traces, evaluation_tasks, resume
        from deeprec.evaluation.one_shot import CANDIDATES, rerank
        from deeprec.evaluation.worker_processes import spread
        from deeprec.explore.explorer import Explorer
        from deeprec.explore.trace import Stop
        from deeprec.retrieval.baselines import PopularityRetriever, TransitionRetriever

        config, n_items = self.config.eval, len(dataset.catalog)
        tasks, sample = evaluation_tasks(dataset, config)
        targets = dataset.targets(config.split)
        systems: list[SystemResult] = []
        sequences = dataset.train_sequences()
        with self.timed("evaluate the retrievers"):
            for name, retriever in (
                ("popularity", PopularityRetriever.fit(sequences, n_items)),
                ("last-item transitions", TransitionRetriever.fit(sequences, n_items)),
                ("TRM alone", trm),
            ):
                systems.append(evaluate_retriever(name, retriever, tasks, targets, n_items, config))
        with self.timed("explore by script"), self.progress("scripted explorer, users", len(tasks)) as (bar, mark):
            explorer = Explorer(self.script(), trm, dataset.catalog, self.config.explore)
            scripted = {}
            for position, trace in explorer.stream(tasks):
                scripted[position] = trace
                bar.advance(mark)
            traces = [scripted[position] for position in range(len(tasks))]
        systems.append(
            evaluate_traces("scripted explorer", tasks, traces, targets, n_items, config, weight_note(explorer.config))[
                0
            ]
        )
        if self.config.policy.kind != "scripted":
            policy = self.policy()
            label = name_of(self.config.policy)
            explorer = Explorer(policy, trm, dataset.catalog, self.config.explore)
            parts = (
                (
                    f"{label}, one-shot rerank",
                    f"ranks the TRM's top {CANDIDATES}, no exploration",
                    lambda missing: rerank(policy, trm, dataset.catalog, missing, self.config.explore),
                ),
                (f"{label}, explorer", weight_note(explorer.config), explorer.stream),
            )
            for name, note, explore in parts:
                with self.timed(name), self.progress(f"{name}, users", len(sample)) as (bar, mark):
                    stream = spread(explore, policy, self.config)
                    traces = resume(sample, name, run.traces, stream, partial(bar.advance, mark))
                systems += evaluate_traces(name, sample, traces, targets, n_items, config, note)
                if broken := [trace for trace in traces if trace.stop is Stop.FAILED]:
                    self.console.print(
                        f"{escape(name)}: {len(broken)} of {len(traces)} users got no answer of the policy (first: "
                        f"{escape(str(broken[0].error))}); deeprec eval --resume {run.path} asks for them again",
                        soft_wrap=True,
                    )
        report = Report(
            dataset=f"{dataset.name} ({len(dataset.users)} users, {n_items} items)",
            fingerprint=dataset.fingerprint,
            split=config.split,
            cutoffs=config.cutoffs,
            baseline="TRM alone",
            systems=tuple(systems),
            config_path=str(run.config_path),
            environment=environment(sys.argv),
            timings=dict(self.seconds),
            confidence=CONFIDENCE,
            resamples=RESAMPLES,
            seed=SEED,
        )
        (run.path / "report.json").write_text(report.to_json(), encoding="utf-8")
        (run.path / "report.md").write_text(report.to_markdown(), encoding="utf-8")
        return report

    @contextmanager
    def progress(self, text: str, total: int) -> Iterator[tuple[Progress, TaskID]]:
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times)
        with Progress(*columns, console=self.console) as bar:
            yield bar, bar.add_task(text, total=total)

    def _origin(self, kind: str, dataset: Dataset) -> dict[str, Any]:
        """What decides a training beside interactions and configuration: the items' text, and what names mean today."""
        from deeprec.trm.trm import FORMAT_VERSION

        origin = {"format_version": FORMAT_VERSION, "text": dataset.text_digest}
        if kind == "trm":
            return origin
        named = self.config.train.adapter
        folder = named and adapter_folder(self.config.policy.model_copy(update={"adapter": named}))
        sets = [self._on(source).dataset() for source in self.config.train.sft.extra_datasets]
        return origin | {
            "protocol": PROTOCOL,
            "model": digests_of(Path(self.config.policy.model).expanduser()) or None,
            "adapter": digests_of(folder or None) or None,
            "beside": [[each.fingerprint, each.text_digest] for each in sets] or None,
        }

    def latest(self, kind: str, dataset: Dataset, sections: Sequence[str]) -> Run | None:
        """The latest run of a kind on this data, whole or not, with these sections of the configuration."""
        return next(self._runs(kind, dataset, sections, self._origin(kind, dataset)), None)

    def _runs(self, kind: str, dataset: Dataset, sections: Sequence[str], origin: Mapping[str, Any]) -> Iterator[Run]:
        wanted = tomllib.loads(dump_config(self.config))
        for summary in reversed(list_runs(self.runs)):
            if summary.kind != kind:
                continue
            try:
                run = Run.open(summary.path)
                # The file itself, not the parsed configuration: a key that is new since then must not be filled in.
                written = tomllib.loads(run.config_path.read_text(encoding="utf-8"))
            except (DeepRecError, OSError, ValueError):
                continue
            for tree in (written, wanted) if kind == "train" else ():
                tree.get("policy", {}).pop("adapter", None)  # a training begins with the bare model
            same = all(written.get(name) == wanted[name] for name in sections)
            same &= all(run.manifest.get(name) == value for name, value in origin.items())
            if same and run.manifest.get("dataset") == dataset.fingerprint:
                yield run
