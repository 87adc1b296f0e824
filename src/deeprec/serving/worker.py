"""Explorations for many callers at once: one thread drives one explorer, and each caller hears of its own."""

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
from deeprec.explore.trace import Author, Trace, Turn

_LOG = logging.getLogger("deeprec.serving")


class BusyError(DeepRecError):
    """All places are taken, those in the queue too."""


@dataclass(frozen=True, slots=True)
class Text:
    """What the policy writes, as it writes it."""

    text: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The exploration ended without a trace: the explorer itself failed."""

    error: str


FAILED = Broken("the policy failed; the server's log says why")
LATE = "it took more than"
"""So the error of an exploration begins that was ended for its time."""
Event = Text | Turn | Trace | Broken
"""What a caller hears: texts and turns in order, and last a trace, or that there is none."""


@dataclass(eq=False)
class Job:
    """An exploration that was asked for."""

    task: Task
    config: ExploreConfig
    tell: Callable[[Event], None]
    deadline: float
    forced_prefix: Sequence[ForcedSegment] = ()
    key: str = ""
    told: int = 0
    left: bool = False


class Worker:
    """Takes on explorations while others are under way.

    Args:
        slots: explorations under way at once.
        queue: callers who may wait for a slot; one more is refused.
        seconds: after so long, waiting included, an exploration is ended and served from what it has found.
    """

    def __init__(self, explorer: Explorer, *, slots: int, queue: int, seconds: float) -> None:
        self.explorer = explorer
        self.slots = slots
        self.queue = queue
        self.seconds = seconds
        self._waiting: deque[Job] = deque()
        self._open: list[Job] = []
        self._news = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="desk", daemon=True)
        self._thread.start()

    def ask(
        self,
        task: Task,
        config: ExploreConfig,
        tell: Callable[[Event], None],
        forced_prefix: Sequence[ForcedSegment] = (),
    ) -> Job:
        """Begin an exploration as soon as there is a slot. `tell` is called from the desk's thread.

        Args:
            given: segments that come before the policy's own; see `Explorer.start`.

        Raises:
            BusyError: no slot is free, and the queue is full.
        """
        job = Job(task, config, tell, time.monotonic() + self.seconds, forced_prefix)
        with self._news:
            if self._closed:
                raise BusyError("The server is closing.")
            if len(self._waiting) >= self.queue + max(0, self.slots - len(self._open)):
                raise BusyError(
                    f"{len(self._open)} explorations are under way and {len(self._waiting)} wait: try later."
                )
            self._waiting.append(job)
            self._news.notify()
        return job

    def leave(self, job: Job) -> None:
        """The caller has gone: nothing more is told, and the slot is free after the step under way."""
        with self._news:
            job.left = True
            if job in self._waiting:
                self._waiting.remove(job)
            self._news.notify()

    def close(self) -> None:
        """Leave everything and end the thread."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join()

    def load(self) -> tuple[int, int]:
        """How many explorations are under way, and how many wait."""
        return len(self._open), len(self._waiting)

    def _work(self) -> None:
        while self._admit():
            try:
                self._step()
            except Exception:  # noqa: BLE001 (whatever a policy raises must not end the desk)
                _LOG.exception("a policy failed")
                jobs, self._open = self._open, []
                for job in jobs:
                    _tell(job, FAILED)
                self._forget(jobs)
        self._forget(self._open)

    def _forget(self, jobs: Sequence[Job]) -> None:
        try:
            self.explorer.stop([job.key for job in jobs])
        except Exception:  # noqa: BLE001 (a policy that has failed may fail again)
            _LOG.exception("a policy does not let go of explorations")

    def _admit(self) -> bool:
        """Free the slots of who left and fill them; waits while there is nothing to do. False: the desk is closed."""
        with self._news:
            while not (self._waiting or self._open or self._closed):
                self._news.wait()
            gone = [job for job in self._open if job.left]
            self._open = [job for job in self._open if not job.left]
            while self._waiting and len(self._open) < self.slots:
                self._open.append(self._waiting.popleft())
        self._forget(gone)
        return not self._closed

    def _step(self) -> None:
        now = time.monotonic()
        for job in list(self._open):
            if not job.key and not self._start(job):
                continue
            if now > job.deadline:
                job.deadline = math.inf
                self.explorer.abort(job.key, f"{LATE} {self.seconds:g} s")
        finished = dict(self.explorer.step()) if self._open else {}
        for job in self._open:
            trace = finished.get(job.key)
            turns = self.explorer.turns(job.key) if trace is None else trace.turns
            for turn in turns[job.told :]:
                _tell(job, turn)
            job.told = len(turns)
        with self._news:
            ended = [job for job in self._open if job.key in finished]
            self._open = [job for job in self._open if job.key not in finished]
        for job in ended:
            _tell(job, finished[job.key])

    def _start(self, job: Job) -> bool:
        """One caller's calls may fail without the others' explorations."""
        try:
            job.key = self.explorer.start(job.task, _listener(job), config=job.config, forced_prefix=job.forced_prefix)
        except Exception:  # noqa: BLE001 (as in _work)
            _LOG.exception("an exploration can't be started")
            self._open.remove(job)
            _tell(job, FAILED)
            return False
        return True


def _listener(job: Job) -> Callable[[Task, Author, str], None]:
    def hear(_: Task, author: Author, text: str) -> None:
        if author is Author.POLICY:
            _tell(job, Text(text))

    return hear


def _tell(job: Job, event: Event) -> None:
    if not job.left:
        try:
            job.tell(event)
        except RuntimeError:  # its event loop is closed: nobody is there
            job.left = True
