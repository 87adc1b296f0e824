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
from deeprec.policies.policy import Policy
from deeprec.serve.api import create_app
from deeprec.serve.desk import Desk
from deeprec.serve.service import Service
from deeprec.serve.space import plane
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


@contextmanager
def service_of(
    dataset: Dataset, trm: TRM, folder: Path, policies: Mapping[str, Policy], config: Config
) -> Iterator[Service]:
    """A service with a desk for each policy; the desks are closed at the end.

    Args:
        folder: where the map is kept.
        policies: by the names under which clients ask for them; the first is the default.
    """
    points_I2 = plane(trm.index.vectors_ID, folder / "map.safetensors")
    limits = config.serve
    desks = {
        name: Desk(
            Explorer(policy, trm, dataset.catalog, config.explore),
            slots=limits.slots,
            queue=limits.queue,
            seconds=limits.seconds,
        )
        for name, policy in policies.items()
    }
    try:
        yield Service(dataset, trm, desks, config.explore, points_I2, limits.queries)
    finally:
        for desk in desks.values():
            desk.close()


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
    log = logging.getLogger("deeprec.serve")
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
