"""The policy's training in its run folder: started, resumed, or continued from another's finished parts."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import takewhile
from pathlib import Path
from typing import Any

from deeprec.config import TRAINABLE, Columns, Config
from deeprec.data.dataset import Dataset
from deeprec.data.sources import load_dataset
from deeprec.errors import DeepRecError
from deeprec.explore.protocol import PROTOCOL
from deeprec.policies.adapters import adapter_folder, digests_of
from deeprec.policies.loading import load_transformers, load_vllm
from deeprec.runs import Run, matching_runs
from deeprec.runs.progress import SILENT, Progress
from deeprec.training.callback import alarms, step_summary, tensorboard_in
from deeprec.training.processes import main_process_first
from deeprec.training.sampling import VllmSampler, in_process
from deeprec.training.schedule import SFT, active, shares
from deeprec.training.task_sets import TaskSets, require_free_answers
from deeprec.training.time_budget import time_spent
from deeprec.training.trainer import first_parts, train
from deeprec.trm.run import load_or_train_trm, trm_origin

SECTIONS = ("data", "trm", "policy", "explore", "train")
"""Sections of the configuration that decide what a training gives."""
_SHOWN = ("reward", "well-formed", "turns", "loss")
"""Of a step's numbers, those that the progress bar shows."""


def train_policy(
    dataset: Dataset,
    config: Config,
    runs: Path,
    *,
    tensorboard: bool = False,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Train the policy of the configuration, or go on where that was interrupted; the folder of its weights.

    Under `accelerate launch` every process calls this, and the main one alone keeps the run's folder.

    Args:
        runs: folder of the run folders.
        tensorboard: write each step's numbers for TensorBoard too, into the run's folder.

    Raises:
        DeepRecError: the policy is not one that can be trained, or its training failed.
    """
    kind = config.policy.kind
    if kind not in TRAINABLE:
        raise DeepRecError(f"policy.kind={kind!r} can't be trained: use transformers or vllm.")
    if config.policy.adapter not in ("shipped", "none"):
        raise DeepRecError(
            "policy.adapter can't be trained on; name an adapter that a training continues from in train.adapter."
        )
    require_free_answers(config.explore)
    with main_process_first() as main:
        progress = progress if main else SILENT
        with progress.phase("load the language model"):
            policy = load_transformers(config, offline=offline, training=True)
            sampler = VllmSampler(load_vllm(config, offline=offline, training=True)) if kind == "vllm" else in_process
        task_sets = prepare_task_sets(dataset, config, runs, offline=offline, progress=progress)
        extra = [
            prepare_task_sets(load_dataset(other.data, offline=offline), other, runs, (SFT,), offline, progress)
            for other in _extra_configs(config)
        ]
        origin = _origin(dataset, config, offline=offline)
        known = latest_training(dataset, config, runs, offline=offline)
        run = known or Run.create(runs, None, config, sys.argv, kind="train", fingerprint=dataset.fingerprint)
        if known is None:
            others = matching_runs(runs, "train", config, SECTIONS[:-1], origin, ignore="policy.adapter")
            _take_over(run, others, config, progress)
            run.record(**origin)  # last: a run without is none to go on with
    began = "the bare model" if config.train.adapter is None else f"adapter {config.train.adapter}"
    progress.message(f"{'Going on' if known else 'Training'} in {run.path}, from {began} (Ctrl-C is safe)")
    told: set[str] = set()
    folder = run if main else nullcontext()
    board = tensorboard_in(run.path) if tensorboard and main else nullcontext()
    with folder, board as writer, progress.phase("train the policy", 1) as advance:

        def on_step(stage: str, step: int, steps: int, numbers: Mapping[str, float]) -> None:
            run.append_metrics(step, {f"{stage}/{name}": value for name, value in numbers.items()})
            if writer is not None:
                for name, value in numbers.items():
                    writer.add_scalar(f"{stage}/{name}", value, step)
            shown = [f"{name} {numbers[name]:.3f}" for name in _SHOWN if name in numbers]
            advance(step, steps, f"{stage}: {', '.join(shown)}; step")
            if "reward" in numbers:  # a step of reinforcement learning takes long enough for a line of its own
                progress.message(f"{stage} {step}/{steps}: {step_summary(numbers)}")
            for alarm in alarms(numbers, config.explore):
                if alarm not in told:
                    told.add(alarm)
                    progress.message(f"{stage}, step {step}: {alarm}")

        weights = train(policy, task_sets, config, run.path, on_step, sampler, extra)
    if spent := time_spent(run.path):  # else all of it is an earlier training's
        progress.message(f"Time spent: {spent}")
    return weights


def latest_training(dataset: Dataset, config: Config, runs: Path, *, offline: bool = False) -> Run | None:
    """The latest run of this training, finished or not."""
    origin = _origin(dataset, config, offline=offline)
    # A training starts with the bare model, whatever adapter is configured for exploring.
    return next(matching_runs(runs, "train", config, SECTIONS, origin, ignore="policy.adapter"), None)


def prepare_task_sets(
    dataset: Dataset,
    config: Config,
    runs: Path,
    names: Sequence[str] = (),
    offline: bool = False,
    progress: Progress = SILENT,
) -> TaskSets:
    """What the policy trains with: users of each part, or of those named, and a TRM that met none of them."""
    parts, rest = dataset.divide(shares(config.train), config.train.seed)
    progress.message(f"The policy trains with users whom its TRM never met; that TRM has {len(rest.users)} others.")
    trm, _ = load_or_train_trm(rest, config, runs, offline=offline, progress=progress)
    with progress.phase("rank the targets"):
        chosen = {name: parts[name] for name in names or parts}
        return TaskSets.prepare(chosen, trm, dataset.catalog, config.train)


def _extra_configs(config: Config) -> list[Config]:
    """The configuration on each extra data set of SFT."""
    sources = config.train.sft.extra_datasets if SFT in active(config.train) else ()
    own = {"items": None, "format": "auto", "columns": Columns()}
    return [
        config.model_copy(update={"data": config.data.model_copy(update=own | {"source": source})})
        for source in sources
    ]


def _take_over(run: Run, others: Iterable[Run], config: Config, progress: Progress) -> None:
    """Copy what other trainings have finished of the parts before the first that is another in this one."""
    best: list[Path] = []
    for other in others:
        done = [other.path / name for name in first_parts(config.train, other.config.train)]
        best = max(best, list(takewhile(Path.is_dir, done)), key=len)
    for part in best:
        shutil.copytree(part, run.path / part.name)
        progress.message(f"{part.name} is taken from {part.parent}, which began the same")


def _origin(dataset: Dataset, config: Config, *, offline: bool) -> dict[str, Any]:
    """What decides a training beside the configuration: data, text, and what names mean today."""
    named = config.train.adapter
    folder = named and adapter_folder(config.policy.model_copy(update={"adapter": named}))
    extra = [load_dataset(other.data, offline=offline) for other in _extra_configs(config)]
    return trm_origin(dataset) | {
        "protocol": PROTOCOL,
        "model": digests_of(Path(config.policy.model).expanduser()) or None,
        "adapter": digests_of(folder or None) or None,
        "extra_datasets": [[each.fingerprint, each.text_digest] for each in extra] or None,
    }
