"""The command line. Imports of substance stay inside the commands, so that help is quick and needs no torch."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from deeprec import __version__, options
from deeprec.cli.options import ConfigFile, DryRun, Items, Minutes, Offline, Overrides, Runs, Sets, User, bench_of
from deeprec.errors import DeepRecError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A language model explores a catalogue with a preference-aware recommender as its tool.",
)
data_app = typer.Typer(no_args_is_help=True, help="Look at interactions and item text.")
assets_app = typer.Typer(no_args_is_help=True, help="Weights and data sets that DeepRec fetches.")
trm_app = typer.Typer(no_args_is_help=True, help="The preference-aware recommender.")
runs_app = typer.Typer(no_args_is_help=True, help="Run folders.")
experiment_app = typer.Typer(no_args_is_help=True, help="Many systems on several data sets, and one report.")
app.add_typer(data_app, name="data")
app.add_typer(assets_app, name="assets")
app.add_typer(trm_app, name="trm")
app.add_typer(runs_app, name="runs")
app.add_typer(experiment_app, name="experiment")

# fmt: off
_EXTRAS = {
    "torch", "transformers", "safetensors", "gguf", "accelerate", "peft", "trl", "datasets",
    "fastapi", "mcp", "uvicorn", "prometheus_client", "sklearn",
}
# fmt: on


@data_app.command("describe")
def data_describe(
    config: ConfigFile = None, set_: Overrides = None, dry_run: DryRun = False, offline: Offline = False
) -> None:
    """Statistics of a data set, what was dropped from it, and titles that several items share."""
    from deeprec.cli.render import show_dataset

    bench = bench_of(config, set_, dry_run, offline)
    show_dataset(bench.dataset(), bench.console)


@assets_app.command("list")
def assets_list(config: ConfigFile = None, set_: Overrides = None, dry_run: DryRun = False) -> None:
    """Every asset: what it is for, its licence, and whether it is in the cache."""
    from deeprec.cli.render import show_assets

    show_assets(bench_of(config, set_, dry_run, True).console)


@assets_app.command("get")
def assets_get(
    names: Annotated[list[str] | None, typer.Argument(help="Default: all.")] = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
    offline: Offline = False,
) -> None:
    """Fetch assets into the cache, checked by sha256."""
    from deeprec import assets

    bench = bench_of(config, set_, dry_run, offline)
    for name in names or assets.ASSETS:
        bench.console.print(f"{name}: {assets.fetch(name, offline=offline, read_all=True)}", soft_wrap=True)


@assets_app.command("path")
def assets_path(name: str, config: ConfigFile = None, set_: Overrides = None, dry_run: DryRun = False) -> None:
    """The folder of an asset that is in the cache."""
    from deeprec import assets

    bench_of(config, set_, dry_run, True)
    print(assets.fetch(name, offline=True))


@trm_app.command("train")
def trm_train(
    again: Annotated[bool, typer.Option("--again", help="Train even where a finished run exists.")] = False,
    config: ConfigFile = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    runs: Runs = Path("runs"),
) -> None:
    """Train the TRM, or go on with an interrupted training of the same configuration."""
    bench = bench_of(config, set_, dry_run, offline, runs)
    _, folder = bench.trm(bench.dataset(), again=again)
    bench.console.print(f"The trained TRM lies in {folder / 'trm'}", soft_wrap=True)


@trm_app.command("recommend")
def trm_recommend(
    folder: Annotated[Path, typer.Argument(help="Folder of a trained TRM, as `deeprec trm train` names it.")],
    item: Items = None,
    preference: Annotated[str, typer.Option(help='What to look for, as in "Comedy; 1990s".')] = "",
    k: Annotated[int, typer.Option("-k", min=1)] = 10,
    config: ConfigFile = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
    offline: Offline = False,
) -> None:
    """Recommend for any history, also a new user's, from a saved TRM; no data set is needed."""
    from deeprec.cli.render import show_hits
    from deeprec.config import preference_weight_of

    bench = bench_of(config, set_, dry_run, offline)
    from deeprec.retrieval.retriever import Query
    from deeprec.trm.trm import TRM

    trm = TRM.load(folder, offline=offline)
    history = tuple(map(trm.catalog.find, item or []))
    query = Query(history, preference, frozenset(history), preference_weight_of(bench.config.explore))
    show_hits(trm.retrieve([query], k)[0], trm.catalog, bench.console)


