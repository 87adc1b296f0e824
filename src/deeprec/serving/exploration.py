"""The exploration of one request, for any transport: submitted to a worker, received as events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from dataclasses import replace
from itertools import count

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from deeprec.errors import DeepRecError
from deeprec.explore.explorer import ForcedSegment
from deeprec.explore.protocol import call_text
from deeprec.explore.trace import Stop, Trace, Turn
from deeprec.retrieval.retriever import Hit, queries_of
from deeprec.serving import schemas
from deeprec.serving.service import Service
from deeprec.serving.worker import Event, Job, trace_of_hits

_POLL = 0.2  # seconds of silence between checks whether the client is still connected


class GoneError(DeepRecError):
    """The client has disconnected."""


class Exploration:
    """See the module. Call `begin`, then `events` or `result`. DeepRecError for an unknown policy, user or item."""

    def __init__(self, service: Service, body: schemas.RecommendRequest) -> None:
        self.service, self.body = service, body
        self.policy = body.policy or service.policies()[0]
        if self.policy not in service.policies():
            raise DeepRecError(f"There is no policy {self.policy!r}: there are {', '.join(service.policies())}.")
        self.task = replace(service.task(body.user, body.history), include=service.allowed(body.filter))
        allowed = service.explore.max_calls
        calls, given = min(body.max_calls or allowed, allowed), len(body.calls)
        if given > calls:
            raise DeepRecError(f"There are {given} calls, and an exploration may make {calls}.")
        weight = body.model_dump(include={"preference_weight"}, exclude_none=True)
        self.limits = service.explore.model_copy(update={"max_calls": calls} | weight)
        self._started = time.perf_counter()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._worker = service.workers.get(self.policy)
        self._job: Job | None = None
        self._retrieved: Awaitable[list[list[Hit]]] | None = None

    def begin(self) -> None:
        """BusyError if too many explorations, or too many queries to the TRM, wait."""
        if self._worker is None:
            self._retrieved = self.service.batcher.retrieve(queries_of([self.task]), self.body.k)
            return
        loop = asyncio.get_running_loop()

        def put(event: Event) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, event)

        calls = [ForcedSegment(call_text(call.thought, call.preference), call.by_policy) for call in self.body.calls]
        self._job = self._worker.submit(self.task, self.limits, put, calls)

    def cancel(self) -> None:
        """Free the slot, unless the exploration has ended."""
        if self._worker is not None and self._job is not None:
            self._worker.cancel(self._job)

    async def events(self, silence: float) -> AsyncGenerator[str | schemas.Turn | schemas.Ranking]:
        """What happens, in order, and an empty text after so many seconds of silence; the ranking is the last. Closing
        the iterator cancels the exploration."""
        try:
            if self._retrieved is not None:
                (hits,) = await self._retrieved
                yield await self._ranking(trace_of_hits(self.task, Stop.ANSWERED, hits))
                return
            calls = count(1)
            event: Event = ""
            while not isinstance(event, Trace):
                try:
                    event = await asyncio.wait_for(self._events.get(), silence)
                except TimeoutError:
                    event = ""
                if not isinstance(event, Trace):
                    yield self._turn(next(calls), event) if isinstance(event, Turn) else event
            yield await self._ranking(event)
        finally:
            self.cancel()

    async def result(self, request: Request | None) -> schemas.RecommendResponse:
        """All events at the end. Cancelling the call cancels the exploration, as the client of an HTTP request does
        that disconnects: then there is a GoneError."""
        found = []
        async with aclosing(self.events(_POLL)) as events:
            async for event in events:
                if not isinstance(event, str):
                    found.append(event)
                elif request is not None and await request.is_disconnected():
                    raise GoneError("The client has disconnected.")
        *turns, ranking = found
        return schemas.RecommendResponse.model_validate({"policy": self.policy, "turns": turns, "ranking": ranking})

    def _turn(self, call: int, turn: Turn) -> schemas.Turn:
        by_policy = all(given.by_policy for given in self.body.calls[call - 1 : call])
        said, items = {"thought": turn.thought, "preference": turn.preference}, self.service.scored(turn.hits)
        return schemas.Turn(call=call, by_policy=by_policy, **said, items=items)

    async def _ranking(self, trace: Trace) -> schemas.Ranking:
        seconds = time.perf_counter() - self._started
        return await run_in_threadpool(self.service.ranking, trace, self.body.k, seconds, self.task.include)
