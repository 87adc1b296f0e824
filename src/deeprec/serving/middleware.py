"""What every request passes: a limit on its size, and what Prometheus is told of it."""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOG = logging.getLogger("deeprec.serving")
_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
MCP = "/mcp"
"""Where the Model Context Protocol is; its route is not of FastAPI's and does not say so."""
BODY = 256 * 1024
"""Bytes of a request, at most."""


class BearerAuth:
    """Asks for the token, for all but /health and the files of the page, which a browser fetches without."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self.wanted = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _open(scope):
            shown = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(shown, self.wanted):
                sentence = "Show the server's token: Authorization: Bearer TOKEN."
                refusal = JSONResponse({"detail": sentence}, 401, headers={"WWW-Authenticate": "Bearer"})
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _open(scope: Scope) -> bool:
    path: str = scope["path"]
    return scope["method"] == "GET" and (path in ("/", "/health") or path.startswith("/page/"))


class LimitBodies:
    """Answers 413 to a body that is too large, whatever its header says of it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", scope["method"] in ("POST", "PUT", "PATCH")
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > BODY:
                refusal = JSONResponse({"detail": f"The request has more than {BODY} bytes."}, 413)
                await refusal(scope, receive, send)
                return
        given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return given.pop() if given else await receive()

        await self.app(scope, replay, send)


def _part(load: Callable[[], tuple[int, int]], position: int) -> float:
    return load()[position]


class Metrics:
    """Counts and times requests, and shows the desks' load.

    Args:
        loads: by policy, how many explorations are under way and how many wait.
    """

    def __init__(self, loads: Mapping[str, Callable[[], tuple[int, int]]]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("deeprec_requests", "Requests.", ("path", "status"), registry=self.registry)
        self.seconds = Histogram(
            "deeprec_seconds", "Seconds to the end of the answer.", ("path",), registry=self.registry, buckets=_BUCKETS
        )
        for position, name in enumerate(("under_way", "waiting")):
            gauge = Gauge(f"deeprec_explorations_{name}", "Explorations.", ("policy",), registry=self.registry)
            for policy, load in loads.items():
                gauge.labels(policy).set_function(partial(_part, load, position))

    def middleware(self, app: ASGIApp) -> ASGIApp:
        async def measured(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            started, status = time.perf_counter(), "left"

            async def noted(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = str(message["status"])
                await send(message)

            try:
                await app(scope, receive, noted)
            except Exception:
                status = "500"
                raise
            finally:
                # The route's own path, so that strangers' paths do not each become a series.
                path = getattr(scope.get("route"), "path", scope["path"] if scope["path"] == MCP else "other")
                self.requests.labels(path, status).inc()
                spent = time.perf_counter() - started
                self.seconds.labels(path).observe(spent)
                line = {"time": time.time(), "path": path, "status": status, "seconds": round(spent, 4)}
                _LOG.info(json.dumps(line))

        return measured
