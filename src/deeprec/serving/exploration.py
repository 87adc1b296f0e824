"""One request's exploration: asked for at a desk, heard as events, whichever way the answer then goes out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from deeprec.errors import DeepRecError
from deeprec.explore.trace import Trace, Turn
from deeprec.retrieval.retriever import Hit, Query
from deeprec.serving.schemas import Ranking, Recommend, Recommended, TurnSchema
from deeprec.serving.service import Service
from deeprec.serving.worker import Broken, Event, Job, Text

_GLANCE = 0.2
"""Seconds between looks at whether a silent client is still there."""
_BEAT = 15
"""Seconds of silence after which an empty text says that the connection lives."""


class GoneError(DeepRecError):
    """Who asked has gone."""


class Exploration:
    """See the module. `begin`, then `events` or `whole`.

    Raises:
        DeepRecError: there is no such policy, user or item.
    """

    def __init__(self, service: Service, asked: Recommend) -> None:
        self.service = service
        self.asked = asked
        self.policy = asked.policy or service.policies()[0]
        if self.policy not in service.policies():
            raise DeepRecError(f"There is no policy {self.policy!r}: there are {', '.join(service.policies())}.")
        self.task = service.task(asked)
        self.limits = service.limits(asked)
        self.started = time.perf_counter()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._worker = service.workers.get(self.policy)
        self._job: Job | None = None
        self._alone: Awaitable[list[list[Hit]]] | None = None

    def begin(self) -> None:
        """
        Raises:
            BusyError: no slot is free, and the queue is full; or too many wait for the TRM.
        """
        if self._worker is None:
            self._alone = self.service.batcher.ask([self._bare], self.asked.k)
            return
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._job = self._worker.ask(self.task, self.limits, tell, self.asked.forced_prefix())

    def leave(self) -> None:
        """Free the slot, if it is not free already."""
        if self._worker is not None and self._job is not None:
            self._worker.leave(self._job)

    async def events(self) -> AsyncGenerator[Text | TurnSchema | Ranking]:
        """What happens, in order; the ranking is the last. Closing the iterator leaves the desk."""
        try:
            if self._alone is not None:
                (hits,) = await self._alone
                yield self.service.alone(hits, self._seconds())
                return
            calls = 0
            while True:
                try:
                    event: Event = await asyncio.wait_for(self._events.get(), _BEAT)
                except TimeoutError:
                    event = Text("")
                if isinstance(event, Turn):
                    by_policy = calls >= len(self.asked.calls) or self.asked.calls[calls].by_policy
                    calls += 1
                    yield self.service.turn(calls, event, by_policy=by_policy)
                elif isinstance(event, Text):
                    yield event
                else:
                    yield await run_in_threadpool(self._ranking, event)
                    return
        finally:
            self.leave()

    async def whole(self, request: Request | None = None) -> Recommended:
        """All of it at its end. Cancelling leaves the desk.

        Args:
            request: what asks over HTTP; None: another transport, which cancels for a client that leaves.

        Raises:
            GoneError: the client of `request` has left, and with it the exploration the desk.
        """
        work = asyncio.ensure_future(self._whole())
        try:
            while not (await asyncio.wait([work], timeout=_GLANCE))[0]:
                if request is not None and await request.is_disconnected():
                    raise GoneError("The client has gone.")
            return work.result()
        finally:
            work.cancel()

    async def _whole(self) -> Recommended:
        turns: list[TurnSchema] = []
        async with aclosing(self.events()) as events:
            async for event in events:
                if isinstance(event, TurnSchema):
                    turns.append(event)
                elif isinstance(event, Ranking):
                    return Recommended(policy=self.policy, turns=tuple(turns), ranking=event)
        raise AssertionError("an exploration ends with a ranking")

    def _ranking(self, event: Trace | Broken) -> Ranking:
        if isinstance(event, Broken):
            hits = self.service.retriever.retrieve([self._bare], self.asked.k)[0]
            return self.service.alone(hits, self._seconds(), event.error)
        return self.service.ranking(event, self.asked.k, self._seconds())

    @property
    def _bare(self) -> Query:
        return Query(self.task.history, exclude=frozenset(self.task.history))

    def _seconds(self) -> float:
        return time.perf_counter() - self.started
