"""`deeprec eval` and `deeprec experiment`: plans of one engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deeprec.cli.options import Options, command
from deeprec.errors import DeepRecError

if TYPE_CHECKING:
    from deeprec.config import Config
    from deeprec.evaluation.report import Report

app = typer.Typer(no_args_is_help=True, help="Many systems on several data sets, and one report.")


def evaluate(
    options: Options,
    users: Annotated[int | None, typer.Option(help="Sample of users for the language model; default: all.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of an interrupted evaluation or experiment.")] = None,
) -> None:
    """Compare the policy with popularity, transitions, EASE, the TRM, the scripted explorer and a one-shot rerank."""
    if resume is None:
        run_evaluation(options, options.config([] if users is None else [f"eval.users={users}"]), "eval")
        return
    from deeprec.config import Config
    from deeprec.evaluation.plans import PLAN_FILE, load_plan
    from deeprec.evaluation.runner import run_plan
    from deeprec.runs import Run, lock

    if options.overrides or options.file or users is not None:
        raise DeepRecError("--resume takes the configuration of its folder: leave out --config, --set, --users.")
    options.config()
    if not (resume / PLAN_FILE).is_file():
        raise DeepRecError(f"{resume} is not an evaluation's folder: start one with `deeprec eval`.")
    run = Run.open(resume) if (resume / "manifest.json").is_file() else None  # an experiment has none
    if run is not None:
        options.runs = resume.parent
    with run or lock(resume):
        plan = load_plan(resume / PLAN_FILE, Config())
        _show(options, run_plan(plan, resume, options.models, same_data=True), resume)


def run_evaluation(options: Options, config: Config, plan: Literal["eval", "demo"]) -> None:
    """A built-in plan in a run folder of its own; shows the report."""
    from deeprec.evaluation.cached_results import Users
    from deeprec.evaluation.plans import built_in_plan
    from deeprec.evaluation.runner import run_plan
    from deeprec.runs import Run

    found = built_in_plan(plan, config)
    dataset = options.models.dataset(config)  # before there is a folder, for its source may be wrong
    Users.of(dataset, config.eval)  # or its targets
    run = Run.create(options.runs, plan, config, sys.argv, kind="eval", fingerprint=dataset.fingerprint)
    options.say(f"Evaluating in {run.path}; if interrupted: deeprec eval --resume {run.path}")
    with run:
        _show(options, run_plan(found, run.path, options.models), run.path)


@command(app, "run")
def experiment_run(
    options: Options,
    plan: Annotated[Path | None, typer.Argument(help="An experiment's TOML; default: the built-in comparison.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="A set to run on, in place of the experiment's own: a file of interactions, its items in a file "
            "beside it (or --set data.items=FILE), a folder, or an asset. May be repeated.",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--train", metavar="MINUTES", help="Train the language model on each set too, for about this long."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the experiment; default: in the runs folder.")] = None,
) -> None:
    """Run what is missing of an experiment, one system after another, and write its report."""
    from deeprec.evaluation.plans import built_in_plan, dump_plan, load_plan, slug
    from deeprec.evaluation.runner import run_plan
    from deeprec.runs import lock

    sources = data or []
    if plan is not None and plan.suffix != ".toml" and plan.exists():
        raise DeepRecError(f"{plan} is not an experiment's TOML file: for a data set, use --data {plan}.")
    if described := [source for source in sources if Path(source).suffix == ".toml"]:
        raise DeepRecError(f"--data {described[0]} is a TOML file: use --config {described[0]}.")
    config = options.parse([] if minutes is None else [f"train.minutes={minutes}"])
    found = load_plan(plan, config, sources) if plan else built_in_plan("comparison", config, sources)
    if options.dry_run:
        print(dump_plan(found), end="")
        return
    sets = [] if plan and not sources else [set_.folder for set_ in found.sets]
    folder = out or options.runs / "-".join(["experiment", slug(found.name), *sets])
    options.say(f"Experiment in {folder}; if interrupted, the same command continues")
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        _show(options, run_plan(found, folder, options.models), folder)


@command(app, "report")
def experiment_report(
    options: Options, folder: Annotated[Path, typer.Argument(help="Folder of an experiment, finished or not.")]
) -> None:
    """Write the report again, from what is finished."""
    from deeprec.evaluation.report import Report

    options.config()
    report = Report.read(folder)
    report.save(folder)
    _show(options, report, folder)


def _show(options: Options, report: Report, folder: Path) -> None:
    options.console.print(report)
    options.say(f"Report: {folder / 'report.md'}; for a browser: {folder / 'report.html'}")
    if report.failed:
        raise DeepRecError(f"{len(report.failed)} of the results failed: {report.failed[0]}")
