"""What the commands show."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from deeprec import assets
from deeprec.cli.workbench import Workbench
from deeprec.config import preference_weight_of
from deeprec.data.catalog import Catalog
from deeprec.data.dataset import Dataset, Split, Task
from deeprec.errors import DeepRecError
from deeprec.evaluation.eval_report import Report
from deeprec.explore.trace import Author, Trace
from deeprec.runs import Run, list_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deeprec.explore.policy import Policy
    from deeprec.retrieval.retriever import Hit
    from deeprec.trm.trm import TRM


def show_dataset(dataset: Dataset, console: Console) -> None:
    table = Table(title=escape(dataset.name), show_header=False)
    for name, value in dataset.describe().items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_number(part)}" for key, part in value.items())
        table.add_row(name.replace("_", " "), escape(_number(value)))
    console.print(table)
    for line in dataset.report.lines():
        console.print(line, markup=False, highlight=False)
    titles = dataset.catalog.title_report()
    for count, what, examples in (
        (titles.empty, "items without a title", titles.empty_examples),
        (titles.ambiguous, "items whose title names several", titles.ambiguous_examples),
    ):
        if count:
            console.print(f"{count:,} {what}, as {'; '.join(examples)}", markup=False, highlight=False)


def show_assets(console: Console) -> None:
    table = Table("name", "kind", "state", "MB", "licence", "used for")
    for status in assets.statuses():
        size = f"{status.size / 1e6:,.0f}"
        table.add_row(status.name, status.kind, status.state, size, status.licence, status.purpose)
    console.print(table)
    console.print(f"Cache: {assets.cache_folder()} (DEEPREC_CACHE moves it)", soft_wrap=True)


def show_hits(hits: Sequence[Hit], catalog: Catalog, console: Console) -> None:
    table = Table("place", "id", "title", "categories", "score")
    for position, hit in enumerate(hits, start=1):
        categories = ", ".join(catalog.categories[hit.item])
        title = escape(catalog.titles[hit.item])
        table.add_row(str(position), escape(catalog.ids[hit.item]), title, escape(categories), f"{hit.score:.3f}")
    console.print(table)


def show_exploration(bench: Workbench, dataset: Dataset, trm: TRM, policy: Policy, task: Task) -> Trace:
    """The conversation as it is written (the model's words bold, the tool's dim), then the ranking."""
    from deeprec.explore.explorer import Explorer

    console = bench.console
    opened = False

    def listen(_: Task, author: Author, text: str) -> None:
        nonlocal opened
        if author is Author.ENVIRONMENT and not opened:
            opened = True
            console.print(Panel(Text(text.rstrip()), title=escape(f"prompt for user {task.user}"), style="dim"))
        else:
            style = "dim" if author is Author.ENVIRONMENT else "bold"
            console.print(Text(text, style=style), end="")

    explorer = Explorer(policy, trm, dataset.catalog, bench.config.explore)
    started = time.perf_counter()
    trace = explorer.run([task], listen)[0]
    seconds = time.perf_counter() - started
    console.print()
    show_outcome(dataset, trace, bench.config.eval.split, console)
    console.print(
        f"{len(trace.turns)} tool calls, {trace.policy_tokens} tokens written, {seconds:.1f} s; "
        f"ended by: {trace.stop.value}"
    )
    if trace.usage is not None:
        used = trace.usage
        console.print(f"The server read {used.read} tokens and wrote {used.written}.")
    return trace


def show_outcome(dataset: Dataset, trace: Trace, split: Split, console: Console) -> None:
    """The ranking with where each item was found, what went wrong, and the held-out item where there is one."""
    catalog = dataset.catalog
    ranking, origin = trace.with_fallback()
    found = trace.first_found()
    table = Table("place", "title", "found in call", "by the preference", title=f"ranking: {origin.value}")
    for position, item in enumerate(ranking, start=1):
        call, turn = found.get(item, ("-", None))
        table.add_row(str(position), escape(catalog.titles[item]), str(call), escape(turn.preference if turn else ""))
    console.print(table)
    if trace.faults:
        console.print(f"[red]faults:[/] {', '.join(fault.value for fault in trace.faults)}")
    if trace.error:
        console.print(f"[red]the policy failed:[/] {escape(trace.error)}")
    target = dataset.targets(split).get(trace.task)
    if target is not None:
        place_of = ranking.index(target) + 1 if target in ranking else None
        where = f"place {place_of}" if place_of else "not in the ranking"
        shown = "retrieved" if target in trace.pool else "never retrieved"
        title = escape(catalog.titles[target])
        seen = "which no part of this has seen" if split == "test" else "on which the TRM was stopped"
        console.print(f"held-out item, {seen}: {title}: {where}, {shown}")


def show_game(bench: Workbench, dataset: Dataset, trm: TRM, task: Task) -> None:
    """`deeprec play`, then the same user by the scripted explorer, to compare."""
    from deeprec.explore.explorer import Explorer
    from deeprec.policies.human import HumanWriter
    from deeprec.policies.text import TextPolicy

    console = bench.console
    size = bench.config.explore.answer_size
    human = HumanWriter(
        console.input, lambda line: console.print(line, markup=False), size, bench.config.explore.max_calls
    )
    # A person knows what to ask for.
    own = bench.config.explore.model_copy(update={"preference_weight": preference_weight_of(bench.config.explore)})
    asked = replace(bench, config=bench.config.model_copy(update={"explore": own}))
    try:
        show_exploration(asked, dataset, trm, TextPolicy(human), task)
    except EOFError:
        console.print("\nThe input ended: nothing was ranked.")
        return
    console.rule("the scripted explorer on the same user")
    trace = Explorer(bench.script(), trm, dataset.catalog, bench.config.explore).run([task])[0]
    show_outcome(dataset, trace, bench.config.eval.split, console)


def run_demo(bench: Workbench) -> None:
    """Data, TRM, one live exploration each by the language model and by script, evaluation, report."""
    console = bench.console
    console.rule("1 of 4: data")
    dataset = bench.dataset()
    show_dataset(dataset, console)
    console.rule("2 of 4: the preference-aware recommender (TRM)")
    trm, folder = bench.trm(dataset)
    console.print(f"TRM: {folder / 'trm'}", soft_wrap=True)
    console.rule(f"3 of 4: one user explored by {bench.config.policy.model}, live")
    policy = bench.policy()
    task = bench.task(dataset, None, [])
    with bench.timed("one live exploration"):
        show_exploration(bench, dataset, trm, policy, task)
    console.rule("the same user by the scripted explorer")
    show_exploration(bench, dataset, trm, bench.script(), task)
    console.rule("4 of 4: evaluation")
    run = Run.create(bench.runs, "demo", bench.config, sys.argv, kind="eval", fingerprint=dataset.fingerprint)
    run.record(trm=str((folder / "trm").resolve()))
    console.print(f"If interrupted: deeprec eval --resume {run.path}", soft_wrap=True)
    with run:
        report = bench.evaluate(dataset, trm, run)
    console.print(report.to_rich())
    for part, seconds in bench.seconds.items():
        console.print(f"{seconds:7.1f} s  {part}")
    console.print(f"Report: {run.path / 'report.md'}", soft_wrap=True)
    console.print("Next: deeprec serve (explore on a page, or over HTTP)")


def show_runs(bench: Workbench) -> None:
    table = Table("folder", "kind", "status", "created (UTC)", "seconds")
    for run in list_runs(bench.runs):
        table.add_row(escape(str(run.path)), run.kind, run.status, run.created[:16], f"{run.wall_seconds:.0f}")
    bench.console.print(table)


def show_run(run: Run, console: Console) -> None:
    console.print_json(json.dumps(run.manifest))
    console.print(run.config_path.read_text(encoding="utf-8"), markup=False)
    for record in list(run.read_metrics())[-5:]:
        console.print(json.dumps(record), markup=False)


def show_curves(folder: Path, plot: Path | None, console: Console) -> None:
    from deeprec.training.curves import COLUMNS, plot_curves, read_curves, rows

    curves = read_curves(folder)
    if plot is not None:
        plot_curves(curves, plot)
        console.print(f"Drawn in {plot}", soft_wrap=True)
    table = Table(*COLUMNS)
    for row in rows(curves):
        table.add_row(*map(escape, row))
    console.print(table)


def compare_runs(ours: Path, theirs: Path, console: Console) -> None:
    """Two evaluations, or two trainings by the last fifth of each stage."""
    from deeprec.training.curves import read_curves, trends

    if not all(Run.open(folder).manifest["kind"] == "train" for folder in (ours, theirs)):
        console.print(load_report(ours).against(load_report(theirs)))
        return
    ends = [
        {(stage, name): found.end for stage, name, found in trends(read_curves(folder))} for folder in (ours, theirs)
    ]
    table = Table("stage", "number, last fifth of the steps", "ours", "theirs")
    for key in dict.fromkeys([*ends[0], *ends[1]]):
        table.add_row(key[0], escape(key[1]), *(f"{each[key]:.3f}" if key in each else "" for each in ends))
    console.print(table)


def load_report(folder: Path) -> Report:
    """The report of an evaluation's folder.

    Raises:
        DeepRecError: it holds none yet.
    """
    path = Run.open(folder).path / "report.json"
    if not path.is_file():
        raise DeepRecError(f"{folder} holds no report: finish it with `deeprec eval --resume {folder}`.")
    return Report.from_json(path.read_text(encoding="utf-8"))


def show_findings(console: Console) -> None:
    from deeprec.cli.doctor import examine

    table = Table("what", "found", "", "hint")
    colours = {"ok": "green", "warn": "yellow", "missing": "red"}
    for finding in examine():
        mark = f"[{colours[finding.level]}]{finding.level}[/]"
        table.add_row(finding.name, escape(finding.value), mark, escape(finding.hint))
    console.print(table)


def _number(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
