"""The HTTP API. Its answers come from a `Service`; this file knows HTTP and nothing else."""

from __future__ import annotations

import email.message
import json
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from mcp.server.transport_security import TransportSecuritySettings
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from deeprec import __version__
from deeprec.errors import DeepRecError, reason
from deeprec.serving import schemas
from deeprec.serving.exploration import Exploration, GoneError
from deeprec.serving.mcp import create_mcp
from deeprec.serving.middleware import MCP, Metrics, bearer_auth, body_limit, head_as_get
from deeprec.serving.service import Service
from deeprec.serving.worker import BusyError

_RETRY_AFTER = 5  # seconds after which a refused client may try again
_HEARTBEAT = 15  # seconds of silence after which an empty text keeps the connection of a stream alive
_PAGE = pathlib.Path(__file__).with_name("page")
_UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

_Responses = dict[int | str, dict[str, object]]

_EVENTS = {
    "text": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    "turn": {"$ref": "#/components/schemas/Turn"},
    "ranking": {"$ref": "#/components/schemas/Ranking"},
}
_JSON = {"type": "string", "contentMediaType": "application/json"}
_EVENT_SCHEMAS = [
    {
        "type": "object",
        "properties": {"event": {"const": name}, "data": _JSON | {"contentSchema": data}},
        "required": ["event", "data"],
    }
    for name, data in _EVENTS.items()
]
_STREAM: _Responses = {200: {"content": {"text/event-stream": {"itemSchema": {"oneOf": _EVENT_SCHEMAS}}}}}
_PROBLEMS: _Responses = {status: {"model": schemas.Problem} for status in (400, 413, 422)}
_UNREAD: _Responses = {415: {"model": schemas.Problem}}
_WAIT = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
_BUSY: _Responses = {429: {"model": schemas.Problem, "headers": _WAIT}}

router = APIRouter()


async def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


Served = Annotated[Service, Depends(_service)]


async def _require_json(request: Request) -> None:
    """Bodies of another kind are not read: a page of another site can send those without asking first."""
    header = email.message.Message()
    header["Content-Type"] = request.headers.get("Content-Type") or "none/none"
    kind, subtype = header.get_content_maintype(), header.get_content_subtype()
    if kind != "application" or not (subtype == "json" or subtype.endswith("+json")):
        raise HTTPException(415, "Send JSON with the header Content-Type: application/json.")


@router.post(
    "/recommend",
    responses=_PROBLEMS | _UNREAD | _BUSY | _STREAM,
    response_model=schemas.RecommendResponse,
    dependencies=[Depends(_require_json)],
)
async def recommend(
    body: schemas.RecommendRequest, request: Request, service: Served
) -> Response | schemas.RecommendResponse:
    """Explore for a user and rank what was found. `stream: true` sends each event as it happens."""
    exploration = await run_in_threadpool(Exploration, service, body)
    exploration.begin()
    if not body.stream:
        return await exploration.result(request)
    # If the client leaves before the stream starts, the generator never runs: the background task frees the slot.
    cleanup = BackgroundTask(exploration.cancel)
    return StreamingResponse(_stream(exploration), 200, _UNBUFFERED, "text/event-stream", cleanup)


@router.post("/retrieve", responses=_PROBLEMS | _UNREAD | _BUSY, dependencies=[Depends(_require_json)])
async def retrieve(body: schemas.RetrieveRequest, service: Served) -> schemas.RetrieveResponse:
    """Query the TRM alone, many queries at once."""
    queries = await run_in_threadpool(lambda: [service.query(query) for query in body.queries])
    hits = await service.batcher.retrieve(queries, body.k)
    return schemas.RetrieveResponse(results=tuple(map(service.scored, hits)))


@router.get("/items", responses=_PROBLEMS)
def items(
    service: Served,
    query: Annotated[str, Query(min_length=1, max_length=200, examples=["toy stroy"])],
    limit: Annotated[int, Query(ge=1, le=50)] = 10,
) -> schemas.ItemList:
    """Search titles; letters may be wrong or missing."""
    return schemas.ItemList(items=service.search(query, limit))


