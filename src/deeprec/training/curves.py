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
_SHOWN = (*_PANELS, "loss", "repeated preferences", "equal groups", "entropy")


@dataclass(frozen=True, slots=True)
class Trend:
    """How one metric changed over a stage.

    Attributes:
        begin: mean of the first fifth of the steps.
        end: mean of the last fifth.
        tau: Kendall's rank correlation with the step's number; nan where nothing changes.
        p: probability of so high a tau by chance (one-sided).
    """

    steps: int
    begin: float
    end: float
    tau: float
    p: float


def trend(values_T: NDArray[np.float64]) -> Trend:
    """The trend of a metric; steps without it are left out."""
    values_T = values_T[np.isfinite(values_T)]
    part = max(1, len(values_T) // 5)
    if len(values_T) < 2:
        tau, p = np.nan, np.nan
    else:
        tau, p = stats.kendalltau(np.arange(len(values_T)), values_T, alternative="greater")
    return Trend(len(values_T), float(values_T[:part].mean()), float(values_T[-part:].mean()), float(tau), float(p))


def read_curves(folder: Path) -> Curves:
    """The curves of a training's run. Of a step that was repeated after an interruption, the later record counts.

    Raises:
        DeepRecError: the folder is not a training's, or has no finished step.
    """
    run = Run.open(folder)
    parts: dict[str, dict[int, dict[str, float]]] = {}
    for record in run.metrics if run.manifest["kind"] == "train" else ():
        metrics = {name: value for name, value in record.items() if "/" in name}
        if metrics:
            part = next(iter(metrics)).partition("/")[0]
            own = {name.removeprefix(f"{part}/"): value for name, value in metrics.items()}
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

    Raises:
        DeepRecError: no stage has a step, matplotlib is missing, or it does not know the file's ending.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DeepRecError("A plot needs matplotlib: pip install matplotlib.") from None
    stages = [(stage, metrics) for stage, metrics in curves.items() if "reward" in metrics]
    if not stages:
        raise DeepRecError("There is nothing to plot: no step of reinforcement learning is finished.")
    figure = Figure(figsize=(3 * len(_PANELS), 2.4 * len(stages)), layout="constrained")
    panels = figure.subplots(len(stages), len(_PANELS), squeeze=False)
    for (stage, metrics), axes in zip(stages, panels, strict=True):
        for name, axis in zip(_PANELS, axes, strict=True):
            if name not in metrics:
                axis.set_visible(False)
                continue
            steps_T = np.arange(1, len(metrics[name]) + 1)
            axis.plot(steps_T, metrics[name], ".", color="0.65")
            axis.plot(steps_T, _running_mean(metrics[name]), color="C0")
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


def _running_mean(values_T: NDArray[np.float64], width: int = 5) -> NDArray[np.float64]:
    """Means of each step and up to `width` - 1 before it."""
    return np.array([values_T[max(0, t - width + 1) : t + 1].mean() for t in range(len(values_T))])
