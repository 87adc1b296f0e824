"""An evaluation's report: for the terminal, as Markdown with plots beside it, as one HTML file, and as JSON."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from html import escape
from io import StringIO
from pathlib import Path
from string import Template

import polars as pl
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from deeprec.config import Config
from deeprec.errors import DeepRecError
from deeprec.evaluation import intervals
from deeprec.evaluation.cached_results import CachedResult
from deeprec.evaluation.metrics import METRICS
from deeprec.evaluation.plans import PLAN_FILE, dump_plan, load_plan, slug
from deeprec.evaluation.plots import plot_cost, plot_quality, plot_turns
from deeprec.evaluation.results import Result
from deeprec.evaluation.tables import SetReport, across, difference_text, percent_text

JSON_FILE = "report.json"
_ROWS = 6  # of the table on the terminal
_WIDTH = 80
_PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Report:
    """An evaluation of several systems on one data set or more.

    Attributes:
        late: labels of sets without a result yet.
        plan: as TOML; empty where there is none.
        failed: what went wrong with systems that failed.
    """

    name: str
    sets: tuple[SetReport, ...]
    about: str = ""
    late: tuple[str, ...] = ()
    plan: str = ""
    failed: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Report:
        """What is finished in the folder of an evaluation; DeepRecError before any set's baseline is."""
        if not (folder / PLAN_FILE).is_file():
            raise DeepRecError(f"{folder} is not an evaluation's folder: give one that `deeprec eval` made.")
        plan = load_plan(folder / PLAN_FILE, Config())
        found = {set_.label: SetReport.read(plan, set_, folder) for set_ in plan.sets}
        sets = tuple(each for each in found.values() if each is not None)
        if not sets:
            how = f"continue with `deeprec eval --resume {folder}`"
            raise DeepRecError(f"{folder} has no finished {plan.baseline!r} yet: {how}.")
        late = tuple(label for label, each in found.items() if each is None)
        return cls(plan.name, sets, plan.about, late, dump_plan(plan))

    def save(self, folder: Path | str) -> Path:
        """Write `report.md` with plots (where there is matplotlib), `report.html`, `report.json`; the first's path."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"# {self.name}", "", *([self.about, ""] if self.about else []), *self._preface()]
        lines += [line for each in self.sets for line in _section(each, folder)]
        if table := across(self.sets):
            lines += ["", "## All sets", "", *table]
        if self.late:
            lines += ["", f"Not run yet: {', '.join(self.late)}."]
        if self.plan:
            lines += ["", "## The experiment", "", "```toml", self.plan.strip(), "```"]
        text, markdown = "\n".join(lines) + "\n", folder / "report.md"
        markdown.write_text(text, encoding="utf-8")
        (folder / "report.html").write_text(to_html(text, folder, self.name), encoding="utf-8")
        (folder / JSON_FILE).write_text(self.to_json(), encoding="utf-8")
        return markdown

    def table(self) -> pl.DataFrame:
        """A row for each set, system and metric: its mean with bounds, and the difference to the baseline on the users
        that both ran on; what has no value is null."""
        rows = []
        for each, result in ((set_, result) for set_ in self.sets for result in set_.results):
            for metric in result.metrics:
                row = {"set": each.label, "system": result.name, "users": len(result.users), "metric": metric}
                change = each.change(result, metric)
                compared = {} if change is None else {f"difference {k}": v for k, v in asdict(change).items()}
                rows.append(row | asdict(result.mean(metric)) | compared)
        return pl.DataFrame(rows, infer_schema_length=None).fill_nan(None)

    def to_json(self) -> str:
        """Users and ranks of every system, and the rows of `table`."""
        sets = [
            {
                "label": each.label,
                "fingerprint": each.users.fingerprint,
                "split": each.split,
                "exclude": "history" if each.users.exclude_history else "none",
                "repeated_targets": len(each.users.repeated),
                "baseline": each.baseline,
                "cutoffs": each.base.cutoffs,
                "items": len(each.users.item_counts),
                "systems": [
                    {
                        "name": result.name,
                        "users": result.users,
                        "seeds": result.seeds,
                        "ranks": [part.ranks for part in result.parts],
                        "seconds_per_user": result.seconds_per_user,
                        "tokens_per_user": result.tokens_per_user,
                        "notes": _notes(result),
                    }
                    for result in each.results
                ],
                "missing": each.missing,
                "left_out": each.left_out,
            }
            for each in self.sets
        ]
        tree = {"name": self.name, "about": self.about, "sets": sets, "metrics": self.table().to_dicts()}
        return json.dumps(tree, indent=1, allow_nan=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for each in self.sets:
            yield _terminal_table(each)
            yield from map(Text, _terminal_notes(each))

    def __str__(self) -> str:
        console = Console(file=StringIO(), width=_WIDTH)
        with console.capture() as printed:
            console.print(self)
        return printed.get().rstrip()

    def _preface(self) -> list[str]:
        made = [part.environment for each in self.sets for result in each.results for part in result.parts]
        dates = sorted(each["date"] for each in made)
        words = (each["command"].partition(" ") for each in made)
        commands = {f"`{Path(program).name} {rest}`" for program, _, rest in words}
        whole = all(each.users.exclude_history for each in self.sets)
        rule = "the history excluded" if whole else "the history excluded unless a set says otherwise"
        baselines = "/".join(dict.fromkeys(each.baseline for each in self.sets))
        bootstrap = f"percentile bootstrap over users, {intervals.RESAMPLES} resamples, seed {intervals.SEED}"
        return [
            f"Full ranking of the catalogue, {rule}. Brackets hold {100 * intervals.CONFIDENCE:g} % "
            f"intervals ({bootstrap}), not corrected for the number of comparisons; values are means over seeds first. "
            f"Differences to {baselines} are paired, on the users that both ran on, unless said to be estimated; a "
            "system with fewer users ran on a sample, and its means are not comparable with those of all. A language "
            "model's ranking is scored with fallback: retrieved items (in a rerank, candidates) fill the positions "
            "that its answer leaves empty, and the column fallback says how often. Titles from memory have no "
            "fallback. In the raw ranking a failed answer is a miss. A system without a single hit gets [0, 0]: that "
            "means too few users, not certainty.",
            "",
            f"- machines: {'; '.join(sorted({each['hardware'] for each in made}))}",
            f"- dates: {dates[0]} to {dates[-1]}",
            f"- versions: {'; '.join(sorted({each['versions'] for each in made}))}",
            f"- commands: {'; '.join(sorted(commands))}",
            f"- commits: {'; '.join(sorted({each.get('commit', 'unknown') for each in made}))}",
        ]


def _notes(result: Result) -> list[str]:
    return [note for note in dict.fromkeys([result.note, *(part.note for part in result.parts)]) if note]


def _terminal_table(each: SetReport) -> Table:
    """Fits 80 columns, one line a row: the baseline and the last other systems of the plan."""
    rows = [("system", each.headline, f"Recall@{each.k}", f"% to {each.baseline}")]
    left_out = [result.name for result in each.results if result is not each.base][: 1 - _ROWS]
    for result in each.results:
        if result.name not in left_out:
            change = each.change(result)
            cell = "baseline" if result is each.base else "–" if change is None else percent_text(change)
            ndcg, recall = (f"{result.mean(f'{name}@{each.k}').mean:.4f}" for name in ("NDCG", "Recall"))
            rows.append((result.name, ndcg, recall, cell))
    figures = sum(max(map(len, column)) for column in list(zip(*rows, strict=True))[1:])
    table = Table(title=Text(f"{each.label}, {each.split}"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(rows[0][0], no_wrap=True, overflow="ellipsis", max_width=_WIDTH - figures - 11)
    for heading in rows[0][1:]:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table


def _terminal_notes(each: SetReport) -> Iterator[str]:
    sizes = sorted({len(result.users) for result in each.results})
    yield f"{sizes[-1]:,} users. Brackets: {100 * intervals.CONFIDENCE:g} % interval of the difference on common users."
    for size in sizes[:-1]:
        names = "; ".join(result.name for result in each.results if len(result.users) == size)
        yield f"On a sample of {size:,}, comparable by the last column alone: {names}."
    if len(each.results) > _ROWS:
        yield f"{len(each.results) - _ROWS} more in the report."
    if note := each.repeats_note():
        yield f"{note}."
    if each.missing:
        yield f"Not finished: {', '.join(each.missing)}."


def _section(each: SetReport, folder: Path) -> list[str]:
    users, name = each.users, slug(each.label)
    said = [f"{result.name}: {'; '.join(notes)}" for result in each.results if (notes := _notes(result))]
    said += [*each.left_out, *([f"Not finished: {', '.join(each.missing)}"] if each.missing else [])]
    lines = [
        *("", f"## {each.label}", ""),
        f"{len(users.users):,} {each.split} users, {len(users.item_counts):,} items; {each.held_out}; fingerprint "
        f"`{users.fingerprint[:16]}`.",
        *(["", f"{note}."] if (note := each.repeats_note()) else []),
        *("", *each.main(), "", *each.sentences()),
        *(f"- {sentence}." for sentence in said),
    ]

    def figure(plot: Callable[..., Path | None], what: str, title: str) -> list[str]:
        path = folder / f"{name}-{what}.svg"
        drawn = importlib.util.find_spec("matplotlib") and plot(each.results, each.headline, path)
        return ["", f"![{title}]({path.name})"] if drawn else []

    lines += figure(plot_quality, "quality", "Quality by system")
    common, reach = each.reaches()
    by_history = each.groups("items in the history", users.histories)
    by_popularity = each.groups("times chosen in training", users.target_counts)
    for title, table, after in (
        ("How the explorers ran", each.explorers(), figure(plot_cost, "cost", "Cost against quality")),
        ("Call by call", each.turns(), figure(plot_turns, "turns", "Quality by call")),
        ("Oracle ablation", each.oracle_ablation(), ["", *_ORACLES]),
        (f"{each.headline} by length of the history", by_history, _CELLS),
        (f"{each.headline} by popularity of the target", by_popularity, _CELLS),
        (f"Reach, on the {common:,} users that all systems ran on", reach, []),
        ("Every cutoff", each.cutoffs(), []),
    ):
        if table:
            lines += ["", f"### {title}", "", *table, *after]
    return lines


def to_html(markdown: str, folder: Path, title: str) -> str:
    """The page as one file: its pictures are within it."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)

    def inline(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/svg+xml;base64,{data}"'

    body = re.sub(r'src="([^":/]+\.svg)"', inline, body)
    body = body.replace("<table>", '<div class="wide" tabindex="0"><table>').replace("</table>", "</table></div>")
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(title=escape(title), body=body)


def compare(ours: Path, theirs: Path) -> Table:
    """Every system that the reports of two folders have on the same data, ours minus theirs, paired on common users;
    DeepRecError where there is none."""
    difference = f"difference [{100 * intervals.CONFIDENCE:.0f} % interval]"
    table = Table("system", "users", "metric", "ours", "theirs", difference)
    mine, others = _saved_results(ours), _saved_results(theirs)
    if not {data for data, _ in mine} & {data for data, _ in others}:
        raise DeepRecError(f"{ours} and {theirs} are evaluations of different data, splits or exclusions.")
    for a, b in [(mine[key], others[key]) for key in mine if key in others]:
        k = max({*a.cutoffs} & {*b.cutoffs}, default=0)
        for metric in (f"{name}@{k}" for name in METRICS if k):
            if found := a.minus(b, metric):
                means = (f"{found.base + found.difference:.4f}", f"{found.base:.4f}")
                table.add_row(*map(Text, (a.name, str(found.users), metric, *means, difference_text(found))))
    if not table.row_count:
        raise DeepRecError(f"{ours} and {theirs} have no system with common users and cutoffs.")
    return table


def _saved_results(folder: Path) -> dict[tuple[tuple[str, str, str], str], Result]:
    """By data (fingerprint, split and what is excluded) and name of the system; values are means over all seeds."""
    found = {}
    try:
        for each in json.loads((folder / JSON_FILE).read_bytes())["sets"]:
            for system in each["systems"]:
                users = tuple(system["users"])
                parts = [CachedResult("", "", "", users, tuple(ranks), (), None, "", {}) for ranks in system["ranks"]]
                key = ((each["fingerprint"], each["split"], each.get("exclude", "history")), system["name"])
                found[key] = Result(system["name"], (), tuple(parts), tuple(each["cutoffs"]))
    except FileNotFoundError:
        raise DeepRecError(f"{folder} holds no report: finish it with `deeprec eval --resume {folder}`.") from None
    except (ValueError, TypeError, KeyError) as error:
        raise DeepRecError(f"{folder / JSON_FILE} is not an evaluation's report ({error}).") from None
    return found


_CELLS = ["", "Each cell: mean, interval, users."]
_ORACLES = [
    "The same users' explorations with one part replaced; the pool is what the calls retrieved. Oracles know the "
    "target: they bound what a better part could bring while the others stay.",
    "",
    "- no exploring: the TRM's own list, as long as the pool.",
    "- ranking by the tool: the pool, in the TRM's own order.",
    "- ranking oracle: the pool, the target first.",
    "- retrieval oracle: the pool and the target, in the TRM's own order.",
    "- preference oracle: what the calls retrieve, list after list, when the first call states phrases of the target "
    "and the others stay; at the system's preference weight, and at 1.",
]
