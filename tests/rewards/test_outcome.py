from __future__ import annotations

import numpy as np
import pytest

from deeprec.data.catalog import ItemIdx
from deeprec.explore.protocol import answer_text, call_text
from deeprec.rewards.outcome import hit_reward, pointwise_reward, rank_reward

ALIEN, HALO, HALO_2, CASABLANCA, ASSISTANT, TWIN, TWIN_2, HEAT, BRAZIL, RAN, EM, JAWS = map(ItemIdx, range(12))
CALL = call_text("I look.", "something")


@pytest.fixture
def answered(explored):
    def build(*titles, call=CALL):
        return explored([call, answer_text("I rank.", titles)], answer_size=len(titles))

    return build


@pytest.mark.parametrize(
    ("target", "rank"),
    [
        (HALO, 0.6),  # 0.2 · (3 − 0)
        (HEAT, 0.4),  # 0.2 · (3 − 1)
        (RAN, 0.2),  # 0.2 · (3 − 2)
        (EM, 0.0),  # retrieved, not answered
        (JAWS, 0.0),  # never seen
    ],
)
def test_hit_and_rank_of_three(answered, target, rank):
    trace = answered("Halo", "Heat", "Ran")
    assert hit_reward(trace, target) == (1.0 if rank else 0.0)
    assert rank_reward(trace, target) == pytest.approx(rank)
    assert rank_reward(trace, target, step=1.0) == pytest.approx(rank * 5)
    assert hit_reward(trace, target, value=7.0) == (7.0 if rank else 0.0)


def test_hit_and_rank_of_nine(explored):
    """1 + 0.2 · (9 − 0) for the first position, 1 + 0.2 · (9 − 8) for the last."""
    titles = ["Halo", "Halo 2", "Casablanca", "Assistant", "Heat", "Brazil", "Ran", "M", "Jaws"]
    trace = explored([CALL, answer_text("I rank.", titles)], answer_size=9)
    assert trace.well_formed
    assert hit_reward(trace, HALO) + rank_reward(trace, HALO) == pytest.approx(1 + 0.2 * 9)
    assert hit_reward(trace, JAWS) + rank_reward(trace, JAWS) == pytest.approx(1 + 0.2 * 1)


def test_titles_that_contain_each_other_are_two_items(answered):
    """In the paper's code 'Halo' was hit by 'Halo 2', and Recall could reach 3."""
    longer = answered("Halo 2", "Heat", "Ran")
    assert hit_reward(longer, HALO_2) == 1
    assert hit_reward(longer, HALO) == rank_reward(longer, HALO) == 0
    shorter = answered("Halo", "Heat", "Ran")
    assert hit_reward(shorter, HALO) == 1
    assert hit_reward(shorter, HALO_2) == rank_reward(shorter, HALO_2) == 0
    both = answered("Halo 2", "Halo", "Ran")
    assert rank_reward(both, HALO) == pytest.approx(0.2 * 2)
    assert rank_reward(both, HALO_2) == pytest.approx(0.2 * 3)


@pytest.mark.parametrize(
    "titles",
    [
        ("Halo", "Halo", "Halo"),
        ("Halo", "Heat", "Halo"),
        ("Halo", "Heat", "Never Made"),
        ("Halo", "Heat", "Alien"),
        ("Halo", "Heat", "Twin"),
    ],
    ids=["one title thrice", "repeated", "invented", "seen", "ambiguous"],
)
def test_nothing_is_paid_on_a_malformed_answer_even_with_the_target_first(answered, titles):
    trace = answered(*titles)
    assert HALO in trace.raw_ranking  # the target was named: only the faults keep the reward back
    assert hit_reward(trace, HALO) == rank_reward(trace, HALO) == 0
    ones = np.ones((12, 1), dtype=np.float32)
    assert pointwise_reward(trace, HALO, ones, ones) == 0


def test_nothing_is_paid_without_a_call(answered):
    trace = answered("Halo", "Heat", "Ran", call="")
    assert not trace.well_formed
    assert hit_reward(trace, HALO) == 0


def test_inventions_are_not_item_zero(explored):
    """In the paper's code an invented title was scored as item 0."""
    vectors_ID = np.zeros((12, 2), dtype=np.float32)
    vectors_ID[0] = vectors_ID[HALO] = (1, 0)
    trace = explored([CALL, answer_text("I rank.", ["Made", "Up", "Titles"])])
    assert pointwise_reward(trace, HALO, vectors_ID, vectors_ID) == 0
    assert hit_reward(trace, ItemIdx(0)) == rank_reward(trace, ItemIdx(0)) == 0


# Cosines with the target Jaws, (1, 0): of Halo 1 and 0.6, of Heat 0 and −1, of Ran 0.8 and 0.
TEXT = {JAWS: (1, 0), HALO: (1, 0), HEAT: (0, 1), RAN: (0.8, 0.6)}
COLLABORATIVE = {JAWS: (1, 0), HALO: (0.6, -0.8), HEAT: (-1, 0), RAN: (0, 1)}


def table(rows):
    vectors_ID = np.full((12, 2), np.nan, dtype=np.float32)  # no other item may matter
    for item, row in rows.items():
        vectors_ID[item] = row
    return vectors_ID


@pytest.mark.parametrize(
    ("titles", "expected"),
    [
        # w = (1 − i/3)² = 1, 4/9, 1/9, in sum 14/9;  s = ½ (1 + 0.6), ½ (0 − 1), ½ (0.8 + 0) = 0.8, −0.5, 0.4
        (("Halo", "Heat", "Ran"), 10 * (1 * 0.8 + 4 / 9 * -0.5 + 1 / 9 * 0.4) / (14 / 9)),
        (("Heat", "Ran", "Halo"), 10 * (1 * -0.5 + 4 / 9 * 0.4 + 1 / 9 * 0.8) / (14 / 9)),
        (("Halo", "Ran", "Heat"), 10 * (1 * 0.8 + 4 / 9 * 0.4 + 1 / 9 * -0.5) / (14 / 9)),
        # w = 1, 1/4, in sum 5/4
        (("Halo", "Heat"), 10 * (1 * 0.8 + 1 / 4 * -0.5) / (5 / 4)),
        (("Heat",), 10 * -0.5),
    ],
)
def test_pointwise(answered, titles, expected):
    trace = answered(*titles)
    assert pointwise_reward(trace, JAWS, table(TEXT), table(COLLABORATIVE)) == pytest.approx(expected, abs=1e-5)
    doubled = pointwise_reward(trace, JAWS, table(TEXT), table(COLLABORATIVE), scale=20)
    assert doubled == pytest.approx(2 * expected, abs=1e-5)


def test_pointwise_pays_more_for_the_better_item_first(answered):
    good, bad = answered("Halo", "Ran", "Heat"), answered("Heat", "Ran", "Halo")
    args = (JAWS, table(TEXT), table(COLLABORATIVE))
    assert pointwise_reward(good, *args) > pointwise_reward(bad, *args)


def test_pointwise_of_the_target_itself_is_the_scale(answered):
    ones_ID = np.full((12, 4), 0.5, dtype=np.float32)
    assert pointwise_reward(answered("Halo", "Heat", "Ran"), JAWS, ones_ID, ones_ID) == pytest.approx(10)
