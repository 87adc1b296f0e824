"""A person is the policy: typed lines become calls and an answer."""

from __future__ import annotations

import pytest

from deeprec.config import ExploreConfig
from deeprec.explore.explorer import Explorer
from deeprec.explore.protocol import Fault
from deeprec.explore.trace import Trace
from deeprec.policies.human import HumanWriter
from deeprec.policies.text import TextPolicy
from deeprec.testing import PolicyContract
from toys import RecordingRetriever, toy_dataset

DATASET = toy_dataset()
CONFIG = ExploreConfig(answer_size=3, items_per_call=4, max_calls=2, segment_tokens=300)


class TestHuman(PolicyContract):
    @pytest.fixture
    def policy(self) -> TextPolicy:
        return TextPolicy(HumanWriter(ask=lambda _: "war and peace films", show=print, answer_size=3, max_calls=2))


def play(*lines: str) -> tuple[Trace, list[str]]:
    """The trace of a person who types these lines, and what was shown."""
    typed, shown = iter(lines), []
    writer = HumanWriter(ask=lambda _: next(typed), show=shown.append, answer_size=3, max_calls=2)
    retriever = RecordingRetriever(len(DATASET.catalog))
    (trace,) = Explorer(TextPolicy(writer), retriever, DATASET.catalog, CONFIG).run(DATASET.tasks("test")[:1])
    assert next(typed, None) is None
    return trace, shown


def test_a_game() -> None:
    trace, shown = play(" war; drama ", "comedy", "8 1, 3")
    assert [turn.preference for turn in trace.turns] == ["war; drama", "comedy"]
    assert trace.well_formed
    pool = trace.pool
    assert trace.raw_ranking == (pool[7], pool[0], pool[2])
    assert [line.split(". ", 1)[1] for line in shown] == [DATASET.catalog.titles[item] for item in pool]
    assert [int(line.split(".")[0]) for line in shown] == list(range(1, 9))


def test_one_may_rank_before_the_last_call() -> None:
    trace, shown = play("war", "", "1 2 3")
    assert len(trace.turns) == 1
    assert trace.raw_ranking == trace.pool[:3]
    assert len(shown) == CONFIG.items_per_call


def test_odd_numbers_are_left_out() -> None:
    trace, _ = play("war", "", "2 2 0 99 x -1 ² 4")
    assert trace.raw_ranking == (trace.pool[1], trace.pool[3])
    assert trace.faults == (Fault.LINES,)


def test_giving_up_at_once_is_an_answer_without_lines() -> None:
    trace, shown = play("", "")
    assert shown == []
    assert set(trace.faults) == {Fault.NO_CALL, Fault.LINES}
