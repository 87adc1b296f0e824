"""The policy's training in its run folder: started, continued, or begun with another's finished parts."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from deeprec.config import TRAINABLE, Columns, Config, ExploreConfig
from deeprec.data.dataset import Dataset
from deeprec.data.sources import load_dataset
from deeprec.errors import DeepRecError
from deeprec.explore.protocol import PROTOCOL
from deeprec.policies.adapters import adapter_folder, digests_of
from deeprec.policies.loading import load_transformers, load_vllm
from deeprec.runs import Run, matching_runs
from deeprec.runs.progress import SILENT, Advance, Progress
from deeprec.training.callback import OnStep, alarms
from deeprec.training.processes import main_process_first
from deeprec.training.sampling import VllmSampler, in_process
from deeprec.training.schedule import SFT, active, shared_parts, shares
from deeprec.training.task_sets import TaskSets
from deeprec.training.time_budget import time_spent
from deeprec.training.trainer import train
from deeprec.trm.run import load_or_train_trm, trm_origin

SECTIONS = ("data", "trm", "policy", "explore", "train")  # of the configuration, that decide a training's outcome
_SHOWN = ("reward", "well-formed", "turns", "loss")  # metrics that the progress bar shows


def train_policy(
    dataset: Dataset,
    config: Config,
    runs: Path,
    *,
    tensorboard: bool = False,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Train the policy of the configuration, or continue an interrupted training; the folder of its weights.

    Under `accelerate launch` every process calls this; only the main one writes the run's folder, in `runs`. With
    `tensorboard` it also gets each step's metrics for TensorBoard.
    """
    kind = config.policy.kind
    if kind not in TRAINABLE:
        raise DeepRecError(f"policy.kind={kind!r} can't be trained: use transformers or vllm.")
    if config.policy.adapter not in ("shipped", "none"):
        raise DeepRecError("policy.adapter is not for training: set train.adapter to the adapter to continue from.")
    if config.explore.answer == "pool":
        raise DeepRecError("explore.answer='pool' is not for training, which learns from freely sampled answers.")
    with main_process_first() as main:
        progress = progress if main else SILENT
        with progress.phase("load the language model"):
            policy = load_transformers(config, offline=offline, training=True)
            sampler = VllmSampler(load_vllm(config, offline=offline, training=True)) if kind == "vllm" else in_process
        task_sets = prepare_task_sets(dataset, config, runs, offline=offline, progress=progress)
        others = _extra_datasets(config, offline)
        extra = [prepare_task_sets(data, other, runs, (SFT,), offline, progress) for data, other in others]
        run = _open_run(dataset, config, runs, offline, progress)
    with (
        run if main else nullcontext(),
        _tensorboard(run.path) if tensorboard and main else nullcontext() as writer,
        progress.phase("train the policy", 1) as advance,
    ):
        on_step = _step_report(run, config.explore, progress, advance, writer)
        weights = train(policy, task_sets, config, run.path, on_step, sampler, extra)
    if spent := time_spent(run.path):  # empty where all parts are an earlier training's
        progress.message(f"Time spent: {spent}")
    return weights


def latest_training(dataset: Dataset, config: Config, runs: Path, *, offline: bool = False) -> Run | None:
    """The latest run of this training, finished or not."""
    return next(_trainings(config, runs, SECTIONS, _origin(dataset, config, offline=offline)), None)


def prepare_task_sets(
    dataset: Dataset,
    config: Config,
    runs: Path,
    names: Sequence[str] = (),
    offline: bool = False,
    progress: Progress = SILENT,
) -> TaskSets:
    """The tasks of each part of a training, or of those named, with a TRM that never met their users."""
    parts, rest = dataset.divide(shares(config.train), config.train.seed)
    progress.message(f"The policy trains on users whom its TRM never met; the TRM trains on {len(rest.users)} others.")
    trm, _ = load_or_train_trm(rest, config, runs, offline=offline, progress=progress)
    with progress.phase("rank the targets"):
        return TaskSets.prepare({name: parts[name] for name in names or parts}, trm, dataset.catalog, config.train)


