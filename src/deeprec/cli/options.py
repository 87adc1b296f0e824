"""Options that commands share, and what they make of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from deeprec.cli.workbench import Workbench

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file; see `deeprec runs show` for one.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", "-s", help="Override, as in --set trm.width=128.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration or plan, and stop.")]
Offline = Annotated[bool, typer.Option("--offline", help="Use the cache only, never the network.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of the run folders.")]
User = Annotated[str | None, typer.Option("--user", help="A user of the data; default: one of the test users.")]
Items = Annotated[list[str] | None, typer.Option("--item", help="Title or id in a new user's history, oldest first.")]

Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="A set to run on, in place of the experiment's own: a file of interactions, its items in a file beside it "
        "(or --set data.items=FILE), a folder, or an asset. May be repeated.",
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option("--train", metavar="MINUTES", help="Train the language model on each set too, for about so long."),
]
PlanFile = Annotated[Path | None, typer.Argument(help="TOML of an experiment; default: the built-in comparison.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the experiment; default: in the runs folder.")]


def bench_of(
    config: Path | None,
    overrides: list[str] | None,
    dry_run: bool,
    offline: bool,
    runs: Path = Path("runs"),
) -> Workbench:
    """The workbench of a command; a dry run prints the configuration and ends the program."""
    from deeprec.cli.workbench import Workbench
    from deeprec.config import dump_config, load_config

    bench = Workbench(load_config(config, overrides or []), runs, offline)
    if dry_run:
        print(dump_config(bench.config), end="")
        raise typer.Exit
    return bench
