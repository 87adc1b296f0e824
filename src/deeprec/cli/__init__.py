"""The command line. Imports of substance stay inside the commands, so that help is quick and needs no torch."""

# ruff: noqa: E402
from __future__ import annotations

import signal
import threading

_MAIN_THREAD = threading.current_thread() is threading.main_thread()
if _MAIN_THREAD:  # Ctrl-C during the imports ends the program without their traceback
    _on_interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)

import os
import sys
import warnings
from typing import Annotated

import typer

from deeprec import __version__
from deeprec.cli import assets, data, demo, doctor, evaluation, explore, recommend, runs, serve, train, trm
from deeprec.cli.options import command
from deeprec.errors import DeepRecError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A language model explores a catalogue with a preference-aware recommender as its tool.",
)
app.add_typer(data.app, name="data")
app.add_typer(assets.app, name="assets")
app.add_typer(trm.app, name="trm")
app.add_typer(runs.app, name="runs")
app.add_typer(evaluation.app, name="experiment")
for function in (demo.demo, train.train, explore.explore, explore.play, recommend.recommend, serve.serve, serve.mcp):
    command(app, function.__name__)(function)
command(app, "eval")(evaluation.evaluate)
command(app, "doctor")(doctor.doctor)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


if _MAIN_THREAD:
    signal.signal(signal.SIGINT, _on_interrupt)


def main() -> None:
    """Run a command; errors that users can mend are one sentence and status 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)  # between libraries; users can do nothing about it
    status = 2
    try:
        app()
        return
    except DeepRecError as error:
        sentence = str(error)
    except OSError as error:  # a disk that is full or read-only, a file that may not be read
        sentence = f"{error.filename or 'input or output'}: {error.strerror or error}."
    except ModuleNotFoundError as error:
        if (error.name or "deeprec").partition(".")[0] == "deeprec":
            raise
        sentence = f"this needs {error.name}: pip install --editable '.[local,train,serve]'."
    except (KeyboardInterrupt, SystemExit) as end:  # typer makes an exit of status 130 out of Ctrl-C
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        sentence, status = "interrupted; what was finished is kept.", 130
    print(f"deeprec: {sentence}", file=sys.stderr)
    sys.exit(status)
