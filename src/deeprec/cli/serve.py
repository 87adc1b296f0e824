"""`deeprec serve` and `deeprec mcp`: explorations for other programs and for people."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from deeprec.cli.options import Options

if TYPE_CHECKING:
    from deeprec.config import Config
    from deeprec.serving.service import Service


def serve(options: Options) -> None:
    """Answer over HTTP, and show explorations on a page, until Ctrl-C."""
    config = options.config()
    from deeprec.serving.server import listen, open_listener, token_for

    token = token_for(config.serve.host)
    with open_listener(config.serve) as listener, _open(options, config) as service:
        listen(service, listener, token, options.say)


def mcp(options: Options) -> None:
    """Serve as an agent's tool: the Model Context Protocol over stdin and stdout (`deeprec serve` has it at /mcp)."""
    config = options.config()
    from rich.console import Console

    from deeprec.serving.mcp import create_mcp

    options.console = Console(stderr=True)  # stdout belongs to the protocol
    with _open(options, config) as service:
        create_mcp(service).run("stdio")


def _open(options: Options, config: Config) -> AbstractContextManager[Service]:
    from deeprec.serving.server import end_by_signal, open_service

    dataset = options.dataset(config)
    trm, folder = options.trm(dataset, config)
    end_by_signal()
    return open_service(dataset, trm, folder, config, offline=options.offline)
