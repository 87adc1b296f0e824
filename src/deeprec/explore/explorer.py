"""The one multi-turn loop. Training, evaluation, serving and the page all drive it."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from deeprec.config import ExploreConfig
from deeprec.data.catalog import Catalog
from deeprec.data.dataset import Task
from deeprec.explore.environment import Environment
from deeprec.explore.protocol import STOPS
from deeprec.explore.trace import Author, Segment, Stop, Trace
from deeprec.policies.policy import Chunk, Finish, Policy, Request
from deeprec.trm.retriever import Hit, Query, Retriever

Listener = Callable[[Task, Author, str], None]
"""Hears text as it is written. A policy's chunk may end inside a character; then the text comes later."""


@dataclass
class _Flight:
    """An exploration under way."""

    key: str
    order: int
    seed: int
    environment: Environment
    segments: list[Segment] = field(default_factory=list)
    context: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    heard: int = 0


class Explorer:
    """Runs explorations, `config.batch_size` at once; a finished one makes room for the next.

    No exploration waits for another: a tool call is answered and written on from while others still think.
    """

    def __init__(self, policy: Policy, retriever: Retriever, catalog: Catalog, config: ExploreConfig) -> None:
        self.policy = policy
        self.retriever = retriever
        self.catalog = catalog
        self.config = config
        self.seconds = {"retrieve": 0.0, "parse": 0.0}

    def run(self, tasks: Sequence[Task], listener: Listener | None = None) -> list[Trace]:
        """Explore for each task; traces come in the order of the tasks. A task may occur several times."""
        traces: list[Trace | None] = [None] * len(tasks)
        for order, trace in self.stream(tasks, listener):
            traces[order] = trace
        return [trace for trace in traces if trace is not None]

    def stream(self, tasks: Iterable[Task], listener: Listener | None = None) -> Iterator[tuple[int, Trace]]:
        """Yield `(place of the task, trace)` as explorations finish. Closing the iterator frees the policy."""
        waiting = deque(enumerate(tasks))
        flights: dict[str, _Flight] = {}
        occurrences: dict[str, int] = {}
        try:
            while waiting or flights:
                opened = []
                while waiting and len(flights) < self.config.batch_size:
                    order, task = waiting.popleft()
                    occurrence = occurrences[task.id] = occurrences.get(task.id, -1) + 1
                    seed = _seed(self.config.seed, task.id, occurrence)
                    flight = _Flight(f"{order}:{task.id}", order, seed, Environment(task, self.catalog, self.config))
                    self._append(flight, flight.environment.prompt(), listener)
                    flights[flight.key] = flight
                    opened.append(flight)
                self._continue(opened)
                finished = self._advance(flights, listener)
                ended = [flight for flight in (*opened, *finished) if flight.environment.stop is not None]
                ended = list({flight.key: flight for flight in ended}.values())
                for flight, spare in zip(ended, self._spare(ended), strict=True):
                    del flights[flight.key]
                    self.policy.release([flight.key])
                    yield flight.order, flight.environment.trace(flight.segments, spare)
        finally:
            self.policy.release(list(flights))

    def _advance(self, flights: dict[str, _Flight], listener: Listener | None) -> list[_Flight]:
        """One step of the policy, and what follows from it; returns the explorations whose segment ended."""
        finished: list[tuple[_Flight, Finish]] = []
        for chunk in self.policy.step():
            flight = flights[chunk.key]
            flight.tokens += chunk.tokens
            flight.logprobs += chunk.logprobs
            if listener is not None:
                self._tell(flight, chunk, listener)
            if chunk.finish is Finish.FAILED:
                self._close(flight)
                flight.environment.abort(Stop.FAILED, chunk.error)
            if chunk.finish is not None:
                finished.append((flight, chunk.finish))
        calls: list[tuple[_Flight, Query]] = []
        started = time.perf_counter()
        for flight, finish in finished:
            if flight.environment.stop is None:
                text = self._close(flight)
                if finish is Finish.LENGTH and len(flight.context) >= self.config.context_tokens:
                    finish = Finish.NO_ROOM
                query = flight.environment.receive(text, finish)
                if query is not None:
                    calls.append((flight, query))
        self.seconds["parse"] += time.perf_counter() - started
        hits = self._retrieve([query for _, query in calls], self.config.items_per_call)
        for (flight, _), found in zip(calls, hits, strict=True):
            self._append(flight, flight.environment.answer_call(found), listener)
        self._continue([flight for flight, _ in calls])
        return [flight for flight, _ in finished]

    def _continue(self, flights: Sequence[_Flight]) -> None:
        """Ask the policy for the next segment of each, where the context has room for one."""
        requests = []
        for flight in flights:
            room = self.config.context_tokens - len(flight.context)
            if room <= 0:
                flight.environment.abort(Stop.CONTEXT_LIMIT)
                continue
            requests.append(
                Request(
                    key=flight.key,
                    context=tuple(flight.context),
                    stops=STOPS,
                    max_new_tokens=min(room, self.config.segment_tokens),
                    temperature=self.config.temperature,
                    top_p=self.config.top_p,
                    seed=flight.seed + len(flight.segments),
                )
            )
        if requests:
            self.policy.submit(requests)

    def _append(self, flight: _Flight, text: str, listener: Listener | None) -> None:
        """Text of the environment enters the context: encoded once, on its own, never joined and re-encoded."""
        tokens = self.policy.encode(text, first=not flight.segments)
        flight.segments.append(Segment(Author.ENVIRONMENT, tuple(tokens), (), text))
        flight.context += tokens
        if listener is not None:
            listener(flight.environment.task, Author.ENVIRONMENT, text)

    def _close(self, flight: _Flight) -> str:
        """The policy's segment is complete: exactly its tokens, and the text they decode to."""
        text = self.policy.decode(flight.tokens)
        flight.segments.append(Segment(Author.POLICY, tuple(flight.tokens), tuple(flight.logprobs), text))
        flight.context += flight.tokens
        flight.tokens, flight.logprobs, flight.heard = [], [], 0
        return text

    def _tell(self, flight: _Flight, chunk: Chunk, listener: Listener) -> None:
        text = self.policy.decode(flight.tokens)
        if chunk.finish is None:
            text = text.rstrip("�")  # an unfinished character
        if len(text) > flight.heard:
            listener(flight.environment.task, Author.POLICY, text[flight.heard :])
            flight.heard = len(text)

    def _retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        if not queries:
            return []
        started = time.perf_counter()
        hits = self.retriever.retrieve(queries, k)
        self.seconds["retrieve"] += time.perf_counter() - started
        return hits

    def _spare(self, flights: Sequence[_Flight]) -> list[list[Hit]]:
        """For explorations that ended with nothing retrieved: what the retriever says without a preference."""
        bare = [flight for flight in flights if not flight.environment.turns]
        queries = [
            Query(flight.environment.task.history, exclude=frozenset(flight.environment.task.history))
            for flight in bare
        ]
        found = iter(self._retrieve(queries, self.config.answer_size))
        return [[] if flight.environment.turns else next(found) for flight in flights]


def _seed(seed: int, task: str, occurrence: int) -> int:
    digest = hashlib.sha256(f"{seed}\0{task}\0{occurrence}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
