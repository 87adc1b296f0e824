"""What an evaluation excludes: not the history where targets repeat items of it, unless it is told to."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest

from command_line import CONFIG
from command_line import deeprec as run
from deeprec.config import EvalConfig, ExploreConfig
from deeprec.errors import DeepRecError
from deeprec.evaluation.cached_results import Users
from deeprec.evaluation.evaluate import evaluate
from deeprec.evaluation.rankings import evaluation_tasks
from deeprec.explore.explorer import Explorer
from deeprec.policies.scripted import ScriptedPolicy, ScriptedWriter
from deeprec.policies.text import TextPolicy
from deeprec.retrieval.baselines import EASERetriever, PopularityRetriever, TransitionRetriever
from repeats import BASKETS, PLAYS, SHOP, SINGLE, load, write
from toys import toy_dataset


def fitted(dataset):
    train, n_items = dataset.train_sequences(), len(dataset.catalog)
    popularity = PopularityRetriever.fit(train, n_items)
    script = Explorer(ScriptedPolicy(5), popularity, dataset.catalog, ExploreConfig(answer_size=5, items_per_call=5))
    return {
        "popularity": popularity,
        "transitions": TransitionRetriever.fit(train, n_items),
        "EASE": EASERetriever.fit(train, n_items, 20.0),
        "script": script,
    }


def gains(dataset, scores, excluded):
    """NDCG@5 of each test user, ranked by `scores(history)`, equal ones by lower item."""
    found, targets = [], dataset.targets("test")
    for task in dataset.tasks("test"):
        scored = {item: score for item, score in enumerate(scores(task.history)) if item not in excluded(task.history)}
        ranking = sorted(scored, key=lambda item: (-scored[item], item))[:5]
        target = targets[task.id]
        found.append(1 / np.log2(ranking.index(target) + 2) if target in ranking else 0.0)
    return found


def popularity(dataset):
    counts = np.zeros(len(dataset.catalog))
    for sequence in dataset.train_sequences():
        for item in sequence:
            counts[item] += 1
    return lambda history: counts


def transitions(dataset):
    """Followers of the last item, equal ones by popularity."""
    counts = popularity(dataset)(())

    def scores(history):
        after = counts / (counts.max() + 1)
        for sequence in map(list, dataset.train_sequences()):
            for before, then in pairwise(sequence):
                after[then] += before == history[-1]
        return after

    return scores


SETS = {
    "shop": (SHOP, {}),
    "plays": (PLAYS, {}),
    "baskets": (BASKETS, {"time_split": [0.5, 0.7]}),
    "single": (SINGLE, {}),
}


@pytest.mark.parametrize("name", SETS)
def test_a_target_that_repeats_can_be_ranked(tmp_path, name):
    sequences, options = SETS[name]
    dataset = load(tmp_path, sequences, **options)
    report = evaluate(fitted(dataset), dataset, cutoffs=(5,))
    (found,) = report.sets
    results = {result.name: result.metrics["NDCG@5"] for result in found.results}
    for system, scores in (("popularity", popularity), ("transitions", transitions)):
        np.testing.assert_allclose(results[system], gains(dataset, scores(dataset), lambda history: ()))
    assert results["transitions"].mean() > 0
    assert not report.failed
    again = [
        dataset.targets("test")[task] in found.results[0].parts[0].rankings[n]
        for n, task in enumerate(found.users.users)
    ]
    np.testing.assert_array_equal(np.array(again), results["popularity"] > 0)
    script = next(result for result in found.results if result.name == "script")
    assert all(script.explorations[0].well_formed)


@pytest.mark.parametrize(("name", "share"), [("plays", 2 / 3), ("single", 1 / 21)])
def test_what_can_only_be_0_is_said(tmp_path, name, share):
    dataset = load(tmp_path, SETS[name][0])
    report = evaluate(fitted(dataset), dataset, cutoffs=(5,), exclude="history")
    (found,) = report.sets
    repeated = np.isin(found.users.users, found.users.repeated)
    assert repeated.mean() == pytest.approx(share)
    for result in found.results:
        assert not result.metrics["Recall@5"][repeated].any()
    expected = gains(dataset, popularity(dataset), lambda history: history)
    np.testing.assert_allclose(found.base.metrics["NDCG@5"], expected)
    told = (
        f"of {len(repeated)} test targets ({100 * share:.1f} %) were chosen before; the history is excluded, so these"
    )
    text = " ".join(str(report).split())
    assert told in text
    assert f"can only score 0, and no metric can pass {1 - share:.4f}." in text
    saved = report.save(tmp_path / "report").read_text()
    assert told in saved
    assert "Full ranking of the catalogue, the history excluded. " in saved
    (tree,) = json.loads((tmp_path / "report" / "report.json").read_text())["sets"]
    assert (tree["exclude"], tree["repeated_targets"]) == ("history", repeated.sum())


def test_a_report_says_that_the_history_is_open(tmp_path):
    dataset = load(tmp_path, SHOP)
    report = evaluate(fitted(dataset), dataset, cutoffs=(5,))
    told = "40 of 40 test targets (100.0 %) were chosen before; the history is not excluded."
    assert told in " ".join(str(report).split())
    assert max(map(len, str(report).splitlines())) <= 80
    saved = report.save(tmp_path / "report").read_text()
    assert told in saved
    assert "Full ranking of the catalogue, the history excluded unless a set says otherwise. " in saved
    (tree,) = json.loads((tmp_path / "report" / "report.json").read_text())["sets"]
    assert (tree["exclude"], tree["repeated_targets"]) == ("none", 40)


def test_without_repeats_nothing_is_said(tmp_path):
    dataset = toy_dataset()
    report = evaluate(fitted(dataset), dataset, cutoffs=(5,))
    assert "chosen before" not in str(report)
    assert "chosen before" not in report.save(tmp_path).read_text()
    expected = gains(dataset, popularity(dataset), lambda history: history)
    np.testing.assert_allclose(report.sets[0].base.metrics["NDCG@5"], expected)
    open_ = evaluate(fitted(dataset), dataset, cutoffs=(5,), exclude="none")
    np.testing.assert_allclose(
        open_.sets[0].base.metrics["NDCG@5"], gains(dataset, popularity(dataset), lambda history: ())
    )
    assert "0 of 60 test targets (0.0 %) were chosen before; the history is not excluded." in " ".join(
        str(open_).split()
    )


def sample_repeats(dataset, n):
    """Whether a sample of so many users has repeated targets alone."""
    sample = evaluation_tasks(dataset, EvalConfig(users=n))[1]
    return {task.id for task in sample} <= {*dataset.repeated_targets("test")}


def test_a_metric_that_can_only_be_0_is_refused(tmp_path):
    shop, plays = (load(tmp_path, each) for each in (SHOP, PLAYS))
    told = r"All 40 targets were chosen before, so with the history excluded every metric can only be 0: set eval\.excl"
    with pytest.raises(DeepRecError, match=told):
        evaluate(fitted(shop), shop, exclude="history")
    asked = Explorer(TextPolicy(ScriptedWriter(5)), fitted(plays)["popularity"], plays.catalog)
    sample = next(n for n in (1, 2, 3) if sample_repeats(plays, n))
    report = evaluate(fitted(plays) | {"model": asked}, plays, users=sample, exclude="history")
    assert [result.name for result in report.sets[0].results] == list(fitted(plays))
    assert f"model: All {sample:,} targets were chosen before" in report.failed[0]
    with pytest.raises(DeepRecError, match="'history' or 'none'"):
        evaluate(fitted(shop), shop, exclude="all")  # type: ignore[arg-type]


def test_the_users_of_older_evaluations_are_the_same_where_nothing_repeats(tmp_path):
    """A folder of before has no such fields, and is resumed."""
    users = Users.of(toy_dataset(), EvalConfig())
    users.save(tmp_path / "users.json")
    tree = json.loads((tmp_path / "users.json").read_text())
    del tree["repeated"], tree["exclude_history"]
    (tmp_path / "users.json").write_text(json.dumps(tree))
    assert Users.load(tmp_path / "users.json") == users


@pytest.fixture(scope="module")
def shop(tmp_path_factory, stand_in):
    """The shop with repeats, its configuration, and an evaluation."""
    root = tmp_path_factory.mktemp("shop")
    config = root / "shop.config.toml"
    table = write(root / "shop.csv", SHOP)
    config.write_text(CONFIG.format(table=str(table)).replace("item_core = 1", 'item_core = 1\nrepeats = "keep"'))
    result = run("eval", "--config", config, "--runs", root / "runs")
    assert result.code == 0, result.err
    return root, config, result


def test_the_command_finds_what_repeats(shop):
    root, _, result = shop
    assert "40 of 40 validation targets (100.0 %) were chosen before; the history is not excluded.\n" in result.out
    assert "40 of 40 test targets (100.0 %) were chosen before; the history is not excluded.\n" in result.out
    (folder,) = (root / "runs").glob("*-eval")
    rows = {
        row["system"]: row["mean"]
        for row in json.loads((folder / "report.json").read_text())["metrics"]
        if row["metric"] == "NDCG@3"
    }
    assert set(rows) == {"popularity", "last-item transitions", "EASE", "TRM alone", "scripted explorer"}
    assert rows["last-item transitions"] > 0
    assert rows["TRM alone"] > 0
    (trained,) = (root / "runs").glob("*-trm")
    curve = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert max(record["validation NDCG@10"] for record in curve) > 0


def test_the_command_refuses_zeros_before_it_makes_a_folder(shop):
    root, config, _ = shop
    before = sorted((root / "runs").iterdir())
    result = run("eval", "--config", config, "--runs", root / "runs", "--set", "eval.exclude=history")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "All 40 targets were chosen before" in result.err
    assert sorted((root / "runs").iterdir()) == before
    wrong = run("eval", "--config", config, "--runs", root / "runs", "--set", "eval.exclude=all")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert "eval.exclude" in wrong.err


def test_an_experiment_goes_on_with_the_sets_that_can_be_measured(shop, tmp_path):
    root, config, _ = shop
    table, plays = root / "shop.csv", write(tmp_path / "plays.csv", PLAYS)
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'name = "x"\nbaseline = "popularity"\nconfig.eval.exclude = "history"\n'
        f"sets = [{{ source = {str(table)!r} }}, {{ source = {str(plays)!r} }}]\n"
        'systems = [{ name = "popularity", kind = "popularity" }]\n'
    )
    result = run("experiment", "run", plan, "--config", config, "--out", tmp_path / "out")
    assert result.code == 2
    assert "shop: All 40 targets were chosen before" in result.err
    assert "20 of 30 test targets (66.7 %)" in (tmp_path / "out" / "report.md").read_text()


def test_results_are_made_again_for_another_exclusion(shop, tmp_path):
    _, config, _ = shop
    plays = write(tmp_path / "plays.csv", PLAYS)
    args = ("experiment", "run", "--data", plays, "--config", config, "--out", tmp_path / "out")
    plan = tmp_path / "plan.toml"
    plan.write_text('name = "x"\nbaseline = "popularity"\n[[systems]]\nname = "popularity"\nkind = "popularity"\n')
    args = (*args[:2], plan, *args[2:])
    first = run(*args)
    assert first.code == 0, first.err
    shutil.copytree(tmp_path / "out", tmp_path / "open")
    assert "popularity: done before" in run(*args, "--set", "eval.exclude=none").out
    other = run(*args, "--set", "eval.exclude=history")
    assert "popularity: NDCG@3" in other.out
    compared = run("runs", "compare", tmp_path / "out", tmp_path / "open")
    assert (compared.code, compared.err.count("\n")) == (2, 1)
    assert "different data, splits or exclusions" in compared.err
