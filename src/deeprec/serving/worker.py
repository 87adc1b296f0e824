"""Explorations of many callers at once: one thread drives one explorer and reports to each caller."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deeprec.config import ExploreConfig
from deeprec.data.dataset import Task
from deeprec.errors import DeepRecError
from deeprec.explore.explorer import Explorer, ForcedSegment
from deeprec.explore.trace import Author, Stop, Trace, Turn
from deeprec.retrieval.retriever import Hit

_LOG = logging.getLogger("deeprec.serving")


class BusyError(DeepRecError):
    """All slots are taken, and the queue is full."""


Event = str | Turn | Trace
"""What a caller receives: the policy's text as it writes it, and turns, in order; last the trace."""
FAILED = "the policy failed; the server's log says why"
"""The error of an exploration whose policy or explorer raised an exception."""
TIMED_OUT = "it took more than"  # how the error of an exploration that exceeded its time limit begins
CLOSING = "the server is closing"


def trace_of_hits(task: Task, stop: Stop, hits: Sequence[Hit] = (), error: str | None = None) -> Trace:
    """A trace without a turn, whose ranking is the retriever's without a preference."""
    return Trace(task.id, task.user, task.history, (), (), "", (), tuple(hits), stop, (), max(len(hits), 1), error)


@dataclass(eq=False)
class Job:
    """An exploration that a caller submitted."""

    task: Task
    config: ExploreConfig
    on_event: Callable[[Event], None]
    forced_prefix: Sequence[ForcedSegment]
    deadline: float
    key: str = ""
    reported: int = 0
    cancelled: bool = False

    def report(self, event: Event) -> None:
        if not self.cancelled:
            try:
                self.on_event(event)
            except RuntimeError:  # the caller's event loop is closed
                self.cancelled = True

    def listen(self, _: Task, author: Author, text: str) -> None:
        if author is Author.POLICY:
            self.report(text)


class Worker:
    """Starts explorations while others are in flight.

    Args:
        slots: explorations in flight at once.
        queue: callers who may wait for a slot; one more is refused.
        seconds: time limit of an exploration, waiting included. Its trace then holds what it has found.
    """

    def __init__(self, explorer: Explorer, *, slots: int, queue: int, seconds: float) -> None:
        self.explorer, self.slots, self.queue, self.seconds = explorer, slots, queue, seconds
        self._queued, self._in_flight, self._closed = deque[Job](), list[Job](), False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="explorations", daemon=True)
        self._thread.start()

    def submit(
        self,
        task: Task,
        config: ExploreConfig,
        on_event: Callable[[Event], None],
        forced_prefix: Sequence[ForcedSegment] = (),
    ) -> Job:
        """Start an exploration (see `Explorer.start`) as soon as there is a slot; BusyError where the queue is full.
        `on_event` is called from the worker's thread."""
        job = Job(task, config, on_event, forced_prefix, time.monotonic() + self.seconds)
        with self._changed:
            if self._closed:
                raise BusyError("The server is closing.")
            in_flight, queued = self.load()
            if queued >= self.queue + max(0, self.slots - in_flight):
                raise BusyError(f"{in_flight} explorations are in flight and {queued} wait: try later.")
            self._queued.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Report nothing more of a job. Its slot is free after the current step."""
        with self._changed:
            job.cancelled = True
            if job in self._queued:
                self._queued.remove(job)
            self._changed.notify()

    def dismiss(self) -> None:
        """Refuse new jobs, and end all others for their callers, without waiting for the policy's step."""
        with self._changed:
            self._closed = True
            for job in (*self._in_flight, *self._queued):
                job.report(trace_of_hits(job.task, Stop.FAILED, error=CLOSING))
                job.cancelled = True
            self._changed.notify()

    def close(self) -> None:
        """Stop all explorations and end the thread."""
        self.dismiss()
        self._thread.join()

    def load(self) -> tuple[int, int]:
        """The numbers of explorations in flight and queued."""
        return len(self._in_flight), len(self._queued)

    def _run(self) -> None:
        while self._admit():
            try:
                self._step()
            except Exception:  # noqa: BLE001 (a policy's exception must not end the thread)
                self._fail(self._in_flight, "a policy failed")
        self._stop(self._in_flight)

    def _admit(self) -> bool:
        """Free the slots of cancelled jobs, then fill slots; wait if there is nothing to do. False: closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queued or self._in_flight or self._closed)
            cancelled = [job for job in self._in_flight if job.cancelled]
            self._in_flight = [job for job in self._in_flight if not job.cancelled]
            while self._queued and len(self._in_flight) < self.slots:
                self._in_flight.append(self._queued.popleft())
        self._stop(cancelled)
        return not self._closed

    def _step(self) -> None:
        for job in self._in_flight:
            try:
                job.key = job.key or self.explorer.start(
                    job.task, job.listen, config=job.config, forced_prefix=job.forced_prefix
                )
            except Exception:  # noqa: BLE001 (a forced prefix may fail; the other explorations go on)
                self._fail([job], "an exploration can't be started")
        for job in self._in_flight:
            if time.monotonic() > job.deadline:
                job.deadline = math.inf
                self.explorer.abort(job.key, f"{TIMED_OUT} {self.seconds:g} s")
        jobs = self._in_flight
        finished = dict(self.explorer.step()) if jobs else {}
        self._in_flight = [job for job in jobs if job.key not in finished]  # before the callers hear of it
        for job in jobs:
            trace = finished.get(job.key)
            turns = self.explorer.turns(job.key) if trace is None else trace.turns
            for turn in turns[job.reported :]:
                job.report(turn)
            job.reported = len(turns)
            if trace is not None:
                job.report(trace)

    def _fail(self, jobs: Sequence[Job], what: str) -> None:
        """For handlers of exceptions: end the jobs."""
        _LOG.exception(what)
        self._in_flight = [job for job in self._in_flight if job not in jobs]
        for job in jobs:
            job.report(trace_of_hits(job.task, Stop.FAILED, error=FAILED))
        self._stop(jobs)

    def _stop(self, jobs: Sequence[Job]) -> None:
        try:
            self.explorer.stop([job.key for job in jobs])
        except Exception:  # noqa: BLE001 (a policy that has failed may fail again)
            _LOG.exception("a policy can't release its explorations")
