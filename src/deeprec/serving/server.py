"""The server's process: address, token, log and shutdown."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import uvicorn

from deeprec.config import Config, ServeConfig
from deeprec.data.dataset import Dataset
from deeprec.errors import DeepRecError
from deeprec.explore.explorer import Explorer
from deeprec.explore.policy import Policy
from deeprec.policies.adapters import adapter_folder, bare
from deeprec.policies.loading import load_policy
from deeprec.policies.scripted import ScriptedPolicy
from deeprec.serving.api import create_app
from deeprec.serving.available import AvailableFile
from deeprec.serving.projection import project
from deeprec.serving.service import Service
from deeprec.serving.worker import Worker
from deeprec.trm.trm import TRM

TOKEN = "DEEPREC_TOKEN"  # the environment variable of the bearer token
QUEUE_PER_SLOT = 4  # explorations that may wait for each slot
_SHUTDOWN = 1  # seconds that unfinished answers have when the server ends
_KEEP_ALIVE = 75
"""Seconds that an idle connection stays open. With uvicorn's 5, some closed just as a request arrived under load."""


def token_for(host: str) -> str | None:
    """The token of the environment; DeepRecError if there is none, and other machines can reach the address."""
    token = os.environ.get(TOKEN) or None
    loopback = host == "localhost"
    with suppress(ValueError):
        loopback = loopback or ipaddress.ip_address(host).is_loopback
    if not loopback and token is None:
        raise DeepRecError(f"serve.host={host!r} is open to others: set {TOKEN}=... for them, or serve on 127.0.0.1.")
    return token


def load_policies(config: Config, *, offline: bool = False) -> dict[str, Policy]:
    """The policies of a server: the configured one, the same model without its adapter, and the scripted explorer."""
    policies: dict[str, Policy] = {}
    if config.policy.kind != "scripted":
        if adapter_folder(config.policy):
            policies["trained"] = load_policy(config, rows=config.serve.slots, offline=offline)
            config = config.model_copy(update={"policy": bare(config.policy)})
        policies["untrained"] = load_policy(config, rows=config.serve.slots, offline=offline)
    return {**policies, "script": ScriptedPolicy(config.explore.answer_size)}


@contextmanager
def open_service(
    dataset: Dataset,
    trm: TRM,
    folder: Path,
    config: Config,
    *,
    available: AvailableFile | None = None,
    offline: bool = False,
) -> Iterator[Service]:
    """A service with a worker for each policy of the configuration; the workers are closed at the end. `folder` keeps
    the points of the map. `available` has the ids of what may be recommended; default: everything."""
    points_I2 = project(trm.index.vectors_ID, folder / "map.safetensors")
    slots, seconds = config.serve.slots, config.serve.seconds
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, policy in load_policies(config, offline=offline).items():
            explorer = Explorer(policy, trm, config=config.explore)
            worker = Worker(explorer, slots=slots, queue=QUEUE_PER_SLOT * slots, seconds=seconds)
            workers[name] = stack.enter_context(closing(worker))
        exclude = config.serve.exclude
        yield Service(dataset, trm, workers, config.explore, points_I2, available=available, exclude=exclude)


class _Server(uvicorn.Server):
    """Ends explorations first when it shuts down, so that their answers end by themselves."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for worker in self.service.workers.values():
            worker.dismiss()
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # that an answer is cut off now is no error
        await super().shutdown(sockets)


def end_by_signal() -> None:
    """From here on Ctrl-C ends the process as SIGTERM does: nothing is left to save, and an exception would wait for a
    policy that is loading or at work, or for the thread that reads stdin."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def listen(service: Service, listener: socket.socket, token: str | None, say: Callable[[str], None]) -> None:
    """Serve over HTTP until SIGINT or SIGTERM."""
    host, port = listener.getsockname()[:2]
    settings = uvicorn.Config(
        create_app(service, token=token, host=host),
        access_log=False,
        log_level="warning",
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_SHUTDOWN,
    )
    # One JSON line a request, without its content or its user.
    log = logging.getLogger("deeprec.serving")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False  # the mcp package adds a handler to the root logger
    say(f"Serving on http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)")
    _Server(settings, service).run(sockets=[listener])


def open_listener(config: ServeConfig) -> socket.socket:
    """The address, bound before anything is loaded; DeepRecError if it can't be."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        where, why = f"{config.host}:{config.port}", error.strerror or error
        raise DeepRecError(f"{where} can't be bound ({why}): choose another serve.port.") from None