@app.command()
def train(
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write each step for TensorBoard too.")] = False,
    config: ConfigFile = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    runs: Runs = Path("runs"),
) -> None:
    """Train the policy: warm start, then reinforcement learning in stages; goes on where it was interrupted."""
    bench = bench_of(config, set_, dry_run, offline, runs)
    folder = bench.train(bench.dataset(), tensorboard=tensorboard)
    kind = "adapter" if bench.config.train.lora_rank else "model"
    settings = f"--config {folder.parent / 'config.toml'} --set policy.{kind}={folder}"
    bench.console.print(f"Trained. Use it as it was trained: deeprec eval {settings}", soft_wrap=True)


@app.command()
def explore(
    user: User = None,
    item: Items = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    runs: Runs = Path("runs"),
) -> None:
    """Watch one user's whole exploration, live as it is written."""
    from deeprec.cli.render import show_exploration

    bench = bench_of(config, set_, dry_run, offline, runs)
    dataset = bench.dataset()
    task = bench.task(dataset, user, item or [])
    trm, _ = bench.trm(dataset)
    show_exploration(bench, dataset, trm, bench.policy(), task)


@app.command()
def play(
    user: User = None,
    item: Items = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    runs: Runs = Path("runs"),
) -> None:
    """Be the policy yourself: state preferences, look at what comes back, rank."""
    from deeprec.cli.render import show_game

    bench = bench_of(config, set_, dry_run, offline, runs)
    dataset = bench.dataset()
    task = bench.task(dataset, user, item or [])
    trm, _ = bench.trm(dataset)
    show_game(bench, dataset, trm, task)


@app.command()
def serve(
    config: ConfigFile = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    runs: Runs = Path("runs"),
) -> None:
    """Answer over HTTP, and show explorations on a page, until Ctrl-C."""
    bench = bench_of(config, set_, dry_run, offline, runs)
    from deeprec.serving.server import listen, open_listener, token_for

    token = token_for(bench.config.serve.host)
    with open_listener(bench.config.serve) as listener, bench.service() as service:
        listen(service, listener, token, bench.console.print)


@app.command()
def mcp(
    config: ConfigFile = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    runs: Runs = Path("runs"),
) -> None:
    """Be a tool of an agent: the Model Context Protocol over stdin and stdout (`deeprec serve` has it at /mcp)."""
    bench = bench_of(config, set_, dry_run, offline, runs)
    from rich.console import Console

    from deeprec.serving.mcp import create_mcp

    bench.console = Console(stderr=True)  # stdout belongs to the protocol
    with bench.service() as service:
        create_mcp(service).run("stdio")


@app.command("eval")
def evaluate(
    users: Annotated[int | None, typer.Option(help="Sample of users for the language model; default all.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of an interrupted evaluation to go on with.")] = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    runs: Runs = Path("runs"),
) -> None:
    """Compare the policy with popularity, transitions, the TRM, the scripted explorer and a one-shot rerank."""
    from deeprec.runs import Run
    from deeprec.trm.trm import TRM

    overrides = [*(set_ or []), *([f"eval.users={users}"] if users is not None else [])]
    if resume is not None:
        if overrides or config:
            raise DeepRecError(
                "--resume takes its configuration from the run's folder: leave out --config, --set, --users."
            )
        config = Run.open(resume).config_path
    bench = bench_of(config, overrides, dry_run, offline, runs)
    dataset = bench.dataset()
    if resume is not None:
        run = Run.open(resume)
        if run.manifest["kind"] != "eval" or "trm" not in run.manifest:
            raise DeepRecError(f"{run.path} is not an evaluation: start one with `deeprec eval`.")
        if (run.manifest["dataset"], run.manifest.get("text")) != (dataset.fingerprint, dataset.text_digest):
            raise DeepRecError(f"{run.path} was made on other data than {bench.config.data.source} now gives.")
        trm = TRM.load(Path(run.manifest["trm"]), offline=offline)
    else:
        trm, folder = bench.trm(dataset)
        run = Run.create(runs, None, bench.config, sys.argv, kind="eval", fingerprint=dataset.fingerprint)
        run.record(trm=str((folder / "trm").resolve()), text=dataset.text_digest)
    bench.console.print(f"Evaluating in {run.path}; if interrupted: deeprec eval --resume {run.path}", soft_wrap=True)
    with run:
        report = bench.evaluate(dataset, trm, run)
    bench.console.print(report.to_rich())
    bench.console.print(f"Report: {run.path / 'report.md'}", soft_wrap=True)


