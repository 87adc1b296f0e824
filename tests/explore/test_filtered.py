"""Explorations under a filter: every call, the fallback and the answer obey, and what is not there is no fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deeprec.config import ExploreConfig
from deeprec.data.catalog import ItemIdx
from deeprec.data.dataset import Task
from deeprec.data.filters import ItemFilter
from deeprec.data.item_set import ItemSet
from deeprec.errors import DeepRecError
from deeprec.explore.environment import resolve_lines
from deeprec.explore.explorer import Explorer, ForcedSegment
from deeprec.explore.protocol import Fault, answer_text, call_text
from deeprec.explore.trace import Origin, Stop, Trace
from deeprec.policies.scripted import ScriptedPolicy, list_titles
from deeprec.policies.text import TextPolicy, Writer
from toys import RecordingRetriever, catalog_of, toy_dataset

DATASET = toy_dataset()
CATALOG = DATASET.catalog
TASK = DATASET.tasks("test")[0]
CONFIG = ExploreConfig(answer_size=3, items_per_call=4, max_calls=3, segment_tokens=1000, guidance="rules")


def items(*numbers: int) -> tuple[ItemIdx, ...]:
    return tuple(map(ItemIdx, numbers))


def explore(writer: Writer | None, include: ItemSet | None, **options: Any) -> tuple[Trace, RecordingRetriever]:
    retriever = RecordingRetriever(len(CATALOG))
    config = CONFIG.model_copy(update=options)
    policy = ScriptedPolicy() if writer is None else TextPolicy(writer)
    task = replace(TASK, history=items(0, 10, 20), include=include)
    return Explorer(policy, retriever, CATALOG, config).run([task])[0], retriever


def test_every_call_obeys() -> None:
    allowed = ItemSet.of(range(5, 30))
    trace, retriever = explore(None, allowed)
    assert len(retriever.queries) >= 2
    assert all(query.include is allowed for query in retriever.queries)
    assert trace.pool
    assert {*trace.pool, *trace.ranking} <= set(allowed) - {0, 10, 20}
    assert trace.well_formed
    assert len(trace.ranking) == 3


def test_without_a_filter_nothing_is_new() -> None:
    trace, retriever = explore(None, None)
    wide, _ = explore(None, ItemSet.of(range(len(CATALOG))))
    assert trace == wide  # prompt, tokens and all
    assert {query.include for query in retriever.queries} == {None}


@pytest.mark.parametrize("left", [1, 2, 3, 4])
def test_a_policy_that_has_nothing_left_to_list_makes_no_fault(left: int) -> None:
    """The history's items 0 and 10 pass the filter, but are not left."""
    trace, _ = explore(None, ItemSet.of([0, 10, *range(31, 31 + left)]))
    assert trace.faults == ()
    assert trace.well_formed
    assert trace.ranking == items(*range(31, 31 + min(left, 3)))
    assert trace.origin is Origin.ANSWER
    assert trace.answer_size == min(left, 3)
    assert f"Recommend the {min(left, 3)} items" in trace.segments[0].text


@pytest.mark.parametrize("prefix", [(), (ForcedSegment(call_text("Hm.", "war")),)])
def test_an_exploration_of_nothing_ends_at_once(prefix: tuple[ForcedSegment, ...]) -> None:
    retriever = RecordingRetriever(len(CATALOG))
    explorer = Explorer(ScriptedPolicy(), retriever, CATALOG, CONFIG)
    key = explorer.start(replace(TASK, history=items(0, 10), include=ItemSet.of([0, 10])), forced_prefix=prefix)
    ((ended, trace),) = explorer.step()
    assert ended == key
    assert trace.ranking == trace.titles == trace.turns == trace.faults == ()
    assert trace.stop is Stop.ANSWERED
    assert trace.policy_tokens == 0
    assert explorer.step() == []


def test_an_answer_outside_the_filter_is_a_fault_and_is_replaced() -> None:
    def writer(conversation: str) -> str:
        (lists,) = list_titles(conversation) or [None]
        if lists is None:
            return call_text("Hm.", "war")
        return answer_text("I know.", [lists[0], CATALOG.titles[2], CATALOG.titles[35]])

    trace, _ = explore(writer, ItemSet.of([30, 31, 32, 33, 34, 35]))
    assert trace.faults == (Fault.FILTERED_TITLE,)
    assert not trace.well_formed
    assert [line.fault for line in trace.answer] == [None, Fault.FILTERED_TITLE, None]  # 35 was not retrieved, but fits
    assert trace.raw_ranking == items(30, 35)
    assert trace.ranking == items(30, 31, 35)
    assert trace.origin is Origin.COMPLETED


def test_the_fallback_obeys() -> None:
    trace, retriever = explore(lambda _: answer_text("I know.", [CATALOG.titles[1]]), ItemSet.of([31, 33, 35, 37]))
    assert trace.origin is Origin.RETRIEVER
    assert trace.ranking == items(31, 33, 35)
    assert len(retriever.queries) == 1
    assert Fault.FILTERED_TITLE in trace.faults


def test_a_title_of_several_items_names_the_one_that_passes() -> None:
    catalog = catalog_of([()] * 4, years=[1990, 1991, 1992, 1992])
    titles = ("Twin (1990)", "Twin (1991)", "Same (1992)", "Same (1992)")
    catalog = replace(catalog, titles=titles)
    lines = resolve_lines(["Twin", "Same (1992)"], catalog, (), (), ItemSet.of([1, 3]))
    assert [(line.item, line.fault) for line in lines] == [(1, None), (3, None)]
    both = resolve_lines(["Twin", "Twin (1990)", "twin (1991)"], catalog, (), (), ItemSet.of([0, 1, 3]))
    assert [line.fault for line in both] == [Fault.AMBIGUOUS_TITLE, None, None]


def test_recommend_takes_a_filter() -> None:
    retriever = RecordingRetriever(len(CATALOG))
    explorer = Explorer(ScriptedPolicy(), retriever, CATALOG, CONFIG)
    wanted = ItemFilter(categories=["horror"], years=(1980, 1999))
    trace = explorer.recommend(["Film 12 (1982)"], 4, filter=wanted)
    assert trace.ranking == items(17, 22, 27)  # of genre 2 in those years: 12, 17, 22 and 27
    assert trace.well_formed
    assert explorer.recommend(["Film 12 (1982)"], 4) == explorer.recommend(["i12"], 4, filter=ItemFilter())
    with pytest.raises(DeepRecError, match=r"No item has the category 'Horor': did you mean 'Horror'\?"):
        explorer.recommend(["Film 12 (1982)"], filter=ItemFilter("Horor"))


def test_explorations_of_different_filters_run_side_by_side() -> None:
    sets = [None, ItemSet.of(range(20)), ItemSet.of(range(20, 40)), ItemSet.of([39])]
    tasks = [Task(f"t{n}", TASK.user, TASK.history, include=include) for n, include in enumerate(sets)]
    retriever = RecordingRetriever(len(CATALOG))
    together = Explorer(ScriptedPolicy(), retriever, CATALOG, CONFIG).run(tasks)
    alone = [Explorer(ScriptedPolicy(), retriever, CATALOG, CONFIG).run([task])[0] for task in tasks]
    assert together == alone
    assert all(
        include is None or set(trace.ranking) <= set(include) for trace, include in zip(alone, sets, strict=True)
    )
