"""A plan from end to end on a toy table: retrievers, the scripted explorer, external rankings."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from command_line import deeprec, files
from deeprec.config import Config, load_config
from deeprec.data.sources import load_dataset
from deeprec.errors import DeepRecError
from deeprec.evaluation.cached_results import CachedResult, Users, result_file, users_file
from deeprec.evaluation.models import Models
from deeprec.evaluation.plans import built_in_plan, load_plan
from deeprec.evaluation.report import Report
from deeprec.evaluation.runner import Runner
from deeprec.explore.explorer import Explorer
from deeprec.explore.trace import Stop
from toys import toy_dataset

PLAN = """\
name = "toy <experiment>"
about = "A toy."
seeds = [0, 1]

[config.trm]
epochs = 3

[[sets]]
source = {table!r}
name = "toy set"

[[systems]]
name = "popularity"
kind = "popularity"

[[systems]]
name = "EASE"
kind = "ease"

[[systems]]
name = "TRM alone"
kind = "trm"

[[systems]]
name = "phrases"
kind = "frequent-phrases"

[[systems]]
name = "recent"
kind = "recent"

[[systems]]
name = "script, one call"
kind = "script"
users = 50
against = ["mine", "TRM alone"]
config.explore.max_calls = 1
config.explore.preference_weight = 0.75

[[systems]]
name = "script"
kind = "script"

[[systems]]
name = "fused"
kind = "fusion"

[[systems]]
name = "mine"
kind = "external"
file = {lists!r}
against = ["script", "script, one call"]
"""


@pytest.fixture(scope="module")
def experiment(site, tmp_path_factory):
    """A finished experiment: its folder, its plan's file, and what the command printed."""
    root = tmp_path_factory.mktemp("experiment")
    dataset = load_dataset(load_config(site.config).data)
    targets = dataset.targets("test")
    lines = [f"{task.user}\t{dataset.catalog.ids[targets[task.id]]}" for task in dataset.tasks("test")]
    (root / "lists-0.tsv").write_text("\n".join(lines) + "\n")  # seed 0 knows it all, seed 1 nothing
    (root / "lists-1.tsv").write_text("\n".join(line.split("\t")[0] for line in lines) + "\n")
    plan = root / "plan.toml"
    plan.write_text(PLAN.format(table=str(site.root / "table.csv"), lists=str(root / "lists-{seed}.tsv")))
    result = site("experiment", "run", plan, "--out", root / "out")
    assert result.code == 0, result.err
    return root / "out", plan, result.out


def results(folder):
    plan = load_plan(folder / "experiment.toml", Config())
    found = {}
    for system in plan.systems:
        for seed in plan.seeds:
            found[system.name, seed] = CachedResult.load(result_file(folder, plan.sets[0], system, seed))
    return found


def saved(folder):
    """The report, written again."""
    return Report.read(folder).save(folder).read_text()


def test_every_result_is_made_once_and_reported(experiment, site):
    folder, plan, printed = experiment
    assert printed.count(": NDCG@3") == 16
    assert printed.count("done before") == 2  # popularity and EASE have no seed
    found = results(folder)
    assert all(part is not None for part in found.values())
    assert {len(part.users) for (name, _), part in found.items() if name != "script, one call"} == {60}
    assert len(found["script, one call", 0].users) == 50
    before = files(folder / "results")
    again = site("experiment", "run", plan, "--out", folder)
    assert again.out.count("done before") == 18
    after = files(folder / "results")
    changed = {path.name for path in after if path.is_file() and after[path] != before.get(path)}
    assert changed == {"_users.json"}


def test_the_tables_hold_what_the_results_say(experiment):
    folder, _, _ = experiment
    found = results(folder)
    text = (folder / "report.md").read_text()
    mine = next(line for line in text.splitlines() if line.startswith("| mine |"))
    assert mine.startswith("| mine | 60 | 2 | 0.5000 [0.5000, 0.5000] | 0.5000")  # the mean of its two seeds
    means = [np.mean([1 / np.log2(r + 2) if 0 <= r < 3 else 0 for r in found["script", s].ranks]) for s in (0, 1)]
    assert f"| script | 60 | 2 | {np.mean(means):.4f} [" in text
    assert re.search(r"- By NDCG@3, better than TRM alone on the same users: .*mine", text)
    assert re.search(r"- mine to script: \+0\.\d{4} \[\+0\.\d{4}, \+0\.\d{4}\] \(", text)
    assert "- mine to script, one call: +" in text
    assert re.search(
        r"- script, one call to TRM alone on all 60 users, estimated from its 50 by regression; controls: TRM alone; "
        r"mine: [+-]0\.\d{4} \[",
        text,
    )
    assert "mine to TRM alone on all" not in text
    for name in ("phrases", "recent", "script", "fused"):
        assert re.search(rf"- {name}: preference weight 0\.\d+", text)
    assert "- script, one call: preference weight 0.75." in text
    assert re.search(r"- EASE: regularisation \d+ of 20, 50, 200, 500, 1000, by validation NDCG@10\.", text)


