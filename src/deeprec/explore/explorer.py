"""The one multi-turn loop. Training, evaluation, serving and the page all drive it."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from deeprec.config import ExploreConfig, items_of, preference_weight_of
from deeprec.data.catalog import Catalog
from deeprec.data.dataset import Task
from deeprec.explore.environment import Environment, segment_tokens_of
from deeprec.explore.policy import Chunk, Finish, Policy, PromptDefaults, Request, Usage
from deeprec.explore.protocol import STOPS
from deeprec.explore.trace import Author, Segment, Stop, Trace, Turn
from deeprec.retrieval.retriever import Hit, Query, Retriever

Listener = Callable[[Task, Author, str], None]
"""Hears text as it is written. A policy's chunk may end inside a character; then the text comes later."""


@dataclass(frozen=True, slots=True)
class ForcedSegment:
    """A segment that stands before the policy's first. A person's is believed as such unless it is the policy's `own`,
    of an exploration before."""

    text: str
    by_policy: bool = False


@dataclass
class _InFlight:
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
        self._prompt_defaults: PromptDefaults | None = getattr(policy, "prompt_defaults", None)
        self.config = resolve_defaults(config, self._prompt_defaults, retriever)
        self.seconds = {"retrieve": 0.0, "parse": 0.0}
        self._in_flight: dict[str, _InFlight] = {}
        self._new: list[_InFlight] = []
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
            occurrence: sets the seeds of several explorations of one task apart.
            given: segments that stand before the policy's first own one, as if it had written them; their author is
                the environment. What follows one that ends the exploration is left out.
        """
        said = preference_weight_of(config or self._configured)
        config = resolve_defaults(config or self._configured, self._prompt_defaults, self.retriever)
        key = f"{self._started}:{task.id}"
        self._started += 1
        exploration = _InFlight(
            key, _seed(config.seed, task.id, occurrence), Environment(task, self.catalog, config), listener
        )
        self._append(exploration, exploration.environment.prompt())
        for segment in forced_prefix:
            self._append(exploration, segment.text)
            query = exploration.environment.receive(segment.text, Finish.STOP)
            if query is None:
                break
            asked = query if segment.by_policy else replace(query, preference_weight=said)
            hits = self._retrieve([asked], items_of(config))[0]
            self._append(exploration, exploration.environment.answer_call(hits))
        self._in_flight[key] = exploration
        self._new.append(exploration)
        return key

    def step(self) -> list[tuple[str, Trace]]:
        """One step of the policy for all that is under way; the keys and traces of what it finished."""
        opened, self._new = self._new, []
        self._continue([exploration for exploration in opened if exploration.environment.stop is None])
        self._advance()
        ended = {
            key: exploration for key, exploration in self._in_flight.items() if exploration.environment.stop is not None
        }
        fallbacks = self._fallback(list(ended.values()))
        self.stop(list(ended))
        return [
            (key, exploration.environment.trace(exploration.segments, fallback, exploration.usage))
            for (key, exploration), fallback in zip(ended.items(), fallbacks, strict=True)
        ]

    def stop(self, keys: Sequence[str]) -> None:
        """Leave explorations and free what the policy holds for them. Unknown keys are fine."""
        gone = set(keys)
        self._new = [exploration for exploration in self._new if exploration.key not in gone]
        for key in keys:
            self._in_flight.pop(key, None)
        self.policy.release(keys)

    def abort(self, key: str, error: str) -> None:
        """End an exploration that takes too long: the next step gives its trace, served from what was retrieved."""
        exploration = self._in_flight[key]
        self.policy.release([key])
        self._close(exploration)
        exploration.environment.abort(Stop.FAILED, error)

    def turns(self, key: str) -> Sequence[Turn]:
        """The calls of an exploration so far."""
        return tuple(self._in_flight[key].environment.turns)

    def _advance(self) -> None:
        """One step of the policy, and what follows from it."""
        finished: list[tuple[_InFlight, Finish]] = []
        for chunk in self.policy.step():
            exploration = self._in_flight[chunk.key]
            exploration.tokens += chunk.tokens
            exploration.logprobs += chunk.logprobs
            if chunk.usage is not None:
                exploration.usage = (exploration.usage or Usage()) + chunk.usage
            if exploration.listener is not None:
                self._tell(exploration, chunk, exploration.listener)
            if chunk.finish is Finish.FAILED:
                self._close(exploration)
                exploration.environment.abort(Stop.FAILED, chunk.error)
            if chunk.finish is not None:
                finished.append((exploration, chunk.finish))
        calls: list[tuple[_InFlight, Query]] = []
        started = time.perf_counter()
        for exploration, finish in finished:
            if exploration.environment.stop is None:
                text = self._close(exploration)
                if (
                    finish is Finish.LENGTH
                    and len(exploration.context) >= exploration.environment.config.context_tokens
                ):
                    finish = Finish.NO_ROOM
                query = exploration.environment.receive(text, finish)
                if query is not None:
                    calls.append((exploration, query))
        self.seconds["parse"] += time.perf_counter() - started
        k = max((items_of(exploration.environment.config) for exploration, _ in calls), default=0)
        hits = self._retrieve([query for _, query in calls], k)
        for (exploration, _), found in zip(calls, hits, strict=True):
            wanted = found[: items_of(exploration.environment.config)]
            self._append(exploration, exploration.environment.answer_call(wanted))
        self._continue([exploration for exploration, _ in calls if exploration.environment.stop is None])

    def _continue(self, explorations: Sequence[_InFlight]) -> None:
        """Ask the policy for the next segment of each, where the context has room for one."""
        requests = []
        for exploration in explorations:
            config = exploration.environment.config
            room = config.context_tokens - len(exploration.context)
            if room <= 0:
                exploration.environment.abort(Stop.CONTEXT_LIMIT)
                continue
            requests.append(
                Request(
                    key=exploration.key,
                    context=tuple(exploration.context),
                    stops=STOPS,
                    max_new_tokens=min(room, segment_tokens_of(config, self.catalog)),
                    temperature=config.temperature,
                    top_p=config.top_p,
                    seed=exploration.seed + len(exploration.segments),
                    constraint=exploration.environment.constraint(),
                )
            )
        if requests:
            self.policy.submit(requests)

    def _append(self, exploration: _InFlight, text: str) -> None:
        """Text of the environment enters the context: encoded once, on its own, never joined and re-encoded."""
        tokens = self.policy.encode(text, first=not exploration.segments)
        exploration.segments.append(Segment(Author.ENVIRONMENT, tuple(tokens), (), text))
        exploration.context += tokens
        if exploration.listener is not None:
            exploration.listener(exploration.environment.task, Author.ENVIRONMENT, text)

    def _close(self, exploration: _InFlight) -> str:
        """The policy's segment is complete: exactly its tokens, and the text they decode to."""
        text = self.policy.decode(exploration.tokens)
        exploration.segments.append(
            Segment(Author.POLICY, tuple(exploration.tokens), tuple(exploration.logprobs), text)
        )
        exploration.context += exploration.tokens
        exploration.tokens, exploration.logprobs, exploration.heard = [], [], 0
        return text

    def _tell(self, exploration: _InFlight, chunk: Chunk, listener: Listener) -> None:
        text = self.policy.decode(exploration.tokens)
        if chunk.finish is None:
            text = text.rstrip("�")  # an unfinished character
        if len(text) > exploration.heard:
            listener(exploration.environment.task, Author.POLICY, text[exploration.heard :])
            exploration.heard = len(text)

    def _retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        if not queries:
            return []
        started = time.perf_counter()
        hits = self.retriever.retrieve(queries, k)
        self.seconds["retrieve"] += time.perf_counter() - started
        return hits

    def _fallback(self, explorations: Sequence[_InFlight]) -> list[list[Hit]]:
        """For explorations that ended with nothing retrieved: what the retriever says without a preference."""
        bare = [exploration for exploration in explorations if not exploration.environment.turns]
        queries = [
            Query(exploration.environment.task.history, exclude=frozenset(exploration.environment.task.history))
            for exploration in bare
        ]
        sizes = [exploration.environment.config.answer_size for exploration in bare]
        found = zip(self._retrieve(queries, max(sizes, default=0)), sizes, strict=True)
        fallbacks = iter([hits[:size] for hits, size in found])
        return [[] if exploration.environment.turns else next(fallbacks) for exploration in explorations]


def resolve_defaults(
    config: ExploreConfig, prompt_defaults: PromptDefaults | None, retriever: Retriever
) -> ExploreConfig:
    """With a policy's habits in place of what nobody set, and a guess believed as far as its retriever finds it worth,
    where neither is set: by an attribute `trust`, as the TRM has."""
    preference_weights = (
        config.preference_weight,
        prompt_defaults.preference_weight if prompt_defaults else None,
        getattr(retriever, "preference_weight", None),
    )
    preference_weight = next(
        (preference_weight for preference_weight in preference_weights if preference_weight is not None), None
    )
    guidance = config.guidance or (prompt_defaults.guidance if prompt_defaults else None)
    return config.model_copy(update={"guidance": guidance, "preference_weight": preference_weight})


def _seed(seed: int, task: str, occurrence: int) -> int:
    digest = hashlib.sha256(f"{seed}\0{task}\0{occurrence}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
