"""The one multi-turn loop. Training, evaluation, serving and the page all drive it."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from deeprec.config import ExploreConfig
from deeprec.data.catalog import Catalog
from deeprec.data.dataset import Task
from deeprec.data.filters import ItemFilter, allowed_items
from deeprec.errors import DeepRecError
from deeprec.explore.environment import Environment, constraint_of
from deeprec.explore.policy import Chunk, Finish, Policy, Request, Usage
from deeprec.explore.protocol import STOPS
from deeprec.explore.settings import ExploreSettings, catalog_of, resolve_defaults
from deeprec.explore.trace import Author, Segment, Stop, Trace, Turn
from deeprec.retrieval.retriever import Hit, Query, Retriever, queries_of

Listener = Callable[[Task, Author, str], None]
"""Receives text as it is written. If a policy's chunk ends inside a character, that character comes later."""


@dataclass(frozen=True, slots=True)
class ForcedSegment:
    """A segment before the policy's first, written by it in an earlier exploration, or else by a person.

    A person's preference is a request, with the weight of people's requests.
    """

    text: str
    by_policy: bool = False


@dataclass
class _InFlight:
    key: str
    seed: int
    environment: Environment
    listener: Listener | None
    segments: list[Segment] = field(default_factory=list)
    context: list[int] = field(default_factory=list)  # of all segments
    tokens: list[int] = field(default_factory=list)  # of the segment that the policy is writing; likewise `logprobs`
    logprobs: list[float] = field(default_factory=list)
    reported: int = 0  # characters of that segment that the listener has
    usage: Usage | None = None

    @property
    def config(self) -> ExploreSettings:
        return self.environment.config

    @property
    def ended(self) -> bool:
        return self.environment.stop is not None


