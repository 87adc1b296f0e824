"""How far guesses are believed, from ranks that are written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from deeprec.data.catalog import ItemIdx, UserId
from deeprec.data.dataset import Task
from deeprec.testing import toy_dataset
from deeprec.trm.calibration import CANDIDATE_WEIGHTS, calibrate_preference_weight

CATALOG = toy_dataset().catalog


def items(*numbers):
    return tuple(map(ItemIdx, numbers))


class Written:
    """Answers with the places written for each trust, and keeps what it was asked."""

    def __init__(self, positions_TU):
        self.positions = dict(zip(CANDIDATE_WEIGHTS, positions_TU, strict=True))
        self.asked = []

    def __call__(self, queries, targets_U):
        (preference_weight,) = {query.preference_weight for query in queries}
        self.asked.append((queries, list(targets_U)))
        return np.array(self.positions[preference_weight])[list(targets_U)]


def worth(*positions_TU, n=None):
    n = len(positions_TU[0]) if n is None else n
    tasks = [Task(f"test:{u}", UserId(str(u)), items(u % 5, 7, 3, 8)) for u in range(n)]
    written = Written(positions_TU)
    return calibrate_preference_weight(written, CATALOG, tasks, np.arange(n)), written


def test_the_best_is_taken_where_it_is_clearly_so():
    worse, better = [1] * 20, [0] * 20
    assert worth(worse, worse, better)[0] == CANDIDATE_WEIGHTS[2]
    assert worth(worse, better, worse)[0] == CANDIDATE_WEIGHTS[1]
    assert worth(better, worse, worse)[0] == CANDIDATE_WEIGHTS[0]


def test_of_equals_the_lowest_is_taken():
    assert worth([3, -1], [3, -1], [3, -1])[0] == CANDIDATE_WEIGHTS[0]
    assert worth([9, 9], [0, 0], [0, 0])[0] == CANDIDATE_WEIGHTS[1]


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        # m of n users go from nowhere to the first place: a mean gain of m/n, with a standard error of
        # sqrt(m/n (1 - m/n) / (n - 1)): of ten, one gains 0.1 with an error of 0.1, two gain 0.2 with 0.133.
        ([0, *[20] * 9], CANDIDATE_WEIGHTS[0]),
        ([0, 0, *[20] * 8], CANDIDATE_WEIGHTS[1]),
        # One comes and another goes back by a place: a mean gain of (1 - 0.369) / 10 = 0.063, with an error of 0.112.
        ([0, 1, *[20] * 8], CANDIDATE_WEIGHTS[0]),
    ],
)
def test_a_gain_within_a_standard_error_is_none(users, expected):
    before = [20, 0, *[20] * 8] if users[1] == 1 else [20] * 10
    assert worth(before, users, [20] * 10)[0] == expected


@pytest.mark.parametrize("n", [1, 2, 3, 10, 943])
def test_one_user_alone_raises_nothing(n):
    assert worth([20] * n, [0, *[20] * (n - 1)], [20] * n)[0] == CANDIDATE_WEIGHTS[0]


def test_it_asks_with_the_latest_titles_for_what_the_history_lacks():
    _, written = worth([0], [0], [0])
    assert [queries[0].preference_weight for queries, _ in written.asked] == list(CANDIDATE_WEIGHTS)
    query = written.asked[0][0][0]
    titles = CATALOG.titles
    assert query.preference == "; ".join([titles[8], titles[3], titles[7]])
    assert query.history == items(0, 7, 3, 8)
    assert query.exclude == set(items(0, 7, 3, 8))


def test_of_many_users_some_are_asked_for_and_each_with_its_own_target():
    n = 9001
    _, written = worth(*[[0] * n] * 3)
    for queries, targets in written.asked:
        assert targets == list(range(0, n, 3))
        assert [query.history[0] for query in queries] == [u % 5 for u in targets]