def _step_report(run: Run, explore: ExploreConfig, progress: Progress, advance: Advance, writer: Any) -> OnStep:
    """Writes each step's metrics to the run, and shows them."""
    raised: set[str] = set()

    def report(part: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        named = {f"{part}/{name}": value for name, value in metrics.items()}
        run.append_metrics(step, named)
        if writer is not None:
            for name, value in named.items():
                writer.add_scalar(name, value, step)
        shown = [f"{name} {metrics[name]:.3f}" for name in _SHOWN if name in metrics]
        advance(step, steps, f"{part}: {', '.join(shown)}; step")
        if "reward" in metrics:  # a step of reinforcement learning takes long enough for a line of its own
            terms = {name: value for name, value in metrics.items() if name.startswith("reward/") and value}
            terms |= {name: metrics[name] for name in ("turns", "tokens/s") if name in metrics}
            summary = ", ".join(f"{name.removeprefix('reward/')} {value:.2f}" for name, value in terms.items())
            progress.message(f"{part} {step}/{steps}: {summary}")
        for alarm in alarms(metrics, explore):
            if alarm not in raised:
                raised.add(alarm)
                progress.message(f"{part}, step {step}: {alarm}")

    return report


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise DeepRecError("--tensorboard needs TensorBoard: pip install tensorboard.") from None
    return SummaryWriter(str(folder / "tensorboard"), flush_secs=10)


def _open_run(dataset: Dataset, config: Config, runs: Path, offline: bool, progress: Progress) -> Run:
    """The run to continue, or a new one with copies of the leading parts that another training has finished."""
    start = f"adapter {config.train.adapter}" if config.train.adapter else "the bare model"
    origin = _origin(dataset, config, offline=offline)
    if known := next(_trainings(config, runs, SECTIONS, origin), None):
        progress.message(f"Continuing in {known.path}, from {start} (Ctrl-C is safe)")
        return known
    run = Run.create(runs, None, config, sys.argv, kind="train", fingerprint=dataset.fingerprint)
    finished: list[Path] = []
    for other in _trainings(config, runs, SECTIONS[:-1], origin):
        with suppress(DeepRecError):  # an earlier version's keys
            done = [other.path / name for name in shared_parts(config.train, other.config.train)]
            finished = max(finished, list(takewhile(Path.is_dir, done)), key=len)
    for part in finished:
        shutil.copytree(part, run.path / part.name)
        progress.message(f"{part.name} is copied from {part.parent}, which has the same settings up to there")
    run.record(**origin)  # last: a run without it is never continued
    progress.message(f"Training in {run.path}, from {start} (Ctrl-C is safe)")
    return run


def _trainings(config: Config, runs: Path, sections: Sequence[str], origin: Mapping[str, Any]) -> Iterator[Run]:
    # A training starts with the bare model, whatever adapter is configured for exploring.
    return matching_runs(runs, "train", config, sections, origin, ignore="policy.adapter")


def _extra_datasets(config: Config, offline: bool) -> list[tuple[Dataset, Config]]:
    """The extra data sets of SFT, each with the configuration on it."""
    sources = config.train.sft.extra_datasets if SFT in active(config.train) else ()
    own = {"items": None, "format": "auto", "columns": Columns()}
    all_data = [config.data.model_copy(update=own | {"source": source}) for source in sources]
    return [(load_dataset(data, offline=offline), config.model_copy(update={"data": data})) for data in all_data]


def _origin(dataset: Dataset, config: Config, *, offline: bool) -> dict[str, Any]:
    """What decides a training in addition to the configuration: data, text, protocol, and the files behind names."""
    named = config.train.adapter
    folder = named and adapter_folder(config.policy.model_copy(update={"adapter": named}))
    extra = [[each.fingerprint, each.text_digest] for each, _ in _extra_datasets(config, offline)]
    return trm_origin(dataset) | {
        "protocol": PROTOCOL,
        "model": digests_of(Path(config.policy.model).expanduser()) or None,
        "adapter": digests_of(folder or None) or None,
        "extra_datasets": extra or None,
    }
