"""One set's results as tables and sentences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy import stats

from deeprec.data.report import repeats_note
from deeprec.evaluation.cached_results import CachedResult, Users, result_file, users_file
from deeprec.evaluation.intervals import Interval, PairedInterval, mean_interval
from deeprec.evaluation.metrics import METRICS
from deeprec.evaluation.plans import Plan, SetPlan, SystemPlan
from deeprec.evaluation.results import Result, by_oracle, by_turn, common_users, reach, thirds


@dataclass(frozen=True)
class SetReport:
    """One set's results.

    Attributes:
        held_out: how the held-out items were chosen.
        baseline: name of the result that all others are compared with.
        missing, left_out: systems without a result, with the reason.
    """

    label: str
    split: str
    held_out: str
    users: Users
    results: tuple[Result, ...]
    baseline: str
    missing: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @classmethod
    def read(cls, plan: Plan, set_: SetPlan, folder: Path) -> SetReport | None:
        """What is finished of a set; None before its baseline is."""
        if (users := Users.load(users_file(folder, set_))) is None:
            return None
        settings = plan.config_of(set_, plan.systems_of(set_)[0], plan.runs[0])
        results, missing, left_out = [], [], []
        for system in plan.systems_of(set_):
            if why := plan.left_out(system, len(users.item_counts)):
                left_out.append(f"{system.name}: {why}")
                continue
            done = _finished(plan, set_, system, folder, users)
            if done:
                own = (settings.eval.cutoffs, system.against, system.note)
                results.append(Result(system.name, tuple(done), tuple(done.values()), *own))
            if len(done) < len(plan.runs):
                of = f" ({len(done)} of {len(plan.runs)} seeds)" if plan.seeds else ""
                missing.append(f"{system.name}{of}")
        if plan.baseline not in [result.name for result in results]:
            return None
        held_out, lists = held_out_by(settings.data.time_split, users.of_files), map(tuple, (missing, left_out))
        return cls(set_.label, settings.eval.split, held_out, users, tuple(results), plan.baseline, *lists)

    @property
    def k(self) -> int:
        return max(self.base.cutoffs)

    @property
    def headline(self) -> str:
        """The metric of the comparisons: NDCG at the largest cutoff."""
        return f"NDCG@{self.k}"

    @cached_property
    def base(self) -> Result:
        return next(result for result in self.results if result.name == self.baseline)

    def change(self, result: Result, metric: str = "") -> PairedInterval | None:
        """The difference to the baseline; None for the baseline itself, and without common users."""
        return None if result is self.base else result.minus(self.base, metric or self.headline)

    def repeats_note(self) -> str:
        """Of the targets that repeat an item of their history; empty where none is affected."""
        users = self.users
        return repeats_note(len(users.repeated), len(users.users), self.split, exclude_history=users.exclude_history)

    def main(self) -> list[str]:
        """The main table."""
        return _table(
            {
                "system": result.name,
                "users": f"{len(result.users):,}",
                "seeds": str(len(result.parts)),
                **{f"{name}@{self.k}": interval_text(result.mean(f"{name}@{self.k}")) for name in METRICS},
                f"{self.headline} to {self.baseline}": self._change(result, self.base),
            }
            for result in self.results
        )

    def sentences(self) -> list[str]:
        """What the intervals say of every system, against the baseline."""
        by_name, lines = {result.name: result for result in self.results}, []
        changes = {name: change for name, each in by_name.items() if (change := self.change(each)) is not None}
        for verdict, names in (
            ("better than", [name for name, change in changes.items() if change.low > 0]),
            ("worse than", [name for name, change in changes.items() if change.high < 0]),
            ("not distinguishable from", [name for name, change in changes.items() if change.low <= 0 <= change.high]),
        ):
            if names:
                lines.append(f"- By {self.headline}, {verdict} {self.baseline} on the same users: {'; '.join(names)}.")
        compared = [(each, [by_name[name] for name in each.against if name in by_name]) for each in self.results]
        for ours, others in compared:
            lines += [f"- {ours.name} to {theirs.name}: {self._change(ours, theirs)}." for theirs in others]
        if invalid := [result.name for result in self.results if result.explorations and not result.ever_valid]:
            lines.append(f"- No valid answer; the score is the fallback list's: {'; '.join(invalid)}.")
        return lines + [line for ours, others in compared if (line := self._estimated(ours, others))]

    def _estimated(self, result: Result, others: Sequence[Result]) -> str:
        """How a system on a sample would differ from the baseline on all users; empty where that can't be said."""
        base, users = self.base, self.base.users
        controls = [each for each in others if each is not base and (each.users, each.seeds) == (users, result.seeds)]
        change = result.minus_on_all(base, controls, self.headline)
        if change is None or len(users) < len(self.users.users):
            return ""
        names = "; ".join(each.name for each in (base, *controls))
        return (
            f"- {result.name} to {self.baseline} on all {len(users):,} users, estimated from its "
            f"{len(result.users):,} by regression; controls: {names}: {change_text(change)}."
        )

    def cutoffs(self) -> list[str]:
        """Every metric at every cutoff; empty where there is one cutoff."""
        several = [result for result in self.results if len(result.cutoffs) > 1]
        return _table(
            {"system": each.name} | {name: interval_text(each.mean(name)) for name in each.metrics} for each in several
        )

    def explorers(self) -> list[str]:
        """How language models and scripts ran; empty without any."""
        return _table(self._ran(result) for result in self.results if result.explorations)

    def _ran(self, result: Result) -> dict[str, str]:
        runs, seconds = result.explorations, result.seconds_per_user
        users = sum(len(run.found) for run in runs)
        calls = sum(len(calls) for run in runs for calls in run.retrieved)
        stops: Counter[str] = sum((Counter(run.stops) for run in runs), Counter())
        return {
            "system": result.name,
            f"{self.headline}, raw": interval_text(mean_interval(result.raw)),
            "well-formed": share_text(sum(sum(run.well_formed) for run in runs) / users),
            "fallback": share_text(sum(sum(run.fallback) for run in runs) / users),
            "calls": f"{calls / users:.2f}" if calls else "",
            "pool recall": share_text(sum(call > 0 for run in runs for call in run.found) / users),
            "tokens written": f"{result.tokens_per_user:,.0f}",
            "seconds a user": "" if seconds is None else f"{seconds:.2f}",
            "ends": ", ".join(f"{reason} {share_text(count / users)}" for reason, count in stops.most_common()),
        }

    def turns(self) -> list[str]:
        return _table(
            {
                "system": result.name,
                "after call": str(after.turn),
                "made by": share_text(after.share),
                "new items": f"{after.new:.1f}",
                "pool recall": interval_text(after.pool_recall, ".3f"),
                f"{self.headline}, list after list": interval_text(after.ndcg),
            }
            for result in self.results
            for after in by_turn(result)
        )

    def oracle_ablation(self) -> list[str]:
        """Explorations with one part replaced; empty without any."""
        return _table(
            {
                "system": result.name,
                "part replaced": name,
                "pool recall": share_text(recall),
                self.headline: interval_text(ranked.mean(self.headline)),
                f"{self.headline} to {self.baseline}": self._change(ranked, self.base),
            }
            for result in self.results
            for name, (recall, ranked) in by_oracle(result).items()
        )

    def groups(self, title: str, values: Sequence[int]) -> list[str]:
        """The headline metric by thirds of the users, of whom `values` are given."""
        by_user, rows = dict(zip(self.users.users, values, strict=True)), []
        for result in self.results:
            row = {title: result.name}
            for (low, high), chosen_U in thirds(by_user, result.users):
                text = f"{interval_text(result.mean(self.headline, chosen_U))}, {n:,}" if (n := chosen_U.sum()) else ""
                row[f"{low:,} to {high:,}"] = text
            rows.append(row)
        return _table(rows)

    def reaches(self) -> tuple[int, list[str]]:
        """Of how many users, and a table on these; empty where no user is common to all systems."""
        users, rows = common_users(self.results), []
        for result in self.results if users else ():
            coverage, unevenness, bits = reach(result, users, self.users, self.k)
            cells = {f"coverage@{self.k}": share_text(coverage), "Gini": f"{unevenness:.3f}"}
            rows.append({"system": result.name, **cells, "novelty, bits": f"{bits:.2f}"})
        return len(users), _table(rows)

    def _change(self, result: Result, other: Result) -> str:
        if result is other:
            return "baseline"
        change = result.minus(other, self.headline)
        return "no common users" if change is None else change_text(change)


