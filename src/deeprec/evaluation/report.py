"""An experiment's report: one markdown page with its plots beside it, and the same as one HTML file."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from deeprec.config import Config
from deeprec.errors import DeepRecError
from deeprec.evaluation.intervals import CONFIDENCE, RESAMPLES, SEED
from deeprec.evaluation.plans import PLAN_FILE, Plan, dump_plan, load_plan, slug
from deeprec.evaluation.plots import plot_cost, plot_quality, plot_turns
from deeprec.evaluation.tables import SetReport, across


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
    if table := across(sets):
        lines += ["", "## All sets", "", *table]
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
    made = [part.environment for each in sets for outcome in each.outcomes for part in outcome.parts]
    dates = sorted(each["date"] for each in made)
    words = [each["command"].partition(" ") for each in made]
    commands = {f"{Path(program).name} {rest}" for program, _, rest in words}
    return [
        f"Full ranking of the catalogue, the history excluded. Brackets hold "
        f"{100 * CONFIDENCE:g} % intervals (percentile bootstrap over users, {RESAMPLES} resamples, seed "
        f"{SEED}), not corrected for the number of comparisons; values are means over seeds first. Differences "
        f"to {plan.baseline} are paired, on the users that both ran on, unless said to be estimated; a system with "
        "fewer users ran on a sample, and its means are not comparable with those of all. A language model's ranking "
        "is the one served: places that its answer leaves empty are filled by what was retrieved (by the candidates, "
        "where it was to rank these), and the column fallback says how often that happened; titles from memory are "
        "not filled up. As answered, one that failed is a miss.",
        "",
        f"- machines: {'; '.join(sorted({each['hardware'] for each in made}))}",
        f"- dates: {dates[0]} to {dates[-1]}",
        f"- versions: {'; '.join(sorted({each['versions'] for each in made}))}",
        f"- commands: {'; '.join(f'`{command}`' for command in sorted(commands))}",
        f"- commits: {'; '.join(sorted({each.get('commit', 'unknown') for each in made}))}",
    ]


def _section(each: SetReport, folder: Path) -> list[str]:
    population, name = each.population, slug(each.label)
    lines = [
        "",
        f"## {each.label}",
        "",
        f"{len(population.users):,} {each.config.split} users, {len(population.item_counts):,} items; "
        f"{each.split()}; fingerprint `{population.fingerprint[:16]}`.",
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
    lines += [f"- {said}." for said in each.left_out]
    if each.missing:
        lines.append(f"- Not finished: {', '.join(each.missing)}.")
    lines += _figure(plot_quality(each.outcomes, each.headline, folder / f"{name}-quality.svg"), "Quality by system")
    if table := each.explorers():
        lines += ["", "### How the explorers ran", "", *table]
        lines += _figure(plot_cost(each.outcomes, each.headline, folder / f"{name}-cost.svg"), "Cost against quality")
    if table := each.turns():
        lines += ["", "### Call by call", "", *table]
        lines += _figure(plot_turns(each.outcomes, each.headline, folder / f"{name}-turns.svg"), "Quality by call")
    if table := each.oracle_ablation():
        lines += ["", "### Which link loses", "", *table, "", *_LINKS]
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
    if table:
        lines += ["", f"### Reach, on the {users:,} users that all systems ran on", "", *table]
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


_LINKS = [
    "The same users' explorations with one link replaced; the pool is what the calls brought back. Oracles know the "
    "target: they bound what a better link would bring, with the others as they are.",
    "",
    "- no exploring: the TRM's own list, as long as the pool.",
    "- ranking by the tool: the pool, in the TRM's own order.",
    "- ranking oracle: the pool, the target first.",
    "- retrieval oracle: the pool and the target, in the TRM's own order.",
    "- preference oracle: what the calls bring, list after list, if the first says phrases of the target and the "
    "others what they said; at the system's trust, and at 1.",
]

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
