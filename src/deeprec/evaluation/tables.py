"""One set's parts as tables and sentences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from deeprec.config import EvalConfig
from deeprec.evaluation.cached_results import Part, Population, load_part, load_population, part_file, population_file
from deeprec.evaluation.eval_report import interval_text, markdown_table, share_text
from deeprec.evaluation.figures import Outcome, by_oracle, by_turn, common_users, reach, thirds
from deeprec.evaluation.intervals import CONFIDENCE, RESAMPLES, SEED, PairedInterval, mean_interval
from deeprec.evaluation.plans import Plan, SetPlan


def across(sets: Sequence[SetReport]) -> list[str]:
    """Each system's place on each set, and how far the sets agree; empty for one set.

    Places are among the systems that all users of a set were asked for, and that all sets have.
    """
    ranked = [{o.name: o for o in each.outcomes if len(o.users) == len(each.population.users)} for each in sets]
    names = [name for name in ranked[0] if all(name in found for found in ranked)]
    if len(sets) < 2 or len(names) < 2:
        return []
    means_SN = np.array(
        [
            [found[name].metrics[each.headline].mean() for name in names]
            for each, found in zip(sets, ranked, strict=True)
        ]
    )
    positions_SN = stats.rankdata(-means_SN, method="min", axis=1).astype(int)
    rows = [
        [name, *(f"{position} ({mean:.4f})" for position, mean in zip(positions_SN[:, n], means_SN[:, n], strict=True))]
        for n, name in enumerate(names)
    ]
    agreements = [
        f"- Kendall's tau of {sets[a].label} and {sets[b].label}: {stats.kendalltau(means_SN[a], means_SN[b])[0]:.2f} "
        f"({len(names)} systems)."
        for a, b in combinations(range(len(sets)), 2)
    ]
    headings = ["system", *(each.label for each in sets)]
    return [*markdown_table(headings, rows), "", "Each cell: place, mean.", "", *agreements]


@dataclass(frozen=True)
class SetReport:
    """One set's parts as tables."""

    label: str
    plan: Plan
    config: EvalConfig
    time_split: tuple[float, float] | None
    population: Population
    outcomes: tuple[Outcome, ...]
    missing: tuple[str, ...]
    left_out: tuple[str, ...]

    @classmethod
    def read(cls, plan: Plan, set_: SetPlan, folder: Path) -> SetReport | None:
        """What is finished of a set; None before its baseline is."""
        population = load_population(population_file(folder, set_))
        settings = plan.config_of(set_, plan.systems_of(set_)[0], plan.seeds[0])
        config = settings.eval
        bootstrap: dict[str, Any] = {"confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": SEED}
        outcomes, missing, left = [], [], []
        for system in plan.systems_of(set_):
            if population is not None and (why := plan.left_out(system, len(population.item_counts))):
                left.append(f"{system.name}: {why}")
                continue
            done: dict[int, Part] = {}
            for seed in plan.seeds:
                part = load_part(part_file(folder, set_, system, seed))
                # What was made for another plan, or of other data, is not shown as if it were of this.
                if (
                    part is not None
                    and population is not None
                    and part.plan == plan.digest(set_, system, seed)
                    and part.fingerprint == population.fingerprint
                    and (not done or part.users == next(iter(done.values())).users)
                ):
                    done[seed] = part
            if done:
                outcomes.append(Outcome(system.name, tuple(done), tuple(done.values()), config.cutoffs, bootstrap))
            if len(done) < len(plan.seeds):
                missing.append(f"{system.name} ({len(done)} of {len(plan.seeds)} seeds)")
        if population is None or plan.baseline not in [outcome.name for outcome in outcomes]:
            return None
        split, rows = settings.data.time_split, (tuple(outcomes), tuple(missing), tuple(left))
        return cls(set_.label, plan, config, split, population, *rows)

    @property
    def k(self) -> int:
        return max(self.config.cutoffs)

    @property
    def headline(self) -> str:
        return f"NDCG@{self.k}"

    @cached_property
    def baseline(self) -> Outcome:
        return next(outcome for outcome in self.outcomes if outcome.name == self.plan.baseline)

    def results(self) -> list[str]:
        """The main table."""
        rows = []
        for outcome in self.outcomes:
            shown = [interval_text(outcome.mean(f"{name}@{self.k}")) for name in ("NDCG", "Recall", "MRR")]
            rows.append(
                [
                    outcome.name,
                    f"{len(outcome.users):,}",
                    str(len(outcome.parts)),
                    *shown,
                    self._change(outcome, self.baseline),
                ]
            )
        names = [f"{name}@{self.k}" for name in ("NDCG", "Recall", "MRR")]
        return markdown_table(["system", "users", "seeds", *names, f"{self.headline} to {self.plan.baseline}"], rows)

    def sentences(self) -> list[str]:
        """What the intervals allow to be said of every system, against the baseline."""
        said: dict[str, list[str]] = {"better than": [], "worse than": [], "not to be told apart from": []}
        for outcome in self.outcomes:
            change = None if outcome is self.baseline else outcome.against(self.baseline, self.headline)
            if change is None or math.isnan(change.low):
                continue
            verdict = (
                "better than" if change.low > 0 else "worse than" if change.high < 0 else "not to be told apart from"
            )
            said[verdict].append(outcome.name)
        by_name = {outcome.name: outcome for outcome in self.outcomes}
        compared = [
            (by_name[system.name], [by_name[other] for other in system.against if other in by_name])
            for system in self.plan.systems
            if system.name in by_name
        ]
        lines = [
            f"- By {self.headline}, {verdict} {self.plan.baseline} on the same users: {'; '.join(names)}."
            for verdict, names in said.items()
            if names
        ]
        lines += [
            f"- {ours.name} to {theirs.name}: {self._change(ours, theirs)}."
            for ours, named in compared
            for theirs in named
        ]
        unread = [
            outcome.name
            for outcome in self.outcomes
            if (runs := outcome.explorations)
            and all(all(run.fallback) and not any(run.well_formed) and max(run.answered) < 0 for run in runs)
        ]
        if unread:
            lines.append(
                "- None of their answers was well-formed, none held a target, and all were filled up, which is what "
                f"is measured: {'; '.join(unread)}."
            )
        return lines + [line for ours, named in compared if (line := self._extended(ours, named))]

    def _extended(self, outcome: Outcome, named: Sequence[Outcome]) -> str:
        """How a system on a sample would differ from the baseline on all users; empty where that can't be told."""
        users = self.baseline.users
        if len(users) < len(self.population.users):
            return ""
        others = [
            each for each in named if each is not self.baseline and (each.users, each.seeds) == (users, outcome.seeds)
        ]
        change = outcome.extended(self.baseline, others, self.headline)
        if change is None:
            return ""
        names = "; ".join(each.name for each in (self.baseline, *others))
        return (
            f"- {outcome.name} to {self.plan.baseline} on all {len(users):,} users, estimated from its "
            f"{len(outcome.users):,} by regression on what these have on all: {names}: {_change_text(change)}."
        )

    def explorers(self) -> list[str]:
        """How language models and scripts ran; empty without any."""
        columns: dict[str, list[str]] = {"system": []}
        ran = [outcome for outcome in self.outcomes if outcome.explorations]
        for outcome in ran:
            for heading, cell in self._ran(outcome).items():
                columns.setdefault(heading, []).append(cell)
        return markdown_table(list(columns), list(zip(*columns.values(), strict=True))) if ran else []

    def _ran(self, outcome: Outcome) -> dict[str, str]:
        runs, answered_U = outcome.explorations, outcome.answered
        users = sum(len(run.found) for run in runs)
        calls = sum(len(calls) for run in runs for calls in run.retrieved)
        stops: Counter[str] = sum((Counter(run.stops) for run in runs), Counter())
        seconds = outcome.seconds_per_user
        assert answered_U is not None
        return {
            "system": outcome.name,
            f"{self.headline} as answered": interval_text(mean_interval(answered_U, **outcome.bootstrap)),
            "well-formed": share_text(sum(sum(run.well_formed) for run in runs) / users),
            "fallback": share_text(sum(sum(run.fallback) for run in runs) / users),
            "calls": f"{calls / users:.2f}" if calls else "",
            "pool hit": share_text(sum(sum(position > 0 for position in run.found) for run in runs) / users),
            "tokens written": f"{outcome.tokens_per_user:,.0f}",
            "seconds a user": "" if seconds is None else f"{seconds:.2f}",
            "ends": ", ".join(f"{reason} {share_text(count / users)}" for reason, count in stops.most_common()),
        }

    def turns(self) -> list[str]:
        rows = [
            [
                outcome.name,
                str(after.turn),
                share_text(after.share),
                f"{after.new:.1f}",
                interval_text(after.pool_hit, form=".3f"),
                interval_text(after.ndcg),
            ]
            for outcome in self.outcomes
            for after in by_turn(outcome)
        ]
        headings = ["system", "after call", "made by", "new items", "pool hit", f"{self.headline}, list after list"]
        return markdown_table(headings, rows) if rows else []

    def oracle_ablation(self) -> list[str]:
        """Explorations with one link replaced; empty without any."""
        rows = []
        for outcome in self.outcomes:
            oracle_ablation = by_oracle(outcome)
            hits = [position > 0 for run in outcome.explorations for position in run.found]
            with_fallback = {"none, as served": (float(np.mean(hits)), outcome)} if oracle_ablation else {}
            for name, (hit, ranked) in (with_fallback | oracle_ablation).items():
                mean, change = ranked.mean(self.headline), self._change(ranked, self.baseline)
                rows.append([outcome.name, name, share_text(hit), interval_text(mean), change])
        headings = ["system", "link replaced", "pool hit", self.headline, f"{self.headline} to {self.plan.baseline}"]
        return markdown_table(headings, rows) if rows else []

    def groups(self, title: str, values: dict[str, int]) -> list[str]:
        """The headline metric by thirds of the users."""
        bounds = thirds(values, self.baseline.users)[0]
        rows = []
        for outcome in self.outcomes:
            _, groups = thirds(values, outcome.users)
            cells = [
                f"{interval_text(outcome.mean(self.headline, chosen_U))}, {int(chosen_U.sum()):,}"
                if chosen_U.any()
                else ""
                for chosen_U in groups
            ]
            rows.append([outcome.name, *cells])
        return markdown_table([f"{title}", *(f"{low:,} to {high:,}" for low, high in bounds)], rows)

    def reaches(self) -> tuple[int, list[str]]:
        """Of how many users, and a table on these; empty where no user is common to all systems."""
        users = common_users(self.outcomes)
        rows = []
        for outcome in self.outcomes if users else ():
            found = reach(outcome, users, self.population, self.k)
            rows.append([outcome.name, share_text(found.coverage), f"{found.gini:.3f}", f"{found.novelty:.2f}"])
        headings = ["system", f"coverage@{self.k}", "Gini", "novelty, bits"]
        return len(users), markdown_table(headings, rows) if rows else []

    def split(self) -> str:
        """How what is held out was chosen."""
        if self.time_split is None:
            return "each user's last two items held out"
        first, second = self.time_split
        return f"split by time: trained on the first {first:.0%} of the interactions, validated up to {second:.0%}"

    def _change(self, outcome: Outcome, other: Outcome) -> str:
        if outcome is other:
            return "baseline"
        change = outcome.against(other, self.headline)
        if change is None:
            return "no common users"
        return _change_text(change)


def _change_text(change: PairedInterval) -> str:
    if math.isnan(change.low):
        return f"{change.difference:+.4f}"
    shares = [
        f"{100 * value / change.base:+.1f}" for value in (change.difference, change.low, change.high) if change.base
    ]
    ratio = f" ({shares[0]} % [{shares[1]}, {shares[2]}])" if shares else ""
    return f"{change.difference:+.4f} [{change.low:+.4f}, {change.high:+.4f}]{ratio}"