def _finished(
    plan: Plan, set_: SetPlan, system: SystemPlan, folder: Path, users: Users
) -> dict[int | None, CachedResult]:
    """By seed; what was made for another plan, or of other data, is left out."""
    done: dict[int | None, CachedResult] = {}
    for seed in plan.runs:
        part = CachedResult.load(result_file(folder, set_, system, seed))
        if part is None or (part.plan, part.fingerprint) != (plan.digest(set_, system, seed), users.fingerprint):
            continue
        if all(other.users == part.users for other in done.values()):
            done[seed] = part
    return done


def across(sets: Sequence[SetReport]) -> list[str]:
    """Each system's rank on each set among those that ran on all users of every set, and how far the sets agree."""
    means = [
        {x.name: x.metrics[each.headline].mean() for x in each.results if len(x.users) == len(each.users.users)}
        for each in sets
    ]
    names = [name for name in means[0] if all(name in found for found in means)]
    if len(sets) < 2 or len(names) < 2:
        return []
    means_SN = np.array([[found[name] for name in names] for found in means])
    ranks_SN = stats.rankdata(-means_SN, method="min", axis=1).astype(int)
    rows = [
        {"system": name} | {each.label: f"{ranks_SN[s, n]} ({means_SN[s, n]:.4f})" for s, each in enumerate(sets)}
        for n, name in enumerate(names)
    ]
    agreements = [
        f"- Kendall's tau of {sets[a].label} and {sets[b].label}: {stats.kendalltau(means_SN[a], means_SN[b])[0]:.2f} "
        f"({len(names)} systems)."
        for a, b in combinations(range(len(sets)), 2)
    ]
    return [*_table(rows), "", "Each cell: rank, mean.", "", *agreements]


