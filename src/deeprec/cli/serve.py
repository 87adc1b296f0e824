"""`deeprec serve` and `deeprec mcp`: explorations for other programs and for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deeprec.cli.options import Options

if TYPE_CHECKING:
    from deeprec.config import Config
    from deeprec.runs.progress import Progress
    from deeprec.serving.service import Service


def serve(options: Options) -> None:
    """Answer over HTTP, and show explorations on a page, until Ctrl-C."""
    config = options.config()
    from deeprec.serving.server import listen, open_listener, token_for

    token = token_for(config.serve.host)
    with open_listener(config.serve) as listener, _service(options, config, options.progress) as service:
        listen(service, listener, token, options.say)


def mcp(options: Options) -> None:
    """Be a tool of an agent: the Model Context Protocol over stdin and stdout (`deeprec serve` has it at /mcp)."""
    config = options.config()
    from rich.console import Console

    from deeprec.cli.console import ConsoleProgress
    from deeprec.serving.mcp import create_mcp

    progress = ConsoleProgress(Console(stderr=True))  # stdout belongs to the protocol
    with _service(options, config, progress) as service:
        create_mcp(service).run("stdio")


@contextmanager
def _service(options: Options, config: Config, progress: Progress) -> Iterator[Service]:
    """What a server answers from; closed at the end."""
    from deeprec.data.sources import load_dataset
    from deeprec.serving.server import open_service
    from deeprec.trm.run import load_or_train_trm

    dataset = load_dataset(config.data, offline=options.offline)
    trm, folder = load_or_train_trm(dataset, config, options.runs, offline=options.offline, progress=progress)
    with open_service(dataset, trm, folder, config, offline=options.offline) as service:
        yield service
