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
from deeprec.explore.explorer import Explorer, Given
from deeprec.explore.trace import Author, Trace, Turn

_LOG = logging.getLogger("deeprec.serve")


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
class Ticket:
    """An exploration that was asked for."""

    task: Task
    config: ExploreConfig
    tell: Callable[[Event], None]
    deadline: float
    given: Sequence[Given] = ()
    key: str = ""
    told: int = 0
    left: bool = False


class Desk:
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
        self._waiting: deque[Ticket] = deque()
        self._open: list[Ticket] = []
        self._news = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="desk", daemon=True)
        self._thread.start()

    def ask(
        self, task: Task, config: ExploreConfig, tell: Callable[[Event], None], given: Sequence[Given] = ()
    ) -> Ticket:
        """Begin an exploration as soon as there is a slot. `tell` is called from the desk's thread.

        Args:
            given: segments that come before the policy's own; see `Explorer.start`.

        Raises:
            BusyError: no slot is free, and the queue is full.
        """
        ticket = Ticket(task, config, tell, time.monotonic() + self.seconds, given)
        with self._news:
            if self._closed:
                raise BusyError("The server is closing.")
            if len(self._waiting) >= self.queue + max(0, self.slots - len(self._open)):
                raise BusyError(
                    f"{len(self._open)} explorations are under way and {len(self._waiting)} wait: try later."
                )
            self._waiting.append(ticket)
            self._news.notify()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The caller has gone: nothing more is told, and the slot is free after the step under way."""
        with self._news:
            ticket.left = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
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
                tickets, self._open = self._open, []
                for ticket in tickets:
                    _tell(ticket, FAILED)
                self._forget(tickets)
        self._forget(self._open)

    def _forget(self, tickets: Sequence[Ticket]) -> None:
        try:
            self.explorer.stop([ticket.key for ticket in tickets])
        except Exception:  # noqa: BLE001 (a policy that has failed may fail again)
            _LOG.exception("a policy does not let go of explorations")

    def _admit(self) -> bool:
        """Free the slots of who left and fill them; waits while there is nothing to do. False: the desk is closed."""
        with self._news:
            while not (self._waiting or self._open or self._closed):
                self._news.wait()
            gone = [ticket for ticket in self._open if ticket.left]
            self._open = [ticket for ticket in self._open if not ticket.left]
            while self._waiting and len(self._open) < self.slots:
                self._open.append(self._waiting.popleft())
        self._forget(gone)
        return not self._closed

    def _step(self) -> None:
        now = time.monotonic()
        for ticket in list(self._open):
            if not ticket.key and not self._start(ticket):
                continue
            if now > ticket.deadline:
                ticket.deadline = math.inf
                self.explorer.abort(ticket.key, f"{LATE} {self.seconds:g} s")
        finished = dict(self.explorer.step()) if self._open else {}
        for ticket in self._open:
            trace = finished.get(ticket.key)
            turns = self.explorer.turns(ticket.key) if trace is None else trace.turns
            for turn in turns[ticket.told :]:
                _tell(ticket, turn)
            ticket.told = len(turns)
        with self._news:
            ended = [ticket for ticket in self._open if ticket.key in finished]
            self._open = [ticket for ticket in self._open if ticket.key not in finished]
        for ticket in ended:
            _tell(ticket, finished[ticket.key])

    def _start(self, ticket: Ticket) -> bool:
        """One caller's calls may fail without the others' explorations."""
        try:
            ticket.key = self.explorer.start(ticket.task, _listener(ticket), config=ticket.config, given=ticket.given)
        except Exception:  # noqa: BLE001 (as in _work)
            _LOG.exception("an exploration can't be started")
            self._open.remove(ticket)
            _tell(ticket, FAILED)
            return False
        return True


def _listener(ticket: Ticket) -> Callable[[Task, Author, str], None]:
    def hear(_: Task, author: Author, text: str) -> None:
        if author is Author.POLICY:
            _tell(ticket, Text(text))

    return hear


def _tell(ticket: Ticket, event: Event) -> None:
    if not ticket.left:
        try:
            ticket.tell(event)
        except RuntimeError:  # its event loop is closed: nobody is there
            ticket.left = True