def test_explorations_are_kept_call_by_call(experiment):
    folder, _, _ = experiment
    found = results(folder)
    one, several = found["script, one call", 0].explorations, found["script", 0].explorations
    assert {len(calls) for calls in one.retrieved} == {1}
    assert {len(calls) for calls in several.retrieved} <= {1, 2, 3}
    assert max(len(calls) for calls in several.retrieved) > 1
    for rank, pooled, first in zip(found["script", 0].ranks, several.pooled, several.found, strict=True):
        assert (pooled < 0) == (first == 0)
        assert rank < 0 or pooled >= 0, "what is served was retrieved"
    traces = list((folder / "results").rglob("*.traces.jsonl"))
    assert len(traces) == 4


def ablation_in(folder):
    """The oracle ablation of a report: system, part, pool recall, NDCG and the difference to the baseline, in cells."""
    table = (folder / "report.md").read_text().partition("### Oracle ablation\n")[2].partition("\n\n- ")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| s")][
        1:
    ]


def test_each_part_of_an_exploration_is_replaced(experiment):
    folder, _, _ = experiment
    found, rows = results(folder), {(row[0], row[1]): row[2:] for row in ablation_in(folder)}
    assert {name for name, _ in rows} == {"script", "script, one call"}
    assert len(rows) == 14
    text = (folder / "report.md").read_text()
    with_fallback = rows["script", "none, with fallback"]
    assert f"| script | 60 | 2 | {with_fallback[1]} | " in text
    for seed in (0, 1):
        run = found["script", seed].explorations
        assert all(
            (position >= 0) == (call > 0)
            for position, call in zip(run.oracle_ablation.reordered, run.found, strict=True)
        )
        assert min(run.oracle_ablation.completed) >= 0
    assert rows["script", "ranking oracle"][0] == with_fallback[0]  # the pool is the same
    assert rows["script", "retrieval oracle"][0] == "100.0 %"
    # A list of five (ten are more than are left) for one call, without a word: the TRM's own.
    alone = np.mean(
        [[rank >= 0 for rank in found["script, one call", s].explorations.oracle_ablation.alone] for s in (0, 1)]
    )
    assert rows["script, one call", "no exploring"][0] == f"{100 * alone:.1f} %"


def test_the_page_is_one_file_that_loads_nothing(experiment):
    folder, _, _ = experiment
    page = (folder / "report.html").read_text()
    assert "toy &lt;experiment&gt;" in page
    assert "<experiment>" not in page
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert page.count("<table>") == (folder / "report.md").read_text().count("| --- |") >= 5


def test_a_report_is_written_again_from_what_is_there(experiment):
    folder, _, _ = experiment
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert {path.name for path in before} >= {"report.md", "report.html", "report.json", "experiment.toml"}
    assert deeprec("experiment", "report", folder).code == 0
    assert {path: path.read_bytes() for path in before} == before


def test_an_interrupted_exploration_goes_on(site, tmp_path):
    """What the log of a part holds already is not explored again."""
    plan_file = tmp_path / "plan.toml"
    plan_file.write_text(
        'name = "short"\n[[systems]]\nname = "TRM alone"\nkind = "trm"\n[[systems]]\nname = "script"\nkind = "script"\n'
    )
    out = tmp_path / "out"
    assert site("experiment", "run", plan_file, "--out", out).code == 0
    plan = load_plan(out / "experiment.toml", Config())
    path = result_file(out, plan.sets[0], plan.systems[1], 0)
    whole = CachedResult.load(path)
    (log,) = path.parent.glob("script-0-*.traces.jsonl")
    lines = log.read_text().splitlines()
    assert ["trace" in json.loads(line) for line in lines] == [True] * 60 + [False]
    log.write_text("\n".join(lines[:25]) + "\n" + lines[25][:40])  # and one torn by a kill
    path.unlink()
    assert site("experiment", "run", plan_file, "--out", out).code == 0
    again = CachedResult.load(path)
    assert again.rankings == whole.rankings
    assert log.read_text().splitlines()[:25] == lines[:25]
    assert len(log.read_text().splitlines()) == 25 + 1 + 35 + 1
    assert again.seconds_per_user > 0


