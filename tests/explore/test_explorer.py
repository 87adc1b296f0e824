"""The one loop: stops, order, batches, listeners, queries, and that no target leaks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprec.config import DEFAULT_PREFERENCE_WEIGHT, ExploreConfig
from deeprec.data.catalog import ItemIdx
from deeprec.data.dataset import Task
from deeprec.errors import DeepRecError
from deeprec.explore.explorer import Explorer, ForcedSegment, Listener
from deeprec.explore.policy import Chunk, Finish, PromptDefaults, Request
from deeprec.explore.protocol import END_PREFERENCE, PREFERENCE, STOPS, TAGS, Fault, answer_text, call_text
from deeprec.explore.settings import resolve_defaults
from deeprec.explore.trace import Author, Origin, Stop, Trace
from deeprec.policies.scripted import ScriptedPolicy, ScriptedWriter, list_titles
from deeprec.policies.text import TextPolicy, Writer
from toys import RecordingRetriever, toy_dataset

DATASET = toy_dataset()
CATALOG = DATASET.catalog
TASKS = DATASET.tasks("test")
CONFIG = ExploreConfig(answer_size=3, items_per_call=4, max_calls=2, history=10, segment_tokens=200, guidance="rules")
SENTINEL = "Zq9 Sentinel Xv7"


class Bytes:
    """One token a byte of UTF-8: tokens that do not depend on what was read before, and end inside characters."""

    def encode(self, text: str, *, first: bool = False) -> list[int]:
        return list(text.encode("utf-8", "surrogatepass"))

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode("utf-8", "replace")


class Dripping(TextPolicy):
    """Writes one token a step, and keeps everything that it received."""

    def __init__(self, writer: Writer) -> None:
        super().__init__(writer, Bytes())
        self.requests: list[Request] = []
        self.encoded: list[str] = []
        self.open: set[str] = set()
        self.drops: dict[str, list[Chunk]] = {}

    def encode(self, text: str, *, first: bool = False) -> list[int]:
        self.encoded.append(text)
        return super().encode(text, first=first)

    def submit(self, requests: Sequence[Request]) -> None:
        self.requests += requests
        self.open |= {request.key for request in requests}
        super().submit(requests)

    def step(self) -> list[Chunk]:
        for chunk in super().step():
            pieces = [Chunk(chunk.key, (token,), ()) for token in chunk.tokens] or [Chunk(chunk.key, (), ())]
            self.drops[chunk.key] = [*pieces[:-1], replace(pieces[-1], finish=chunk.finish)]
        dripped = [drops.pop(0) for drops in self.drops.values()]
        self.drops = {key: drops for key, drops in self.drops.items() if drops}
        return dripped

    def release(self, keys: Sequence[str]) -> None:
        super().release(keys)
        self.open -= set(keys)
        for key in keys:
            self.drops.pop(key, None)


class Failing(TextPolicy):
    """Fails as soon as it wrote what its writer gave."""

    def step(self) -> list[Chunk]:
        return [replace(chunk, finish=Finish.FAILED, error="the line is dead") for chunk in super().step()]


class Ending(TextPolicy):
    """Ends each segment as a server may."""

    def __init__(self, finish: Finish) -> None:
        super().__init__(after("Hm"), Bytes())
        self.finish = finish

    def step(self) -> list[Chunk]:
        return [replace(chunk, finish=self.finish) for chunk in super().step()]


def after(*segments: str) -> Writer:
    """Writes the n-th text after n item lists, and the last for ever."""
    return lambda conversation: segments[min(len(list_titles(conversation)), len(segments) - 1)]


def first_titles(conversation: str) -> str:
    """Answers with what came back, in order."""
    titles = dict.fromkeys(itertools.chain(*list_titles(conversation)))
    return answer_text("I know.", list(titles)[: CONFIG.answer_size])


def talk(calls: int) -> Writer:
    """Makes calls, then answers with what came back."""

    def writer(conversation: str) -> str:
        made = len(list_titles(conversation))
        return call_text(f"Thought {made}.", f"wish {made}") if made < calls else first_titles(conversation)

    return writer


def explore(
    writer: Writer | TextPolicy, tasks: Sequence[Task] = TASKS[:1], **options: Any
) -> tuple[list[Trace], RecordingRetriever]:
    retriever = RecordingRetriever(len(CATALOG))
    policy = writer if isinstance(writer, TextPolicy) else TextPolicy(writer, Bytes())
    config = CONFIG.model_copy(update={"context_tokens": 100_000, "segment_tokens": 10_000, **options})
    return Explorer(policy, retriever, CATALOG, config).run(tasks), retriever


CALL = call_text("Hm.", "war")
PROMPT_BYTES = len(explore("".join)[0][0].segments[0].tokens)
STOP_CASES: dict[str, tuple[Writer | TextPolicy, dict[str, Any], Stop, int, Origin]] = {
    "answered": (talk(1), {}, Stop.ANSWERED, 1, Origin.ANSWER),
    "answered after the last call": (talk(2), {}, Stop.ANSWERED, 2, Origin.ANSWER),
    "answered with inventions": (after(CALL, answer_text("", "abc")), {}, Stop.ANSWERED, 1, Origin.POOL),
    "one call too many": (talk(3), {}, Stop.CALL_LIMIT, 2, Origin.POOL),
    "malformed": (after(f"{PREFERENCE}{CALL}"), {}, Stop.MALFORMED, 0, Origin.RETRIEVER),
    "malformed later": (after(CALL, f"a{END_PREFERENCE}"), {}, Stop.MALFORMED, 1, Origin.POOL),
    "end of text": (after("I give up."), {}, Stop.END_OF_TEXT, 0, Origin.RETRIEVER),
    "nothing written": (after(""), {}, Stop.END_OF_TEXT, 0, Origin.RETRIEVER),
    "segment limit": (after("a" * 10), {"segment_tokens": 9}, Stop.SEGMENT_LIMIT, 0, Origin.RETRIEVER),
    "segment limit inside a tag": (after(CALL), {"segment_tokens": 30}, Stop.SEGMENT_LIMIT, 0, Origin.RETRIEVER),
    "prompt too long": (talk(1), {"context_tokens": PROMPT_BYTES}, Stop.CONTEXT_LIMIT, 0, Origin.RETRIEVER),
    "context full in the first segment": (
        after("a" * 50),
        {"context_tokens": PROMPT_BYTES + 9, "segment_tokens": 20},
        Stop.CONTEXT_LIMIT,
        0,
        Origin.RETRIEVER,
    ),
    "context full after the items": (
        talk(2),
        {"context_tokens": PROMPT_BYTES + len(call_text("Thought 0.", "wish 0")) + 50},
        Stop.CONTEXT_LIMIT,
        1,
        Origin.POOL,
    ),
    "filtered": (Ending(Finish.FILTERED), {}, Stop.FILTERED, 0, Origin.RETRIEVER),
    "ended without a reason": (Ending(Finish.UNEXPLAINED), {}, Stop.UNEXPLAINED, 0, Origin.RETRIEVER),
    "failed": (Failing(after("Hm"), Bytes()), {}, Stop.FAILED, 0, Origin.RETRIEVER),
}


@pytest.mark.parametrize("name", STOP_CASES)
def test_every_way_to_stop(name: str) -> None:
    writer, options, stop, calls, origin = STOP_CASES[name]
    (trace,), retriever = explore(writer, **options)
    assert trace.stop is stop
    assert len(trace.turns) == calls
    assert trace.well_formed == (origin is Origin.ANSWER)
    assert trace.origin is origin
    assert len(trace.ranking) == CONFIG.answer_size
    assert trace.titles == tuple(CATALOG.titles[item] for item in trace.ranking)
    assert not set(trace.ranking) & set(trace.history)
    assert (Fault.NO_CALL in trace.faults) == (calls == 0)
    assert (Fault.NO_ANSWER in trace.faults) == (stop is not Stop.ANSWERED)
    assert (trace.error == "the line is dead") == (stop is Stop.FAILED)
    # Without any call there is one question more, which has no preference.
    assert len(retriever.queries) == max(calls, 1)
    assert bool(trace.fallback) == (calls == 0)


def test_the_stop_cases_are_all_there_is() -> None:
    assert {case[2] for case in STOP_CASES.values()} == set(Stop)


def test_a_forced_prefix_stands_before_the_policys_text_and_ends_with_the_exploration() -> None:
    retriever = RecordingRetriever(len(CATALOG))
    explorer = Explorer(TextPolicy(talk(2), Bytes()), retriever, CATALOG, _roomy())
    calls = [ForcedSegment(call_text("Hm.", wish)) for wish in ("war", "peace", "love", "hate")]
    key = explorer.start(TASKS[0], forced_prefix=calls[:1])
    assert [turn.preference for turn in explorer.turns(key)] == ["war"]
    (trace,) = [trace for _ in range(2) for _, trace in explorer.step()]
    assert [turn.preference for turn in trace.turns] == ["war", "wish 1"]
    assert [segment.author for segment in trace.segments].count(Author.POLICY) == 2
    explorer.start(TASKS[0], forced_prefix=calls)
    ((_, trace),) = explorer.step()
    assert trace.stop is Stop.CALL_LIMIT
    assert [turn.preference for turn in trace.turns] == ["war", "peace"]
    assert trace.policy_tokens == 0


@pytest.mark.parametrize("configured", [None, 0.4])
def test_only_the_calls_of_people_are_requests(configured: float | None) -> None:
    """Forced ones that no policy wrote, and all of a policy that is a person."""
    retriever, config = RecordingRetriever(len(CATALOG)), _roomy().model_copy(update={"preference_weight": configured})
    retriever.preference_weight = 0.1
    policy = TextPolicy(talk(2), Bytes())
    explorer = Explorer(policy, retriever, CATALOG, config.model_copy(update={"max_calls": 4}))
    explorer.start(TASKS[0], forced_prefix=[ForcedSegment(CALL), ForcedSegment(CALL, by_policy=True)])
    explorer.start(TASKS[1])
    assert len([explorer.step() for _ in range(3)][-1]) == 1
    guess, request = (False, configured or 0.1), (True, configured or DEFAULT_PREFERENCE_WEIGHT)
    assert [(query.requested, query.preference_weight) for query in retriever.queries] == [request, *[guess] * 3]
    policy.by_person = True
    explorer.run(TASKS[:1])
    assert [(query.requested, query.preference_weight) for query in retriever.queries[4:]] == [request] * 2


class CatalogRetriever(RecordingRetriever):
    """One that has a catalogue."""

    catalog = CATALOG


@pytest.mark.parametrize("k", [1, 4, 10])
def test_recommend_takes_titles_ids_and_positions(k: int) -> None:
    explorer = Explorer(ScriptedPolicy(), CatalogRetriever(len(CATALOG)))
    reported: list[str] = []
    trace = explorer.recommend([CATALOG.titles[7], CATALOG.ids[8], ItemIdx(9)], k, listener=into(reported))
    assert trace.history == (7, 8, 9)
    assert trace.well_formed
    assert len(trace.titles) == k
    assert trace.titles == tuple(CATALOG.titles[item] for item in trace.ranking)
    assert "".join(reported) == "".join(segment.text for segment in trace.segments)
    assert explorer.recommend([7, 8, 9], k).to_json() == trace.to_json()
    assert len(explorer.recommend([CATALOG.titles[0]]).titles) == 10


@pytest.mark.parametrize(
    ("history", "k", "said"),
    [
        (["Film 1 (1971)", "No Such Film"], 10, "no item with the title or id 'No Such Film'"),
        ([len(CATALOG)], 10, "no item at position 40: the catalogue has 0 to 39"),
        ([0], 0, "k=0"),
    ],
)
def test_what_recommend_does_not_know_is_said(history: list[str | int], k: int, said: str) -> None:
    with pytest.raises(DeepRecError, match=said):
        Explorer(ScriptedPolicy(), CatalogRetriever(len(CATALOG))).recommend(history, k)


def test_recommend_excludes_the_history_as_it_is_said_else_as_the_retriever_has_it() -> None:
    retriever = RecordingRetriever(len(CATALOG))
    explorer = Explorer(ScriptedPolicy(3), retriever, CATALOG, CONFIG)
    for own, said, excluded in ((True, None, True), (False, None, False), (True, False, False), (False, True, True)):
        retriever.exclude_history = own
        trace = explorer.recommend([0, 1], k=3, exclude_history=said)
        assert ({0, 1} <= set(trace.ranking)) != excluded
        assert trace.well_formed
        assert ("none from the history" in trace.segments[0].text) == excluded


def test_the_fallback_may_be_of_the_history_where_the_task_allows_it() -> None:
    explorer = Explorer(TextPolicy(lambda _: "Nothing."), RecordingRetriever(len(CATALOG)), CATALOG, CONFIG)
    task = replace(TASKS[0], history=(ItemIdx(0), ItemIdx(1)))
    excluded, open_ = explorer.run([task, replace(task, exclude_history=False)])
    assert (excluded.ranking, open_.ranking) == ((2, 3, 4), (0, 1, 2))


def test_an_explorer_needs_a_catalogue() -> None:
    with pytest.raises(DeepRecError, match="RecordingRetriever has no catalogue"):
        Explorer(ScriptedPolicy(), RecordingRetriever(len(CATALOG)))
    assert Explorer(ScriptedPolicy(), CatalogRetriever(len(CATALOG))).catalog is CATALOG


def test_the_settings_have_no_none() -> None:
    explorer = Explorer(ScriptedPolicy(), CatalogRetriever(len(CATALOG)))
    assert None not in explorer.config.model_dump().values()
    assert resolve_defaults(explorer.config, PromptDefaults("task", 0.5), explorer.retriever) == explorer.config


def test_the_policy_never_writes_beyond_the_limits() -> None:
    (free,), _ = explore(talk(2))
    # Room for all but the end of the second call.
    room = sum(len(segment.tokens) for segment in free.segments[:4]) - 20
    policy = Dripping(talk(2))
    (trace,), _ = explore(policy, context_tokens=room, segment_tokens=65)
    assert [asked.max_new_tokens for asked in policy.requests] == [65, len(free.segments[3].tokens) - 20]
    assert all(asked.stops == STOPS for asked in policy.requests)
    assert len(trace.tokens()[0]) == room
    assert trace.stop is Stop.CONTEXT_LIMIT
    policy = Dripping(talk(2))
    explore(policy, context_tokens=PROMPT_BYTES)
    assert policy.requests == []


def test_what_failed_keeps_what_was_written() -> None:
    (trace,), _ = explore(Failing(after("Hm"), Bytes()))
    assert [segment.text for segment in trace.segments][1:] == ["Hm"]


def test_the_context_is_the_segments_and_they_are_the_conversation() -> None:
    policy = Dripping(lambda conversation: f"\n\n  {talk(2)(conversation)}")
    (trace,), _ = explore(policy)
    authors = [segment.author for segment in trace.segments]
    assert authors == [Author.ENVIRONMENT, Author.POLICY] * 3
    for position, asked in enumerate(policy.requests):
        before = trace.segments[: 2 * position + 1]
        assert list(asked.context) == [token for segment in before for token in segment.tokens]
    for segment in trace.segments:
        assert policy.decode(segment.tokens) == segment.text
    text = "".join(segment.text for segment in trace.segments)
    assert list_titles(text) == [[CATALOG.titles[hit.item] for hit in turn.hits] for turn in trace.turns]


def test_text_after_the_stop_is_not_read() -> None:
    (trace,), _ = explore(after(f"{CALL}{answer_text('', ['x'])}", answer_text("Well.", "abc") + "more"))
    assert [turn.preference for turn in trace.turns] == ["war"]
    assert trace.segments[1].text == CALL
    assert trace.segments[3].text == answer_text("Well.", "abc")


def test_history_and_shown_items_are_excluded_and_shown_once() -> None:
    traces, retriever = explore(talk(4), TASKS[:5], max_calls=4)
    for trace in traces:
        assert len(trace.turns) == 4
        shown = [hit.item for turn in trace.turns for hit in turn.hits]
        assert len(set(shown)) == len(shown) == 16
        assert not set(shown) & set(trace.history)
        asked = [query for query in retriever.queries if query.history == trace.history]
        assert [query.preference for query in asked] == [f"wish {number}" for number in range(4)]
        for number, query in enumerate(asked):
            assert set(query.exclude) == {*trace.history, *shown[: 4 * number]}


@pytest.mark.parametrize(("calls", "brought"), [(1, 3), (2, 2), (3, 1)])
def test_all_calls_together_can_fill_the_answer(calls: int, brought: int) -> None:
    (trace,), _ = explore(talk(calls), max_calls=calls, items_per_call=1)
    assert [len(turn.hits) for turn in trace.turns] == [brought] * calls
    assert f"answers with up to {brought} items" in trace.segments[0].text


def test_stream_takes_limits_for_each_task() -> None:
    explorer = Explorer(TextPolicy(talk(3)), RecordingRetriever(len(CATALOG)), CATALOG, CONFIG)
    limits = {task.id: CONFIG.model_copy(update={"max_calls": 1 + number}) for number, task in enumerate(TASKS[:3])}
    found = dict(explorer.stream(TASKS[:3], config_of=lambda task: limits[task.id]))
    # The third call of the second is one too many; it ends there.
    assert [len(found[position].turns) for position in range(3)] == [1, 2, 3]
    assert [found[position].stop for position in range(3)] == [Stop.CALL_LIMIT, Stop.CALL_LIMIT, Stop.ANSWERED]


def test_without_a_call_the_retriever_is_asked_without_preference() -> None:
    (trace,), retriever = explore(after("I give up."))
    (query,) = retriever.queries
    assert (query.history, query.preference, set(query.exclude)) == (trace.history, "", set(trace.history))
    assert len(trace.fallback) == CONFIG.answer_size


def test_calls_of_one_step_are_answered_together() -> None:
    _, retriever = explore(talk(2), TASKS[:6], batch_size=6)
    assert [len(batch) for batch in retriever.batches] == [6, 6]
    _, retriever = explore(talk(2), TASKS[:6], batch_size=4)
    assert sum(len(batch) for batch in retriever.batches) == 12


def various(conversation: str) -> str:
    """Users differ: in length, in calls, and in how they end."""
    history = conversation.rpartition("\nUser:\n")[2].partition("\nAssistant:\n")[0]
    kind = sum(map(ord, history)) % 5
    made = len(list_titles(conversation))
    if kind == 4 or made < kind:
        return call_text("é日 " * (len(history) % 7), f"{'wish ' * kind}{made}")
    return first_titles(conversation) if kind != 1 else "I give up."


def test_traces_do_not_depend_on_the_batch_and_keep_the_order() -> None:
    tasks = [*TASKS[4:16], TASKS[4], TASKS[7], TASKS[4]]
    alone, _ = explore(Dripping(various), tasks, batch_size=1, max_calls=3)
    assert [trace.task for trace in alone] == [task.id for task in tasks]
    assert len({trace.stop for trace in alone}) >= 3
    for size in (2, 16):
        together, _ = explore(Dripping(various), tasks, batch_size=size, max_calls=3)
        assert together == alone


def test_the_stream_gives_what_is_ready() -> None:
    explorer = Explorer(Dripping(various), RecordingRetriever(len(CATALOG)), CATALOG, _roomy())
    got = list(explorer.stream(iter(TASKS[:9])))
    assert sorted(order for order, _ in got) == list(range(9))
    assert [order for order, _ in got] != list(range(9))
    assert all(trace.task == TASKS[order].id for order, trace in got)


def test_repeats_of_a_task_have_seeds_of_their_own() -> None:
    def seeds(tasks: Sequence[Task], **options: Any) -> list[int]:
        policy = Dripping(after("I give up."))
        explore(policy, tasks, **options)
        return [asked.seed for asked in policy.requests]

    a, b = TASKS[0], TASKS[1]
    repeated = seeds([a, a, b, a], batch_size=1)
    assert len(set(repeated)) == 4
    assert seeds([a, a, b, a], batch_size=16) == repeated
    assert seeds([a, a]) == repeated[:2]
    assert seeds([b]) == [repeated[2]]
    assert seeds([a], seed=1) != repeated[:1]


def test_segments_of_an_exploration_have_seeds_of_their_own() -> None:
    policy = Dripping(talk(2))
    explore(policy)
    assert len({asked.seed for asked in policy.requests}) == 3


def test_sampling_options_reach_the_policy() -> None:
    policy = Dripping(after("I give up."))
    retriever = RecordingRetriever(len(CATALOG))
    settings = resolve_defaults(_roomy(temperature=0.7), None, retriever, CATALOG).model_copy(update={"top_p": 0.9})
    Explorer(policy, retriever, CATALOG, settings).run(TASKS[:1])
    assert [(asked.temperature, asked.top_p) for asked in policy.requests] == [(0.7, 0.9)]


def into(reported: list[str]) -> Listener:
    return lambda task, author, text: reported.append(text)


def _roomy(**options: Any) -> ExploreConfig:
    return CONFIG.model_copy(update={"context_tokens": 100_000, "segment_tokens": 10_000, **options})


def test_the_policy_keeps_nothing_in_the_end() -> None:
    policy = Dripping(various)
    explore(policy, TASKS[:9], batch_size=4)
    assert policy.open == set()
    assert explore(policy, [])[0] == []


def test_closing_the_stream_releases_the_policy() -> None:
    policy = Dripping(various)
    explorer = Explorer(policy, RecordingRetriever(len(CATALOG)), CATALOG, _roomy(batch_size=8))
    stream = explorer.stream(TASKS[:20])
    assert isinstance(stream, Iterator)
    next(stream)
    assert policy.open
    stream.close()  # type: ignore[attr-defined]
    assert policy.open == set()
    assert policy.step() == []


def test_a_failing_retriever_releases_the_policy() -> None:
    class Broken(RecordingRetriever):
        def retrieve(self, *_: Any) -> list[list[Any]]:
            raise RuntimeError("no index")

    policy = Dripping(talk(1))
    with pytest.raises(RuntimeError, match="no index"):
        Explorer(policy, Broken(len(CATALOG)), CATALOG, _roomy()).run(TASKS[:3])
    assert policy.open == set()


@pytest.mark.parametrize("kind", [Dripping, TextPolicy])
def test_a_listener_gets_the_segments_as_they_are_written(kind: Callable[[Writer], TextPolicy]) -> None:
    def writer(conversation: str) -> str:
        made = len(list_titles(conversation))
        return call_text(f"日本 🎬 � é {made} �", "wäre 🎬") if made < 2 else first_titles(conversation) + "�"

    reported: dict[str, list[tuple[Author, str]]] = {}

    def listener(task: Task, author: Author, text: str) -> None:
        assert text
        reported.setdefault(task.id, []).append((author, text))

    policy = kind(writer)
    config = _roomy(batch_size=2)
    traces = Explorer(policy, RecordingRetriever(len(CATALOG)), CATALOG, config).run(TASKS[:3], listener)
    for trace in traces:
        runs = [
            (author, "".join(text for _, text in run))
            for author, run in itertools.groupby(reported[trace.task], key=lambda event: event[0])
        ]
        assert runs == [(segment.author, segment.text) for segment in trace.segments]
        pieces = sum(author is Author.POLICY for author, _ in reported[trace.task])
        assert pieces == 3 if kind is TextPolicy else pieces > 100


def test_a_listener_gets_an_unfinished_character_at_the_end() -> None:
    reported: list[str] = []
    policy = Dripping(after("ab🎬"))
    explorer = Explorer(policy, RecordingRetriever(len(CATALOG)), CATALOG, _roomy(segment_tokens=4))
    (trace,) = explorer.run(TASKS[:1], into(reported))
    assert "".join(reported) == "".join(segment.text for segment in trace.segments)
    assert trace.segments[-1].text == "ab�"


def test_traces_survive_json() -> None:
    traces, _ = explore(various, TASKS[:9], max_calls=3)
    for trace in traces:
        assert Trace.from_json(json.loads(json.dumps(trace.to_json()))) == trace


@pytest.mark.parametrize(("title", "limit"), [("A" * 20, 220), ("A" * 80, 60 + 10 * (80 // 2 + 4)), ("語" * 80, 1300)])
def test_a_segment_has_room_for_an_answer_of_long_titles(title: str, limit: int) -> None:
    """Unless the configuration says what room it has."""
    titles = tuple(f"{title} {n:02}" if n % 10 == 0 else f"T {n:02}" for n in range(len(CATALOG)))
    catalog = replace(CATALOG, titles=titles)
    for config, expected in ((_roomy(segment_tokens=None, answer_size=10), limit), (_roomy(segment_tokens=17), 17)):
        policy = Dripping(talk(1))
        Explorer(policy, RecordingRetriever(len(catalog)), catalog, config).run(TASKS[:1])
        assert {asked.max_new_tokens for asked in policy.requests} <= set(range(expected, expected + 15))


def test_time_is_kept_by_activity() -> None:
    explorer = Explorer(TextPolicy(talk(2)), RecordingRetriever(len(CATALOG)), CATALOG, _roomy())
    assert explorer.seconds == {"retrieve": 0, "parse": 0}
    explorer.run(TASKS[:2])
    assert all(value > 0 for value in explorer.seconds.values())


def _asked(split: Any) -> list[tuple[Task, ItemIdx]]:
    if split == "train":
        tasks, followed = DATASET.past_tasks(1)
        return [(task, followed[task.id][0]) for task in tasks]
    return [(task, DATASET.targets(split)[task.id]) for task in DATASET.tasks(split)]


@pytest.mark.parametrize("writer", [ScriptedWriter(answer_size=3), talk(3), various, after("I give up.")])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_target_never_leaks(writer: Writer, split: Any) -> None:
    """The target's title is a sentinel that nothing but the retriever could show, and it never returns the target."""
    for task, target in _asked(split)[:6]:
        # Later items of the user may be shown, as to anyone, but the environment must not know of them either.
        titles = list(CATALOG.titles)
        titles[target] = SENTINEL
        catalog = replace(CATALOG, titles=tuple(titles))
        retriever = RecordingRetriever(len(catalog), never=[target])
        policy = Dripping(writer)
        reported: list[str] = []
        config = _roomy(history=100, guidance="example")
        (trace,) = Explorer(policy, retriever, catalog, config).run([task], into(reported))
        received = [policy.decode(asked.context) for asked in policy.requests]
        everything = [*received, *policy.encoded, *reported, *(asked.key for asked in policy.requests)]
        everything += [query.preference for query in retriever.queries]
        assert retriever.queries
        assert not any(SENTINEL in text for text in everything)
        for query in retriever.queries:
            assert target not in query.history
            assert target not in query.exclude
        assert SENTINEL not in json.dumps(trace.to_json())
        assert target not in trace.ranking
        assert SENTINEL not in trace.titles


