"""What every request passes: the metrics, the bearer token, and the limit of its size."""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOG = logging.getLogger("deeprec.serving")
MAX_BODY = 256 * 1024
"""Bytes of a request."""
MCP = "/mcp"
"""The path of the Model Context Protocol, whose requests name no route."""
_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)


class BearerAuth:
    """Requires the token, except for /health and for the page's files, which a browser fetches without headers."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self.expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http" and not _is_open(scope["method"], scope["path"]):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected):
                detail = "Show the server's token: Authorization: Bearer TOKEN."
                app = JSONResponse({"detail": detail}, 401, headers={"WWW-Authenticate": "Bearer"})
        await app(scope, receive, send)


def _is_open(method: str, path: str) -> bool:
    return method == "GET" and (path in ("/", "/health") or path.startswith("/page/"))


class BodyLimit:
    """Answers 413 to a body that is too large, whatever its header says."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise HTTPException(413, f"The request has more than {MAX_BODY} bytes.")
            return message

        await self.app(scope, limited, send)


def _element(load: Callable[[], tuple[int, int]], position: int) -> float:
    return load()[position]


class Metrics:
    """Counts, times and logs requests, and shows the workers' load.

    Args:
        loads: by policy, the numbers of explorations in flight and queued.
    """

    def __init__(self, loads: Mapping[str, Callable[[], tuple[int, int]]]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("deeprec_requests", "Requests.", ("path", "status"), registry=registry)
        self.seconds = Histogram(
            "deeprec_request_seconds",
            "Seconds to the end of the answer.",
            ("path",),
            registry=registry,
            buckets=_BUCKETS,
        )
        for position, name in enumerate(("in_flight", "queued")):
            gauge = Gauge(f"deeprec_explorations_{name}", "Explorations.", ("policy",), registry=registry)
            for policy, load in loads.items():
                gauge.labels(policy).set_function(partial(_element, load, position))

    def middleware(self, app: ASGIApp) -> ASGIApp:
        async def measured(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            started, status = time.perf_counter(), "left"

            async def observe(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = str(message["status"])
                await send(message)

            try:
                await app(scope, receive, observe)
            except Exception:
                status = "500"
                raise
            finally:
                self._record(scope, status, time.perf_counter() - started)

        return measured

    def _record(self, scope: Scope, status: str, seconds: float) -> None:
        # Unknown paths share a label: there is no end of them.
        path = getattr(scope.get("route"), "path", MCP if scope["path"] == MCP else "other")
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)
        _LOG.info(json.dumps({"time": time.time(), "path": path, "status": status, "seconds": round(seconds, 4)}))
