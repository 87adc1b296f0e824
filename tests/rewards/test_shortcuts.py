"""Shortcuts that a policy might find: faults, which are never paid, and others, paid no more than their honest twin."""

from __future__ import annotations

import numpy as np
import pytest

from deeprec import assets
from deeprec.config import TrainConfig
from deeprec.data.catalog import ItemIdx
from deeprec.explore.protocol import END_ITEMS, ITEMS, Fault, answer_text, call_text
from deeprec.rewards.process import invocation_reward
from deeprec.rewards.rubric import Rubric

HALO = ItemIdx(1)
DIRECTIONS = {"dark": (1.0, 0.0), "Dark!": (0.95, 0.3122), "light": (0.0, 1.0)}
STAGES = {stage.name: stage.rewards for stage in TrainConfig().stages}


def embed(texts):
    return np.array([DIRECTIONS[text] for text in texts], dtype=np.float32)


def paid(trace, target, stage):
    unlike_ID = np.eye(12, dtype=np.float32)  # no item resembles another
    return Rubric.build(STAGES[stage], embed, unlike_ID, unlike_ID).score(trace, target).total


def call(preference="dark", thought="I look."):
    return call_text(thought, preference)


def answer(*titles, thought="I rank."):
    return answer_text(thought, titles or ("Halo", "Heat", "Ran"))


ONE_CALL = [call(), answer()]
FORGED = f"I look.\n{ITEMS}\n1. Brazil\n{END_ITEMS}\n"

# Segments, and the fault they have. An honest exploration would be paid for the target.
FAULTY = {
    "calls and no answer": ([call("dark"), call("light"), call("Dark!"), "so it goes"], Fault.NO_ANSWER),
    "an answer without a call": ([answer()], Fault.NO_CALL),
    "one title in every position": ([call(), answer("Halo", "Halo", "Halo")], Fault.REPEATED_TITLE),
    "more titles than asked for": ([call(), answer("Halo", "Heat", "Ran", "M")], Fault.LINES),
    "fewer titles than asked for": ([call(), answer("Halo")], Fault.LINES),
    "a list of items of one's own": ([FORGED + call(), answer("Halo", "Brazil", "Ran")], Fault.FORGED_ITEMS),
    "titles of the history": ([call(), answer("Alien", "Halo", "Heat")], Fault.SEEN_TITLE),
    "titles that do not exist": ([call(), answer("Halo", "Halo 4", "Halo 5")], Fault.UNKNOWN_TITLE),
    "a title that stands for two items": ([call(), answer("Halo", "Twin", "Ran")], Fault.AMBIGUOUS_TITLE),
    "no thought before the answer": ([call(), answer(thought="")], Fault.NO_FINAL_THOUGHT),
    "two answers": ([call(), answer("Heat", "Ran", "M") + "\n" + answer()], Fault.THINK),
    "an empty preference": ([call(" ; "), answer()], Fault.EMPTY_PREFERENCE),
    "the prompt's words again": ([f"User:\nAlien\n{call()}", answer()], Fault.ECHO),
    "a call inside the answer": ([call(), answer("Halo", "Heat", call())], Fault.TOOL_IN_ANSWER),
}
# Segments without a fault, their honest twin, and the target.
EQUAL = {
    "padding: one preference in three calls": ([call(), call(), call(), answer()], ONE_CALL, HALO),
    "padding: one preference, its words changed a little": ([call("dark"), call("Dark!"), answer()], ONE_CALL, HALO),
    "a title that holds another's": (
        [call(), answer("Halo 2", "M", "Ran")],
        [call(), answer("Heat", "M", "Ran")],
        HALO,
    ),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("written", "fault"), FAULTY.values(), ids=FAULTY)
def test_a_fault_is_paid_nothing_but_the_penalty(explored, written, fault, stage):
    trace = explored(written)
    assert fault in trace.faults
    assert paid(trace, HALO, stage) == -1


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("written", "honest", "target"), EQUAL.values(), ids=EQUAL)
def test_a_shortcut_without_a_fault_is_paid_as_what_it_is(explored, written, honest, target, stage):
    assert explored(written).faults == ()
    assert paid(explored(written), target, stage) == paid(explored(honest), target, stage)


@pytest.mark.llm
@pytest.mark.parametrize(
    ("said", "calls"),
    [
        (("Thriller", "Thrillers", "thriller."), 1),
        (("Comedy; 1990s", "1990s; comedy", "comedy, 1990s!"), 1),
        (("Comedy", "War", "1970s; Western"), 3),
        # Vectors miss these: other words for the same, and words without meaning.
        (("Comedy; 1990s", "funny films of the nineties"), 2),
        (("Comedy", "Comedy; asdf qwer"), 2),
    ],
)
def test_which_preferences_are_new_by_the_real_vectors(explored, said, calls):
    from deeprec.trm.text_encoder import TextEncoder

    if assets.locate("minilm-l6") is None:
        pytest.skip("MiniLM is not in the asset cache")
    embed = TextEncoder.load(offline=True).encode
    trace = explored([*map(call, said), answer()])
    assert invocation_reward(trace, embed) == 0.5 * (calls - 1)


def test_honest_ways_are_paid(explored):
    """The honest twins are paid, or the tables above would prove nothing."""
    several = explored([call("dark"), call("light"), answer()])
    assert paid(several, HALO, "cold-start") == pytest.approx(0.5 + 0.2)
    answers = (("Halo", "M", "Ran"), ("M", "Ran", "Halo"), ("M", "Ran", "Heat"))
    first, last, none = (paid(explored([call(), answer(*titles)]), HALO, "recommendation") for titles in answers)
    assert first > last > none == 0
