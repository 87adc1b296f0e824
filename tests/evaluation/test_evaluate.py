"""`deeprec.evaluate` on the toy data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deeprec.config import ExploreConfig
from deeprec.errors import DeepRecError
from deeprec.evaluation.evaluate import evaluate
from deeprec.evaluation.metrics import ndcg_at, ranks_of
from deeprec.evaluation.rankings import rankings_of
from deeprec.evaluation.report import Report
from deeprec.evaluation.systems import Ranked, System
from deeprec.explore.explorer import Explorer
from deeprec.explore.policy import Finish
from deeprec.policies.scripted import ScriptedPolicy, ScriptedWriter
from deeprec.policies.text import TextPolicy
from deeprec.retrieval.baselines import PopularityRetriever, TransitionRetriever
from deeprec.runs.progress import Progress
from toys import toy_dataset

DATASET = toy_dataset()
POPULARITY = PopularityRetriever.fit(DATASET.train_sequences(), len(DATASET.catalog))
TRANSITIONS = TransitionRetriever.fit(DATASET.train_sequences(), len(DATASET.catalog))
LIMITS = ExploreConfig(answer_size=3, items_per_call=4)


def explorer(policy):
    return Explorer(policy, POPULARITY, DATASET.catalog, LIMITS)


class Backwards(System):
    """Ranks the catalogue from its end."""

    name = "backwards"

    def rank(self, tasks, k, log=None, progress=None):
        items = reversed(range(len(DATASET.catalog)))
        return Ranked([[item for item in items if item not in task.history][:k] for task in tasks])


class Told(Progress):
    def __init__(self):
        self.phases = []

    def phase(self, name, total=None, *, unit=""):
        self.phases.append((name, total))
        return super().phase(name, total, unit=unit)


@pytest.fixture(scope="module")
def report():
    return evaluate(
        {
            "transitions": TRANSITIONS,
            "popularity": POPULARITY,
            "script": explorer(ScriptedPolicy(3)),
            "model": explorer(TextPolicy(ScriptedWriter(3))),
            "mine": Backwards(),
        },
        DATASET,
        users=10,
        cutoffs=(1, 3),
        baseline="popularity",
    )


def test_retrievers_explorers_and_systems_are_compared(report):
    assert isinstance(report, Report)
    (found,) = report.sets
    assert [result.name for result in found.results] == ["transitions", "popularity", "script", "model", "mine"]
    assert [len(result.users) for result in found.results] == [60, 60, 60, 10, 60]  # a model runs on the sample
    assert (found.label, found.split, found.base.name, found.headline) == ("toy", "test", "popularity", "NDCG@3")
    tasks, targets = DATASET.tasks("test"), DATASET.targets("test")
    expected = ndcg_at(ranks_of(rankings_of(POPULARITY, tasks, 3), [targets[task.id] for task in tasks]), 3)
    np.testing.assert_allclose(found.base.metrics["NDCG@3"], expected)
    assert found.results[2].explorations
    assert not found.results[4].explorations


def test_it_prints_as_a_table_and_saves_as_a_report(report, tmp_path):
    text = str(report)
    assert max(map(len, text.splitlines())) <= 80
    for name in ("transitions", "popularity", "script", "model", "mine", "baseline"):
        assert name in text
    path = report.save(tmp_path / "report")
    assert "## toy" in path.read_text()
    assert {"report.html", "report.json", "report.md"} <= {file.name for file in path.parent.iterdir()}
    assert set(report.table()["system"]) == {"transitions", "popularity", "script", "model", "mine"}


def test_the_first_system_is_the_baseline_and_progress_is_told():
    told = Told()
    report = evaluate({"a": POPULARITY, "b": explorer(ScriptedPolicy(3))}, DATASET, split="validation", progress=told)
    assert (report.sets[0].baseline, report.sets[0].split) == ("a", "validation")
    assert told.phases == [("a", None), ("b", 60)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"systems": {}}, "there is no system to evaluate"),
        ({"baseline": "c"}, "baseline 'c' is not one of the systems"),
        ({"cutoffs": (5, 1)}, "rising whole numbers"),
        ({"cutoffs": ()}, "rising whole numbers"),
        ({"users": 0}, "greater than or equal to 1"),
        ({"split": "train"}, "'validation' or 'test'"),
        ({"dataset": toy_dataset(length=2)}, "has no test users"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_sentence(arguments, told):
    given = {"systems": {"a": POPULARITY}, "dataset": DATASET} | arguments
    with pytest.raises(DeepRecError, match=told) as caught:
        evaluate(given.pop("systems"), given.pop("dataset"), **given)
    assert "\n" not in str(caught.value)


def test_a_system_of_another_catalogue_is_refused():
    other = toy_dataset(n_items=30)
    stranger = Explorer(ScriptedPolicy(3), PopularityRetriever.fit(other.train_sequences(), 30), other.catalog)
    with pytest.raises(DeepRecError, match=r"'b' has other items than toy .*: fit it to this data\."):
        evaluate({"a": POPULARITY, "b": stranger}, DATASET)


def test_a_system_that_fails_leaves_the_others():
    class Failing(ScriptedPolicy):
        def step(self):
            return [replace(chunk, finish=Finish.FAILED, error="no server") for chunk in super().step()]

    report = evaluate({"a": POPULARITY, "b": explorer(Failing(3))}, DATASET)
    assert [result.name for result in report.sets[0].results] == ["a"]
    assert len(report.failed) == 1
    assert "b: 60 of 60 explorations failed (first: no server)" in report.failed[0]
