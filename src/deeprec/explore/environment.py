"""One user's exploration as a state machine: it receives what the policy wrote and returns what it reads next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

from deeprec.config import ExploreConfig
from deeprec.data.catalog import Catalog, ItemIdx, ResolutionStatus
from deeprec.data.dataset import Task
from deeprec.data.item_set import ItemSet
from deeprec.explore import protocol
from deeprec.explore.policy import Constraint, Finish, Usage
from deeprec.explore.protocol import Answer, Call, Fault
from deeprec.explore.settings import ExploreSettings
from deeprec.explore.trace import Line, Segment, Stop, Trace, Turn
from deeprec.retrieval.retriever import Hit, Query

_STOPS = {
    Finish.STOP: Stop.MALFORMED,
    Finish.END: Stop.END_OF_TEXT,
    Finish.LENGTH: Stop.SEGMENT_LIMIT,
    Finish.NO_ROOM: Stop.CONTEXT_LIMIT,
    Finish.FILTERED: Stop.FILTERED,
    Finish.UNEXPLAINED: Stop.UNEXPLAINED,
}


class Environment:
    """Everything that happens around the policy, without tokens, models or loops.

    `receive` takes each segment of the policy and returns a query if it calls the tool; the hits go to `answer_call`,
    which returns the text to append. At the end of the exploration `stop` is set, and `trace` gives the record.
    """

    def __init__(self, task: Task, catalog: Catalog, config: ExploreSettings) -> None:
        self.task = task
        self.catalog = catalog
        self._shown: set[ItemIdx] = set(task.excluded)
        # A filter or a small catalogue may leave fewer items than an answer has.
        allowed = range(len(catalog)) if task.include is None else task.include
        left = len(allowed) - sum(item in allowed for item in self._shown)
        self.config = config.model_copy(update={"answer_size": max(1, min(config.answer_size, left))})
        self.turns: list[Turn] = []
        self.stop: Stop | None = None if left else Stop.ANSWERED  # without any item it has ended before it begins
        self.error: str | None = None
        self._faults: list[Fault] = []
        self._call: Call | None = None
        self._thought = ""
        self._lines: tuple[Line, ...] = ()

    def prompt(self) -> str:
        return protocol.prompt(
            item_lines(self.catalog, self.task.history[-self.config.history :]),
            answer_size=self.config.answer_size,
            items_per_call=self.config.items_per_call,
            max_calls=self.config.max_calls,
            guidance=self.config.guidance,
            exclude_history=self.task.exclude_history,
        )

    def receive(self, text: str, finish: Finish) -> Query | None:
        parsed = protocol.parse(text, answer_size=self.config.answer_size, after_items=bool(self.turns))
        self._faults += parsed.faults
        if isinstance(parsed, Call):
            if len(self.turns) < self.config.max_calls:
                self._call = parsed
                shown, weight = frozenset(self._shown), self.config.preference_weight
                return Query(self.task.history, parsed.preference, shown, weight, self.task.include)
            self.abort(Stop.CALL_LIMIT)
            return None
        self._thought = parsed.thought
        if isinstance(parsed, Answer):
            pool = [hit.item for turn in self.turns for hit in turn.hits]
            excluded, include = self.task.excluded, self.task.include
            self._lines = resolve_lines(parsed.titles, self.catalog, pool, excluded, include)
            self._faults += [line.fault for line in self._lines if line.fault is not None]
            if not self.turns:
                self._faults.append(Fault.NO_CALL)
            self.stop = Stop.ANSWERED
        else:
            self.abort(_STOPS[finish])
        return None

    def answer_call(self, hits: Sequence[Hit]) -> str:
        """The text that the policy reads after its call."""
        call, self._call = self._call, None
        assert call is not None
        self.turns.append(Turn(call.thought, call.preference, tuple(hits)))
        items = [hit.item for hit in hits]
        self._shown.update(items)
        last = len(self.turns) == self.config.max_calls
        return protocol.tool_result(item_lines(self.catalog, items), last=last)

    def abort(self, stop: Stop, error: str | None = None) -> None:
        """End without an answer; from outside if the context is full, or the policy failed."""
        self.stop, self.error = stop, error
        if Fault.NO_ANSWER not in self._faults:
            self._faults.append(Fault.NO_ANSWER)
        if not self.turns:
            self._faults.append(Fault.NO_CALL)

    def trace(self, segments: Sequence[Segment], fallback: Sequence[Hit] = (), usage: Usage | None = None) -> Trace:
        assert self.stop is not None
        trace = Trace(
            task=self.task.id,
            user=self.task.user,
            history=self.task.history,
            segments=tuple(segments),
            turns=tuple(self.turns),
            thought=self._thought,
            answer=self._lines,
            fallback=tuple(fallback),
            stop=self.stop,
            faults=tuple(self._faults),
            answer_size=self.config.answer_size,
            error=self.error,
            usage=usage,
        )
        return replace(trace, titles=tuple(self.catalog.titles[item] for item in trace.ranking))


def item_lines(catalog: Catalog, items: Sequence[ItemIdx]) -> str:
    """Items of the catalogue as every prompt and tool result shows them."""
    return protocol.item_lines([catalog.titles[i] for i in items], [catalog.categories[i] for i in items])


def constraint_of(
    catalog: Catalog, turns: Sequence[Turn], config: ExploreConfig, begun: str | None = None
) -> Constraint | None:
    """The constraint to titles of retrieved items, if `config.answer` asks for it."""
    if config.answer != "pool":
        return None
    pool = dict.fromkeys(hit.item for turn in turns for hit in turn.hits)
    titles = [catalog.titles[item] for item in pool]
    # A title that reads like the prompt's own words is a fault in any line.
    fit = [t for t in titles if protocol.parse_lines(protocol.answer_line(1, t), answer_size=1) == ((t,), ())]
    return Constraint(protocol.ANSWER, protocol.END_ANSWER, tuple(fit), config.answer_size, begun)


def resolve_lines(
    titles: Sequence[str],
    catalog: Catalog,
    pool: Sequence[ItemIdx],
    excluded: Collection[ItemIdx],
    include: ItemSet | None = None,
) -> tuple[Line, ...]:
    """Answer titles to items: inside the pool first, then among those included, then in the catalogue, never by
    substring.

    Of several retrieved items with one full title, its first line names the one that came back first, its second line
    the next, and so on: copying what the tool showed is no fault.
    """
    retrieved = frozenset(pool)
    taken: Counter[ItemIdx] = Counter()
    lines = []
    for title in titles:
        match = catalog.resolve(title, retrieved)
        if include is not None and match.item not in retrieved:
            match = catalog.resolve(title, include)
        item, fault = match.item, None
        if match.status is ResolutionStatus.AMBIGUOUS:
            namesakes = catalog.namesakes(title)
            item = min((item for item in pool if item in namesakes), key=taken.__getitem__, default=None)
        if item is None:
            fault = Fault.AMBIGUOUS_TITLE if match.status is ResolutionStatus.AMBIGUOUS else Fault.UNKNOWN_TITLE
        elif taken[item]:
            fault = Fault.REPEATED_TITLE
        elif item in excluded:
            fault = Fault.SEEN_TITLE
        elif include is not None and item not in include:
            fault = Fault.FILTERED_TITLE
        if item is not None:
            taken[item] += 1
        lines.append(Line(title, item, item in retrieved, fault))
    return tuple(lines)
