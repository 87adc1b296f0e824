"""One user's exploration as a state machine: what the policy wrote goes in, what it reads next comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from deeprec.config import ExploreConfig, guidance_of, items_of, preference_weight_of
from deeprec.data.catalog import Catalog, ItemIdx, ResolutionStatus
from deeprec.data.dataset import Task
from deeprec.explore import protocol
from deeprec.explore.policy import Constraint, Finish, Usage
from deeprec.explore.protocol import Answer, Call, Fault
from deeprec.explore.trace import Line, Segment, Stop, Trace, Turn
from deeprec.retrieval.retriever import Hit, Query

_STOPS = {
    Finish.STOP: Stop.MALFORMED,
    Finish.END: Stop.END_OF_TEXT,
    Finish.LENGTH: Stop.SEGMENT_LIMIT,
    Finish.NO_ROOM: Stop.CONTEXT_LIMIT,
}


_SEGMENT = 220
_THOUGHT = 60
_TOKEN = 2
"""Bytes of a title to a token: words take four or more, but digits and marks one each, which many titles hold."""


def segment_tokens_of(explore: ExploreConfig, catalog: Catalog) -> int:
    """New tokens between two tool results; if nobody set a limit, room for a thought and an answer of long titles."""
    if explore.segment_tokens is not None:
        return explore.segment_tokens
    line = 4 + catalog.long_title // _TOKEN  # a number, a point, an end of line
    return max(_SEGMENT, _THOUGHT + explore.answer_size * line)


class Environment:
    """Everything that happens around the policy, without tokens, models or loops.

    Call `receive` with each segment of the policy. It returns a query when the policy called the tool; the hits go
    to `answer_call`, which returns the text to append. It returns None when the exploration is over; then `stop`
    is set and `trace` gives the record.
    """

    def __init__(self, task: Task, catalog: Catalog, config: ExploreConfig) -> None:
        self.task = task
        self.catalog = catalog
        self.config = config
        self.turns: list[Turn] = []
        self.stop: Stop | None = None
        self.error: str | None = None
        self._faults: list[Fault] = []
        self._call: Call | None = None
        self._thought = ""
        self._lines: tuple[Line, ...] = ()
        self._shown: set[ItemIdx] = set(task.history)

    def prompt(self) -> str:
        return protocol.prompt(
            item_lines(self.catalog, self.task.history[-self.config.history :]),
            answer_size=self.config.answer_size,
            items_per_call=items_of(self.config),
            max_calls=self.config.max_calls,
            guidance=guidance_of(self.config),
        )

    def receive(self, text: str, finish: Finish) -> Query | None:
        """Take in a segment of the policy; see the class."""
        parsed = protocol.parse(text, answer_size=self.config.answer_size, after_items=bool(self.turns))
        self._faults += parsed.faults
        if isinstance(parsed, Call):
            if len(self.turns) < self.config.max_calls:
                self._call = parsed
                return Query(
                    self.task.history, parsed.preference, frozenset(self._shown), preference_weight_of(self.config)
                )
            self._end(Stop.CALL_LIMIT)
        elif isinstance(parsed, Answer):
            self._lines = self._resolve(parsed.titles)
            self._faults += [line.fault for line in self._lines if line.fault is not None]
            if not self.turns:
                self._faults.append(Fault.NO_CALL)
            self._thought = parsed.thought
            self.stop = Stop.ANSWERED
        else:
            self._thought = parsed.thought
            self._end(_STOPS[finish])
        return None

    def answer_call(self, hits: Sequence[Hit]) -> str:
        """The text that the policy reads after its call."""
        assert self._call is not None
        self.turns.append(Turn(self._call.thought, self._call.preference, tuple(hits)))
        self._call = None
        items = [hit.item for hit in hits]
        self._shown.update(items)
        last = len(self.turns) == self.config.max_calls
        return protocol.tool_result(item_lines(self.catalog, items), last=last)

    def constraint(self) -> Constraint | None:
        """What the next segment is held to, where answers are held to what was retrieved."""
        return constraint_of(self.catalog, self.turns, self.config)

    def abort(self, stop: Stop, error: str | None = None) -> None:
        """End from outside: no room left in the context, or the policy failed."""
        self.error = error
        self._end(stop)

    def trace(self, segments: Sequence[Segment], fallback: Sequence[Hit] = (), usage: Usage | None = None) -> Trace:
        assert self.stop is not None
        return Trace(
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

    def _end(self, stop: Stop) -> None:
        self.stop = stop
        if Fault.NO_ANSWER not in self._faults:
            self._faults.append(Fault.NO_ANSWER)
        if not self.turns:
            self._faults.append(Fault.NO_CALL)

    def _resolve(self, titles: Sequence[str]) -> tuple[Line, ...]:
        return resolve_lines(titles, self.catalog, [h.item for t in self.turns for h in t.hits], self.task.history)


def item_lines(catalog: Catalog, items: Sequence[ItemIdx]) -> str:
    """Items of the catalogue as every prompt and tool result shows them."""
    return protocol.item_lines([catalog.titles[i] for i in items], [catalog.categories[i] for i in items])


def constraint_of(
    catalog: Catalog, turns: Sequence[Turn], config: ExploreConfig, begun: str | None = None
) -> Constraint | None:
    """What an answer is held to, where answers are held to what was retrieved."""
    if config.answer != "pool":
        return None
    pool = dict.fromkeys(hit.item for turn in turns for hit in turn.hits)
    titles = [catalog.titles[item] for item in pool]
    # A title that would be read as the prompt's own words is a fault wherever it stands.
    fit = [t for t in titles if protocol.parse_lines(protocol.answer_line(1, t), answer_size=1) == ((t,), ())]
    return Constraint(protocol.ANSWER, protocol.END_ANSWER, tuple(fit), config.answer_size, begun)


def resolve_lines(
    titles: Sequence[str], catalog: Catalog, pool: Sequence[ItemIdx], history: Sequence[ItemIdx]
) -> tuple[Line, ...]:
    """Answer titles to items, once and for all: inside the pool first, then in the catalogue, never by substring.

    Where several retrieved items have the title in full, its first line names the one that came back first, and so on:
    to copy what the tool showed is no fault.
    """
    retrieved, seen = frozenset(pool), frozenset(history)
    taken: Counter[ItemIdx] = Counter()
    lines = []
    for title in titles:
        match = catalog.resolve(title, retrieved)
        item, fault = match.item, None
        if match.status is ResolutionStatus.AMBIGUOUS:
            namesakes = catalog.namesakes(title)
            shown = [item for item in pool if item in namesakes]
            item = min(shown, key=taken.__getitem__, default=None)
        if item is None:
            fault = Fault.AMBIGUOUS_TITLE if match.status is ResolutionStatus.AMBIGUOUS else Fault.UNKNOWN_TITLE
        else:
            taken[item] += 1
            if taken[item] > 1:
                fault = Fault.REPEATED_TITLE
            elif item in seen:
                fault = Fault.SEEN_TITLE
        lines.append(Line(title, item, item in retrieved, fault))
    return tuple(lines)
