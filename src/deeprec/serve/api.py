"""The HTTP API. Everything that it answers comes from a `Service`; this file knows HTTP and nothing else."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool

from deeprec import __version__
from deeprec.data.dataset import Task
from deeprec.errors import DeepRecError
from deeprec.explore.trace import Trace, Turn
from deeprec.serve.batcher import Batcher
from deeprec.serve.desk import Broken, BusyError, Desk, Event, Text
from deeprec.serve.gates import LimitBodies, Watch
from deeprec.serve.messages import (
    WORDS,
    Items,
    Problem,
    Ranking,
    Recommend,
    Recommended,
    Retrieve,
    Retrieved,
    Space,
    TurnMessage,
)
from deeprec.serve.service import ALONE, Service

RETRY = 5
"""Seconds after which who was refused may try again."""
_GLANCE = 0.2
"""Seconds between looks at whether a silent client is still there."""

_PROBLEMS: dict[int | str, dict[str, object]] = {
    status: {"model": Problem} for status in (400, 401, 404, 413, 422, 429, 503)
}


def create_app(service: Service, *, token: str | None = None) -> FastAPI:
    """The application of a service.

    Args:
        token: what a client must show as a bearer token; None: nothing.
    """
    app = FastAPI(
        title="DeepRec",
        version=__version__,
        description="A language model explores a catalogue with a preference-aware recommender as its tool.",
        dependencies=[Depends(_guard(token))],
        responses={401: {"model": Problem}},
    )
    batcher = Batcher(service.retriever)
    watch = Watch({name: desk.load for name, desk in service.desks.items()})
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(DeepRecError, _refused)
    app.add_middleware(LimitBodies)
    app.add_middleware(watch.middleware)

    @app.post("/recommend", responses=_PROBLEMS, response_model=Recommended)
    async def recommend(asked: Recommend, request: Request) -> Response | Recommended:
        """Explore for a user and rank what was found. `stream: true` tells of it as it happens."""
        policy = asked.policy or service.policies()[0]
        if policy not in service.policies():
            raise HTTPException(404, f"There is no policy {policy!r}: there are {', '.join(service.policies())}.")
        task = await run_in_threadpool(service.task, asked)
        exploration = _Exploration(service, asked, policy, task)
        if asked.stream:
            exploration.begin()
            return StreamingResponse(exploration.stream(), media_type="text/event-stream", headers=_UNBUFFERED)
        return await exploration.whole(request)

    @app.post("/retrieve", responses=_PROBLEMS)
    async def retrieve(asked: Retrieve) -> Retrieved:
        """Ask the TRM alone; many queries at once."""
        queries = [service.query(query) for query in asked.queries]
        hits = await batcher.retrieve(queries, asked.k)
        return Retrieved(results=tuple(map(service.found, hits)))

    @app.get("/items", responses=_PROBLEMS)
    async def items(
        query: Annotated[str, Query(min_length=1, max_length=200)], limit: Annotated[int, Query(ge=1, le=50)] = 10
    ) -> Items:
        """Search titles; letters may be wrong or missing."""
        return Items(items=tuple(await run_in_threadpool(service.search, query, limit)))

    @app.get("/users/{user}", responses=_PROBLEMS)
    async def history(user: Annotated[str, Path(max_length=WORDS)]) -> Items:
        """What a user of the data has chosen so far, oldest first."""
        return Items(items=tuple(await run_in_threadpool(service.history, user)))

    @app.get("/map")
    async def space() -> Space:
        """All items on a plane, those that the TRM takes for alike near each other."""
        return await run_in_threadpool(service.space)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> dict[str, object]:
        """Everything is loaded; what there is to ask for."""
        return {"status": "ready", "policies": service.policies(), "users": service.users(20)}

    @app.get("/metrics", response_class=Response)
    async def scrape() -> Response:
        """For Prometheus."""
        return Response(generate_latest(watch.registry), media_type=CONTENT_TYPE_LATEST)

    app.mount("/", StaticFiles(packages=[("deeprec.serve", "page")], html=True))
    return app


_BEARER = HTTPBearer(auto_error=False)
_UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class _Exploration:
    """One request's exploration: asked for at a desk, told as events."""

    def __init__(self, service: Service, asked: Recommend, policy: str, task: Task) -> None:
        self.service = service
        self.asked = asked
        self.policy = policy
        self.task = task
        self.started = time.perf_counter()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._leave: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """
        Raises:
            HTTPException: 429, the desk is busy.
        """
        if self.policy == ALONE:
            return
        desk: Desk = self.service.desks[self.policy]
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, event)

        try:
            ticket = desk.ask(self.task, self.service.limits(self.asked), tell, self.asked.given())
        except BusyError as error:
            raise HTTPException(429, str(error), headers={"Retry-After": str(RETRY)}) from None
        self._leave = lambda: desk.leave(ticket)

    async def events(self) -> AsyncIterator[Text | TurnMessage | Ranking]:
        """What happens, in order; the ranking is the last. Closing the iterator leaves the desk."""
        try:
            if self.policy == ALONE:
                yield await run_in_threadpool(self.service.alone, self.task.history, self.asked.k)
                return
            calls = 0
            while True:
                event = await self._events.get()
                if isinstance(event, Turn):
                    calls += 1
                    yield self.service.turn(calls, event)
                elif isinstance(event, Text):
                    yield event
                else:
                    yield await run_in_threadpool(self._ranking, event)
                    return
        finally:
            self._leave()

    async def stream(self) -> AsyncIterator[str]:
        async for event in self.events():
            if isinstance(event, Text):
                yield _event("text", json.dumps({"text": event.text}))
            elif isinstance(event, TurnMessage):
                yield _event("turn", event.model_dump_json())
            else:
                yield _event("ranking", event.model_dump_json())

    async def whole(self, request: Request) -> Recommended:
        """The answer in one piece; a client that has gone is noticed, and its slot freed."""
        self.begin()
        work = asyncio.ensure_future(self._collect())
        while not work.done():
            await asyncio.wait([work], timeout=_GLANCE)
            if not work.done() and await request.is_disconnected():
                work.cancel()
                raise HTTPException(499, "The client has gone.")
        return work.result()

    async def _collect(self) -> Recommended:
        turns: list[TurnMessage] = []
        async for event in self.events():
            if isinstance(event, TurnMessage):
                turns.append(event)
            elif isinstance(event, Ranking):
                return Recommended(policy=self.policy, turns=tuple(turns), ranking=event)
        raise AssertionError("an exploration ends with a ranking")

    def _ranking(self, event: Trace | Broken) -> Ranking:
        if isinstance(event, Broken):
            return self.service.alone(self.task.history, self.asked.k, event.error)
        return self.service.ranking(event, self.asked.k, time.perf_counter() - self.started)


def _event(name: str, data: str) -> str:
    """A server-sent event; JSON has no line breaks of its own."""
    return f"event: {name}\ndata: {data}\n\n"


def _guard(token: str | None) -> Callable[..., None]:
    def check(request: Request, shown: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)] = None) -> None:
        if token is None or request.url.path == "/health":
            return
        if shown is None or not hmac.compare_digest(shown.credentials.encode(), token.encode()):
            raise HTTPException(
                401, "Show the server's token: Authorization: Bearer TOKEN.", headers={"WWW-Authenticate": "Bearer"}
            )

    return check


async def _invalid(_: Request, error: Exception) -> Response:
    """One sentence: where the request is wrong, and why. What it held is not repeated."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))[:200]
    said = str(first["msg"]).removeprefix("Value error, ")
    return JSONResponse({"detail": f"{where}: {said}" if where else said}, 422)


async def _refused(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 422)
