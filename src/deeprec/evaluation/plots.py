"""The plots of a report, as SVG. Each function gives the file, or None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeprec.evaluation.intervals import Interval
from deeprec.evaluation.results import Result, by_turn, common_users

_MARKERS = "os^Dv<>"  # as many as ten colours have no common divisor with: 70 systems look different


def plot_quality(results: Sequence[Result], metric: str, path: Path) -> Path | None:
    """A dot and its interval for each system."""
    figure, axes = _axes(8, 1 + 0.32 * len(results))
    for position, result in enumerate(reversed(results)):
        found = result.mean(metric)
        axes.plot([found.low, found.high], [position, position], color="0.4", linewidth=1.5)
        axes.plot(found.mean, position, "o", color="C0" if not result.explorations else "C1")
    axes.set_yticks(range(len(results)), [f"{each.name} ({len(each.users):,})" for each in reversed(results)])
    figure.supxlabel(f"{metric} with interval (orange: explorers; number of users in parentheses)", fontsize="medium")
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)
    return _saved(figure, path)


def plot_turns(results: Sequence[Result], metric: str, path: Path) -> Path | None:
    """Share of targets retrieved, and quality of what was retrieved, after each call."""
    lines = [(result.name, found) for result in results if len(found := by_turn(result)) > 1]
    if not lines:
        return None
    figure, axes_2 = _axes(10, 4, columns=2)
    titles = {"pool_recall": "target among what was retrieved, share", "ndcg": f"{metric}, list after list"}
    for axes, (values, title) in zip(axes_2, titles.items(), strict=True):
        for number, (name, found) in enumerate(lines):
            turns, style = [after.turn for after in found], {"color": f"C{number % 10}", "label": name}
            _draw(axes, turns, [getattr(after, values) for after in found], marker="o", capsize=3, **style)
        axes.set_xlabel("after call")
        axes.set_ylabel(title)
        axes.set_xticks(range(1, 1 + max(len(found) for _, found in lines)))
        axes.grid(alpha=0.3)
    axes_2[0].legend(fontsize="small")
    return _saved(figure, path)


def plot_cost(results: Sequence[Result], metric: str, path: Path) -> Path | None:
    """Seconds and tokens a user against quality, on the users that all timed systems ran on; those that no other beats
    in both are joined."""
    timed = sorted((result.seconds_per_user, n, result) for n, result in enumerate(results) if result.seconds_per_user)
    users = common_users([result for *_, result in timed]) if timed else frozenset()
    if len(timed) < 2 or not users:
        return None
    figure, (left, right) = _axes(13, max(4.5, 0.5 + 0.25 * len(timed)), 2)
    dots = []
    for number, (seconds, _, result) in enumerate(timed):
        found = result.mean(metric, np.array([user in users for user in result.users]))
        style = {"marker": _MARKERS[number % len(_MARKERS)], "color": f"C{number % 10}", "label": result.name}
        dots.append(((seconds, result.tokens_per_user or 0.0), found, style))
    for axes, cost in ((left, 0), (right, 1)):
        best, front = -1.0, []
        for costs, found, style in sorted(dots, key=lambda dot: (dot[0][cost], -dot[1].mean)):
            _draw(axes, [costs[cost]], [found], alpha=0.8, **style)
            if found.mean > best:
                best = found.mean
                front.append((costs[cost], best))
        axes.plot(*zip(*front, strict=True), color="C2", alpha=0.5, zorder=0)
        axes.grid(alpha=0.3)
    left.set_xscale("log")
    handles = left.get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", fontsize="small", title="from cheap to dear")
    title = f"on the {len(users):,} users that all of these ran on (line: nothing is both cheaper and better)"
    figure.suptitle(title, fontsize="small")
    left.set_xlabel("seconds a user")
    right.set_xlabel("tokens written a user (a script's are words)")
    left.set_ylabel(metric)
    return _saved(figure, path)


def _draw(axes: Any, positions: Sequence[float], values: Sequence[Interval], **style: Any) -> None:
    bounds = [[value.mean - value.low for value in values], [value.high - value.mean for value in values]]
    axes.errorbar(positions, [value.mean for value in values], yerr=bounds, **style)


def _axes(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def _saved(figure: Any, path: Path) -> Path:
    import matplotlib

    # Without these two, the file would differ from one writing to the next.
    with matplotlib.rc_context({"svg.hashsalt": "deeprec"}):
        figure.savefig(path, metadata={"Date": None})
    return path
