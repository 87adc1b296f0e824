"""Metrics of every training step, and alarms where a policy collapses."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
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

OnStep = Callable[[str, int, int, Mapping[str, float]], None]
"""Receives the part, the step's number from 1, the part's steps (those expected within a time limit), and metrics."""

_SPARE_BYTES = 1 << 29  # disk space that a checkpoint needs in addition to the trained weights and Adam's two moments
_FROM_TRAINER = ("loss", "grad_norm", "entropy", "clip_ratio/region_mean", "learning_rate", "step_time")
_PAID_CALLS = 3  # the cold start pays for this many calls, so making them all is no sign of collapse


class StageCallback(TrainerCallback):
    """Joins the rollout's metrics with the trainer's, reports every step, and ends the part when its time is up.

    A step is one round of explorations. The trainer counts optimiser updates, and logs once a step. DeepRecError if a
    loss or gradient is not finite, or the disk has no room for a checkpoint.
    """

    def __init__(self, part: str, on_step: OnStep, time_budget: TimeBudget) -> None:
        self.part, self.on_step, self.time_budget = part, on_step, time_budget
        self.rollout_metrics: dict[str, float] = {}
        self.policy_tokens = 0

    def on_rollout(self, traces: Sequence[Trace], scores: Sequence[Scored], seconds: Mapping[str, float]) -> None:
        """Keep the metrics of a step's explorations, averaged over processes, which have equal shares."""
        own = measure(traces, scores) | {f"seconds/{activity}": spent for activity, spent in seconds.items()}
        gathered = gather_object([own])
        self.rollout_metrics = {name: _mean(metrics[name] for metrics in gathered) for name in own}
        self.policy_tokens = sum(gather_object([sum(trace.policy_tokens for trace in traces)]))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, updates = divmod(state.global_step, args.logging_steps)
        if not updates and self.time_budget.end_step(step, state.max_steps // args.logging_steps):
            control.should_training_stop = control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **more: Any) -> None:
        if not logs or "loss" not in logs:
            return
        step, steps = (updates // args.logging_steps for updates in (state.global_step, state.max_steps))
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                fault = f"Step {step} of {self.part} has {name} {logs[name]} and was not saved"
                cure = "Lower the learning_rate: the training then starts anew."
                raise DeepRecError(f"{fault}; the checkpoint before it lies in {args.output_dir}. {cure}")
        if not state.is_world_process_zero:
            return
        trained = sum(each.nbytes for each in more["model"].parameters() if each.requires_grad)
        free, needed = shutil.disk_usage(args.output_dir).free, 3 * trained + _SPARE_BYTES
        if free < needed:
            fault = f"{free >> 20} MiB left, and saving a step takes {needed >> 20}"
            cure = "free some space and start the command again."
            raise DeepRecError(f"The disk of {args.output_dir} has {fault}: {cure}")
        metrics = self.rollout_metrics | {name: float(logs[name]) for name in _FROM_TRAINER if name in logs}
        if "step_time" in metrics:
            metrics["step_time"] *= args.logging_steps  # the trainer logs the mean over the updates
            if self.policy_tokens:
                metrics["tokens/s"] = self.policy_tokens / metrics["step_time"]
        self.on_step(self.part, step, self.time_budget.expected_steps(step, steps), metrics)


def measure(traces: Sequence[Trace], scores: Sequence[Scored]) -> dict[str, float]:
    """Means over the explorations of a step: rewards, and how they explored."""
    reward = _mean(scored.total for scored in scores)
    metrics = {"reward": reward, "reward_over_trm": reward - _mean(scored.trm_total for scored in scores)}
    metrics |= {f"reward/{name}": _mean(scored.terms[name] for scored in scores) for name in scores[0].terms}
    metrics |= {f"fault/{fault.value}": _mean(fault in trace.faults for trace in traces) for fault in Fault}
    metrics |= {f"stop/{stop.value}": _mean(trace.stop is stop for trace in traces) for stop in Stop}
    totals_by_group = defaultdict[str, set[float]](set)
    for trace, scored in zip(traces, scores, strict=True):
        totals_by_group[trace.task].add(scored.total)
    repeats = [len(trace.turns) - len({turn.preference for turn in trace.turns}) for trace in traces]
    return metrics | {
        "well-formed": _mean(trace.well_formed for trace in traces),
        "turns": _mean(len(trace.turns) for trace in traces),
        "tokens": _mean(trace.policy_tokens for trace in traces),
        "repeated preferences": sum(repeats) / max(1, sum(len(trace.turns) for trace in traces)),
        "equal groups": _mean(len(totals) < 2 for totals in totals_by_group.values()),
    }


def alarms(metrics: Mapping[str, float], explore: ExploreConfig) -> list[str]:
    """Signs of collapse in a step, each in a sentence."""
    calls, cut_off = metrics.get("turns", 1.0), ("stop/segment limit", "stop/context limit")
    all_calls = explore.max_calls > _PAID_CALLS and calls > explore.max_calls - 0.1
    signs = (
        (calls < 0.5, "Hardly any exploration calls the tool."),
        (all_calls, "Nearly all explorations use every call they have."),
        (metrics.get("well-formed", 1.0) < 0.2, "Hardly any exploration is well-formed."),
        (metrics.get("entropy", 1.0) < 0.02, "The policy always writes nearly the same (entropy below 0.02)."),
        (metrics.get("repeated preferences", 0.0) > 0.3, "Many preferences repeat an earlier one."),
        (sum(metrics.get(name, 0.0) for name in cut_off) > 0.5, "A token limit cuts off most explorations."),
        (metrics.get("equal groups", 0.0) > 0.8, "Nearly all groups have equal rewards, so little is left to learn."),
    )
    return [text for sign, text in signs if sign]


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
