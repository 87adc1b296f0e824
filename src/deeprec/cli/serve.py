"""`deeprec serve` and `deeprec mcp`: explorations for other programs and for people."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deeprec.cli.options import Options, SavedTRM

if TYPE_CHECKING:
    from deeprec.config import Config
    from deeprec.serving.service import Service


Available = Annotated[
    Path | None,
    typer.Option("--available", help="File of ids that may be recommended, one a line; read again when it changes."),
]


def serve(options: Options, available: Available = None, trm: SavedTRM = None) -> None:
    """Answer over HTTP, and show explorations on a page, until Ctrl-C."""
    config = options.config()
    from deeprec.serving.server import listen, open_listener, token_for

    token = token_for(config.serve.host)
    with open_listener(config.serve) as listener, _open(options, config, available, trm) as service:
        listen(service, listener, token, options.say)


def mcp(options: Options, available: Available = None, trm: SavedTRM = None) -> None:
    """Serve as an agent's tool: the Model Context Protocol over stdin and stdout (`deeprec serve` has it at /mcp)."""
    config = options.config()
    from rich.console import Console

    from deeprec.serving.mcp import create_mcp

    options.console = Console(stderr=True)  # stdout belongs to the protocol
    with _open(options, config, available, trm) as service:
        create_mcp(service).run("stdio")


def _open(
    options: Options, config: Config, available: Path | None, saved: Path | None
) -> AbstractContextManager[Service]:
    from deeprec.data.dataset import excludes_history
    from deeprec.serving.available import AvailableFile
    from deeprec.serving.server import end_by_signal, open_service

    now = None if available is None else AvailableFile(available)
    dataset = options.dataset(config)
    if not excludes_history(config.serve.exclude, dataset.exclude_history):
        options.say("Items of the history may be recommended again (serve.exclude).")
    trm, folder = options.trm(dataset, config, saved)
    end_by_signal()
    return open_service(dataset, trm, folder, config, available=now, offline=options.offline)