def held_out_by(time_split: tuple[float, float] | None, of_files: bool = False) -> str:
    if of_files:
        return "the files' own split: each user's first item in a part held out"
    if time_split is None:
        return "each user's last two items held out"
    return "split by time: trained on the first {:.0%} of the interactions, validated up to {:.0%}".format(*time_split)


def share_text(value: float) -> str:
    return f"{100 * value:.1f} %"


def interval_text(interval: Interval, form: str = ".4f") -> str:
    """A mean and its bounds in brackets."""
    bounds = "no interval" if math.isnan(interval.low) else f"{interval.low:{form}}, {interval.high:{form}}"
    return f"{interval.mean:{form}} [{bounds}]"


def difference_text(change: PairedInterval) -> str:
    """A difference and its bounds, if it has any."""
    bounds = "" if math.isnan(change.low) else f" [{change.low:+.4f}, {change.high:+.4f}]"
    return f"{change.difference:+.4f}{bounds}"


def change_text(change: PairedInterval) -> str:
    """A difference and its bounds, then the same in per cent of the base."""
    ratio = "" if math.isnan(change.low) or not change.base else f" ({percent_text(change, ' %')})"
    return f"{difference_text(change)}{ratio}"


def percent_text(change: PairedInterval, unit: str = "") -> str:
    """A difference and its bounds, in per cent of the base."""
    if not change.base:
        return "–"
    mean, low, high = (f"{100 * each / change.base:+.1f}" for each in (change.difference, change.low, change.high))
    return f"{mean}{unit}" if math.isnan(change.low) else f"{mean}{unit} [{low}, {high}]"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; the first column is of names, the others of figures."""
    lines = [headings, ["---", *("---:" for _ in headings[1:])], *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def _table(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """Of rows with the same headings; empty without rows."""
    listed = list(rows)
    return markdown_table(list(listed[0]), [list(row.values()) for row in listed]) if listed else []
