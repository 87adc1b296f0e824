"""The one multi-turn loop. Training, evaluation, serving and the page all drive it."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from deeprec.config import ExploreConfig, items_of, trust_of
from deeprec.data.catalog import Catalog
from deeprec.data.dataset import Task
from deeprec.explore.environment import Environment, segment_tokens_of
from deeprec.explore.protocol import STOPS
from deeprec.explore.trace import Author, Segment, Stop, Trace, Turn
from deeprec.policies.policy import Chunk, Finish, Habits, Policy, Request, Usage
from deeprec.trm.retriever import Hit, Query, Retriever

Listener = Callable[[Task, Author, str], None]
"""Hears text as it is written. A policy's chunk may end inside a character; then the text comes later."""


@dataclass(frozen=True, slots=True)
class Given:
    """A segment that stands before the policy's first. A person's is believed as such unless it is the policy's `own`,
    of an exploration before."""

    text: str
    own: bool = False


@dataclass
class _Flight:
    """An exploration under way."""

    key: str
    seed: int
    environment: Environment
    listener: Listener | None
    segments: list[Segment] = field(default_factory=list)
    context: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    heard: int = 0
    usage: Usage | None = None


class Explorer:
    """Runs explorations side by side, through one policy and one retriever.

    No exploration waits for another: a tool call is answered and written on from while others still think, and new
    ones may start at any step.
    """

    def __init__(self, policy: Policy, retriever: Retriever, catalog: Catalog, config: ExploreConfig) -> None:
        self.policy = policy
        self.retriever = retriever
        self.catalog = catalog
        self._configured = config
        self._habits: Habits | None = getattr(policy, "habits", None)
        self.config = accustomed(config, self._habits, retriever)
        self.seconds = {"retrieve": 0.0, "parse": 0.0}
        self._flights: dict[str, _Flight] = {}
        self._new: list[_Flight] = []
        self._started = 0

    def run(self, tasks: Sequence[Task], listener: Listener | None = None) -> list[Trace]:
        """Explore for each task; traces come in the order of the tasks. A task may occur several times."""
        traces: list[Trace | None] = [None] * len(tasks)
        for order, trace in self.stream(tasks, listener):
            traces[order] = trace
        return [trace for trace in traces if trace is not None]

    def stream(
        self,
        tasks: Iterable[Task],
        listener: Listener | None = None,
        config_of: Callable[[Task], ExploreConfig] | None = None,
    ) -> Iterator[tuple[int, Trace]]:
        """Yield `(place of the task, trace)` as explorations finish, `config.batch_size` of them under way at once.

        Closing the iterator frees the policy.

        Args:
            config_of: limits and sampling of each task's exploration; default: the explorer's.
        """
        waiting = deque(enumerate(tasks))
        places: dict[str, int] = {}
        occurrences: Counter[str] = Counter()
        try:
            while waiting or places:
                while waiting and len(places) < self.config.batch_size:
                    place, task = waiting.popleft()
                    config = config_of(task) if config_of else None
                    places[self.start(task, listener, config=config, occurrence=occurrences[task.id])] = place
                    occurrences[task.id] += 1
                for key, trace in self.step():
                    yield places.pop(key), trace
        finally:
            self.stop(list(places))

    def start(
        self,
        task: Task,
        listener: Listener | None = None,
        *,
        config: ExploreConfig | None = None,
        occurrence: int = 0,
        given: Sequence[Given] = (),
    ) -> str:
        """Begin an exploration at the next step; returns its key.

        Args:
            config: limits and sampling of this one; default: the explorer's.
            occurrence: sets the seeds of several explorations of one task apart.
            given: segments that stand before the policy's first own one, as if it had written them; their author is
                the environment. What follows one that ends the exploration is left out.
        """
        said = trust_of(config or self._configured)
        config = accustomed(config or self._configured, self._habits, self.retriever)
        key = f"{self._started}:{task.id}"
        self._started += 1
        flight = _Flight(
            key, _seed(config.seed, task.id, occurrence), Environment(task, self.catalog, config), listener
        )
        self._append(flight, flight.environment.prompt())
        for segment in given:
            self._append(flight, segment.text)
            query = flight.environment.receive(segment.text, Finish.STOP)
            if query is None:
                break
            asked = query if segment.own else replace(query, trust=said)
            hits = self._retrieve([asked], items_of(config))[0]
            self._append(flight, flight.environment.answer_call(hits))
            if flight.environment.stop is not None:  # the horizon
                break
        self._flights[key] = flight
        self._new.append(flight)
        return key

    def step(self) -> list[tuple[str, Trace]]:
        """One step of the policy for all that is under way; the keys and traces of what it finished."""
        opened, self._new = self._new, []
        self._continue([flight for flight in opened if flight.environment.stop is None])
        self._advance()
        ended = {key: flight for key, flight in self._flights.items() if flight.environment.stop is not None}
        spares = self._spare(list(ended.values()))
        self.stop(list(ended))
        return [
            (key, flight.environment.trace(flight.segments, spare, flight.usage))
            for (key, flight), spare in zip(ended.items(), spares, strict=True)
        ]

    def stop(self, keys: Sequence[str]) -> None:
        """Leave explorations and free what the policy holds for them. Unknown keys are fine."""
        gone = set(keys)
        self._new = [flight for flight in self._new if flight.key not in gone]
        for key in keys:
            self._flights.pop(key, None)
        self.policy.release(keys)

    def abort(self, key: str, error: str) -> None:
        """End an exploration that takes too long: the next step gives its trace, served from what was retrieved."""
        flight = self._flights[key]
        self.policy.release([key])
        self._close(flight)
        flight.environment.abort(Stop.FAILED, error)

    def turns(self, key: str) -> Sequence[Turn]:
        """The calls of an exploration so far."""
        return tuple(self._flights[key].environment.turns)

    def _advance(self) -> None:
        """One step of the policy, and what follows from it."""
        finished: list[tuple[_Flight, Finish]] = []
        for chunk in self.policy.step():
            flight = self._flights[chunk.key]
            flight.tokens += chunk.tokens
            flight.logprobs += chunk.logprobs
            if chunk.usage is not None:
                flight.usage = (flight.usage or Usage()) + chunk.usage
            if flight.listener is not None:
                self._tell(flight, chunk, flight.listener)
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
                if finish is Finish.LENGTH and len(flight.context) >= flight.environment.config.context_tokens:
                    finish = Finish.NO_ROOM
                query = flight.environment.receive(text, finish)
                if query is not None:
                    calls.append((flight, query))
        self.seconds["parse"] += time.perf_counter() - started
        k = max((items_of(flight.environment.config) for flight, _ in calls), default=0)
        hits = self._retrieve([query for _, query in calls], k)
        for (flight, _), found in zip(calls, hits, strict=True):
            wanted = found[: items_of(flight.environment.config)]
            self._append(flight, flight.environment.answer_call(wanted))
        self._continue([flight for flight, _ in calls if flight.environment.stop is None])

    def _continue(self, flights: Sequence[_Flight]) -> None:
        """Ask the policy for the next segment of each, where the context has room for one."""
        requests = []
        for flight in flights:
            config = flight.environment.config
            room = config.context_tokens - len(flight.context)
            if room <= 0:
                flight.environment.abort(Stop.CONTEXT_LIMIT)
                continue
            requests.append(
                Request(
                    key=flight.key,
                    context=tuple(flight.context),
                    stops=STOPS,
                    max_new_tokens=min(room, segment_tokens_of(config, self.catalog)),
                    temperature=config.temperature,
                    top_p=config.top_p,
                    seed=flight.seed + len(flight.segments),
                    constraint=flight.environment.constraint(),
                )
            )
        if requests:
            self.policy.submit(requests)

    def _append(self, flight: _Flight, text: str) -> None:
        """Text of the environment enters the context: encoded once, on its own, never joined and re-encoded."""
        tokens = self.policy.encode(text, first=not flight.segments)
        flight.segments.append(Segment(Author.ENVIRONMENT, tuple(tokens), (), text))
        flight.context += tokens
        if flight.listener is not None:
            flight.listener(flight.environment.task, Author.ENVIRONMENT, text)

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
        sizes = [flight.environment.config.answer_size for flight in bare]
        found = zip(self._retrieve(queries, max(sizes, default=0)), sizes, strict=True)
        spares = iter([hits[:size] for hits, size in found])
        return [[] if flight.environment.turns else next(spares) for flight in flights]


def accustomed(config: ExploreConfig, habits: Habits | None, retriever: Retriever) -> ExploreConfig:
    """With a policy's habits in place of what nobody set, and a guess believed as far as its retriever finds it worth,
    where neither is set: by an attribute `trust`, as the TRM has."""
    trusts = (config.trust, habits.trust if habits else None, getattr(retriever, "trust", None))
    trust = next((trust for trust in trusts if trust is not None), None)
    guidance = config.guidance or (habits.guidance if habits else None)
    return config.model_copy(update={"guidance": guidance, "trust": trust})


def _seed(seed: int, task: str, occurrence: int) -> int:
    digest = hashlib.sha256(f"{seed}\0{task}\0{occurrence}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
