from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprec.data.catalog import ItemIdx
from deeprec.errors import DeepRecError
from deeprec.explore import protocol
from deeprec.explore.protocol import answer_text, call_text
from deeprec.explore.trace import Stop
from deeprec.rewards.rubric import Rubric

HALO, HEAT, RAN = ItemIdx(1), ItemIdx(7), ItemIdx(9)
DIRECTIONS = {"east": (1.0, 0.0), "north": (0.0, 1.0)}
CLEAN = [call_text("I look.", "east"), call_text("I look.", "north"), answer_text("I rank.", ["Heat", "Halo", "Ran"])]
TERMS = ("format", "invocation", "diversity", "hit", "rank", "pointwise")


def compass(texts):
    return np.array([DIRECTIONS.get(text, (0.6, 0.8)) for text in texts], dtype=np.float32)


def vectors():
    rng = np.random.default_rng(0)
    return rng.normal(size=(12, 5)).astype(np.float32), rng.normal(size=(12, 3)).astype(np.float32)


ONES = dict.fromkeys(TERMS, 1.0)


def rubric(weights=ONES, of=None):
    return Rubric.build(weights, compass, *(of or vectors()))


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_six_terms_of_the_paper(explored):
    scored = rubric().score(explored(CLEAN), HALO)
    text_ID, collaborative_ID = vectors()
    s = [
        (cosine(text_ID[item], text_ID[HALO]) + cosine(collaborative_ID[item], collaborative_ID[HALO])) / 2
        for item in (HEAT, HALO, RAN)
    ]
    expected = {
        "format": 0.0,
        "invocation": 0.5,  # 0.5 · (2 − 1)
        "diversity": 0.2,  # 0.2 · (1 − 0)
        "hit": 1.0,
        "rank": 0.4,  # 0.2 · (3 − 1)
        "pointwise": 10 * (1 * s[0] + 4 / 9 * 1.0 + 1 / 9 * s[2]) / (14 / 9),  # s[1]: Halo itself
    }
    assert s[1] == pytest.approx(1)
    assert tuple(scored.terms) == TERMS
    assert scored.terms == pytest.approx(expected, abs=1e-5)
    assert scored.total == pytest.approx(sum(expected.values()), abs=1e-5)


def test_a_malformed_trace_is_paid_the_penalty_and_nothing_else(explored):
    malformed = rubric().score(explored(CLEAN[:2]), HALO)
    assert malformed.terms == dict.fromkeys(TERMS, 0.0) | {"format": -1.0}
    assert malformed.total == -1


@pytest.mark.parametrize("name", TERMS)
def test_weight_0_makes_a_term_a_metric(explored, name):
    trace = explored(CLEAN[:2]) if name == "format" else explored(CLEAN)
    full, without = rubric().score(trace, HALO), rubric(ONES | {name: 0.0}).score(trace, HALO)
    assert without.terms == full.terms
    assert full.terms[name] != 0
    assert without.total == pytest.approx(full.total - full.terms[name])


def test_weights_multiply(explored):
    weights = dict.fromkeys(TERMS, 0.0) | {"invocation": 2.0, "rank": -3.0}
    scored = rubric(weights).score(explored(CLEAN), HALO)
    assert scored.total == pytest.approx(2 * 0.5 - 3 * 0.4)


def test_vectors_of_any_length_give_the_same(explored):
    text_ID, collaborative_ID = vectors()
    before = text_ID.copy(), collaborative_ID.copy()
    trace = explored(CLEAN)
    plain = rubric(of=(text_ID, collaborative_ID)).score(trace, HALO)
    lengths_I1 = np.arange(1, 13, dtype=np.float32)[:, None]
    long = rubric(of=(text_ID * lengths_I1, collaborative_ID / lengths_I1))
    assert long.score(trace, HALO).terms == pytest.approx(plain.terms, abs=1e-5)
    np.testing.assert_array_equal(text_ID, before[0])
    np.testing.assert_array_equal(collaborative_ID, before[1])


def test_a_zero_vector_is_similar_to_nothing(explored):
    zeros_ID = np.zeros((12, 4), dtype=np.float32)
    assert rubric(of=(zeros_ID, zeros_ID)).score(explored(CLEAN), HALO).terms["pointwise"] == 0


def test_scoring_changes_nothing_and_repeats(explored):
    for segments in (CLEAN, CLEAN[:2], [], ["</think>"]):
        trace = explored(segments)
        before = copy.deepcopy(trace)
        first = rubric().score(trace, HALO)
        assert rubric().score(trace, HALO) == first
        assert trace == before


def test_three_calls_and_garbage_do_not_beat_a_clean_single_call(explored):
    calls = [call_text("I look.", preference) for preference in ("east", "north", "up")]
    process_only = ONES | {"hit": 0.0, "rank": 0.0, "pointwise": 0.0}
    garbage = rubric(process_only).score(explored([*calls, "so it goes"]), HALO)
    clean = rubric(process_only).score(explored([CLEAN[0], CLEAN[2]]), HALO)
    assert garbage.total == -1
    assert clean.total == 0


PIECES = st.sampled_from(
    [
        *protocol.TAGS,
        "1. Halo\n",
        "2. Heat\n",
        "3. Ran\n",
        "Halo",
        "Alien",
        "east",
        "north; east",
        "\n",
        " ",
        "Assistant:\n",
    ]
)
SEGMENTS = st.lists(
    st.one_of(
        st.sampled_from(CLEAN),
        st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=9).map("".join),
        st.lists(st.sampled_from(["Halo", "Heat", "Ran", "Halo 2", "Alien", "Twin", "Nope"]), max_size=4).map(
            lambda titles: answer_text("I rank.", titles)
        ),
    ),
    max_size=5,
)


@settings(max_examples=300)
@given(segments=SEGMENTS, target=st.integers(0, 11))
def test_a_malformed_trace_never_earns_more_than_the_penalty(explored, segments, target):
    trace = explored(segments)
    scored = rubric().score(trace, ItemIdx(target))
    if trace.well_formed:
        assert scored.terms["format"] == 0
    else:
        assert scored.total == scored.terms["format"] == -1


@settings(max_examples=100)
@given(fault=st.sampled_from(protocol.Fault), stop=st.sampled_from(Stop), clean=st.booleans())
def test_each_fault_and_each_other_stop_alone_takes_every_bonus(explored, fault, stop, clean):
    """Whatever the parser misses: a recorded fault, or another stop reason, is enough on its own."""
    trace = explored(CLEAN)
    trace = dataclasses.replace(trace, stop=stop, faults=() if clean else (fault,))
    scored = rubric().score(trace, HALO)
    if clean and stop is Stop.ANSWERED:
        assert scored.total > 0
    else:
        assert scored.total == -1


def calls(trace, target):
    """A user's own reward."""
    return len(trace.turns) + target / 100


def test_only_weighted_terms_are_computed_also_a_users_own(explored):
    scored = rubric({"hit": 1.0, f"{__name__}:calls": 2.0}).score(explored(CLEAN), HALO)
    assert scored.terms == {"hit": 1.0, f"{__name__}:calls": 2.01}
    assert scored.total == pytest.approx(1 + 2 * 2.01)


@pytest.mark.parametrize("name", ["hits", "no_such_module:reward", f"{__name__}:absent", ":", "deeprec:", ""])
def test_an_unknown_reward_is_named(name):
    with pytest.raises(DeepRecError, match=r"There is no reward .* known are format, invocation"):
        rubric({name: 1.0})
