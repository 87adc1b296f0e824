"""`deeprec runs`: run folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deeprec.cli.options import Options, command

app = typer.Typer(no_args_is_help=True, help="Run folders.")


@command(app, "list")
def show_all(options: Options) -> None:
    """All runs, oldest first."""
    from deeprec.cli.console import show_table
    from deeprec.runs import list_runs

    options.config()
    runs = list_runs(options.runs)
    rows = ((str(run.path), run.kind, run.status, run.created[:16], f"{run.wall_seconds:.0f}") for run in runs)
    show_table(options.console, ("folder", "kind", "status", "created (UTC)", "seconds"), rows)


@command(app, "show")
def show(options: Options, folder: Path) -> None:
    """A run's manifest, configuration and latest metrics."""
    from deeprec.runs import Run

    options.config()
    run = Run.open(folder)
    options.console.print_json(json.dumps(run.manifest))
    options.console.print(run.config_path.read_text(encoding="utf-8"), markup=False)
    for record in list(run.metrics)[-5:]:
        options.console.print(json.dumps(record), markup=False)


@command(app, "compare")
def compare(
    options: Options,
    ours: Annotated[Path, typer.Argument(help="Folder of an evaluation, or of a training of the policy.")],
    theirs: Annotated[Path, typer.Argument(help="Folder of another; of an evaluation, on the same data.")],
) -> None:
    """Two evaluations, system by system, with paired intervals on the same users; or two trainings."""
    from deeprec.cli.console import show_table
    from deeprec.evaluation.report import compare as compare_evaluations

    options.config()
    if not all(_is_training(folder) for folder in (ours, theirs)):
        options.console.print(compare_evaluations(ours, theirs))
        return
    from deeprec.training.curves import read_curves, trends

    ends = [
        {(stage, name): found.end for stage, name, found in trends(read_curves(folder))} for folder in (ours, theirs)
    ]
    keys = dict.fromkeys([*ends[0], *ends[1]])
    rows = ((*key, *(f"{each[key]:.3f}" if key in each else "" for each in ends)) for key in keys)
    show_table(options.console, ("stage", "number, last fifth of the steps", "ours", "theirs"), rows)


@command(app, "curves")
def curves(
    options: Options,
    folder: Annotated[Path, typer.Argument(help="Folder of a training of the policy.")],
    plot: Annotated[Path | None, typer.Option(help="Draw the curves into this file (.png, .svg).")] = None,
) -> None:
    """What a training's rewards did in each stage, with a test of whether they rose."""
    from deeprec.cli.console import show_table
    from deeprec.training.curves import COLUMNS, plot_curves, read_curves, rows

    options.config()
    found = read_curves(folder)
    if plot is not None:
        plot_curves(found, plot)
        options.say(f"Drawn in {plot}")
    show_table(options.console, COLUMNS, rows(found))


def _is_training(folder: Path) -> bool:
    from deeprec.runs import Run

    has_manifest = (folder / "manifest.json").is_file()  # the folder of an experiment has none
    return has_manifest and Run.open(folder).manifest["kind"] == "train"
