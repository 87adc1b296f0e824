"""Whom an evaluation ranks for, and how retrievers rank for them."""

from __future__ import annotations

import numpy as np
import pytest

from deeprec.config import EvalConfig
from deeprec.data.catalog import ItemIdx, UserId
from deeprec.data.dataset import Task
from deeprec.errors import DeepRecError
from deeprec.evaluation.rankings import evaluation_tasks, fused, rankings_of
from deeprec.explore.trace import Stop, Trace, Turn
from deeprec.retrieval.baselines import PopularityRetriever
from deeprec.retrieval.retriever import Hit, Retriever
from toys import toy_dataset


def items(*numbers):
    return tuple(map(ItemIdx, numbers))


def tasks_of(*histories):
    return [Task(f"test:u{u}", UserId(f"u{u}"), items(*history)) for u, history in enumerate(histories)]


def test_a_retriever_ranks_all_but_the_history():
    """Popularity 0 > 1 > 2 > 3 > 4; the three best without the history."""
    retriever = PopularityRetriever(np.array([5.0, 4, 3, 2, 1]))
    assert rankings_of(retriever, tasks_of([0, 4], [3], [], [0, 1, 2]), 3) == [[1, 2, 3], [0, 1, 2], [0, 1, 2], [3, 4]]


class Asked(Retriever):
    """Answers with item = number of the query, and remembers what it was asked."""

    def __init__(self):
        self.batches, self.ks, self.count = [], [], 0

    def retrieve(self, queries, k):
        self.batches.append(queries)
        self.ks.append(k)
        hits = [[Hit(ItemIdx(self.count + position), 0.0)] for position in range(len(queries))]
        self.count += len(queries)
        return hits


def test_a_retriever_is_asked_in_batches_and_answers_stay_in_order():
    asked = Asked()
    assert rankings_of(asked, tasks_of(*[[1, 2]] * 600), 3) == [[position] for position in range(600)]
    assert set(asked.ks) == {3}
    assert sum(map(len, asked.batches)) == 600
    assert len(asked.batches) > 1
    for query in (query for batch in asked.batches for query in batch):
        assert (query.history, query.preference, set(query.exclude)) == ((1, 2), "", {1, 2})


def test_preferences_are_asked_with_their_weight():
    asked = Asked()
    rankings_of(asked, tasks_of([1], [2]), 3, lambda task: f"for {task.user}", 0.3)
    assert [(query.preference, query.preference_weight) for query in asked.batches[0]] == [
        ("for u0", 0.3),
        ("for u1", 0.3),
    ]


def test_lists_are_fused_by_reciprocal_rank():
    """By hand: 1/61 + 1/63 for 4, 1/62 + 1/62 for 2, 1/61 for 7, 1/63 for 9 and 1/64 for 1."""
    lists = {"a": [4, 2, 9], "b": [7, 2, 4, 1], "c": [3]}

    class Lists(Retriever):
        def retrieve(self, queries, k):
            self.asked = list(queries)
            return [[Hit(ItemIdx(item), 0.0) for item in lists[query.preference]] for query in queries]

    def trace(task, *preferences):
        turns = tuple(Turn("", preference, ()) for preference in preferences)
        return Trace(task.id, task.user, task.history, (), turns, "", (), (), Stop.ANSWERED, (), 4)

    retriever, (one, two) = Lists(), tasks_of([8], [0])
    assert fused(retriever, [one, two], [trace(one, "a", "b"), trace(two, "c")], 4, 0.1) == [[4, 2, 7, 9], [3]]
    asked = [(query.history, query.preference, query.exclude, query.preference_weight) for query in retriever.asked]
    assert asked[:2] == [(one.history, each, frozenset(one.history), 0.1) for each in "ab"]
    assert asked[2:] == [(two.history, "c", frozenset(two.history), 0.1)]


def test_the_sample_is_seeded_sorted_and_of_the_split():
    dataset = toy_dataset(n_users=50)
    everything, sample = evaluation_tasks(dataset, EvalConfig(users=10))
    assert everything == dataset.tasks("test")
    assert len(sample) == 10
    numbers = [everything.index(task) for task in sample]
    assert numbers == sorted(set(numbers))
    assert numbers != list(range(10))
    assert evaluation_tasks(dataset, EvalConfig(users=10))[1] == sample
    assert {task.id for task in sample} < {task.id for task in evaluation_tasks(dataset, EvalConfig(users=15))[1]}
    assert evaluation_tasks(dataset, EvalConfig(users=10, split="validation"))[0] == dataset.tasks("validation")


@pytest.mark.parametrize("users", [None, 50, 51])
def test_without_a_smaller_number_the_sample_is_everybody(users):
    everything, sample = evaluation_tasks(toy_dataset(n_users=50), EvalConfig(users=users))
    assert sample == everything


def test_no_users_to_evaluate_is_an_error():
    with pytest.raises(DeepRecError, match="has no test users"):
        evaluation_tasks(toy_dataset(length=2), EvalConfig())
