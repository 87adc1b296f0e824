"""Guesses of what comes next."""

from __future__ import annotations

import pytest

from deeprec.policies import prompt_lookup
from deeprec.policies.prompt_lookup import PromptLookup


def lookup(*contexts: list[int]) -> PromptLookup:
    made = PromptLookup()
    for context in contexts:
        made.learn(context, 0)
    return made


def test_what_followed_the_same_pair_last_follows_again() -> None:
    made = lookup([1, 2, 3, 9, 1, 2, 4, 5, 6])
    assert made.guess([7, 1, 2], 3, PromptLookup()) == [4, 5, 6]
    assert made.guess([7, 1, 2], 2, PromptLookup()) == [4, 5]
    assert made.guess([7, 1, 2], -1, PromptLookup()) == []
    assert made.guess([2, 1], 3, PromptLookup()) == []


def test_a_row_s_past_comes_before_that_of_others() -> None:
    others = lookup([1, 2, 8], [4, 5, 6, 7])
    assert lookup([1, 2, 4, 5]).guess([1, 2], 9, others) == [4, 5, 6, 7]
    assert PromptLookup().guess([1, 2], 9, others) == [8]


@pytest.mark.parametrize("context", [[], [1]])
def test_a_context_too_short_for_a_pair_guesses_nothing(context: list[int]) -> None:
    assert lookup([1, 1, 1]).guess(context, 3, PromptLookup()) == []


def test_only_what_is_new_is_learned_and_a_full_table_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    made = lookup([1, 2, 3])
    made.learn([1, 2, 7, 1, 5], 3)
    assert made.guess([1, 2], 1, PromptLookup()) == [3]
    assert made.guess([7, 1], 1, PromptLookup()) == [5]
    monkeypatch.setattr(prompt_lookup, "_MOST", 2)
    made.learn([6, 6, 6], 0)
    assert made.guess([1, 2], 1, PromptLookup()) == []
    assert made.guess([6, 6], 1, PromptLookup()) == [6]