class Explorer:
    """Runs explorations side by side, through one policy and one retriever.

    None waits for another: a tool call is answered while others still write, and new ones may start at any step.
    The catalogue is the retriever's by default; DeepRecError if neither has one.
    """

    def __init__(
        self, policy: Policy, retriever: Retriever, catalog: Catalog | None = None, config: ExploreConfig | None = None
    ) -> None:
        self.policy = policy
        self.retriever = retriever
        self._catalog = catalog
        if catalog and retriever.catalog and len(catalog) < len(retriever.catalog):
            sizes = f"{len(catalog):,} items, the retriever's {len(retriever.catalog):,}"
            raise DeepRecError(f"The catalogue of the explorer has {sizes}: leave it out, to take the retriever's.")
        self._configured = config or ExploreConfig()
        self.config = self._resolve(self._configured)
        self.seconds = {"retrieve": 0.0, "parse": 0.0}
        self._in_flight: dict[str, _InFlight] = {}
        self._new: list[_InFlight] = []
        self._started = 0

    @property
    def catalog(self) -> Catalog:
        """Of the items that are shown; the retriever's may grow."""
        return self._catalog or catalog_of(self.retriever)

    def recommend(
        self,
        history: Sequence[str | int],
        k: int = 10,
        *,
        filter: ItemFilter | None = None,
        exclude_history: bool | None = None,
        listener: Listener | None = None,
    ) -> Trace:
        """Explore for a user with this history: titles, ids, or positions in the catalogue, oldest first.

        The answer has `k` titles, or as many as the filter leaves; the trace's `titles` are the ranking. They are none
        of the history where `exclude_history` says so; default: as the retriever has it. DeepRecError for an unknown
        item, a filter that no item passes, or k below 1.
        """
        settings = self.answering(k)
        excludes = self.retriever.exclude_history if exclude_history is None else exclude_history
        task = Task.new(self.catalog.history(history), excludes, allowed_items(self.catalog, filter))
        ((_, trace),) = self.stream([task], listener, lambda _: settings)
        return trace

    def answering(self, k: int) -> ExploreSettings:
        """The explorer's settings for an answer of `k` titles; DeepRecError if k is below 1."""
        if k < 1:
            raise DeepRecError(f"k={k}: ask for at least one item.")
        return self._resolve(self._configured.model_copy(update={"answer_size": k}))

    def run(self, tasks: Sequence[Task], listener: Listener | None = None) -> list[Trace]:
        """Explore for each task; traces come in the order of the tasks. A task may occur several times."""
        traces = dict(self.stream(tasks, listener))
        return [traces[position] for position in range(len(tasks))]

    def stream(
        self,
        tasks: Iterable[Task],
        listener: Listener | None = None,
        config_of: Callable[[Task], ExploreConfig] | None = None,
    ) -> Iterator[tuple[int, Trace]]:
        """Yield `(position of the task, trace)` as explorations finish, `config.batch_size` of them in flight at once.

        Closing the iterator frees the policy. `config_of` gives a task's own limits and sampling.
        """
        waiting = deque(enumerate(tasks))
        positions: dict[str, int] = {}
        occurrences: Counter[str] = Counter()
        try:
            while waiting or positions:
                while waiting and len(positions) < self.config.batch_size:
                    position, task = waiting.popleft()
                    config = config_of(task) if config_of else None
                    positions[self.start(task, listener, config=config, occurrence=occurrences[task.id])] = position
                    occurrences[task.id] += 1
                for key, trace in self.step():
                    yield positions.pop(key), trace
        finally:
            self.stop(list(positions))

    def start(
        self,
        task: Task,
        listener: Listener | None = None,
        *,
        config: ExploreConfig | None = None,
        occurrence: int = 0,
        forced_prefix: Sequence[ForcedSegment] = (),
    ) -> str:
        """Begin an exploration at the next step; returns its key.

        Args:
            config: limits and sampling of this one; default: the explorer's.
            occurrence: gives several explorations of one task different seeds.
            forced_prefix: the first segments, by the environment; those after one that ends it are ignored.
        """
        settings = self._resolve(config) if config else self.config
        key = f"{self._started}:{task.id}"
        self._started += 1
        environment = Environment(task, self.catalog, settings)
        exploration = _InFlight(key, seed_of(settings.seed, task.id, occurrence), environment, listener)
        self._append(exploration, environment.prompt())
        for segment in forced_prefix if not exploration.ended else ():
            self._append(exploration, segment.text)
            query = environment.receive(segment.text, Finish.STOP)
            if query is None:
                break
            if not segment.by_policy:
                query = _as_request(query, settings)
            self._append(exploration, environment.answer_call(self._retrieve([query], settings.items_per_call)[0]))
        self._in_flight[key] = exploration
        self._new.append(exploration)
        return key

    def step(self) -> list[tuple[str, Trace]]:
        """Advance all explorations by one step of the policy; returns keys and traces of those that ended."""
        new, self._new = self._new, []
        self._continue(new)
        self._advance()
        ended = [exploration for exploration in self._in_flight.values() if exploration.ended]
        fallbacks = self._fallback(ended)
        self.stop([exploration.key for exploration in ended])
        return [
            (exploration.key, exploration.environment.trace(exploration.segments, fallback, exploration.usage))
            for exploration, fallback in zip(ended, fallbacks, strict=True)
        ]

    def stop(self, keys: Sequence[str]) -> None:
        """Drop explorations and free the policy's state. Unknown keys are fine."""
        self._new = [exploration for exploration in self._new if exploration.key not in keys]
        for key in keys:
            self._in_flight.pop(key, None)
        self.policy.release(keys)

    def abort(self, key: str, error: str) -> None:
        """End an exploration that takes too long: the next step gives its trace, ranked from what was retrieved."""
        exploration = self._in_flight[key]
        self.policy.release([key])
        self._close(exploration)
        exploration.environment.abort(Stop.FAILED, error)

    def turns(self, key: str) -> Sequence[Turn]:
        """The calls of an exploration so far."""
        return tuple(self._in_flight[key].environment.turns)

    def _resolve(self, config: ExploreConfig) -> ExploreSettings:
        return resolve_defaults(config, self.policy.prompt_defaults, self.retriever, self.catalog)

    def _advance(self) -> None:
        """One step of the policy: its chunks, then the calls that they complete, answered together."""
        finished = [(self._in_flight[chunk.key], chunk.finish) for chunk in self.policy.step() if self._take(chunk)]
        started = time.perf_counter()
        queries = {each.key: self._receive(each, finish) for each, finish in finished if finish}
        calls = {key: query for key, query in queries.items() if query is not None}
        self.seconds["parse"] += time.perf_counter() - started
        calling = [self._in_flight[key] for key in calls]
        k = max((each.config.items_per_call for each in calling), default=0)
        for each, found in zip(calling, self._retrieve(list(calls.values()), k), strict=True):
            self._append(each, each.environment.answer_call(found[: each.config.items_per_call]))
        self._continue(calling)

    def _take(self, chunk: Chunk) -> bool:
        """Add a chunk to its exploration; returns whether it completes a segment that is to be read."""
        exploration = self._in_flight[chunk.key]
        exploration.tokens += chunk.tokens
        exploration.logprobs += chunk.logprobs
        if chunk.usage is not None:
            exploration.usage = (exploration.usage or Usage()) + chunk.usage
        if exploration.listener is not None:
            text = self.policy.decode(exploration.tokens)
            if chunk.finish is None:
                text = text.rstrip("�")  # an unfinished character
            if len(text) > exploration.reported:
                exploration.listener(exploration.environment.task, Author.POLICY, text[exploration.reported :])
                exploration.reported = len(text)
        if chunk.finish is Finish.FAILED:
            self._close(exploration)
            exploration.environment.abort(Stop.FAILED, chunk.error)
        return chunk.finish is not None and not exploration.ended

    def _receive(self, exploration: _InFlight, finish: Finish) -> Query | None:
        text = self._close(exploration)
        if finish is Finish.LENGTH and len(exploration.context) >= exploration.config.context_tokens:
            finish = Finish.NO_ROOM
        query = exploration.environment.receive(text, finish)
        return _as_request(query, exploration.config) if query is not None and self.policy.by_person else query

    def _continue(self, explorations: Sequence[_InFlight]) -> None:
        """Ask the policy for the next segment of each exploration that has not ended and has room in its context."""
        for exploration in explorations:
            if not exploration.ended and len(exploration.context) >= exploration.config.context_tokens:
                exploration.environment.abort(Stop.CONTEXT_LIMIT)
        if requests := [self._request(exploration) for exploration in explorations if not exploration.ended]:
            self.policy.submit(requests)

    def _request(self, exploration: _InFlight) -> Request:
        config = exploration.config
        return Request(
            key=exploration.key,
            context=tuple(exploration.context),
            stops=STOPS,
            max_new_tokens=min(config.context_tokens - len(exploration.context), config.segment_tokens),
            temperature=config.temperature,
            top_p=config.top_p,
            seed=exploration.seed + len(exploration.segments),
            constraint=constraint_of(self.catalog, exploration.environment.turns, config),
        )

    def _append(self, exploration: _InFlight, text: str) -> None:
        """Text of the environment enters the context: encoded once, separately, never joined and re-encoded."""
        tokens = tuple(self.policy.encode(text, first=not exploration.segments))
        exploration.segments.append(Segment(Author.ENVIRONMENT, tokens, (), text))
        exploration.context += tokens
        if exploration.listener is not None:
            exploration.listener(exploration.environment.task, Author.ENVIRONMENT, text)

    def _close(self, exploration: _InFlight) -> str:
        """The policy's segment is complete: exactly its tokens, and the text they decode to."""
        text = self.policy.decode(exploration.tokens)
        segment = Segment(Author.POLICY, tuple(exploration.tokens), tuple(exploration.logprobs), text)
        exploration.segments.append(segment)
        exploration.context += exploration.tokens
        exploration.tokens, exploration.logprobs, exploration.reported = [], [], 0
        return text

    def _retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        if not queries:
            return []
        started = time.perf_counter()
        hits = self.retriever.retrieve(queries, k)
        self.seconds["retrieve"] += time.perf_counter() - started
        return hits

    def _fallback(self, explorations: Sequence[_InFlight]) -> list[list[Hit]]:
        """The retriever's items without a preference, for explorations that retrieved nothing; none for others."""
        bare = [each for each in explorations if not each.environment.turns]
        k = max((each.config.answer_size for each in bare), default=0)
        lists = iter(self._retrieve(queries_of([each.environment.task for each in bare]), k))
        return [[] if each.environment.turns else next(lists)[: each.config.answer_size] for each in explorations]


def _as_request(query: Query, settings: ExploreSettings) -> Query:
    """Asked for by a person."""
    return replace(query, preference_weight=settings.request_weight, requested=True)


def seed_of(seed: int, task: str, occurrence: int) -> int:
    """The seed of one exploration; a segment's seed adds the number of earlier segments."""
    digest = hashlib.sha256(f"{seed}\0{task}\0{occurrence}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
