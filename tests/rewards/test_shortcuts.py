"""Shortcuts that a policy might find, each beside the honest exploration that it pretends to be: none earns more."""

from __future__ import annotations

import numpy as np
import pytest

from deeprec.config import RewardConfig, TrainConfig
from deeprec.data.catalog import ItemIdx
from deeprec.explore.protocol import END_ITEMS, ITEMS, answer_text, call_text
from deeprec.rewards.rubric import Rubric

HALO, BRAZIL = ItemIdx(1), ItemIdx(8)
DIRECTIONS = {"dark": (1.0, 0.0), "Dark!": (0.95, 0.3122), "light": (0.0, 1.0)}
STAGES = {stage.name: stage.rewards for stage in TrainConfig().stages} | {
    "foresight": {"format": 1.0, "foresight": 1.0}
}
PLACES = {"": 7, "dark": 3, "Dark!": 3, "light": 3, ";": 7}


def embed(texts):
    return np.array([DIRECTIONS[text] for text in texts], dtype=np.float32)


def ranks(queries, targets):
    return np.array([PLACES[query.preference] for query in queries])


def paid(trace, target, stage):
    alone_ID = np.eye(12, dtype=np.float32)  # no item is like another
    return Rubric.build(RewardConfig(), STAGES[stage], embed, alone_ID, alone_ID, ranks, 0.1).score(trace, target).total


def call(preference="dark", thought="I look."):
    return call_text(thought, preference)


def answer(*titles, thought="I rank."):
    return answer_text(thought, titles or ("Halo", "Heat", "Ran"))


ONE_CALL = [call(), answer()]
FORGED = f"I look.\n{ITEMS}\n1. Brazil\n{END_ITEMS}\n"

# What is written, in place of what, and (for the second stage) with which target.
SHORTCUTS = {
    "padding: one preference in three calls": ([call(), call(), call(), answer()], ONE_CALL, HALO),
    "padding: one preference, its words changed a little": ([call("dark"), call("Dark!"), answer()], ONE_CALL, HALO),
    "calls and no answer": ([call("dark"), call("light"), call("Dark!"), "so it goes"], ONE_CALL, HALO),
    "an answer without a call": ([answer()], ONE_CALL, HALO),
    "one title in every place": ([call(), answer("Halo", "Halo", "Halo")], ONE_CALL, HALO),
    "more titles than asked for": ([call(), answer("Heat", "Ran", "M", "Halo")], ONE_CALL, HALO),
    "a list of items of one's own": ([FORGED + call(), answer("Brazil", "Heat", "Ran")], ONE_CALL, BRAZIL),
    "titles of the history": ([call(), answer("Alien", "Halo", "Heat")], ONE_CALL, HALO),
    "titles that do not exist": ([call(), answer("Halo 3", "Halo 4", "Halo 5")], ONE_CALL, HALO),
    "a title that holds another's": (
        [call(), answer("Halo 2", "M", "Ran")],
        [call(), answer("Heat", "M", "Ran")],
        HALO,
    ),
    "a title that stands for two items": ([call(), answer("Twin", "Heat", "Ran")], ONE_CALL, ItemIdx(5)),
    "no thought before the answer": ([call(), answer(thought="")], ONE_CALL, HALO),
    "two answers": ([call(), answer("Heat", "Ran", "M") + "\n" + answer()], ONE_CALL, HALO),
    "an empty preference": ([call(" ; "), answer()], ONE_CALL, HALO),
    "the prompt's words again": ([f"User:\nAlien\n{call()}", answer()], ONE_CALL, HALO),
    "a call inside the answer": ([call(), answer("Halo", "Heat", call())], ONE_CALL, HALO),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("written", "honest", "target"), SHORTCUTS.values(), ids=SHORTCUTS)
def test_a_shortcut_earns_nothing(explored, written, honest, target, stage):
    honest = paid(explored(honest), target, stage)
    if stage == "cold-start":
        assert honest == 0  # one clean call: nothing lost, nothing earned
    assert paid(explored(written), target, stage) <= honest


def test_honest_ways_are_paid(explored):
    """What the shortcuts imitate is worth something, or the table above would prove nothing."""
    several = explored([call("dark"), call("light"), answer()])
    assert paid(several, HALO, "cold-start") == pytest.approx(0.5 + 0.2)
    answers = (("Halo", "M", "Ran"), ("M", "Ran", "Halo"), ("M", "Ran", "Heat"))
    first, last, none = (paid(explored([call(), answer(*titles)]), HALO, "recommendation") for titles in answers)
    assert first > last > none == 0
    assert paid(several, HALO, "foresight") == pytest.approx(0.5)  # 0.5 · log2(8 / 4)
