"""Calibration of the preference weight, from ranks written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from deeprec.data.catalog import ItemIdx, UserId
from deeprec.data.dataset import Task
from deeprec.trm.calibration import CANDIDATE_WEIGHTS, calibrate_preference_weight
from toys import toy_dataset

CATALOG = toy_dataset().catalog


def items(*numbers):
    return tuple(map(ItemIdx, numbers))


class WrittenRanks:
    """Answers with the ranks written for each weight, and keeps the calls."""

    def __init__(self, ranks_WU):
        self.ranks = dict(zip(CANDIDATE_WEIGHTS, ranks_WU, strict=True))
        self.calls = []

    def __call__(self, queries, targets_U):
        (weight,) = {query.preference_weight for query in queries}
        self.calls.append((queries, list(targets_U)))
        return np.array(self.ranks[weight])[list(targets_U)]


def calibrate(*ranks_WU):
    n = len(ranks_WU[0])
    tasks = [Task(f"test:{u}", UserId(str(u)), items(u % 5, 7, 3, 8)) for u in range(n)]
    ranks = WrittenRanks(ranks_WU)
    return calibrate_preference_weight(ranks, CATALOG, tasks, np.arange(n)), ranks


def test_a_clearly_best_weight_is_taken():
    worse, better = [1] * 20, [0] * 20
    assert calibrate(worse, worse, better)[0] == CANDIDATE_WEIGHTS[2]
    assert calibrate(worse, better, worse)[0] == CANDIDATE_WEIGHTS[1]
    assert calibrate(better, worse, worse)[0] == CANDIDATE_WEIGHTS[0]


def test_of_equals_the_lowest_is_taken():
    assert calibrate([3, -1], [3, -1], [3, -1])[0] == CANDIDATE_WEIGHTS[0]
    assert calibrate([9, 9], [0, 0], [0, 0])[0] == CANDIDATE_WEIGHTS[1]


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        # m of n users go from no rank to the first: a mean gain of m/n, with a standard error of
        # sqrt(m/n (1 - m/n) / (n - 1)): of ten, one gains 0.1 with an error of 0.1, two gain 0.2 with 0.133.
        ([0, *[20] * 9], CANDIDATE_WEIGHTS[0]),
        ([0, 0, *[20] * 8], CANDIDATE_WEIGHTS[1]),
        # One appears and another falls by a rank: a mean gain of (1 - 0.369) / 10 = 0.063, with an error of 0.112.
        ([0, 1, *[20] * 8], CANDIDATE_WEIGHTS[0]),
    ],
)
def test_a_gain_within_a_standard_error_is_none(users, expected):
    before = [20, 0, *[20] * 8] if users[1] == 1 else [20] * 10
    assert calibrate(before, users, [20] * 10)[0] == expected


@pytest.mark.parametrize("n", [1, 2, 3, 10, 943])
def test_one_user_alone_raises_no_weight(n):
    assert calibrate([20] * n, [0, *[20] * (n - 1)], [20] * n)[0] == CANDIDATE_WEIGHTS[0]


def test_preferences_are_the_latest_titles_and_histories_are_excluded():
    _, ranks = calibrate([0], [0], [0])
    assert [queries[0].preference_weight for queries, _ in ranks.calls] == list(CANDIDATE_WEIGHTS)
    query = ranks.calls[0][0][0]
    titles = CATALOG.titles
    assert query.preference == "; ".join([titles[8], titles[3], titles[7]])
    assert query.history == items(0, 7, 3, 8)
    assert query.exclude == set(items(0, 7, 3, 8))


def test_of_many_users_an_evenly_spaced_part_is_ranked_each_with_its_own_target():
    n = 9001
    _, ranks = calibrate(*[[0] * n] * 3)
    for queries, targets in ranks.calls:
        assert targets == list(range(0, n, 3))
        assert [query.history[0] for query in queries] == [u % 5 for u in targets]