@app.command()
def demo(
    users: Annotated[int, typer.Option(min=1, help="Test users that the language model explores for.")] = 50,
    config: ConfigFile = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    runs: Runs = Path("runs"),
) -> None:
    """The main job from end to end: data, TRM, one live exploration, and an evaluation with its report."""
    from deeprec.cli.render import run_demo

    run_demo(bench_of(config, [f"eval.users={users}", *(set_ or [])], dry_run, offline, runs))


@runs_app.command("list")
def runs_list(
    config: ConfigFile = None, set_: Overrides = None, dry_run: DryRun = False, runs: Runs = Path("runs")
) -> None:
    """All runs, oldest first."""
    from deeprec.cli.render import show_runs

    show_runs(bench_of(config, set_, dry_run, True, runs))


@runs_app.command("show")
def runs_show(folder: Path, config: ConfigFile = None, set_: Overrides = None, dry_run: DryRun = False) -> None:
    """A run's manifest, configuration and latest metrics."""
    from deeprec.cli.render import show_run
    from deeprec.runs import Run

    show_run(Run.open(folder), bench_of(config, set_, dry_run, True).console)


@runs_app.command("compare")
def runs_compare(
    ours: Annotated[Path, typer.Argument(help="Folder of an evaluation, or of a training of the policy.")],
    theirs: Annotated[Path, typer.Argument(help="Folder of another; of an evaluation, on the same data.")],
    config: ConfigFile = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
) -> None:
    """Two evaluations, system by system, with paired intervals on the same users; or two trainings."""
    from deeprec.cli.render import compare_runs

    compare_runs(ours, theirs, bench_of(config, set_, dry_run, True).console)


@runs_app.command("curves")
def runs_curves(
    folder: Annotated[Path, typer.Argument(help="Folder of a training of the policy.")],
    plot: Annotated[Path | None, typer.Option(help="Draw the curves into this file (.png, .svg).")] = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
) -> None:
    """What a training's rewards did in each stage, with a test of whether they rose."""
    from deeprec.cli.render import show_curves

    show_curves(folder, plot, bench_of(config, set_, dry_run, True).console)


@experiment_app.command("run")
def experiment_run(
    plan: options.PlanFile = None,
    data: Sets = None,
    minutes: Minutes = None,
    out: options.Out = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
    offline: Offline = False,
    runs: Runs = Path("runs"),
) -> None:
    """Run what is missing of an experiment, part by part, and write its report; goes on where it was interrupted."""
    overrides = [*(set_ or []), *([f"train.minutes={minutes}"] if minutes is not None else [])]
    bench = bench_of(config, overrides, False, offline, runs)
    from deeprec.evaluation.plans import dump_plan, plan_of
    from deeprec.evaluation.runner import run_experiment

    if dry_run:
        print(dump_plan(plan_of(plan, bench.config, data or [])), end="")
        return
    report, page = run_experiment(bench, plan, data or [], out)
    bench.console.print(f"Report: {report}, and as one file for a browser: {page}", soft_wrap=True)


@experiment_app.command("report")
def experiment_report(
    folder: Annotated[Path, typer.Argument(help="Folder of an experiment, finished or not.")],
    config: ConfigFile = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
) -> None:
    """Write the report anew, from what is finished."""
    bench = bench_of(config, set_, dry_run, True)
    from deeprec.evaluation.report import write_report

    report, page = write_report(folder)
    bench.console.print(f"Report: {report}, and as one file for a browser: {page}", soft_wrap=True)


@app.command()
def doctor(config: ConfigFile = None, set_: Overrides = None, dry_run: DryRun = False) -> None:
    """Versions, processor, GPU, assets, and what is missing."""
    from deeprec.cli.render import show_findings

    show_findings(bench_of(config, set_, dry_run, True).console)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run a command; errors that users can mend are one sentence and status 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)  # between libraries; users can do nothing about it
    try:
        app()
    except DeepRecError as error:
        print(f"deeprec: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as end:  # typer makes an exit of status 130 out of Ctrl-C
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        print("deeprec: interrupted; what was finished is kept.", file=sys.stderr)
        sys.exit(130)
    except OSError as error:  # a disk that is full or read-only, a file that may not be read
        print(f"deeprec: {error.filename or 'input or output'}: {error.strerror or error}.", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRAS:
            raise
        print(f"deeprec: this needs {error.name}: pip install --editable '.[local,train,serve]'.", file=sys.stderr)
        sys.exit(2)
