"""The exploration of one request, for any transport: submitted to a worker, received as events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from deeprec.errors import DeepRecError
from deeprec.explore.trace import Stop, Trace, Turn
from deeprec.retrieval.retriever import Hit, queries_of
from deeprec.serving import schemas
from deeprec.serving.service import Service
from deeprec.serving.worker import Event, Job, Text, trace_of_hits

_POLL = 0.2
"""Seconds between checks whether the client is still connected."""
_HEARTBEAT = 15
"""Seconds of silence after which an empty text keeps the connection alive."""


class GoneError(DeepRecError):
    """The client has disconnected."""


class Exploration:
    """See the module. Call `begin`, then `events` or `result`.

    Raises:
        DeepRecError: the policy, the user or an item is unknown.
    """

    def __init__(self, service: Service, body: schemas.RecommendRequest) -> None:
        self.service, self.body = service, body
        self.policy = body.policy or service.policies()[0]
        if self.policy not in service.policies():
            raise DeepRecError(f"There is no policy {self.policy!r}: there are {', '.join(service.policies())}.")
        self.task = service.task(body.user, body.history)
        self.limits = service.limits(body)
        self._started = time.perf_counter()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._worker = service.workers.get(self.policy)
        self._job: Job | None = None
        self._retrieved: Awaitable[list[list[Hit]]] | None = None

    def begin(self) -> None:
        """
        Raises:
            BusyError: too many explorations, or too many queries to the TRM, wait.
        """
        if self._worker is None:
            self._retrieved = self.service.batcher.retrieve(queries_of([self.task]), self.body.k)
            return
        loop = asyncio.get_running_loop()

        def put(event: Event) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._job = self._worker.submit(self.task, self.limits, put, self.body.forced_prefix())

    def cancel(self) -> None:
        """Free the slot, unless the exploration has ended."""
        if self._worker is not None and self._job is not None:
            self._worker.cancel(self._job)

    async def events(self) -> AsyncGenerator[Text | schemas.Turn | schemas.Ranking]:
        """What happens, in order; the ranking is the last. Closing the iterator cancels the exploration."""
        try:
            if self._retrieved is not None:
                (hits,) = await self._retrieved
                yield await self._ranking(trace_of_hits(self.task, Stop.ANSWERED, hits))
                return
            calls = 0
            while True:
                try:
                    event: Event = await asyncio.wait_for(self._events.get(), _HEARTBEAT)
                except TimeoutError:
                    event = Text("")
                if isinstance(event, Text):
                    yield event
                elif isinstance(event, Turn):
                    calls += 1
                    yield self._turn(calls, event)
                else:
                    yield await self._ranking(event)
                    return
        finally:
            self.cancel()

    async def result(self, request: Request | None) -> schemas.RecommendResponse:
        """All events at the end. Cancelling the call cancels the exploration.

        Args:
            request: the HTTP request, whose client may disconnect; None if the transport cancels the call then.

        Raises:
            GoneError: the client has disconnected, and the exploration is cancelled.
        """
        work = asyncio.ensure_future(self._collect())
        try:
            while not (await asyncio.wait([work], timeout=_POLL))[0]:
                if request is not None and await request.is_disconnected():
                    raise GoneError("The client has disconnected.")
            return work.result()
        finally:
            work.cancel()

    async def _collect(self) -> schemas.RecommendResponse:
        async with aclosing(self.events()) as events:
            *turns, ranking = [event async for event in events if not isinstance(event, Text)]
        return schemas.RecommendResponse.model_validate({"policy": self.policy, "turns": turns, "ranking": ranking})

    def _turn(self, call: int, turn: Turn) -> schemas.Turn:
        given = self.body.calls[call - 1 : call]
        return schemas.Turn(
            call=call,
            by_policy=not given or given[0].by_policy,
            thought=turn.thought,
            preference=turn.preference,
            items=self.service.scored(turn.hits),
        )

    async def _ranking(self, trace: Trace) -> schemas.Ranking:
        seconds = time.perf_counter() - self._started
        return await run_in_threadpool(self.service.ranking, trace, self.body.k, seconds)
