"""What every request passes: HEAD as GET, the metrics, the bearer token, and the limit of its size."""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Mapping

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deeprec.serving.worker import Worker

_LOG = logging.getLogger("deeprec.serving")
MAX_BODY = 1 << 20  # bytes of a request; the largest filter of ids of ordinary length fits
MCP = "/mcp"  # the path of the Model Context Protocol, whose requests name no route
_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)


def bearer_auth(app: ASGIApp, token: str) -> ASGIApp:
    """Requires the token, except for /health and for the page's files, which a browser fetches without headers."""
    expected, detail = f"Bearer {token}".encode(), "Show the server's token: Authorization: Bearer TOKEN."
    refuse = JSONResponse({"detail": detail}, 401, headers={"WWW-Authenticate": "Bearer"})

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        free = scope.get("method") == "GET" and (path in ("/", "/health") or path.startswith("/page/"))
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        fine = free or scope["type"] != "http" or hmac.compare_digest(given, expected)
        await (app if fine else refuse)(scope, receive, send)

    return checked


def head_as_get(app: ASGIApp) -> ASGIApp:
    """Answers HEAD as GET; the server leaves the body out. A stream of the Model Context Protocol would not end."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") == "HEAD" and scope["path"] != MCP:
            scope = {**scope, "method": "GET"}
        await app(scope, receive, send)

    return answered


def body_limit(app: ASGIApp) -> ASGIApp:
    """Answers 413 to a body that is too large, whatever its header says."""

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise HTTPException(413, f"The request has more than {MAX_BODY} bytes.")
            return message

        await app(scope, counted, send)

    return limited


class Metrics:
    """Counts, times and logs requests, and shows the workers' load."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self.workers = workers
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("deeprec_requests", "Requests.", ("path", "status"), registry=registry)
        what = "Seconds to the end of the answer."
        self.seconds = Histogram("deeprec_request_seconds", what, ("path",), registry=registry, buckets=_BUCKETS)
        names = ("deeprec_explorations_in_flight", "deeprec_explorations_queued")
        self.loads = [Gauge(name, "Explorations.", ("policy",), registry=registry) for name in names]

    def text(self) -> bytes:
        """All numbers, for Prometheus."""
        for policy, worker in self.workers.items():
            for gauge, explorations in zip(self.loads, worker.load(), strict=True):
                gauge.labels(policy).set(explorations)
        return generate_latest(self.registry)

    def middleware(self, app: ASGIApp) -> ASGIApp:
        async def measured(scope: Scope, receive: Receive, send: Send) -> None:
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
                if scope["type"] == "http":
                    self._record(scope, status, time.perf_counter() - started)

        return measured

    def _record(self, scope: Scope, status: str, seconds: float) -> None:
        # Unknown paths share a label: there is no end of them.
        path = getattr(scope.get("route"), "path_format", MCP if scope["path"] == MCP else "other")
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)
        _LOG.info(json.dumps({"time": time.time(), "path": path, "status": status, "seconds": round(seconds, 4)}))