@router.get("/users/{user:path}", responses=_PROBLEMS)
def history(
    service: Served, user: Annotated[str, Path(max_length=schemas.MAX_CHARACTERS, examples=["1"])]
) -> schemas.ItemList:
    """The history of a user of the data, oldest first, without the held-out item."""
    return schemas.ItemList(items=tuple(map(service.item, service.task(user).history)))


@router.get("/users", responses=_PROBLEMS)
def history_of(
    service: Served, user: Annotated[str, Query(max_length=schemas.MAX_CHARACTERS, examples=["1"])]
) -> schemas.ItemList:
    """The same for any id: clients change a path with `.` or `..` before they send it."""
    return history(service, user)


@router.get("/filters")
def filters(service: Served) -> schemas.FilterChoices:
    """What a filter may name: the most frequent categories and brands, and the first and last year."""
    return service.filter_choices


@router.get("/map")
def projection(service: Served) -> schemas.Projection:
    """All items in two dimensions; items that the TRM finds similar lie near each other."""
    return service.projection


@router.get("/health")
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "alive"}


@router.get("/ready")
def ready(service: Served) -> dict[str, object]:
    """Everything is loaded; the policies, and some users."""
    return {"status": "ready", "policies": service.policies(), "users": service.users(20)}


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(_PAGE / "index.html")


def create_app(service: Service, *, token: str | None = None, host: str = "127.0.0.1") -> FastAPI:
    """The application of a service: the API, the Model Context Protocol at /mcp, and the page.

    Clients must show the `token`, if there is one. On a loopback `host`, /mcp accepts only requests sent to one.
    """
    mcp = create_mcp(service)
    # A token protects against DNS rebinding. Without one, the host of every request is checked.
    security = TransportSecuritySettings(enable_dns_rebinding_protection=False) if token is not None else None
    mcp_app = mcp.streamable_http_app(streamable_http_path=MCP, host=host, transport_security=security)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with mcp.session_manager.run():
            yield

    app = FastAPI(
        title="DeepRec",
        version=__version__,
        description="A language model explores a catalogue with a preference-aware recommender as its tool.",
        lifespan=lifespan,
        responses={401: {"model": schemas.Problem}},
    )
    app.state.service, app.state.metrics = service, Metrics(service.workers)
    app.add_exception_handler(RequestValidationError, _problem(422, _invalid))
    app.add_exception_handler(DeepRecError, _problem(422))
    app.add_exception_handler(BusyError, _problem(429, headers={"Retry-After": str(_RETRY_AFTER)}))
    app.add_exception_handler(GoneError, _problem(499))  # for the log: nobody reads the answer
    app.add_exception_handler(Exception, _problem(500, lambda _: "The server failed; its log says why."))
    app.add_middleware(body_limit)
    if token is not None:
        app.add_middleware(bearer_auth, token=token)
    else:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", host])
    app.add_middleware(app.state.metrics.middleware)
    app.add_middleware(head_as_get)
    app.include_router(router)
    app.router.routes.extend(mcp_app.routes)
    app.mount("/page", StaticFiles(directory=_PAGE))
    return app


async def _stream(exploration: Exploration) -> AsyncIterator[str]:
    async with aclosing(exploration.events(_HEARTBEAT)) as events:
        async for event in events:
            if isinstance(event, str):
                name, data = "text", json.dumps({"text": event})
            else:
                name, data = type(event).__name__.lower(), event.model_dump_json()
            yield f"event: {name}\ndata: {data}\n\n"  # JSON has no line breaks


def _problem(
    status: int, sentence: Callable[[Any], str] = str, headers: Mapping[str, str] | None = None
) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(_: Request, error: Exception) -> Response:
        return JSONResponse({"detail": sentence(error)}, status, headers)

    return answer


def _invalid(error: RequestValidationError) -> str:
    """Where the request is wrong, and why. It repeats names of fields, but no values."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))[:200]
    return ": ".join(filter(None, [where, reason(first)]))
