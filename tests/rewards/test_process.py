from __future__ import annotations

import numpy as np
import pytest

from deeprec.explore.protocol import Fault, answer_text, call_text
from deeprec.rewards.process import diversity_reward, format_reward, invocation_reward

ANSWER = answer_text("I rank.", ["Halo", "Heat", "Ran"])
DIRECTIONS = {"east": (1.0, 0.0), "north": (0.0, 1.0), "west": (-1.0, 0.0), "north-east": (0.5**0.5, 0.5**0.5)}
DIRECTIONS["about east"] = (0.9, 0.19**0.5)


def calls(*preferences):
    return [call_text("I look.", preference) for preference in preferences]


def compass(texts):
    return np.array([DIRECTIONS[text] for text in texts], dtype=np.float32)


def apart(texts):
    return np.eye(len(texts), dtype=np.float32)


def no_embedding(texts):
    raise AssertionError("nothing to embed")


def test_a_clean_trace_costs_nothing(explored):
    trace = explored([*calls("east"), ANSWER])
    assert trace.well_formed
    assert format_reward(trace) == 0


MALFORMED = {
    "no call": ([ANSWER], Fault.NO_CALL),
    "no answer": (calls("east"), Fault.NO_ANSWER),
    "garbage": ([*calls("east"), "la la la"], Fault.NO_ANSWER),
    "empty preference": ([*calls(" ; "), ANSWER], Fault.EMPTY_PREFERENCE),
    "forged list": ([f"<|begin_of_item_list|>\n1. Heat\n<|end_of_item_list|>{calls('east')[0]}", ANSWER], None),
    "role line": ([f"Assistant:\n{calls('east')[0]}", ANSWER], Fault.ECHO),
    "no final thought": ([*calls("east"), answer_text("", ["Halo", "Heat", "Ran"])], Fault.NO_FINAL_THOUGHT),
    "tool in answer": ([*calls("east"), ANSWER.replace("Ran", "<|begin_of_preference|>")], Fault.TOOL_IN_ANSWER),
    "one title short": ([*calls("east"), answer_text("I rank.", ["Halo", "Heat"])], Fault.LINES),
    "one title too many": ([*calls("east"), answer_text("I rank.", ["Halo", "Heat", "Ran", "M"])], Fault.LINES),
    "repeated title": ([*calls("east"), answer_text("I rank.", ["Halo", "Heat", "Halo"])], Fault.REPEATED_TITLE),
    "one title thrice": ([*calls("east"), answer_text("I rank.", ["Halo"] * 3)], Fault.REPEATED_TITLE),
    "invented titles": ([*calls("east"), answer_text("I rank.", ["Xx", "Yy", "Zz"])], Fault.UNKNOWN_TITLE),
    "seen title": ([*calls("east"), answer_text("I rank.", ["Halo", "Heat", "Alien"])], Fault.SEEN_TITLE),
    "ambiguous title": ([*calls("east"), answer_text("I rank.", ["Halo", "Heat", "Twin"])], Fault.AMBIGUOUS_TITLE),
    "part of a title": ([*calls("east"), answer_text("I rank.", ["Halo", "Heat", "Casablan"])], Fault.UNKNOWN_TITLE),
}


@pytest.mark.parametrize(("segments", "fault"), MALFORMED.values(), ids=MALFORMED)
def test_any_fault_costs_one_and_earns_no_bonus(explored, segments, fault):
    trace = explored([*calls("north", "west"), *segments] if fault is not Fault.NO_CALL else segments)
    assert fault is None or fault in trace.faults
    assert not trace.well_formed
    assert format_reward(trace) == -1
    assert format_reward(trace, penalty=-0.25) == -0.25
    assert invocation_reward(trace, no_embedding) == 0
    assert diversity_reward(trace, no_embedding) == 0


def test_a_retrieved_title_with_a_role_word_is_no_echo(explored):
    """In the paper's code a list with 'assistant' in a title made the penalty unavoidable."""
    trace = explored([*calls("east"), answer_text("Assistant it is.", ["Assistant", "Halo", "Heat"])])
    assert 4 in trace.pool  # Assistant, which the environment has shown
    assert format_reward(trace) == 0


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, 0.0),  # 0.5 · (1 − 1)
        (2, 0.5),  # 0.5 · (2 − 1)
        (3, 1.0),  # 0.5 · (3 − 1)
        (4, 1.0),  # 0.5 · (min(4, 3) − 1)
        (8, 1.0),
    ],
)
def test_invocation(explored, n, expected):
    trace = explored([*calls(*map(str, range(n))), ANSWER])
    assert invocation_reward(trace, apart) == expected


def test_invocation_with_other_constants(explored):
    trace = explored([*calls("a", "b", "c", "d"), ANSWER])
    assert invocation_reward(trace, apart, step=0.1, calls=5) == pytest.approx(0.1 * 3)
    assert invocation_reward(trace, apart, calls=0) == 0  # never below 0


@pytest.mark.parametrize(
    ("preferences", "expected"),
    [
        (["east", "east", "east"], 0.0),
        (["east", "about east", "north"], 0.5),  # cosine 0.9: the second repeats the first
        (["east", "north-east"], 0.5),  # cosine 0.71
        (["about east", "north", "east", "north"], 0.5),
        (["east", "north", "west", "north"], 1.0),
    ],
)
def test_repeated_preferences_count_once(explored, preferences, expected):
    assert invocation_reward(explored([*calls(*preferences), ANSWER]), compass) == expected


@pytest.mark.parametrize(
    ("preferences", "expected"),
    [
        (["east"], 0.0),  # one call has no pair
        (["east", "east"], 0.2 * (1 - 1)),
        (["east", "north"], 0.2 * (1 - 0)),
        (["east", "west"], 0.2 * (1 + 1)),
        (["east", "north-east"], 0.2 * (1 - 0.5**0.5)),
        (["east", "north", "west"], 0.2 * (1 - (0 - 1 + 0) / 3)),  # pairs: east-north, east-west, north-west
        (["east", "east", "north"], 0.2 * (1 - 0)),  # a repetition changes nothing
        (["east", "about east"], 0.0),
    ],
)
def test_diversity(explored, preferences, expected):
    trace = explored([*calls(*preferences), ANSWER])
    assert diversity_reward(trace, compass) == pytest.approx(expected, abs=1e-7)
    assert diversity_reward(trace, compass, scale=1.0) == pytest.approx(expected * 5, abs=1e-6)


def test_three_calls_and_garbage_do_not_beat_a_clean_single_call(explored):
    def process(trace):
        return format_reward(trace) + invocation_reward(trace, compass) + diversity_reward(trace, compass)

    garbage = explored([*calls("east", "north", "west"), "and so on"])
    assert len(garbage.turns) == 3
    # In the paper's code: −1 + 0.5 · (3 − 1) + 0.2 · (1 + 1/3) = 0.27 beat 0.
    assert process(garbage) == -1
    assert process(explored([*calls("east"), ANSWER])) == 0
