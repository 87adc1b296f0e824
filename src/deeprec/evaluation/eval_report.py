"""The result of an evaluation, and its tables for the terminal, as markdown and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from deeprec.errors import DeepRecError
from deeprec.evaluation.intervals import (
    Interval,
    PairedInterval,
    mean_interval,
    paired_interval,
    paired_on_users,
)
from deeprec.evaluation.metrics import per_user

AS_ANSWERED = (
    '"As answered" scores only what the model itself answered, a failed answer being a miss; "as served" '
    "fills the places that a failed or short answer leaves empty with what was retrieved, in order, as a user "
    "would be shown it. The fallback column says how often that happened."
)


def share_text(value: float) -> str:
    """Of 1, in per cent."""
    return f"{100 * value:.1f} %"


# The order, heading and format of known extras; any other is shown behind them under its own name.
_EXTRAS: dict[str, tuple[str, Callable[[float], str]]] = {
    "well_formed": ("well-formed", share_text),
    "fallback": ("fallback", share_text),
    "calls": ("calls", "{:.2f}".format),
    "pool hit": ("pool hit", share_text),
    "tokens": ("tokens", "{:,.0f}".format),
}


@dataclass(frozen=True)
class SystemResult:
    """What one system did on its users.

    Attributes:
        users: task ids, each once.
        ranks: 0-based place of each user's target in the list returned, -1 where absent; as long as `users`.
        coverage: share (0 to 1) of the catalogue in the first k of any list, k the largest cutoff.
        extras: figures of an explorer: shares `well_formed`, `fallback` and `pool hit` (the target was
            retrieved); means per user `calls` and `tokens`; any further name is shown as it is.
        stops: how many explorations ended for each stop reason.
        note: shown under the table.
    """

    name: str
    users: tuple[str, ...]
    ranks: tuple[int, ...]
    coverage: float
    extras: dict[str, float] = field(default_factory=dict)
    stops: dict[str, int] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        if not len(self.users) == len(self.ranks) == len(set(self.users)) > 0:
            raise ValueError(f"{self.name}: users are unique, and each has one rank")

    def per_user(self, cutoffs: Sequence[int]) -> dict[str, dict[str, float]]:
        """Metric name to user id to value."""
        columns = per_user(np.array(self.ranks, dtype=np.int64), cutoffs)
        return {name: dict(zip(self.users, values_U.tolist(), strict=True)) for name, values_U in columns.items()}


@dataclass(frozen=True)
class Report:
    """An evaluation of several systems on one split.

    Attributes:
        dataset: name of the data set, with its size where known.
        fingerprint: of the data set's content.
        split: "validation" or "test".
        cutoffs: k of the metrics; the largest is the headline.
        baseline: name of the system that all others are compared with.
        systems: in the order of the table.
        config_path: the run's resolved configuration.
        environment: command, hardware, date, versions; see `deeprec.runs.environment`.
        timings: seconds by part of the evaluation.
        confidence, resamples, seed: of the bootstrap intervals.
    """

    dataset: str
    fingerprint: str
    split: str
    cutoffs: tuple[int, ...]
    baseline: str
    systems: tuple[SystemResult, ...]
    config_path: str
    environment: dict[str, str]
    timings: dict[str, float]
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        names = [system.name for system in self.systems]
        if len(set(names)) != len(names) or self.baseline not in names:
            raise ValueError(f"systems have unique names, {self.baseline!r} among them; got {names}")

    @property
    def headline(self) -> str:
        """The metric of the comparisons: NDCG at the largest cutoff."""
        return f"NDCG@{max(self.cutoffs)}"

    @cached_property
    def intervals(self) -> dict[str, dict[str, Interval]]:
        """System name to metric name to its mean over all of that system's users, with its interval."""
        return {
            system.name: {
                metric: mean_interval(np.array(list(values.values())), **self._bootstrap)
                for metric, values in system.per_user(self.cutoffs).items()
            }
            for system in self.systems
        }

    @cached_property
    def comparisons(self) -> dict[str, PairedInterval]:
        """System name to its headline metric minus the baseline's on the users both ran on.

        The baseline and systems that share no user with it are absent.
        """
        found = {}
        (base,) = (system for system in self.systems if system.name == self.baseline)
        base_values = base.per_user(self.cutoffs)[self.headline]
        for system in self.systems:
            values = system.per_user(self.cutoffs)[self.headline]
            if system is not base and values.keys() & base_values.keys():
                found[system.name] = _on_common_users(values, base_values, **self._bootstrap)
        return found

    def against(self, other: Report) -> Table:
        """Every system that both evaluations have, ours minus theirs, paired on the users that both ran on.

        Raises:
            DeepRecError: they are of different data or splits, or have no system or no user in common.
        """
        if (self.fingerprint, self.split) != (other.fingerprint, other.split):
            raise DeepRecError(
                f"The evaluations are of different data: {self.dataset} {self.split} and {other.dataset} {other.split}."
            )
        k = max(set(self.cutoffs) & set(other.cutoffs), default=0)
        theirs = {system.name: system for system in other.systems}
        confidence = f"{100 * self.confidence:.0f} %"
        table = Table("system", "users", "metric", "ours", "theirs", f"difference [{confidence} interval]")
        for system in self.systems:
            if k == 0 or system.name not in theirs:
                continue
            pairs = zip(system.per_user((k,)).items(), theirs[system.name].per_user((k,)).values(), strict=True)
            for (metric, ours_by_user), theirs_by_user in pairs:
                common = ours_by_user.keys() & theirs_by_user.keys()
                if not common:
                    continue
                found = _on_common_users(ours_by_user, theirs_by_user, **self._bootstrap)
                means = [float(np.mean([values[user] for user in common])) for values in (ours_by_user, theirs_by_user)]
                difference = f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
                table.add_row(system.name, str(found.users), metric, *(f"{mean:.4f}" for mean in means), difference)
        if not table.row_count:
            raise DeepRecError("The evaluations have no system with common users and cutoffs to compare.")
        return table

    def to_rich(self) -> Table:
        """Tables for a terminal of 120 columns: the headline, and how the explorers ran."""
        k = max(self.cutoffs)
        main = Table(title=Text(f"{self.dataset}, {self.split} split"), title_justify="left")
        for heading in ("system", "n", f"NDCG@{k}", f"Recall@{k}", f"MRR@{k}", f"cov@{k}", self._versus):
            main.add_column(heading, justify="left" if heading == "system" else "right")
        for system in self.systems:
            metrics = self.intervals[system.name]
            cells = [interval_text(metrics[f"{name}@{k}"], "\n") for name in ("NDCG", "Recall", "MRR")]
            row = [system.name, str(len(system.users)), *cells, share_text(system.coverage)]
            main.add_row(*map(Text, row), Text(self._comparison(system, "\n")))
        page = Table.grid()
        page.add_row(main)
        headings, rows = self._explorers()
        if rows:
            explorers = Table(title="How the explorers ran", title_justify="left")
            for heading in headings:
                explorers.add_column(heading, justify="left" if heading in ("system", "stops") else "right")
            for cells in rows:
                explorers.add_row(*map(Text, cells))
            page.add_row(explorers)
        lines = self._notes()
        if self.timings:
            lines.append("Seconds: " + ", ".join(f"{part} {s:.1f}" for part, s in self.timings.items()))
        page.add_row(Group(*map(Text, lines)))
        return page

    def to_markdown(self) -> str:
        """A page that stands on its own: data, sizes, metrics with intervals, command, hardware, date."""
        k = max(self.cutoffs)
        names = [f"{name}@{k}" for name in ("NDCG", "Recall", "MRR")]
        main = [
            [
                system.name,
                str(len(system.users)),
                *(interval_text(self.intervals[system.name][name], " ") for name in names),
                share_text(system.coverage),
                self._comparison(system, " "),
            ]
            for system in self.systems
        ]
        every = list(next(iter(self.intervals.values())))
        lines = [
            f"# Evaluation on {self.dataset}, {self.split} split",
            "",
            f"- data set: {self.dataset}, fingerprint `{self.fingerprint}`",
            f"- configuration: `{self.config_path}`",
            *(f"- {name}: `{value}`" for name, value in self.environment.items()),
            "",
            *markdown_table(["system", "n", *names, f"coverage@{k}", self._versus], main),
            "",
            *(f"- {note}" for note in self._notes()),
        ]
        headings, rows = self._explorers()
        if rows:
            lines += ["", "## How the explorers ran", "", *markdown_table(headings, rows)]
        if len(self.cutoffs) > 1:
            table = [
                [system.name, *(interval_text(self.intervals[system.name][name], " ") for name in every)]
                for system in self.systems
            ]
            lines += ["", "## Every cutoff", "", *markdown_table(["system", *every], table)]
        if self.timings:
            timings = [[part, f"{seconds:.1f}"] for part, seconds in self.timings.items()]
            lines += ["", "## Timings", "", *markdown_table(["part", "seconds"], timings)]
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """Every field, and under `computed` the intervals and comparisons; what has no value is null."""
        computed = {
            "intervals": {
                system: {metric: _without_nan(asdict(interval)) for metric, interval in metrics.items()}
                for system, metrics in self.intervals.items()
            },
            "comparisons": {name: _without_nan(asdict(change)) for name, change in self.comparisons.items()},
        }
        return json.dumps(asdict(self) | {"computed": computed}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote; what was computed is computed again.

        Raises:
            DeepRecError: the text is not a report.
        """
        try:
            tree = json.loads(text)
            tree.pop("computed", None)
            systems = tuple(
                SystemResult(**system | {"users": tuple(system["users"]), "ranks": tuple(system["ranks"])})
                for system in tree["systems"]
            )
            return cls(**tree | {"systems": systems, "cutoffs": tuple(tree["cutoffs"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DeepRecError(
                f"This is not an evaluation report ({error}): give the JSON that `deeprec eval` wrote."
            ) from None

    @property
    def _bootstrap(self) -> dict[str, Any]:
        return {"confidence": self.confidence, "resamples": self.resamples, "seed": self.seed}

    @property
    def _versus(self) -> str:
        return f"Δ{self.headline} to {self.baseline}"

    def _comparison(self, system: SystemResult, gap: str) -> str:
        if system.name == self.baseline:
            return "baseline"
        change = self.comparisons.get(system.name)
        if change is None:
            return "no common users"
        ratio = "" if math.isnan(change.ratio) else f" ({100 * change.ratio:+.1f} %)"
        text = f"{change.difference:+.4f}{ratio}{gap}{_bounds(change.low, change.high, '+.4f')}"
        return f"{text}{gap}on {change.users}" if self._sizes_differ else text

    @property
    def _sizes_differ(self) -> bool:
        return len({frozenset(system.users) for system in self.systems}) > 1

    def _notes(self) -> list[str]:
        notes = [
            f"Brackets hold {100 * self.confidence:g} % intervals (percentile bootstrap over users, "
            f"{self.resamples} resamples, seed {self.seed}), "
            "not corrected for the number of comparisons.",
            "Differences are paired by user."
            + (
                " The systems ran on different users (column n): a difference is on the users common to both "
                '("on"), means and coverage in different rows are not comparable.'
                if self._sizes_differ
                else ""
            ),
            AS_ANSWERED,
        ]
        means = [interval.mean for metrics in self.intervals.values() for interval in metrics.values()]
        if 0 in means:
            notes.append("A system without a single hit gets [0, 0]: that is too few users, not certainty.")
        return notes + [f"{system.name}: {system.note}" for system in self.systems if system.note]

    def _explorers(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows for the systems that have extras or stop reasons."""
        ran = [system for system in self.systems if system.extras or system.stops]
        names = {name for system in ran for name in system.extras}
        order = [name for name in _EXTRAS if name in names] + sorted(names - _EXTRAS.keys())
        known = {name: _EXTRAS.get(name, (name, "{:.4g}".format)) for name in order}
        headings = ["system", "n", *(heading for heading, _ in known.values()), "stops"]
        rows = []
        for system in ran:
            figures = [show(system.extras[name]) if name in system.extras else "–" for name, (_, show) in known.items()]
            ends = sorted(system.stops.items(), key=lambda stop: -stop[1])
            stops = ", ".join(f"{reason} {count}" for reason, count in ends) or "–"
            rows.append([system.name, str(len(system.users)), *figures, stops])
        return headings, rows


def interval_text(interval: Interval, gap: str = " ", form: str = ".4f") -> str:
    """A mean and its bounds in brackets."""
    return f"{interval.mean:{form}}{gap}{_bounds(interval.low, interval.high, form)}"


def _bounds(low: float, high: float, form: str) -> str:
    return "[no interval]" if math.isnan(low) else f"[{low:{form}}, {high:{form}}]"


def _without_nan(record: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in record.items()}


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; the first column is of names, the others of figures."""
    lines = [headings, ["---", *("---:" for _ in headings[1:])], *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def _on_common_users(
    ours: Mapping[str, float], theirs: Mapping[str, float], *, confidence: float, resamples: int, seed: int
) -> PairedInterval:
    common = ours.keys() & theirs.keys()
    ours_U, theirs_U = paired_on_users(
        {user: value for user, value in ours.items() if user in common},
        {user: value for user, value in theirs.items() if user in common},
    )
    return paired_interval(ours_U, theirs_U, confidence=confidence, resamples=resamples, seed=seed)
