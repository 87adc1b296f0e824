"""Curves of a training's metrics: their values step by step, whether they rose, and a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from deeprec.errors import DeepRecError
from deeprec.runs import Run

Curves = Mapping[str, Mapping[str, NDArray[np.float64]]]
"""By part and metric, the value of every step; nan where a step has none."""

COLUMNS = ("stage", "number", "steps", "first fifth", "last fifth", "tau", "p, rising")
"""Headings of the table of `rows`."""
_PANELS = ("reward", "reward_over_trm", "well-formed", "turns", "tokens")
_RUNNING = 5  # steps that the running mean of a plot spans
_SHOWN = (*_PANELS, "loss", "repeated preferences", "equal groups", "entropy")


@dataclass(frozen=True, slots=True)
class Trend:
    """How one metric changed over a stage."""

    steps: int
    begin: float  # mean of the first fifth of the steps
    end: float  # mean of the last fifth
    tau: float  # Kendall's rank correlation with the step's number; nan where nothing changes
    p: float  # probability of so high a tau by chance (one-sided)


def trend(values_T: NDArray[np.float64]) -> Trend:
    """The trend of a metric; steps without it are left out."""
    values_T = values_T[np.isfinite(values_T)]
    n, part = len(values_T), max(1, len(values_T) // 5)
    tau, p = stats.kendalltau(np.arange(n), values_T, alternative="greater") if n > 1 else (np.nan, np.nan)
    return Trend(n, float(values_T[:part].mean()), float(values_T[-part:].mean()), float(tau), float(p))


def read_curves(folder: Path) -> Curves:
    """The curves of a training's run. Of a step that was repeated after an interruption, the later record counts.

    DeepRecError if the folder is not a training's, or has no finished step.
    """
    run = Run.open(folder)
    parts: dict[str, dict[int, dict[str, float]]] = {}
    for record in run.metrics if run.manifest["kind"] == "train" else ():
        names = [name for name in record if "/" in name]
        if names:
            part = names[0].partition("/")[0]
            own = {name.removeprefix(f"{part}/"): record[name] for name in names}
            parts.setdefault(part, {})[record["step"]] = own
    if not parts:
        raise DeepRecError(f"{folder} holds no steps of a policy's training: give the folder of a `deeprec train`.")
    return {part: _by_metric(steps) for part, steps in parts.items()}


def trends(curves: Curves) -> Iterator[tuple[str, str, Trend]]:
    """Part, name and trend of the metrics that say most: rewards, and how the policy explored."""
    for part, metrics in curves.items():
        for name, values_T in metrics.items():
            occurs = name.startswith(("fault/", "stop/")) and np.nanmax(values_T, initial=0) > 0
            if (name in _SHOWN or name.startswith("reward/") or occurs) and np.isfinite(values_T).any():
                yield part, name, trend(values_T)


def rows(curves: Curves) -> Iterator[tuple[str, ...]]:
    """The `trends` as the cells of a table."""
    for part, name, found in trends(curves):
        figures = (f"{found.begin:.3f}", f"{found.end:.3f}", f"{found.tau:.2f}", f"{found.p:.1g}")
        yield part, name, str(found.steps), *figures


def plot_curves(curves: Curves, path: Path) -> None:
    """A row of panels for each stage of reinforcement learning: dots for the steps, a line for their running mean.

    DeepRecError if no stage has a step, matplotlib is missing, or it does not know the file's ending.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DeepRecError("A plot needs matplotlib: pip install matplotlib.") from None
    stages = {stage: metrics for stage, metrics in curves.items() if "reward" in metrics}
    if not stages:
        raise DeepRecError("There is nothing to plot: no step of reinforcement learning is finished.")
    figure = Figure(figsize=(3 * len(_PANELS), 2.4 * len(stages)), layout="constrained")
    panels = figure.subplots(len(stages), len(_PANELS), squeeze=False)
    for (stage, metrics), axes in zip(stages.items(), panels, strict=True):
        for name, axis in zip(_PANELS, axes, strict=True):
            if name not in metrics:
                axis.set_visible(False)
                continue
            values_T = metrics[name]
            steps = range(1, len(values_T) + 1)
            axis.plot(steps, values_T, ".", color="0.65")
            axis.plot(steps, [values_T[max(0, t - _RUNNING) : t].mean() for t in steps], color="C0")
            axis.set_title(f"{stage}: {name}", fontsize=9)
            axis.set_xlabel("step", fontsize=8)
            axis.tick_params(labelsize=8)
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise DeepRecError(f"{path} can't be plotted ({error}): end its name in .png or .svg.") from None


def _by_metric(steps: Mapping[int, Mapping[str, float]]) -> dict[str, NDArray[np.float64]]:
    names = dict.fromkeys(name for metrics in steps.values() for name in metrics)
    return {name: np.array([steps[n].get(name, np.nan) for n in sorted(steps)], dtype=np.float64) for name in names}
