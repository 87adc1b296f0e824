"""A real server on loopback, with scripted policies that a test can block."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
import uvicorn
from mcp import Client

from deeprec.config import ExploreConfig
from deeprec.data.catalog import Catalog, UserId
from deeprec.data.dataset import Dataset
from deeprec.explore.explorer import Explorer
from deeprec.explore.policy import Chunk, PromptDefaults
from deeprec.explore.trace import Trace
from deeprec.policies.scripted import ScriptedWriter
from deeprec.policies.text import TextPolicy
from deeprec.serving.api import create_app
from deeprec.serving.service import Service
from deeprec.serving.worker import Worker
from processes import free_port
from toys import RecordingRetriever, toy_dataset

DATASET = toy_dataset()
CONFIG = ExploreConfig(answer_size=3, items_per_call=4, context_tokens=100_000, segment_tokens=10_000)
PROMPT_DEFAULTS = PromptDefaults("example", preference_weight=0.1)
SECONDS = 20


def films() -> Dataset:
    """The toy data with the titles and users of MovieLens that the examples name."""
    fields = {name: getattr(DATASET.catalog, name) for name in DATASET.catalog.__dataclass_fields__}
    titles = ("Toy Story (1995)", "Fargo (1996)", *DATASET.catalog.titles[2:])
    users = tuple(UserId(user.removeprefix("u")) for user in DATASET.users)
    return replace(DATASET, catalog=Catalog(**fields | {"titles": titles}), users=users)


class Gate:
    """A scripted writer that waits before each segment until it is opened.

    Attributes:
        single: close again after each segment.
    """

    def __init__(self) -> None:
        self.single = False
        self.script = ScriptedWriter(3)
        self.open = threading.Event()
        self.reached = threading.Event()

    def __call__(self, conversation: str) -> str:
        self.reached.set()
        assert self.open.wait(SECONDS)
        if self.single:
            self.open.clear()
        return self.script(conversation)

    def pass_one(self) -> None:
        """Let one segment through, and wait for the next."""
        self.reached.clear()
        self.open.set()
        assert self.reached.wait(SECONDS)


class Endless(TextPolicy):
    """Never finishes a segment."""

    def step(self) -> list[Chunk]:
        time.sleep(0.01)
        return [Chunk(key, (), ()) for key in self._open]


def explorer(writer: object, kind: type[TextPolicy] = TextPolicy) -> Explorer:
    policy: Any = kind(writer)  # type: ignore[arg-type]
    policy.prompt_defaults = PROMPT_DEFAULTS
    return Explorer(policy, RecordingRetriever(len(DATASET.catalog)), DATASET.catalog, CONFIG)


@dataclass
class Site:
    client: httpx.Client
    service: Service
    gate: Gate
    url: str


def serve(service: Service, **options: object) -> Iterator[str]:
    """Yields the address of a server, which ends at the next step."""
    port = free_port()
    app = create_app(service, **options)  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started, SECONDS)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(SECONDS)


def with_client(server: Any, use: Callable[[Client], Awaitable[None]]) -> None:
    """Run `use` with a client of the Model Context Protocol."""

    async def session() -> None:
        with anyio.fail_after(60):
            async with Client(server) as client:
                await use(client)

    anyio.run(session)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ranking_of(trace: Trace) -> list[str]:
    """Ids of the ranking with fallback."""
    return [DATASET.catalog.ids[item] for item in trace.ranking]


@pytest.fixture
def gate() -> Gate:
    """What the policy "held" waits for."""
    return Gate()


@pytest.fixture
def service(gate: Gate) -> Iterator[Service]:
    """With a scripted policy, one that the gate holds, and one that never ends."""
    workers = {
        "script": Worker(explorer(ScriptedWriter(3)), slots=8, queue=100, seconds=SECONDS),
        "held": Worker(explorer(gate), slots=2, queue=2, seconds=SECONDS),
        "endless": Worker(explorer(ScriptedWriter(3), Endless), slots=2, queue=2, seconds=3 * SECONDS),
    }
    points = np.random.default_rng(0).random((len(DATASET.catalog), 2), dtype=np.float32)
    yield Service(DATASET, RecordingRetriever(len(DATASET.catalog)), workers, CONFIG, points)
    gate.open.set()
    for worker in workers.values():
        worker.close()


@pytest.fixture
def site(service: Service, gate: Gate) -> Iterator[Site]:
    running = serve(service)
    url = next(running)
    with httpx.Client(base_url=url, timeout=SECONDS) as client:
        yield Site(client, service, gate, url)
    gate.open.set()
    next(running, None)
