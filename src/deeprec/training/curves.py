"""What a training's numbers did from step to step: where they began, where they ended, and whether they rose."""

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
"""By stage and name, a number of every step; nan where a step has none."""

COLUMNS = ("stage", "number", "steps", "first fifth", "last fifth", "tau", "p, rising")
"""Of a table of `rows`."""
_PANELS = ("reward", "gain", "well-formed", "turns", "tokens")
_SHOWN = ("reward", "gain", "loss", "well-formed", "turns", "tokens", "repeated preferences", "equal groups", "entropy")


@dataclass(frozen=True, slots=True)
class Trend:
    """Of one number over a stage.

    Attributes:
        begin: mean of the first fifth of the steps.
        end: mean of the last fifth.
        tau: Kendall's rank correlation with the step's number; nan where nothing changes.
        p: of so high a tau by chance, if the number did not rise (one-sided).
    """

    steps: int
    begin: float
    end: float
    tau: float
    p: float


def trend(values_T: NDArray[np.float64]) -> Trend:
    """See `Trend`. Steps without the number are left out."""
    values_T = values_T[np.isfinite(values_T)]
    part = max(1, len(values_T) // 5)
    if len(values_T) < 2:
        tau, p = np.nan, np.nan
    else:
        tau, p = stats.kendalltau(np.arange(len(values_T)), values_T, alternative="greater")
    return Trend(len(values_T), float(values_T[:part].mean()), float(values_T[-part:].mean()), float(tau), float(p))


def read_curves(folder: Path) -> Curves:
    """The curves of a training's run. Where a step was done twice, after an interruption, the later one counts.

    Raises:
        DeepRecError: the folder is not a training's, or has no finished step.
    """
    run = Run.open(folder)
    found: dict[str, dict[int, dict[str, float]]] = {}
    records = run.read_metrics() if run.manifest["kind"] == "train" else []
    for record in records:
        names = [name for name in record if "/" in name]
        if names:
            stage = names[0].partition("/")[0]
            values = {name.partition("/")[2]: record[name] for name in names}
            found.setdefault(stage, {})[record["step"]] = values
    if not found:
        raise DeepRecError(f"{folder} holds no steps of a policy's training: give the folder of a `deeprec train`.")
    return {stage: _joined(steps) for stage, steps in found.items()}


def trends(curves: Curves) -> Iterator[tuple[str, str, Trend]]:
    """Stage, name and trend of what says most: rewards, and how the policy explored."""
    for stage, numbers in curves.items():
        for name, values_T in numbers.items():
            made = name.startswith(("fault/", "stop/")) and np.nanmax(values_T, initial=0) > 0
            if (name in _SHOWN or name.startswith("reward/") or made) and np.isfinite(values_T).any():
                yield stage, name, trend(values_T)


def rows(curves: Curves) -> Iterator[tuple[str, ...]]:
    """The `trends` as the cells of a table."""
    for stage, name, found in trends(curves):
        figures = (f"{found.begin:.3f}", f"{found.end:.3f}", f"{found.tau:.2f}", f"{found.p:.1g}")
        yield stage, name, str(found.steps), *figures


def plot_curves(curves: Curves, path: Path) -> None:
    """A row of panels for each stage of reinforcement learning; each step is a dot, the line a running mean.

    Raises:
        DeepRecError: there is no such stage, matplotlib is missing, or it does not know the kind of file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DeepRecError("A plot needs matplotlib: pip install matplotlib.") from None
    stages = [(stage, numbers) for stage, numbers in curves.items() if "reward" in numbers]
    if not stages:
        raise DeepRecError("There is nothing to draw: no step of reinforcement learning is finished.")
    figure = Figure(figsize=(3 * len(_PANELS), 2.4 * len(stages)), layout="constrained")
    rows = figure.subplots(len(stages), len(_PANELS), squeeze=False)
    for (stage, numbers), axes in zip(stages, rows, strict=True):
        for name, axis in zip(_PANELS, axes, strict=True):
            if name not in numbers:
                axis.set_visible(False)
                continue
            steps_T = np.arange(1, len(numbers[name]) + 1)
            axis.plot(steps_T, numbers[name], ".", color="0.65")
            axis.plot(steps_T, _running_mean(numbers[name]), color="C0")
            axis.set_title(f"{stage}: {name}", fontsize=9)
            axis.set_xlabel("step", fontsize=8)
            axis.tick_params(labelsize=8)
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise DeepRecError(f"{path} can't be drawn ({error}): end its name in .png or .svg.") from None


def _joined(steps: Mapping[int, Mapping[str, float]]) -> dict[str, NDArray[np.float64]]:
    names = dict.fromkeys(name for values in steps.values() for name in values)
    return {
        name: np.array([steps[step].get(name, np.nan) for step in sorted(steps)], dtype=np.float64) for name in names
    }


def _running_mean(values_T: NDArray[np.float64], width: int = 5) -> NDArray[np.float64]:
    """Of the steps up to `width` before each, fewer at the start."""
    return np.array([values_T[max(0, t - width + 1) : t + 1].mean() for t in range(len(values_T))])
