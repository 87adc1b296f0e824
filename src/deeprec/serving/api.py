"""The HTTP API. Everything that it answers comes from a `Service`; this file knows HTTP and nothing else."""

from __future__ import annotations

import json
import pathlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from mcp.server.transport_security import TransportSecuritySettings
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from deeprec import __version__
from deeprec.errors import DeepRecError
from deeprec.serving.exploration import Exploration, GoneError
from deeprec.serving.mcp import create_mcp
from deeprec.serving.middleware import MCP, BearerAuth, LimitBodies, Metrics
from deeprec.serving.schemas import (
    WORDS,
    Items,
    Problem,
    Projection,
    Recommend,
    Recommended,
    Retrieve,
    Retrieved,
    TurnSchema,
)
from deeprec.serving.service import Service
from deeprec.serving.worker import BusyError, Text

RETRY = 5
"""Seconds after which who was refused may try again."""

_PAGE = pathlib.Path(__file__).with_name("page")

_PROBLEMS: dict[int | str, dict[str, object]] = {status: {"model": Problem} for status in (400, 413, 422)}
_AGAIN = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
_BUSY: dict[int | str, dict[str, object]] = {429: {"model": Problem, "headers": _AGAIN}}


def _heard(name: str, data: dict[str, object]) -> dict[str, object]:
    """A server-sent event in the document's terms."""
    json_data = {"type": "string", "contentMediaType": "application/json", "contentSchema": data}
    return {
        "type": "object",
        "properties": {"event": {"const": name}, "data": json_data},
        "required": ["event", "data"],
    }


_EVENTS = [
    _heard("text", {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}),
    _heard("turn", {"$ref": "#/components/schemas/TurnMessage"}),
    _heard("ranking", {"$ref": "#/components/schemas/Ranking"}),
]
_STREAM: dict[int | str, dict[str, object]] = {
    200: {"content": {"text/event-stream": {"itemSchema": {"oneOf": _EVENTS}}}}
}


def create_app(service: Service, *, token: str | None = None, host: str = "127.0.0.1") -> FastAPI:
    """The application of a service: the API, the Model Context Protocol at /mcp, and the page.

    Args:
        token: what a client must show as a bearer token; None: nothing.
        host: where it listens. On a loopback address /mcp takes only requests that were sent to one.
    """
    agents = create_mcp(service)
    # A token makes up for the name by which a client came here; without one the protocol's server looks at it too.
    security = TransportSecuritySettings(enable_dns_rebinding_protection=False) if token is not None else None
    at_mcp = agents.streamable_http_app(streamable_http_path=MCP, host=host, transport_security=security)

    @asynccontextmanager
    async def alive(_: FastAPI) -> AsyncIterator[None]:
        async with agents.session_manager.run():
            yield

    app = FastAPI(
        title="DeepRec",
        version=__version__,
        description="A language model explores a catalogue with a preference-aware recommender as its tool.",
        lifespan=alive,
        responses={401: {"model": Problem}},
    )
    metrics = Metrics({name: worker.load for name, worker in service.workers.items()})
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(DeepRecError, _refused)
    app.add_exception_handler(BusyError, _busy)
    app.add_exception_handler(GoneError, _gone)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(LimitBodies)
    if token is not None:
        app.add_middleware(BearerAuth, token=token)
    else:  # else any page that the user opens could have a name of its own lead here
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", host])
    app.add_middleware(metrics.middleware)

    @app.post("/recommend", responses=_PROBLEMS | _BUSY | _STREAM, response_model=Recommended)
    async def recommend(asked: Recommend, request: Request) -> Response | Recommended:
        """Explore for a user and rank what was found. `stream: true` tells of it as it happens."""
        exploration = await run_in_threadpool(Exploration, service, asked)
        exploration.begin()
        if asked.stream:
            # A client may be gone before the stream begins, and then nothing in it runs.
            after = BackgroundTask(exploration.leave)
            events = _stream(exploration)
            return StreamingResponse(events, media_type="text/event-stream", headers=_UNBUFFERED, background=after)
        return await exploration.whole(request)

    @app.post("/retrieve", responses=_PROBLEMS | _BUSY)
    async def retrieve(asked: Retrieve) -> Retrieved:
        """Ask the TRM alone; many queries at once."""
        queries = await run_in_threadpool(lambda: list(map(service.query, asked.queries)))
        hits = await service.batcher.ask(queries, asked.k)
        return Retrieved(results=tuple(map(service.found, hits)))

    @app.get("/items", responses=_PROBLEMS)
    async def items(
        query: Annotated[str, Query(min_length=1, max_length=200, examples=["toy stroy"])],
        limit: Annotated[int, Query(ge=1, le=50)] = 10,
    ) -> Items:
        """Search titles; letters may be wrong or missing."""
        return Items(items=tuple(await run_in_threadpool(service.search, query, limit)))

    @app.get("/users/{user}", responses=_PROBLEMS)
    async def history(user: Annotated[str, Path(max_length=WORDS, examples=["1"])]) -> Items:
        """A user of the data: all but the item that is held out, oldest first."""
        return Items(items=tuple(await run_in_threadpool(service.history, user)))

    @app.get("/map")
    async def projection() -> Projection:
        """All items on a plane, those that the TRM takes for alike near each other."""
        return await run_in_threadpool(lambda: service.projection)

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
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html")

    app.router.routes.extend(at_mcp.routes)
    app.mount("/page", StaticFiles(directory=_PAGE))
    return app


_UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def _stream(exploration: Exploration) -> AsyncIterator[str]:
    async with aclosing(exploration.events()) as events:
        async for event in events:
            if isinstance(event, Text):
                yield _event("text", json.dumps({"text": event.text}))
            elif isinstance(event, TurnSchema):
                yield _event("turn", event.model_dump_json())
            else:
                yield _event("ranking", event.model_dump_json())


def _event(name: str, data: str) -> str:
    """A server-sent event; JSON has no line breaks of its own."""
    return f"event: {name}\ndata: {data}\n\n"


async def _invalid(_: Request, error: Exception) -> Response:
    """One sentence: where the request is wrong, and why. Of what it held only names of fields are repeated."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))[:200]
    said = str(first["msg"]).removeprefix("Value error, ")
    return JSONResponse({"detail": f"{where}: {said}" if where else said}, 422)


async def _refused(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 422)


async def _failed(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": "The server failed; its log says why."}, 500)


async def _gone(_: Request, error: Exception) -> Response:
    """For the log alone: nobody is there to read it."""
    return JSONResponse({"detail": str(error)}, 499)


async def _busy(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 429, headers={"Retry-After": str(RETRY)})
