"""Explorations with one part replaced, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from deeprec.config import ExploreConfig
from deeprec.data.catalog import ItemIdx, UserId
from deeprec.data.dataset import Task
from deeprec.evaluation.oracle_ablation import OracleAblation, in_own_order, replay
from deeprec.explore.explorer import Explorer
from deeprec.explore.trace import Stop, Trace, Turn
from deeprec.policies.scripted import ScriptedPolicy
from deeprec.retrieval.retriever import Hit, phrases_of, top_hits
from toys import catalog_of

CATALOG = catalog_of([(f"C{item}",) for item in range(8)])


def items(*numbers):
    return tuple(map(ItemIdx, numbers))


class Lowest:
    """Item i scores -i, and 10 times the preference weight more where the preference names its category."""

    preference_weight = None
    catalog = CATALOG

    def __init__(self):
        self.sizes = []

    def scores(self, queries):
        self.sizes.append(len(queries))
        said = [set(phrases_of(query.preference)) for query in queries]
        return np.array(
            [
                [10.0 * q.preference_weight * (f"C{i}" in s) - i for i in range(8)]
                for q, s in zip(queries, said, strict=True)
            ]
        )

    def retrieve(self, queries, k):
        return top_hits(self.scores(queries), queries, k)


def task(user, *history):
    return Task(f"test:{user}", UserId(user), items(*history))


def explored(of, *turns):
    """Turns are (preference, items)."""
    made = tuple(Turn("", said, tuple(Hit(item, 0.0) for item in items(*found))) for said, found in turns)
    return Trace(of.id, of.user, of.history, (), made, "", (), (), Stop.ANSWERED, (), 4)


def test_calls_are_asked_again_as_they_were():
    """At weight 0.5 a category adds 5: C5 comes to 0, C3 to 2; the history, 0, and what came before stay out."""
    tasks = [task("a", 0), task("b", 0)]
    assert replay(Lowest(), tasks, [["C5", "C3"], ["C1"]], 2, 0.5) == [[5, 1, 3, 2], [1, 2]]
    assert replay(Lowest(), tasks, [[], []], 2, 0.5) == [[], []]


def test_calls_may_bring_the_history_where_the_task_allows_it():
    """At weight 0.5 a category adds 5: C5 comes to 0, level with item 0, and C3 to 2."""
    tasks = [replace(task("a", 0), exclude_history=False)]
    assert replay(Lowest(), tasks, [["C5", "C3"]], 2, 0.5) == [[0, 5, 3, 1]]


def test_lists_are_put_in_the_own_order_of_each_task():
    trm = Lowest()
    tasks = [task(f"u{n}") for n in range(300)]
    lists = [items(5, 2, 7) if n % 2 else items(1, 0) for n in range(300)]
    assert in_own_order(trm, tasks, lists) == [[0, 1], [2, 5, 7]] * 150
    assert trm.sizes == [256, 44]


def test_what_each_better_part_would_bring():
    """a looks for 4. Its own list is 1 2 3 4; its pool in that order 1 2 3 5, and 1 2 3 4 5 with the target. At weight
    0.2 C4 comes to -2, level with 2, so the calls bring 1 2 and, for C3, 3 4; at weight 1 they bring 4 1, 3 2. b finds
    its target second, where the TRM has it first. c called nothing, and a better part would bring nothing either."""
    tasks = [task("a", 0), task("b", 1, 2), task("c")]
    traces = [
        explored(tasks[0], ("C5", (5, 1)), ("C3", (3, 2))),
        explored(tasks[1], ("C3", (3, 0))),
        explored(tasks[2]),
    ]
    explore = ExploreConfig(items_per_call=2, answer_size=4, max_calls=2, preference_weight=0.2)
    trm = Lowest()
    explorer = Explorer(ScriptedPolicy(4), trm, CATALOG, explore)
    oracle_ablation = OracleAblation.of(trm, explorer, tasks, traces, items(4, 0, 1))
    assert oracle_ablation.alone == (3, 0, -1)
    assert oracle_ablation.reordered == (-1, 0, -1)
    assert oracle_ablation.completed == (3, 0, -1)
    assert oracle_ablation.preference == (3, 0, -1)
    assert oracle_ablation.full_preference == (0, 0, -1)