def test_the_sentinel_would_be_seen() -> None:
    """The leak test can fail: where the retriever returns the target, the policy reads its title."""
    task = TASKS[0]
    target = DATASET.targets("test")[task.id]
    titles = list(CATALOG.titles)
    titles[target] = SENTINEL
    policy = Dripping(talk(1))
    everything = RecordingRetriever(len(CATALOG))
    config = _roomy(items_per_call=len(CATALOG))
    Explorer(policy, everything, replace(CATALOG, titles=tuple(titles)), config).run([task])
    assert any(SENTINEL in policy.decode(asked.context) for asked in policy.requests)


FRAGMENTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *TAGS,
                *(f"{number}. {CATALOG.titles[number]}\n" for number in range(0, 40, 7)),
                CALL,
                answer_text("Well.", CATALOG.titles[:3]),
                answer_text("Well.", CATALOG.titles[20:23]),
                f"<|begin_of_item_list|>\n1. {CATALOG.titles[39]}\n<|end_of_item_list|>\n",
                "\nUser:\n",
                "\n\nAssistant:\n",
                "  - categories: War\n",
            ]
        ),
        st.text(max_size=8),
    ),
    max_size=10,
).map("".join)


@given(st.lists(FRAGMENTS, min_size=1, max_size=5), st.sampled_from([20, 200, 10_000]), st.booleans())
@settings(max_examples=300)
def test_whatever_the_policy_writes_ends_in_a_trace(texts: list[str], limit: int, drip: bool) -> None:
    script = iter(texts)

    def writer(conversation: str) -> str:
        return next(script, "")

    policy = Dripping(writer) if drip else TextPolicy(writer)
    retriever = RecordingRetriever(len(CATALOG), never=range(35, 40))
    config = _roomy(segment_tokens=limit)
    (trace,) = Explorer(policy, retriever, CATALOG, config).run(TASKS[:1])
    returned = [item for hits in retriever.answers for item in (hit.item for hit in hits)]
    assert set(trace.pool) <= set(returned)
    assert not set(trace.pool) & set(range(35, 40))
    assert [hit.item for turn in trace.turns for hit in turn.hits] == (returned if trace.turns else [])
    assert all(line.retrieved == (line.item in trace.pool) for line in trace.answer)
    assert len(set(trace.ranking)) == len(trace.ranking) == CONFIG.answer_size
    assert not set(trace.ranking) & set(trace.history)
    assert trace.well_formed == (trace.stop is Stop.ANSWERED and not trace.faults)
    assert not trace.well_formed or (trace.turns and len(trace.raw_ranking) == CONFIG.answer_size)
    assert Trace.from_json(json.loads(json.dumps(trace.to_json()))) == trace
