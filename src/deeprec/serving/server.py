"""The server's process: its address, its token, its log, its end."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from deeprec.serving.projection import project
from deeprec.serving.service import Service
from deeprec.serving.worker import Worker
from deeprec.trm.trm import TRM

TOKEN = "DEEPREC_TOKEN"
_PARTING = 5
"""Seconds that open answers have when the server ends."""
_IDLE = 75
"""Seconds that an idle connection is kept. Under load, uvicorn's 5 closed some on which a request had just arrived."""


def token_for(host: str) -> str | None:
    """What clients must show; the environment says it.

    Raises:
        DeepRecError: others can reach the address, and there is none.
    """
    token = os.environ.get(TOKEN) or None
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and token is None:
        raise DeepRecError(
            f"serve.host={host!r} is open to others: set a token for them, {TOKEN}=..., or serve on 127.0.0.1."
        )
    return token


def load_policies(config: Config, *, offline: bool = False) -> dict[str, Policy]:
    """What a server offers: the configuration's policy, the same without its adapter, and the script."""
    script = ScriptedPolicy(config.explore.answer_size)
    if config.policy.kind == "scripted":
        return {"script": script}
    slots, adapter = config.serve.slots, adapter_folder(config.policy)
    found: dict[str, Policy] = {
        "trained" if adapter else "untrained": load_policy(config, rows=slots, offline=offline),
    }
    if adapter:
        untrained = config.model_copy(update={"policy": bare(config.policy)})
        found["untrained"] = load_policy(untrained, rows=slots, offline=offline)
    return {**found, "script": script}


@contextmanager
def service_of(
    dataset: Dataset, trm: TRM, folder: Path, policies: Mapping[str, Policy], config: Config
) -> Iterator[Service]:
    """A service with a desk for each policy; the desks are closed at the end.

    Args:
        folder: where the map is kept.
        policies: by the names under which clients ask for them; the first is the default.
    """
    points_I2 = project(trm.index.vectors_ID, folder / "map.safetensors")
    limits = config.serve
    workers = {
        name: Worker(
            Explorer(policy, trm, dataset.catalog, config.explore),
            slots=limits.slots,
            queue=4 * limits.slots,
            seconds=limits.seconds,
        )
        for name, policy in policies.items()
    }
    try:
        yield Service(dataset, trm, workers, config.explore, points_I2)
    finally:
        for worker in workers.values():
            worker.close()


def listen(service: Service, listener: socket.socket, token: str | None, say: Callable[[str], None]) -> None:
    """Serve over HTTP until SIGINT or SIGTERM."""
    host, port = listener.getsockname()[:2]
    app = create_app(service, token=token, host=host)
    settings = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=_PARTING,
    )
    # One JSON line a request, without what was asked or by whom.
    log = logging.getLogger("deeprec.serving")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False  # what MCP's package makes of the root would write each line again
    say(f"Serving on http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)")
    uvicorn.Server(settings).run(sockets=[listener])


def open_listener(config: ServeConfig) -> socket.socket:
    """The address, taken before anything is loaded.

    Raises:
        DeepRecError: it can't be had.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        raise DeepRecError(
            f"{config.host}:{config.port} can't be had ({error.strerror or error}): choose another serve.port."
        ) from None
