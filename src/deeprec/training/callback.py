"""What happened in each step of a stage: numbers for the run, and alarms where a policy collapses."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from transformers import TrainerCallback

from deeprec.config import ExploreConfig
from deeprec.errors import DeepRecError
from deeprec.explore.protocol import Fault
from deeprec.explore.trace import Stop, Trace
from deeprec.rewards.rubric import Scored
from deeprec.training.time_budget import TimeBudget

_ROOM = 1 << 29
"""Free bytes without which no step is saved, beside those of what is trained: its weights and Adam's two moments."""
_FROM_TRAINER = ("loss", "grad_norm", "entropy", "clip_ratio/region_mean", "learning_rate", "step_time")

_PAID_CALLS = 3  # so many are no sign of collapse
OnStep = Callable[[int, Mapping[str, float]], None]
"""Told a step's number, from 1, and its numbers."""


class StageCallback(TrainerCallback):
    """Joins what the rollout saw with what the trainer logs, and tells of every step; a clock may end the part.

    A step is that of the explorations: the trainer counts its updates, and logs once in so many as a step has.

    Raises:
        DeepRecError: on a step whose loss or gradient is no number; it is not saved.
    """

    def __init__(self, stage: str, on_step: OnStep, time_budget: TimeBudget | None = None) -> None:
        self.stage = stage
        self.on_step = on_step
        self.time_budget = time_budget
        self.seen: dict[str, float] = {}
        self.written = 0

    def hear(self, traces: Sequence[Trace], scores: Sequence[Scored], seconds: Mapping[str, float]) -> None:
        """A `Listener` of rollouts."""
        own = measure(traces, scores) | {f"seconds/{part}": spent for part, spent in seconds.items()}
        every = gather_object([own])  # of all processes, which have equal shares
        self.seen = {name: float(np.mean([numbers[name] for numbers in every])) for name in own}
        self.written = sum(gather_object([sum(trace.policy_tokens for trace in traces)]))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, rest = divmod(state.global_step, args.logging_steps)
        if (
            not rest
            and self.time_budget is not None
            and self.time_budget.end_step(step, state.max_steps // args.logging_steps)
        ):
            control.should_training_stop = control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **more: Any) -> None:
        if not logs or "loss" not in logs:
            return
        step = state.global_step // args.logging_steps
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise DeepRecError(
                    f"Step {step} of {self.stage} has {name} {logs[name]}, and was not saved; what was "
                    f"saved before lies in {args.output_dir}. Lower the learning_rate: the training then begins anew."
                )
        if not state.is_world_process_zero:
            return
        trained = sum(each.nbytes for each in more["model"].parameters() if each.requires_grad)
        free, needed = shutil.disk_usage(args.output_dir).free, 3 * trained + _ROOM
        if free < needed:
            raise DeepRecError(
                f"The disk of {args.output_dir} has {free >> 20} MiB left, and to save a step takes {needed >> 20}: "
                "free some space and start the command again."
            )
        told = {name: float(logs[name]) for name in _FROM_TRAINER if name in logs}
        if "step_time" in told:
            told["step_time"] *= args.logging_steps  # it is the mean of the updates
            if self.written:
                told["tokens/s"] = self.written / told["step_time"]
        self.on_step(step, self.seen | told)


def measure(traces: Sequence[Trace], scores: Sequence[Scored]) -> dict[str, float]:
    """Means over the explorations of a step: rewards, and how they explored."""
    numbers = {"reward": float(np.mean([scored.total for scored in scores]))}
    numbers["gain"] = numbers["reward"] - float(np.mean([scored.alone for scored in scores]))
    for name in scores[0].terms:
        numbers[f"reward/{name}"] = float(np.mean([scored.terms[name] for scored in scores]))
    groups: dict[str, set[float]] = {}
    for trace, scored in zip(traces, scores, strict=True):
        groups.setdefault(trace.task, set()).add(scored.total)
    repeats = [len(trace.turns) - len({turn.preference for turn in trace.turns}) for trace in traces]
    for fault in Fault:
        numbers[f"fault/{fault.value}"] = float(np.mean([fault in trace.faults for trace in traces]))
    for stop in Stop:
        numbers[f"stop/{stop.value}"] = float(np.mean([trace.stop is stop for trace in traces]))
    return numbers | {
        "well-formed": float(np.mean([trace.well_formed for trace in traces])),
        "turns": float(np.mean([len(trace.turns) for trace in traces])),
        "tokens": float(np.mean([trace.policy_tokens for trace in traces])),
        "repeated preferences": sum(repeats) / max(1, sum(len(trace.turns) for trace in traces)),
        "equal groups": float(np.mean([len(totals) < 2 for totals in groups.values()])),
    }


def step_summary(numbers: Mapping[str, float]) -> str:
    """A step of reinforcement learning: what was paid, turns, and tokens written a second."""
    terms = {name: value for name, value in numbers.items() if name.startswith("reward/") and value}
    terms |= {name: numbers[name] for name in ("turns", "tokens/s") if name in numbers}
    return ", ".join(f"{name.removeprefix('reward/')} {value:.2f}" for name, value in terms.items())


def tensorboard_in(folder: Path) -> Any:
    """A writer for TensorBoard, in a folder of its own there.

    Raises:
        DeepRecError: it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise DeepRecError("--tensorboard needs it: pip install tensorboard.") from None
    return SummaryWriter(str(folder / "tensorboard"), flush_secs=10)


def alarms(numbers: Mapping[str, float], explore: ExploreConfig) -> list[str]:
    """What looks like collapse in a step, each in a sentence."""
    signs = (
        (numbers.get("turns", 1.0) < 0.5, "Hardly any exploration calls the tool."),
        (
            explore.max_calls > _PAID_CALLS and numbers.get("turns", 0.0) > explore.max_calls - 0.1,
            "Nearly all explorations make all the calls they may.",
        ),
        (numbers.get("well-formed", 1.0) < 0.2, "Hardly any exploration is well-formed."),
        (numbers.get("entropy", 1.0) < 0.02, "The policy hardly varies what it writes (entropy below 0.02)."),
        (numbers.get("repeated preferences", 0.0) > 0.3, "Many preferences repeat an earlier one."),
        (
            numbers.get("stop/segment limit", 0.0) + numbers.get("stop/context limit", 0.0) > 0.5,
            "Most explorations are cut off by a limit of tokens.",
        ),
        (numbers.get("equal groups", 0.0) > 0.8, "Nearly all groups have equal rewards: little is left to learn from."),
    )
    return [text for sign, text in signs if sign]
