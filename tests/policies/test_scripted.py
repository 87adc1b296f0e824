"""The explorer written by hand: what it asks for, how it ranks, and that it explores without faults."""

from __future__ import annotations

import pytest

from deeprec.config import ExploreConfig, Guidance
from deeprec.explore import protocol
from deeprec.explore.explorer import Explorer
from deeprec.explore.protocol import Answer, Call, item_lines, parse, prompt, tool_result
from deeprec.explore.trace import Origin, Stop
from deeprec.policies.scripted import ScriptedWriter, list_titles
from deeprec.policies.text import TextPolicy
from deeprec.testing import PolicyContract
from toys import RecordingRetriever, toy_dataset

HISTORY = (
    ("A (1991)", ("Drama",)),
    ("B (2001)", ("Drama",)),
    ("C (1992)", ("Drama", "War")),
    ("D (1981)", ("War", "Comedy")),
    ("E (1993)", ("Drama", "War")),
    ("F (1982)", ("Comedy",)),
    ("G", ()),
)


def opened(guidance: Guidance = "rules", max_calls: int = 3) -> str:
    return prompt(
        item_lines(*zip(*HISTORY, strict=True)),
        answer_size=3,
        items_per_call=3,
        max_calls=max_calls,
        guidance=guidance,
    )


def listed(*items: tuple[str, tuple[str, ...]]) -> str:
    return tool_result(item_lines(*zip(*items, strict=True)))


FIRST = listed(("P (1985)", ("War",)), ("Q (1984)", ("War",)))
SECOND = listed(("R (1983)", ("Comedy",)), ("P (1985)", ("War",)))
THIRD = listed(("S (1971)", ("Horror",)))


class TestScripted(PolicyContract):
    @pytest.fixture
    def policy(self) -> TextPolicy:
        return TextPolicy(ScriptedWriter())


@pytest.mark.parametrize("guidance", ["task", "rules", "example"])
def test_what_it_asks_for(guidance: Guidance) -> None:
    """Worked out by hand from the history above; an example in the prompt is not read."""
    write = ScriptedWriter(answer_size=3)
    talk, asked = opened(guidance), []
    for found in (FIRST, SECOND, THIRD):
        segment = write(talk)
        parsed = parse(segment, answer_size=3, after_items=bool(asked))
        assert isinstance(parsed, Call)
        assert not parsed.faults
        assert parsed.thought
        asked.append(parsed.preference)
        talk += segment + found
    # All: Drama 4, 1990s and War 3, the 1990s first.
    assert asked[0] == "Drama; 1990s"
    # The latest five, without those two: War 3, Comedy and 1980s 2.
    assert asked[1] == "War; Comedy; 1980s"
    # In the answers, times in the history: War 3 · 3, 1980s 4 · 2, Comedy 1 · 2.
    assert asked[2] == "War; 1980s"
    parsed = parse(write(talk), answer_size=3, after_items=True)
    assert isinstance(parsed, Answer)
    assert not parsed.faults
    # List after list, each title once.
    assert parsed.titles == ("P (1985)", "Q (1984)", "R (1983)")


@pytest.mark.parametrize("allowed", [1, 2, 3, 4])
def test_it_calls_as_often_as_the_prompt_allows_but_three_times_at_most(allowed: int) -> None:
    write, start = ScriptedWriter(3), len(opened(max_calls=allowed))
    talk = opened(max_calls=allowed)
    for found in (FIRST, SECOND, THIRD)[:allowed]:
        assert protocol.PREFERENCE in write(talk)
        talk += write(talk) + found
    assert talk[start:].count(protocol.PREFERENCE) == min(allowed, 3)
    assert protocol.ANSWER in write(talk)


@pytest.mark.parametrize("guidance", ["task", "rules", "example"])
@pytest.mark.parametrize("size", [1, 2])
def test_it_recommends_as_many_as_the_prompt_asks_for(guidance: Guidance, size: int) -> None:
    talk = prompt(
        item_lines(*zip(*HISTORY, strict=True)), answer_size=size, items_per_call=3, max_calls=1, guidance=guidance
    )
    parsed = parse(ScriptedWriter()(talk + ScriptedWriter()(talk) + FIRST), answer_size=size, after_items=True)
    assert isinstance(parsed, Answer)
    assert parsed.titles == ("P (1985)", "Q (1984)")[:size]


def test_it_asks_for_nothing_twice() -> None:
    """What the answers and the history share may be what it asked for first: then it answers."""
    write = ScriptedWriter(answer_size=3)
    dramas = listed(("P (1999)", ("Drama",)), ("Q (1998)", ("Drama",)))
    talk = opened()
    for _ in range(2):
        talk += write(talk) + dramas
    assert protocol.ANSWER in write(talk)


def test_lists_are_read_with_their_titles_only() -> None:
    assert list_titles(opened() + "Hm." + FIRST + "And" + THIRD) == [["P (1985)", "Q (1984)"], ["S (1971)"]]
    assert list_titles(opened("example")) == []


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_it_explores_without_faults(calls: int) -> None:
    data = toy_dataset()
    config = ExploreConfig(answer_size=5, items_per_call=6, max_calls=calls, segment_tokens=200)
    retriever = RecordingRetriever(len(data.catalog))
    policy = TextPolicy(ScriptedWriter(answer_size=5))
    traces = Explorer(policy, retriever, data.catalog, config).run(data.tasks("test"))
    assert all(trace.well_formed and trace.stop is Stop.ANSWERED for trace in traces)
    for trace in traces:
        assert 1 <= len(trace.turns) <= calls
        assert trace.origin is Origin.ANSWER
        assert trace.ranking == trace.pool[:5]
        preferences = [turn.preference for turn in trace.turns]
        assert len(set(preferences)) == len(preferences)
    assert max(len(trace.turns) for trace in traces) == calls


def test_an_empty_history_is_explored() -> None:
    talk = prompt("", answer_size=3, items_per_call=3, max_calls=3)
    assert isinstance(parse(ScriptedWriter(3)(talk), answer_size=3, after_items=False), Call)
