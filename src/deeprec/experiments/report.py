"""An experiment's report: one markdown page with its plots beside it, and the same as one HTML file."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

from deeprec.config import Config, EvalConfig
from deeprec.errors import DeepRecError
from deeprec.eval.intervals import Interval
from deeprec.eval.report import markdown_table
from deeprec.experiments.figures import Outcome, by_turn, reach, thirds
from deeprec.experiments.parts import Population, load_part, load_population, part_file, population_file
from deeprec.experiments.plan import PLAN_FILE, Plan, SetPlan, dump_plan, load_plan, slug
from deeprec.experiments.plots import plot_cost, plot_quality, plot_turns


@dataclass(frozen=True)
class SetReport:
    """One set's parts as tables."""

    label: str
    plan: Plan
    config: EvalConfig
    population: Population
    outcomes: tuple[Outcome, ...]
    missing: tuple[str, ...]

    @classmethod
    def read(cls, plan: Plan, set_: SetPlan, folder: Path) -> SetReport | None:
        """What is finished of a set; None before its baseline is."""
        population = load_population(population_file(folder, set_))
        config = plan.config_of(set_, plan.systems_of(set_)[0], plan.seeds[0]).eval
        bootstrap = {"confidence": config.confidence, "resamples": config.bootstrap, "seed": config.seed}
        outcomes, missing = [], []
        for system in plan.systems_of(set_):
            parts = [load_part(part_file(folder, set_, system, seed)) for seed in plan.seeds]
            done = [part for part in parts if part is not None]
            if len({part.users for part in done}) == 1:
                outcomes.append(Outcome(system.name, tuple(done), config.cutoffs, bootstrap))
            if len(done) < len(parts):
                missing.append(f"{system.name} ({len(done)} of {len(parts)} seeds)")
        if population is None or plan.baseline not in [outcome.name for outcome in outcomes]:
            return None
        return cls(set_.label, plan, config, population, tuple(outcomes), tuple(missing))

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
            shown = [_interval(outcome.mean(f"{name}@{self.k}")) for name in ("NDCG", "Recall", "MRR")]
            rows.append(
                [outcome.name, _count(len(outcome.users)), str(len(outcome.parts)), *shown, self._change(outcome)]
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
        return [
            f"- By {self.headline}, {verdict} {self.plan.baseline} on the same users: {'; '.join(names)}."
            for verdict, names in said.items()
            if names
        ]

    def explorers(self) -> list[str]:
        rows = []
        for outcome in self.outcomes:
            runs = outcome.explorations
            if not runs:
                continue
            users = sum(len(run.found) for run in runs)
            stops: dict[str, int] = {}
            for run in runs:
                for reason, count in run.stops.items():
                    stops[reason] = stops.get(reason, 0) + count
            ends = ", ".join(
                f"{reason} {_share(count / users)}" for reason, count in sorted(stops.items(), key=lambda s: -s[1])
            )
            seconds = outcome.seconds_per_user
            rows.append(
                [
                    outcome.name,
                    _share(sum(sum(run.well_formed) for run in runs) / users),
                    _share(sum(sum(run.fallback) for run in runs) / users),
                    f"{sum(len(calls) for run in runs for calls in run.retrieved) / users:.2f}",
                    _share(sum(sum(place > 0 for place in run.found) for run in runs) / users),
                    f"{outcome.tokens_per_user:,.0f}",
                    "" if seconds is None else f"{seconds:.2f}",
                    ends,
                ]
            )
        headings = [
            "system",
            "well-formed",
            "fallback",
            "calls",
            "pool hit",
            "tokens written",
            "seconds a user",
            "ends",
        ]
        return markdown_table(headings, rows) if rows else []

    def turns(self) -> list[str]:
        rows = [
            [
                outcome.name,
                str(after.turn),
                _share(after.share),
                f"{after.new:.1f}",
                _interval(after.pool_hit, "{:.3f}"),
                _interval(after.ndcg),
            ]
            for outcome in self.outcomes
            for after in by_turn(outcome)
        ]
        headings = ["system", "after call", "made by", "new items", "pool hit", f"{self.headline}, list after list"]
        return markdown_table(headings, rows) if rows else []

    def groups(self, title: str, values: dict[str, int]) -> list[str]:
        """The headline metric by thirds of the users."""
        bounds = thirds(values, self.baseline.users)[0]
        rows = []
        for outcome in self.outcomes:
            _, groups = thirds(values, outcome.users)
            cells = [
                f"{_interval(outcome.mean(self.headline, chosen_U))}, {_count(int(chosen_U.sum()))}"
                if chosen_U.any()
                else ""
                for chosen_U in groups
            ]
            rows.append([outcome.name, *cells])
        return markdown_table([f"{title}", *(f"{low:,} to {high:,}" for low, high in bounds)], rows)

    def reaches(self) -> tuple[int, list[str]]:
        users = frozenset.intersection(*(frozenset(outcome.users) for outcome in self.outcomes))
        rows = []
        for outcome in self.outcomes:
            found = reach(outcome, users, self.population, self.k)
            rows.append([outcome.name, _share(found.coverage), f"{found.gini:.3f}", f"{found.novelty:.2f}"])
        return len(users), markdown_table(["system", f"coverage@{self.k}", "Gini", "novelty, bits"], rows)

    def _change(self, outcome: Outcome) -> str:
        if outcome is self.baseline:
            return "baseline"
        change = outcome.against(self.baseline, self.headline)
        if change is None:
            return "no common users"
        if math.isnan(change.low):
            return f"{change.difference:+.4f}"
        base = change.difference / change.ratio if change.ratio and not math.isnan(change.ratio) else math.nan
        ratio = (
            ""
            if math.isnan(base)
            else f" ({100 * change.ratio:+.1f} % [{100 * change.low / base:+.1f}, {100 * change.high / base:+.1f}])"
        )
        return f"{change.difference:+.4f} [{change.low:+.4f}, {change.high:+.4f}]{ratio}"


def write_report(folder: Path) -> tuple[Path, Path]:
    """`report.md` with its plots, and `report.html`, into the experiment's folder; what is not finished is said.

    Raises:
        DeepRecError: the folder is not an experiment's, or no set's baseline is finished.
    """
    if not (folder / PLAN_FILE).is_file():
        raise DeepRecError(f"{folder} is not an experiment's folder: give one that `deeprec experiment run` made.")
    plan = load_plan(folder / PLAN_FILE, Config())
    found = [SetReport.read(plan, set_, folder) for set_ in plan.sets]
    sets = [each for each in found if each is not None]
    if not sets:
        raise DeepRecError(f"{folder} has no finished {plan.baseline!r} yet: give `deeprec experiment run` first.")
    lines = [f"# {plan.name}", "", *([plan.about, ""] if plan.about else []), *_preface(plan, sets)]
    for each in sets:
        lines += _section(each, folder)
    late = [set_.label for set_, each in zip(plan.sets, found, strict=True) if each is None]
    if late:
        lines += ["", f"Not run yet: {', '.join(late)}."]
    lines += ["", "## The experiment", "", "```toml", dump_plan(plan).strip(), "```"]
    markdown = folder / "report.md"
    markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    page = folder / "report.html"
    page.write_text(to_html(markdown.read_text(encoding="utf-8"), folder, plan.name), encoding="utf-8")
    return markdown, page


def _preface(plan: Plan, sets: Sequence[SetReport]) -> list[str]:
    config = sets[0].config
    machines = {part.environment["hardware"] for each in sets for outcome in each.outcomes for part in outcome.parts}
    dates = sorted(part.environment["date"] for each in sets for outcome in each.outcomes for part in outcome.parts)
    versions = {part.environment["versions"] for each in sets for outcome in each.outcomes for part in outcome.parts}
    return [
        f"Leave one out, {config.split} split, full ranking of the catalogue, the history excluded. Brackets hold "
        f"{100 * config.confidence:g} % intervals (percentile bootstrap over users, {config.bootstrap} resamples, seed "
        f"{config.seed}), not corrected for the number of comparisons; values are means over seeds first. Differences "
        f"to {plan.baseline} are paired, on the users that both ran on; a system with fewer users ran on a sample, "
        "and its means are not comparable with those of all. An explorer's ranking is the one served: places that its "
        "answer leaves empty are filled by what it retrieved, and the column fallback says how often that happened.",
        "",
        f"- machines: {'; '.join(sorted(machines))}",
        f"- dates: {dates[0]} to {dates[-1]}",
        f"- versions: {'; '.join(sorted(versions))}",
    ]


def _section(each: SetReport, folder: Path) -> list[str]:
    population, name = each.population, slug(each.label)
    lines = [
        "",
        f"## {each.label}",
        "",
        f"{_count(len(population.users))} {each.config.split} users, {_count(len(population.item_counts))} items; "
        f"fingerprint `{population.fingerprint[:16]}`.",
        "",
        *each.results(),
        "",
        *each.sentences(),
    ]
    notes = {system.name: system.note for system in each.plan.systems if system.note}
    for outcome in each.outcomes:
        own = dict.fromkeys(part.note for part in outcome.parts if part.note)
        if said := [*([notes[outcome.name]] if outcome.name in notes else []), *own]:
            lines.append(f"- {outcome.name}: {'; '.join(said)}.")
    if each.missing:
        lines.append(f"- Not finished: {', '.join(each.missing)}.")
    lines += _figure(plot_quality(each.outcomes, each.headline, folder / f"{name}-quality.svg"), "Quality by system")
    if table := each.explorers():
        lines += ["", "### How the explorers ran", "", *table]
        lines += _figure(plot_cost(each.outcomes, each.headline, folder / f"{name}-cost.svg"), "Cost against quality")
    if table := each.turns():
        lines += ["", "### Call by call", "", *table]
        lines += _figure(plot_turns(each.outcomes, each.headline, folder / f"{name}-turns.svg"), "Quality by call")
    histories = dict(zip(population.users, population.histories, strict=True))
    counts = dict(zip(population.users, population.target_counts, strict=True))
    lines += ["", f"### {each.headline} by length of the history", "", *each.groups("items in the history", histories)]
    lines += ["", "Each cell: mean, interval, users."]
    lines += [
        "",
        f"### {each.headline} by popularity of the target",
        "",
        *each.groups("times chosen in training", counts),
    ]
    users, table = each.reaches()
    lines += ["", f"### Reach, on the {_count(users)} users that all systems ran on", "", *table]
    return lines


def _figure(path: Path | None, title: str) -> list[str]:
    return [] if path is None else ["", f"![{title}]({path.name})"]


def to_html(markdown: str, folder: Path, title: str) -> str:
    """The page as one file: its pictures are within it."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)

    def inline(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/svg+xml;base64,{data}"'

    body = re.sub(r'src="([^":/]+\.svg)"', inline, body)
    body = body.replace("<table>", '<div class="wide" tabindex="0"><table>').replace("</table>", "</table></div>")
    return _PAGE.format(title=escape(title), body=body)


_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.25rem 0.6rem; border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }}
td {{ white-space: nowrap; }}
img {{ max-width: 100%; background: white; }}
pre {{ overflow-x: auto; padding: 1rem; background: color-mix(in srgb, currentColor 8%, transparent); }}
</style>
{body}
</html>
"""


def _interval(interval: Interval, form: str = "{:.4f}") -> str:
    if math.isnan(interval.low):
        return form.format(interval.mean)
    return f"{form.format(interval.mean)} [{form.format(interval.low)}, {form.format(interval.high)}]"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _count(value: int) -> str:
    return f"{value:,}"
