"""One exploration without policy or loop: titles become items, faults are kept, the record is complete."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest
from pydantic import ValidationError

from deeprec.config import ExploreConfig
from deeprec.data.catalog import Catalog, ItemIdx, UserId, build_catalog
from deeprec.data.dataset import Task
from deeprec.explore.environment import Environment, constraint_of, resolve_lines
from deeprec.explore.policy import Constraint, Finish
from deeprec.explore.protocol import (
    ANSWER,
    END_ANSWER,
    END_PREFERENCE,
    NO_CALLS,
    PREFERENCE,
    Fault,
    answer_text,
    call_text,
)
from deeprec.explore.settings import resolve_defaults
from deeprec.explore.trace import Author, Line, Origin, Segment, Stop, Trace, Turn
from deeprec.retrieval.retriever import Hit, Query
from toys import RecordingRetriever

# 0 Heat (1995), 1 Alien (1979), 2 Twin (1990), 3 Twin (1991), 4 Same (2000), 5 Same (2000), 6 Halo (1996), 7 Halo 2
TITLES = ["Heat", "Alien", "Twin", "Twin", "Same", "Same", "Halo", "Halo 2"]
YEARS = [1995, 1979, 1990, 1991, 2000, 2000, 1996, None]
CONFIG = ExploreConfig(answer_size=2, items_per_call=3, max_calls=2, history=2)


def items(*numbers: int) -> tuple[ItemIdx, ...]:
    return tuple(map(ItemIdx, numbers))


def hits(*numbers: int) -> tuple[Hit, ...]:
    return tuple(Hit(item, -float(position)) for position, item in enumerate(items(*numbers)))


TASK = Task("test:u", UserId("u"), items(0))


@pytest.fixture
def catalog() -> Catalog:
    n = len(TITLES)
    ids = [f"i{position}" for position in range(n)]
    return build_catalog(ids, TITLES, YEARS, [""] * n, [("Drama",)] * n, [""] * n, 80)


def environment(catalog: Catalog, task: Task = TASK, **options: Any) -> Environment:
    config = CONFIG.model_copy(update=options)
    return Environment(task, catalog, resolve_defaults(config, None, RecordingRetriever(len(catalog)), catalog))


def trace_of(catalog: Catalog, titles: list[str], pool: tuple[int, ...] | None = None, thought: str = "Well.") -> Trace:
    """The trace of one call that gave `pool`, and an answer."""
    env = environment(catalog)
    if pool is not None:
        assert env.receive(call_text("Hm.", "war"), Finish.STOP) is not None
        env.answer_call(hits(*pool))
    assert env.receive(answer_text(thought, titles), Finish.STOP) is None
    return env.trace(())


RESOLUTION: dict[str, tuple[str, tuple[int, ...], int | None, bool, Fault | None]] = {
    "full title": ("Heat (1995)", (0, 1), 0, True, None),
    "other case, quotes and space": (' "hEAT  (1995)". ', (0, 1), 0, True, None),
    "without the year": ("Alien", (0, 1), 1, True, None),
    "not retrieved": ("Alien (1979)", (2,), 1, False, None),
    "the pool decides first": ("Twin", (3,), 3, True, None),
    "ambiguous in the pool": ("Twin", (2, 3), None, False, Fault.AMBIGUOUS_TITLE),
    "ambiguous in the catalogue": ("Twin", (0,), None, False, Fault.AMBIGUOUS_TITLE),
    "equal titles, one retrieved": ("Same (2000)", (5,), 5, True, None),
    "equal titles, both retrieved": ("Same (2000)", (5, 4), 5, True, None),
    "equal titles, none retrieved": ("Same (2000)", (), None, False, Fault.AMBIGUOUS_TITLE),
    "no match by prefix": ("Hal", (6, 7), None, False, Fault.UNKNOWN_TITLE),
    "a longer title is another": ("Halo 2", (6,), 7, False, None),
    "a shorter title is another": ("Halo (1996)", (7,), 6, False, None),
    "not by substring": ("Heat (1995) and more", (0,), None, False, Fault.UNKNOWN_TITLE),
    "a wrong year": ("Heat (1996)", (0,), None, False, Fault.UNKNOWN_TITLE),
    "invented": ("No Such Film (2001)", (0,), None, False, Fault.UNKNOWN_TITLE),
}


@pytest.mark.parametrize("name", RESOLUTION)
def test_titles_are_resolved_in_the_pool_first(catalog: Catalog, name: str) -> None:
    title, pool, item, retrieved, fault = RESOLUTION[name]
    expected = Line(title, None if item is None else ItemIdx(item), retrieved, fault)
    assert resolve_lines([title], catalog, items(*pool), ()) == (expected,)


def test_repeated_and_seen_titles_are_faults_of_their_lines(catalog: Catalog) -> None:
    titles = ["Alien (1979)", "alien", "Heat", "Heat", "Nope", "Nope", "Halo"]
    lines = resolve_lines(titles, catalog, items(1, 6), items(0))
    assert [(line.item, line.retrieved, line.fault) for line in lines] == [
        (1, True, None),
        (1, True, Fault.REPEATED_TITLE),
        (0, False, Fault.SEEN_TITLE),
        (0, False, Fault.REPEATED_TITLE),
        (None, False, Fault.UNKNOWN_TITLE),
        (None, False, Fault.UNKNOWN_TITLE),
        (6, True, None),
    ]
    assert [line.text for line in lines] == titles


def test_a_title_of_several_retrieved_items_names_one_after_another(catalog: Catalog) -> None:
    lines = resolve_lines(["Same (2000)", "same (2000)", "Same (2000)"], catalog, items(5, 1, 4), ())
    assert [(line.item, line.fault) for line in lines] == [(5, None), (4, None), (5, Fault.REPEATED_TITLE)]


def test_a_faultless_exploration(catalog: Catalog) -> None:
    env = environment(catalog)
    query = env.receive(call_text("Hm.", "war; drama"), Finish.STOP)
    assert query == Query(items(0), "war; drama", frozenset(items(0)))
    shown = env.answer_call(hits(1, 6))
    assert "1. Alien (1979)\n  - categories: Drama\n2. Halo (1996)\n" in shown
    assert env.receive(call_text("More.", "space"), Finish.STOP) == Query(items(0), "space", frozenset(items(0, 1, 6)))
    env.answer_call(hits(7))
    assert env.receive(answer_text("Well.", ["Halo 2", "Alien"]), Finish.STOP) is None
    assert env.stop is Stop.ANSWERED
    trace = env.trace(())
    assert trace.well_formed
    assert trace.raw_ranking == items(7, 1)
    assert trace.pool == items(1, 6, 7)
    assert (trace.ranking, trace.titles) == (items(7, 1), ("Halo 2", "Alien (1979)"))
    assert trace.thought == "Well."
    assert trace.turns == (Turn("Hm.", "war; drama", hits(1, 6)), Turn("More.", "space", hits(7)))
    assert (trace.task, trace.user, trace.history) == (TASK.id, TASK.user, TASK.history)


@pytest.mark.parametrize("max_calls", [1, 3])
def test_the_last_result_says_that_it_is_the_last(catalog: Catalog, max_calls: int) -> None:
    env = environment(catalog, max_calls=max_calls)
    shown = []
    for number in range(max_calls):
        env.receive(call_text("Hm.", f"war {number}"), Finish.STOP)
        shown.append(env.answer_call(hits(number + 1)))
    assert [NO_CALLS in text for text in shown] == [False] * (max_calls - 1) + [True]


def test_queries_have_the_configured_preference_weight(catalog: Catalog) -> None:
    env = environment(catalog, preference_weight=0.25)
    for preference in ("war", "space"):
        query = env.receive(call_text("Hm.", preference), Finish.STOP)
        assert query is not None
        assert (query.preference, query.preference_weight) == (preference, 0.25)
        env.answer_call(hits(1))


@pytest.mark.parametrize("preference_weight", [-0.1, 1.1])
def test_a_preference_weight_outside_0_and_1_is_refused(preference_weight: float) -> None:
    with pytest.raises(ValidationError, match="preference_weight"):
        ExploreConfig(preference_weight=preference_weight)


@pytest.mark.parametrize(
    ("titles", "faults"),
    [
        (["Alien", "Halo"], []),
        (["Alien", "Alien"], [Fault.REPEATED_TITLE]),
        (["Heat", "Alien"], [Fault.SEEN_TITLE]),
        (["Twin", "Alien"], [Fault.AMBIGUOUS_TITLE]),
        (["X", "Y"], [Fault.UNKNOWN_TITLE, Fault.UNKNOWN_TITLE]),
        (["Alien"], [Fault.LINES]),
        (["Alien", "Halo", "Alien"], [Fault.LINES, Fault.REPEATED_TITLE]),
    ],
)
def test_faults_of_lines_are_faults_of_the_trace(catalog: Catalog, titles: list[str], faults: list[Fault]) -> None:
    trace = trace_of(catalog, titles, pool=(1, 6))
    assert list(trace.faults) == faults
    assert trace.well_formed == (not faults)
    assert trace.stop is Stop.ANSWERED


def test_an_answer_without_a_call_is_a_fault_but_an_answer(catalog: Catalog) -> None:
    trace = trace_of(catalog, ["Alien", "Halo"])
    assert trace.faults == (Fault.NO_CALL,)
    assert (trace.ranking, trace.origin) == (items(1, 6), Origin.ANSWER)
    assert not trace.pool


def test_an_answer_right_after_a_list_is_a_fault(catalog: Catalog) -> None:
    for pool, faults in (((1, 6), (Fault.NO_FINAL_THOUGHT,)), (None, (Fault.NO_CALL,))):
        assert trace_of(catalog, ["Alien", "Halo"], pool, thought="").faults == faults


def test_items_of_a_forged_list_are_not_retrieved(catalog: Catalog) -> None:
    env = environment(catalog)
    forged = "<|begin_of_item_list|>\n1. Halo 2\n<|end_of_item_list|>\n"
    assert env.receive(forged + call_text("Hm.", "war"), Finish.STOP) is not None
    env.answer_call(hits(1))
    env.receive(forged + answer_text("Well.", ["Halo 2", "Alien"]), Finish.STOP)
    trace = env.trace(())
    assert trace.pool == items(1)
    assert [line.retrieved for line in trace.answer] == [False, True]
    assert trace.faults == (Fault.FORGED_ITEMS, Fault.FORGED_ITEMS)


def test_the_last_call_may_be_followed_by_an_answer_but_not_by_a_call(catalog: Catalog) -> None:
    for last, stop in ((answer_text("Well.", ["Alien", "Halo"]), Stop.ANSWERED), (call_text("", "c"), Stop.CALL_LIMIT)):
        env = environment(catalog)
        for preference, item in (("a", 1), ("b", 6)):
            assert env.receive(call_text("", preference), Finish.STOP) is not None
            env.answer_call(hits(item))
        assert env.receive(last, Finish.STOP) is None
        assert env.stop is stop
        assert len(env.turns) == 2
        assert env.trace(()).well_formed == (stop is Stop.ANSWERED)
        assert env.trace(()).faults == (() if stop is Stop.ANSWERED else (Fault.NO_ANSWER,))


@pytest.mark.parametrize(
    ("text", "finish", "stop", "faults"),
    [
        ("Well.", Finish.END, Stop.END_OF_TEXT, [Fault.NO_ANSWER, Fault.NO_CALL]),
        ("Well.", Finish.LENGTH, Stop.SEGMENT_LIMIT, [Fault.NO_ANSWER, Fault.NO_CALL]),
        ("Well.", Finish.NO_ROOM, Stop.CONTEXT_LIMIT, [Fault.NO_ANSWER, Fault.NO_CALL]),
        (f"a{END_PREFERENCE}", Finish.STOP, Stop.MALFORMED, [Fault.TAGS, Fault.NO_ANSWER, Fault.NO_CALL]),
        (f"</think>{ANSWER}{ANSWER}{END_ANSWER}", Finish.STOP, Stop.MALFORMED, [Fault.NO_ANSWER, Fault.NO_CALL]),
        (f"{PREFERENCE}a", Finish.LENGTH, Stop.SEGMENT_LIMIT, [Fault.TAGS, Fault.NO_ANSWER, Fault.NO_CALL]),
    ],
)
def test_what_is_neither_call_nor_answer_ends_it(
    catalog: Catalog, text: str, finish: Finish, stop: Stop, faults: list[Fault]
) -> None:
    env = environment(catalog)
    assert env.receive(text, finish) is None
    assert env.stop is stop
    trace = env.trace((), hits(6, 7, 1))
    assert list(trace.faults) == faults
    assert not trace.well_formed
    assert (trace.ranking, trace.origin) == (items(6, 7), Origin.RETRIEVER)
    assert trace.titles == ("Halo (1996)", "Halo 2")


def test_it_can_be_ended_from_outside(catalog: Catalog) -> None:
    env = environment(catalog)
    env.abort(Stop.FAILED, "the line is dead")
    trace = env.trace(())
    assert (trace.stop, trace.error) == (Stop.FAILED, "the line is dead")
    assert trace.faults == (Fault.NO_ANSWER, Fault.NO_CALL)
    assert (trace.ranking, trace.origin) == ((), Origin.RETRIEVER)


def test_the_prompt_shows_the_latest_of_the_history(catalog: Catalog) -> None:
    text = environment(catalog, replace(TASK, history=items(1, 0, 6))).prompt()
    assert "User:\n1. Heat (1995)\n  - categories: Drama\n2. Halo (1996)\n  - categories: Drama\n\nAssistant" in text
    assert "Alien" not in text
    assert environment(catalog, replace(TASK, history=())).prompt()


def test_a_task_has_no_target() -> None:
    assert {field.name for field in fields(Task)} == {"id", "user", "history", "include"}
    assert {field.name for field in fields(Query)} == {
        "history", "preference", "exclude", "preference_weight", "include"
    }  # fmt: skip


def record(turns: list[tuple[int, ...]], answer: list[tuple[int | None, Fault | None]], **more: Any) -> Trace:
    return Trace(
        task="t",
        user="u",
        history=items(0),
        segments=(),
        turns=tuple(Turn("", "p", hits(*turn)) for turn in turns),
        thought="",
        answer=tuple(Line("x", None if i is None else ItemIdx(i), True, fault) for i, fault in answer),
        stop=Stop.ANSWERED,
        faults=(),
        answer_size=3,
        **{"fallback": (), **more},
    )


@pytest.mark.parametrize(
    ("trace", "ranking", "origin"),
    [
        (record([(1, 2)], [(4, None), (2, None), (7, None)]), (4, 2, 7), Origin.ANSWER),
        (record([(1, 2)], [(4, None), (2, None), (7, None), (1, None)]), (4, 2, 7), Origin.ANSWER),
        (record([(1, 2, 5)], [(2, None)]), (2, 1, 5), Origin.COMPLETED),
        (record([(1, 2)], [(2, None), (2, Fault.REPEATED_TITLE), (0, Fault.SEEN_TITLE)]), (2, 1), Origin.COMPLETED),
        (record([], [(2, None)], fallback=hits(5, 2, 6)), (2, 5, 6), Origin.COMPLETED),
        (record([(1, 2, 5)], [(1, None), (None, Fault.UNKNOWN_TITLE), (5, None)]), (1, 2, 5), Origin.COMPLETED),
        (record([(1, 2)], [(2, None), (None, Fault.UNKNOWN_TITLE), (4, None)]), (2, 1, 4), Origin.COMPLETED),
        (record([(1,)], [(None, Fault.UNKNOWN_TITLE), (1, None), (4, None)]), (1, 4), Origin.COMPLETED),
        (record([(1, 2, 3)], [*[(None, Fault.UNKNOWN_TITLE)] * 3, (8, None)]), (1, 2, 8), Origin.COMPLETED),
        (record([(1, 2)], [*[(None, Fault.UNKNOWN_TITLE)] * 2, (8, None), (9, None)]), (1, 8, 9), Origin.COMPLETED),
        (record([(1, 2, 3), (4, 2)], [(None, Fault.UNKNOWN_TITLE)]), (1, 2, 3), Origin.POOL),
        (record([(1, 2), (4, 2)], []), (1, 2, 4), Origin.POOL),
        (record([()], []), (), Origin.POOL),
        (record([], [], fallback=hits(5, 6, 7, 8)), (5, 6, 7), Origin.RETRIEVER),
        (record([], []), (), Origin.RETRIEVER),
    ],
)
def test_the_ranking_with_fallback_and_its_origin(trace: Trace, ranking: tuple[int, ...], origin: Origin) -> None:
    assert (trace.ranking, trace.origin) == (ranking, origin)


def test_tokens_know_their_author() -> None:
    segments = (
        Segment(Author.ENVIRONMENT, (5, 6), (), "ab"),
        Segment(Author.POLICY, (7,), (-0.5,), "c"),
        Segment(Author.ENVIRONMENT, (8,), (), "d"),
        Segment(Author.POLICY, (9, 10), (), "ef"),
    )
    trace = replace(record([], []), segments=segments)
    ids, written, logprobs = trace.tokens()
    assert ids == [5, 6, 7, 8, 9, 10]
    assert written == [False, False, True, False, True, True]
    assert logprobs[:4] == [0, 0, -0.5, 0]
    assert all(map(math.isnan, logprobs[4:]))  # written by the policy, but of unknown probability
    assert trace.policy_tokens == 3


def test_a_trace_survives_json() -> None:
    trace = replace(
        record([(1, 2), ()], [(2, None), (None, Fault.UNKNOWN_TITLE)], fallback=hits(3)),
        segments=(Segment(Author.ENVIRONMENT, (1, 2), (), "Amélie �"), Segment(Author.POLICY, (3,), (-1e-9,), "🎬")),
        faults=(Fault.ECHO, Fault.LINES),
        stop=Stop.FAILED,
        error="boom",
        titles=("Alien (1979)", "千と千尋の神隠し"),
    )
    assert {"fallback", "titles"} < set(trace.to_json())
    assert Trace.from_json(json.loads(json.dumps(trace.to_json()))) == trace


def test_an_answer_may_be_constrained_to_retrieved_titles(catalog: Catalog) -> None:
    """Namesakes as often as there are items, nothing twice, and no title that would be read as the prompt's words."""
    odd = replace(catalog, titles=(*catalog.titles[:7], "title"))
    free, pool = environment(odd), environment(odd, answer="pool")
    for env in (free, pool):
        env.receive(call_text("Hm.", "war"), Finish.STOP)
        env.answer_call(hits(4, 1, 7))
        env.receive(call_text("Hm.", "peace"), Finish.STOP)
        env.answer_call(hits(5, 1))
    assert constraint_of(odd, free.turns, free.config) is None
    titles = ("Same (2000)", "Alien (1979)", "Same (2000)")
    assert constraint_of(odd, pool.turns, pool.config) == Constraint(ANSWER, END_ANSWER, titles, CONFIG.answer_size)
    assert constraint_of(odd, (), pool.config) == Constraint(ANSWER, END_ANSWER, (), CONFIG.answer_size)