def test_the_built_in_comparison_runs_on_any_table(site, tmp_path):
    """Without a language model, its systems are left out."""
    plan = built_in_plan("comparison", load_config(site.config))
    assert plan.sets[0].source == str(site.root / "table.csv")
    out = tmp_path / "out"
    result = site("experiment", "run", "--data", site.root / "table.csv", "--out", out)
    assert result.code == 0, result.err
    text = (out / "report.md").read_text()
    assert "SASRec with item text: the TRM trained without item co-occurrence and preferences" in text
    assert "language model" not in text.partition("## The experiment")[0].partition("\n- ")[2]
    users = Users.load(users_file(out, load_plan(out / "experiment.toml", Config()).sets[0]))
    assert sum(users.item_counts) == 60 * 10


def test_what_is_too_large_for_ease_is_told_and_stops_nothing(site, tmp_path, monkeypatch):
    for module in ("evaluation.plans", "retrieval.baselines"):
        monkeypatch.setattr(f"deeprec.{module}.MOST_ITEMS", 39)
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'name = "x"\n[[systems]]\nname = "EASE"\nkind = "ease"\n[[systems]]\nname = "TRM alone"\nkind = "trm"\n'
    )
    result = site("experiment", "run", plan, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    told = "EASE: left out: EASE takes at most 39 items, and there are 40"
    assert told in result.out
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"- {told}.\n" in text
    assert "Not finished" not in text
    plan.write_text('name = "x"\nbaseline = "EASE"\n[[systems]]\nname = "EASE"\nkind = "ease"\n')
    result = site("experiment", "run", plan, "--out", tmp_path / "other")
    assert result.code == 2
    assert "EASE takes at most" in result.err


def test_another_file_of_the_same_name_has_another_folder(site, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text('name = "x"\n[[systems]]\nname = "TRM alone"\nkind = "popularity"\n')
    (tmp_path / "table.csv").write_bytes((site.root / "table.csv").read_bytes())
    for folder, more in ((site.root, "NDCG@3"), (tmp_path, "NDCG@3"), (site.root, "done before")):
        result = site("experiment", "run", plan, "--data", folder / "table.csv")
        assert result.code == 0, result.err
        assert f"TRM alone: {more}" in result.out
    assert len(list(site.runs.glob("experiment-x-table-*"))) == 2


def test_commands_refuse_what_is_no_experiment(tmp_path, site):
    for args, told in (
        (("experiment", "report", tmp_path), "is not an evaluation's folder"),
        (("experiment", "run", tmp_path / "absent.toml"), "There is no experiment"),
        (("experiment", "run", "--data", "shop.toml"), "use --config shop.toml"),
    ):
        result = deeprec(*args)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert told in result.err
    (tmp_path / "experiment.toml").write_text('name = "x"\nsystems = [{ name = "TRM alone", kind = "trm" }]\n')
    with pytest.raises(DeepRecError, match="no finished 'TRM alone' yet"):
        Report.read(tmp_path)


def test_missing_files_are_reported_and_stop_nothing(site, tmp_path):
    """Before anything runs, for they can be made meanwhile; and at the end, as what failed."""
    plan_file, out = tmp_path / "plan.toml", tmp_path / "out"
    lists, table = str(tmp_path / "{set}-{seed}.tsv"), str(site.root / "table.csv")
    plan_file.write_text(f"""
name = "x"
baseline = "popularity"
[[sets]]
source = {table!r}
name = "toy set"
[[systems]]
name = "theirs"
kind = "external"
file = {lists!r}
make = "make-lists {{source}} --seed {{seed}}"
[[systems]]
name = "popularity"
kind = "popularity"
""")
    result = site("experiment", "run", plan_file, "--out", out)
    told = f"there is no file {tmp_path}/toy set-0.tsv with its rankings; this makes it: make-lists {table} --seed 0\n"
    assert result.code == 2
    assert result.err.endswith(told)
    assert result.err.count("\n") == 1
    assert 0 < result.out.index(told) < result.out.index("popularity: NDCG@3")
    text = (out / "report.md").read_text()
    assert "| popularity | 60 |" in text
    assert "Not finished: theirs (0 of 1 seeds)." in text
    users = [task.user for task in load_dataset(load_config(site.config).data).tasks("test")]
    (tmp_path / "toy set-0.tsv").write_text("\n".join(users))
    assert site("experiment", "run", plan_file, "--out", out).code == 0
    assert "| theirs | 60 |" in (out / "report.md").read_text()
    # Another command for the same file changes nothing of what was run.
    (out / "experiment.toml").write_text((out / "experiment.toml").read_text().replace("make-lists", "make"))
    assert "| theirs | 60 |" in saved(out)


def test_sets_that_cannot_be_read_do_not_stop_the_others(site, tmp_path):
    """And the places of systems on several sets stand beside each other."""
    table = site.root / "table.csv"
    plan = tmp_path / "plan.toml"
    plan.write_text(f"""
name = "two"
baseline = "popularity"
sets = [
    {{ source = "nowhere" }},
    {{ source = {str(table)!r} }},
    {{ source = {str(table)!r}, name = "by time", config.data.time_split = [0.6, 0.8] }},
]
systems = [{{ name = "popularity", kind = "popularity" }}, {{ name = "EASE", kind = "ease" }}]
""")
    result = site("experiment", "run", plan, "--out", tmp_path / "out")
    assert result.code == 2
    assert "nowhere" in result.err
    text = (tmp_path / "out" / "report.md").read_text()
    assert re.search(r"\n60 test users, \d+ items; each user's last two items held out; fingerprint", text)
    assert "split by time: trained on the first 60% of the interactions, validated up to 80%" in text
    table = text.partition("## All sets\n")[2].partition("\n## ")[0]
    assert re.search(r"\| EASE \| [12] \(0\.\d{4}\) \| [12] \(0\.\d{4}\) \|", table)
    assert re.search(r"- Kendall's tau of table and by time: -?1\.00 \(2 systems\)\.", table)
    assert "Not run yet: nowhere." in text


def test_a_system_uses_the_weights_of_the_plans_training_not_of_its_own_settings(tmp_path, site, monkeypatch):
    """What a system changes for asking (one call) trains nothing else; what it changes of its training does."""
    path = tmp_path / "plan.toml"
    path.write_text(
        f"""
name = "x"
[config.policy]
kind = "transformers"
[[sets]]
source = {str(site.root / "table.csv")!r}
name = "here"
[[sets]]
source = "elsewhere"
name = "there"
config.explore.items_per_call = 7
[[systems]]
name = "TRM alone"
kind = "trm"
[[systems]]
name = "one call"
kind = "explore"
train = "recommendation"
config.explore.max_calls = 1
[[systems]]
name = "from there"
kind = "explore"
train = "recommendation"
train_on = "there"
training.train.group_size = 4
"""
    )
    weights = tmp_path / "weights" / "recommendation"
    weights.mkdir(parents=True)
    (weights / "adapter_config.json").write_text("{}")
    plan = load_plan(path, load_config(site.config, ["policy.kind=transformers"]))
    here, there = plan.sets
    trained = plan.training_of(here, plan.systems[1], 0)
    assert (trained.explore.max_calls, plan.config_of(here, plan.systems[1], 0).explore.max_calls) == (3, 1)
    other = plan.training_of(here, plan.systems[2], 0)
    assert (other.train.group_size, other.explore.items_per_call, other.data.source) == (
        4,
        7,
        "elsewhere",
    )
    assert plan.config_of(here, plan.systems[2], 0).train.group_size == 8
    trained_with = []
    monkeypatch.setattr(Models, "dataset", lambda models, config: toy_dataset())
    monkeypatch.setattr("deeprec.training.run.latest_training", lambda *_, **__: None)

    def train(dataset, config, runs, **_):
        trained_with.append(config)
        return weights.parent / "last"

    monkeypatch.setattr("deeprec.training.run.train_policy", train)
    runner = Runner(plan, tmp_path / "out", Models(tmp_path))
    for plan_system, part in ((plan.systems[1], trained), (plan.systems[2], other)):
        system, note = runner._system(here, plan_system, None, toy_dataset())
        assert (system.config.policy.adapter, note) == (str(weights), "")
        assert trained_with.pop() == part
    (weights / "adapter_config.json").unlink()  # a whole model
    system, _ = runner._system(here, plan.systems[1], None, toy_dataset())
    assert (system.config.policy.model, system.config.policy.adapter) == (str(weights), "none")
    assert there.label == "there"


def test_a_report_leaves_out_what_was_made_for_another_plan(experiment, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(experiment[0], folder)
    text = (folder / "experiment.toml").read_text()
    (folder / "experiment.toml").write_text(text.replace("max_calls = 1", "max_calls = 2"))
    page = saved(folder)
    assert "Not finished: script, one call (0 of 2 seeds)." in page
    assert "| script, one call |" not in page


def test_failed_explorations_are_no_result(site, tmp_path):
    """They are told of, the other systems are reported, and the same command explores them again."""
    plan_file = tmp_path / "plan.toml"
    plan_file.write_text(
        'name = "x"\n[[systems]]\nname = "TRM alone"\nkind = "trm"\n[[systems]]\nname = "script"\nkind = "script"\n'
    )
    out = tmp_path / "out"
    step = Explorer.step

    def failing(explorer):
        return [(key, replace(trace, stop=Stop.FAILED, error="no answer")) for key, trace in step(explorer)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Explorer, "step", failing)
        result = site("experiment", "run", plan_file, "--out", out)
    assert result.code == 2
    assert "60 of 60 explorations failed (first: no answer)" in result.err
    assert result.err.count("\n") == 1
    assert "Not finished: script (0 of 1 seeds)." in (out / "report.md").read_text()
    assert site("experiment", "run", plan_file, "--out", out).code == 0
    assert "Not finished" not in (out / "report.md").read_text()
