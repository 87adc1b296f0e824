"""A thought that a server sends apart, back in the text: whatever the pieces are."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.explore.protocol import END_THINK, THINK, Answer, Call, answer_text, call_text, parse, prompt
from deeprec.policies.reasoning import RejoinedText, thought_of

CONTEXT = prompt("1. Film 1", answer_size=2, items_per_call=2, max_calls=2, guidance="example")
ANSWER = answer_text("", ["Film 3", "Film 4"]).partition(END_THINK)[2]
CALL = call_text("", "War; 1990s")


def rejoined(thought: str, content: str, seed: int = 0, context: str = CONTEXT) -> str:
    """The text of a thought and a content that come in random pieces."""
    dice, text = random.Random(seed), RejoinedText(context)
    told = []
    for kind, whole in (("thought", thought), ("content", content)):
        while whole:
            n = dice.randint(1, 9)
            piece, whole = whole[:n], whole[n:]
            told.append(text.add(*((piece, "") if kind == "thought" else ("", piece))))
    return "".join([*told, text.rest()])


@pytest.mark.parametrize("seed", range(20))
def test_an_answer_gets_its_closing_tag_back(seed: int) -> None:
    for content in (ANSWER, f"Here it is:{ANSWER}", f"{END_THINK}{ANSWER}"):
        parsed = parse(rejoined("I have seen enough.", content, seed), answer_size=2, after_items=True)
        assert isinstance(parsed, Answer)
        assert (parsed.faults, parsed.titles) == ((), ("Film 3", "Film 4"))
        assert parsed.thought.startswith("I have seen enough.")


@pytest.mark.parametrize("seed", range(20))
def test_a_call_gets_none_wherever_it_stands(seed: int) -> None:
    for thought, content in (("War first.", CALL), (f"War first.{CALL}", ""), ("War first.\n", f"I call.{CALL}")):
        parsed = parse(rejoined(thought, content, seed), answer_size=2, after_items=False)
        assert isinstance(parsed, Call)
        assert (parsed.faults, parsed.preference) == ((), "War; 1990s")
        assert parsed.thought.startswith("War first.")
    assert rejoined("One.", "Two.", seed) == "One.\nTwo."


@given(st.text("<>|/thinkrecommendation_lsb ", max_size=60), st.integers(0, 99))
def test_without_a_thought_nothing_changes(content: str, seed: int) -> None:
    for written in (content, content + ANSWER):
        assert rejoined("", written, seed) == written


@given(st.text("<>|/thinkrecommendation_lsb ", max_size=60), st.integers(0, 99))
def test_nothing_is_lost(content: str, seed: int) -> None:
    assert rejoined("Hm.", content, seed).replace(f"\n{END_THINK}\n", "", 1 - content.count(END_THINK)) in (
        f"Hm.\n{content}",
        f"Hm.\n{content}".replace(f"\n{END_THINK}\n", ""),
        "Hm." if not content else None,
    )


def test_where_no_thought_is_open_it_is_left_out() -> None:
    for context in ("Rank these.", f"{THINK} done {END_THINK}"):
        assert rejoined("Hm.", "1. Film", context=context) == "1. Film"


def test_a_thought_has_several_names_and_counts_once() -> None:
    assert thought_of(SimpleNamespace(reasoning="a", reasoning_content="a")) == "a"
    assert thought_of(SimpleNamespace(reasoning=None, reasoning_content="b")) == "b"
    assert thought_of(SimpleNamespace(reasoning={"effort": 1})) == ""
    assert thought_of(SimpleNamespace()) == thought_of(None) == ""
