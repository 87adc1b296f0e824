"""An experiment from end to end on a toy table: retrievers, the scripted explorer, rankings of one's own."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import test_cli
from deeprec.cli.workbench import Workbench
from deeprec.config import DEFAULT_PREFERENCE_WEIGHT, Config, load_config
from deeprec.data.sources import load_dataset
from deeprec.errors import DeepRecError
from deeprec.evaluation.cached_results import load_part, load_population, part_file, population_file
from deeprec.evaluation.external_rankings import external_file, read_external_rankings
from deeprec.evaluation.plans import BUILT_IN, Plan, SetPlan, SystemPlan, dump_plan, load_plan
from deeprec.evaluation.report import write_report
from deeprec.evaluation.runner import Experiment
from deeprec.explore.explorer import Explorer
from deeprec.explore.trace import Stop
from deeprec.testing import toy_dataset
from test_cli import deeprec, site, stand_in  # noqa: F401  # fixtures

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
name = "themes"
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
def experiment(site, tmp_path_factory):  # noqa: F811
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


def parts(folder):
    plan = load_plan(folder / "experiment.toml", Config())
    found = {}
    for system in plan.systems:
        for seed in plan.seeds:
            found[system.name, seed] = load_part(part_file(folder, plan.sets[0], system, seed))
    return found


def test_every_part_is_made_once_and_reported(experiment, site):  # noqa: F811
    folder, plan, printed = experiment
    assert printed.count("NDCG@3") == 16
    assert printed.count("done before") == 2  # popularity and EASE have no seed
    found = parts(folder)
    assert all(part is not None for part in found.values())
    assert {len(part.users) for (name, _), part in found.items() if name != "script, one call"} == {60}
    assert len(found["script, one call", 0].users) == 50
    before = test_cli.files(folder / "parts")
    again = site("experiment", "run", plan, "--out", folder)
    assert again.out.count("done before") == 18
    after = test_cli.files(folder / "parts")
    changed = {path.name for path in after if path.is_file() and after[path] != before.get(path)}
    assert changed == {"population.json"}


def test_the_tables_hold_what_the_parts_say(experiment):
    folder, _, _ = experiment
    found = parts(folder)
    text = (folder / "report.md").read_text()
    mine = next(line for line in text.splitlines() if line.startswith("| mine |"))
    assert mine.startswith("| mine | 60 | 2 | 0.5000 [0.5000, 0.5000] | 0.5000")  # the mean of its two seeds
    means = [np.mean([1 / np.log2(r + 2) if 0 <= r < 3 else 0 for r in found["script", s].ranks]) for s in (0, 1)]
    assert f"| script | 60 | 2 | {np.mean(means):.4f} [" in text
    assert re.search(r"- By NDCG@3, better than TRM alone on the same users: .*mine", text)
    assert re.search(r"- mine to script: \+0\.\d{4} \[\+0\.\d{4}, \+0\.\d{4}\] \(", text)
    assert "- mine to script, one call: +" in text
    assert re.search(
        r"- script, one call to TRM alone on all 60 users, estimated from its 50 by regression on what these have on "
        r"all: TRM alone; mine: [+-]0\.\d{4} \[",
        text,
    )
    assert "mine to TRM alone on all" not in text
    for name in ("themes", "recent", "script", "fused"):
        assert re.search(rf"- {name}: preferences are believed to 0\.\d+", text)
    assert "- script, one call: preferences" not in text
    assert re.search(r"- EASE: regularisation \d+ of 20, 50, 200, 500, 1000, by validation NDCG@10\.", text)


def test_explorations_are_kept_call_by_call(experiment):
    folder, _, _ = experiment
    found = parts(folder)
    one, several = found["script, one call", 0].explorations, found["script", 0].explorations
    assert {len(calls) for calls in one.retrieved} == {1}
    assert {len(calls) for calls in several.retrieved} <= {1, 2, 3}
    assert max(len(calls) for calls in several.retrieved) > 1
    for rank, pooled, first in zip(found["script", 0].ranks, several.pooled, several.found, strict=True):
        assert (pooled < 0) == (first == 0)
        assert rank < 0 or pooled >= 0, "what is served was retrieved"
    traces = list((folder / "parts").rglob("*.traces.jsonl"))
    assert len(traces) == 4


def links_in(folder):
    """The table of links in a report: system, link, share, NDCG and the difference to the baseline, in cells."""
    table = (folder / "report.md").read_text().partition("### Which link loses\n")[2].partition("\n\n- ")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| s")][
        1:
    ]


def test_each_link_of_an_exploration_is_replaced(experiment):
    folder, _, _ = experiment
    found, rows = parts(folder), {(row[0], row[1]): row[2:] for row in links_in(folder)}
    assert {name for name, _ in rows} == {"script", "script, one call"}
    assert len(rows) == 14
    text = (folder / "report.md").read_text()
    with_fallback = rows["script", "none, as served"]
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


def test_parts_of_before_there_were_links_get_them_from_their_traces(experiment, site, tmp_path):  # noqa: F811
    folder, plan, _ = experiment
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    whole = {path: path.read_bytes() for path in (copy / "parts").rglob("script*.json")}
    assert len(whole) == 4
    for path, text in whole.items():
        part = json.loads(text)
        del part["explorations"]["links"]
        path.write_text(json.dumps(part))
    assert deeprec("experiment", "report", copy).code == 0
    assert links_in(copy) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Explorer, "step", None)  # nothing is explored
        assert site("experiment", "run", plan, "--out", copy).out.count("done before") == 18
    assert {path: path.read_bytes() for path in whole} == whole
    assert links_in(copy) == links_in(folder)


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
    assert deeprec("experiment", "report", folder).code == 0
    assert {path: path.read_bytes() for path in before} == before


def test_another_configuration_makes_what_it_touches_anew(experiment, site, tmp_path):  # noqa: F811
    _, plan, _ = experiment
    bench = Workbench(load_config(site.config), runs=site.runs)
    loaded = load_plan(plan, load_config(site.config, ["explore.items_per_call=4"]))
    keys = {}
    for which in (load_plan(plan, bench.config), loaded):
        made = {}

        class Keys(Experiment):
            def _part(self, set_, system, seed, dataset, where, made=made):

                config = self.plan.config_of(set_, system, seed)
                made[system.name] = runner._key(system, set_, seed, dataset, config, dataset.tasks("test"))
                return "made"

        Keys(which, tmp_path / "keys", bench).run()
        keys[which.config["explore"]["items_per_call"]] = made
    differing = {name for name in keys[4] if keys[4][name] != keys[5][name]}
    assert differing == {"script", "script, one call", "fused"}  # themes are asked for without a list of a length


def test_an_interrupted_exploration_goes_on(site, tmp_path):  # noqa: F811
    """What the log of a part holds already is not explored again."""
    plan_file = tmp_path / "plan.toml"
    plan_file.write_text(
        'name = "short"\n[[systems]]\nname = "TRM alone"\nkind = "trm"\n[[systems]]\nname = "script"\nkind = "script"\n'
    )
    out = tmp_path / "out"
    assert site("experiment", "run", plan_file, "--out", out).code == 0
    plan = load_plan(out / "experiment.toml", Config())
    path = part_file(out, plan.sets[0], plan.systems[1], 0)
    whole = load_part(path)
    (log,) = path.parent.glob("script-0-*.traces.jsonl")
    lines = log.read_text().splitlines()
    assert [json.loads(line)["system"] for line in lines] == ["script"] * 60 + [""]
    log.write_text("\n".join(lines[:25]) + "\n" + lines[25][:40])  # and one torn by a kill
    path.unlink()
    assert site("experiment", "run", plan_file, "--out", out).code == 0
    again = load_part(path)
    assert again.rankings == whole.rankings
    assert log.read_text().splitlines()[:25] == lines[:25]
    assert len(log.read_text().splitlines()) == 25 + 1 + 35 + 1
    assert again.seconds_per_user > 0


def test_the_built_in_plan_runs_on_any_table(site, tmp_path):  # noqa: F811
    """Its language models take the configuration's policy, which is a script here, so they are left out."""
    text = BUILT_IN.read_text()
    plan = load_plan(BUILT_IN, load_config(site.config), training=False)
    assert plan.sets[0].source == str(site.root / "table.csv")
    kinds = [system.kind for system in plan.systems if system.kind in ("titles", "rerank", "explore")]
    assert kinds == ["titles", "rerank", "explore", "explore"]
    cheap = text.partition('[[systems]]\nname = "language model, titles')[0]
    (tmp_path / "cheap.toml").write_text(cheap)
    out = tmp_path / "out"
    result = site("experiment", "run", tmp_path / "cheap.toml", "--data", site.root / "table.csv", "--out", out)
    assert result.code == 0, result.err
    text = (out / "report.md").read_text()
    assert "SASRec with item text: the TRM trained without co-occurrence and preferences" in text
    population = load_population(population_file(out, load_plan(out / "experiment.toml", Config()).sets[0]))
    assert sum(population.item_counts) == 60 * 10


def test_the_main_plan_is_one():
    root = Path(__file__).parents[2]
    plan = load_plan(root / "experiments" / "main.toml", load_config(root / "configs" / "cpu.toml"))
    models = {each.name: each for each in plan.systems if each.kind == "explore"}
    adapters = {name: plan.config_of(plan.sets[0], each, 0).policy.adapter for name, each in models.items()}
    assert [adapter for name, adapter in adapters.items() if ", trained" in name] == ["shipped", "shipped"]
    assert adapters["SmolLM2-135M, untrained"] == "none"
    (lists,) = (each for each in plan.systems if each.kind == "lists")
    with pytest.raises(
        DeepRecError, match=r"this makes it: python benchmarks/trm_peers/run\.py --sets ml-100k --systems"
    ):
        external_file(lists, plan.sets[0], 99)
    # What a system asks with is no part of the training that made it.
    trained = models["SmolLM2-135M, trained, one call"].model_copy(update={"train": "sft"})
    expected = load_config(root / "configs" / "cpu.toml", ['data.source="ml-100k"'])
    assert plan.training_of(plan.sets[0], trained, 0) == expected


def test_a_plan_survives_its_own_file(site):  # noqa: F811
    plan = load_plan(BUILT_IN, load_config(site.config, ["explore.preference_weight=0.5", "policy.kind=transformers"]))
    assert plan.config["explore"]["preference_weight"] == 0.5
    assert "source" not in plan.config["data"]
    assert Plan.model_validate(tomllib.loads(dump_plan(plan))) == plan


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name = 3", "name"),
        ('name = "x"', "systems"),
        ('name = "x"\nsystems = [{ name = "TRM alone", kind = "magic" }]', "kind"),
        ('name = "x"\nsystems = [{ name = "other", kind = "trm" }]', "baseline 'TRM alone' is none of the systems"),
        ('name = "x"\nsystems = [{ name = "TRM alone", kind = "external" }]', "needs one"),
        ('name = "x"\nsystems = [{ name = "TRM alone", kind = "trm", make = "x" }]', "`make` says how"),
        ('name = "x"\nsystems = [{ name = "TRM alone", kind = "trm", train = "cold-start" }]', "`train` is for"),
        ('name = "x"\nsystems = [{ name = "TRM alone", kind = "explore", train_on = "y" }]', "need `train`"),
        (
            'name = "x"\nsystems = [{ name = "TRM alone", kind = "explore", train = "a", train_on = "y" }]',
            "not there: ['y']",
        ),
        ('name = "x"\nsystems = [{ name = "TRM alone", kind = "trm", config.trm.widht = 3 }]', "'trm.widht'"),
        (
            'name = "x"\nsystems = [{ name = "TRM alone", kind = "trm" }, { name = "TRM alone", kind = "ease" }]',
            "alike",
        ),
        ("name = ", "not readable TOML"),
        ('name = "x"\nseeds = [0, -1]\nsystems = [{ name = "TRM alone", kind = "trm" }]', "trm.seed"),
        ('name = "x"\nsystems = [{ name = "TRM alone", kind = "trm", config.eval.cutoffs = [5] }]', "not of a system"),
        ('name = "x"\nsystems = [{ name = "TRM $alone$", kind = "trm" }]', "name"),
        (
            'name = "x"\nsystems = [{ name = "TRM alone", kind = "explore", train = "warmstart" }]',
            "warm-start, cold-start",
        ),
        ('name = "x"\nsystems = [{ name = "TRM alone", kind = "trm", sets = [] }]', "not run on set"),
        (
            'name = "x"\nconfig.policy.kind = "scripted"\n'
            'systems = [{ name = "TRM alone", kind = "explore", train = "sft" }]',
            "can't be trained",
        ),
        (
            'name = "x"\nsystems = [{ name = "TRM alone", kind = "explore", train = "sft", '
            "training.train.sft.demonstrations = 0 }]",
            "its training has cold-start",
        ),
        ('name = "x"\nsystems = 5', "key systems: a list of tables"),
        ('name = "x"\nsets = 5\nsystems = [{ name = "TRM alone", kind = "trm" }]', "key sets: a list of tables"),
        ('name = "x"\nsystems = [{ name = "TRM alone", kind = "trm", sets = 3 }]', "systems.0.sets"),
        ('name = "x"\nconfig.trm.seed = 7\nsystems = [{ name = "TRM alone", kind = "trm" }]', "trm.seed"),
        (
            'name = "x"\nsystems = [{ name = "TRM alone", kind = "trm", config.explore.seed = 7 }]',
            "explore.seed: an experiment's seeds",
        ),
        ('name = "x"\nconfig.trm = 128\nsystems = [{ name = "TRM alone", kind = "trm" }]', "trm"),
        (
            'name = "x"\nconfig.data.source = "a.csv"\nsets = [{ source = "b.csv" }]\n'
            'systems = [{ name = "TRM alone", kind = "trm" }]',
            "key config.data.source",
        ),
        (
            'name = "x"\nsets = [{ source = "b.csv", config.data.source = "a.csv" }]\n'
            'systems = [{ name = "TRM alone", kind = "trm" }]',
            "its data.source is its `source`",
        ),
    ],
)
def test_a_mistake_in_a_plan_is_one_sentence(tmp_path, text, told):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(DeepRecError, match=re.escape(told)) as caught:
        load_plan(path, Config())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sources", [(), ("c.csv",)])
def test_a_plan_without_sets_runs_on_its_own_source(tmp_path, sources):
    path = tmp_path / "plan.toml"
    path.write_text('name = "x"\nconfig.data.source = "a.csv"\nsystems = [{ name = "TRM alone", kind = "trm" }]\n')
    plan = load_plan(path, Config(), sources)
    assert [each.source for each in plan.sets] == [sources[0] if sources else "a.csv"]
    assert plan.config_of(plan.sets[0], plan.systems[0], 0).data.source == plan.sets[0].source
    (tmp_path / "again.toml").write_text(dump_plan(plan))
    assert load_plan(tmp_path / "again.toml", Config()) == plan
    said = load_config(overrides=["data.source=b.csv"])
    assert [each.source for each in load_plan(path, said).sets] == ["b.csv"]


def test_what_is_too_large_for_ease_is_told_and_stops_nothing(site, tmp_path, monkeypatch):  # noqa: F811
    for module in ("experiments.plan", "trm.ease"):
        monkeypatch.setattr(f"deeprec.{module}.MOST_ITEMS", 39)
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'name = "x"\n[[systems]]\nname = "EASE"\nkind = "ease"\n[[systems]]\nname = "TRM alone"\nkind = "trm"\n'
    )
    result = site("experiment", "run", plan, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    told = "EASE: left out, for EASE takes at most 39 items, and there are 40"
    assert told in result.out
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"- {told}.\n" in text
    assert "Not finished" not in text
    plan.write_text('name = "x"\nbaseline = "EASE"\n[[systems]]\nname = "EASE"\nkind = "ease"\n')
    result = site("experiment", "run", plan, "--out", tmp_path / "other")
    assert result.code == 2
    assert "EASE takes at most" in result.err


def test_another_file_of_the_same_name_does_not_take_an_experiments_folder(site, tmp_path):  # noqa: F811
    plan = tmp_path / "plan.toml"
    plan.write_text('name = "x"\n[[systems]]\nname = "TRM alone"\nkind = "popularity"\n')
    (tmp_path / "table.csv").write_bytes((site.root / "table.csv").read_bytes())
    args = ("experiment", "run", plan, "--data")
    assert site(*args, site.root / "table.csv").code == 0
    other = site(*args, tmp_path / "table.csv")
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert "experiment-x-table holds an experiment on" in other.err
    assert site(*args, site.root / "table.csv").out.count("done before") == 1
    assert site(*args, tmp_path / "table.csv", "--out", tmp_path / "out").code == 0


def test_a_system_may_have_any_name(site, tmp_path):  # noqa: F811
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'name = "x"\n[[systems]]\nname = "clock"\nkind = "script"\n[[systems]]\nname = "TRM alone"\nkind = "trm"\n'
    )
    result = site("experiment", "run", plan, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert "clock: NDCG@3" in result.out


def test_commands_refuse_what_is_no_experiment(tmp_path, site):  # noqa: F811
    for args, told in (
        (("experiment", "report", tmp_path), "is not an experiment's folder"),
        (("experiment", "run", tmp_path / "absent.toml"), "There is no experiment"),
        (("experiment", "run", "--data", "shop.toml"), "is given by --config"),
    ):
        result = deeprec(*args)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert told in result.err
    (tmp_path / "experiment.toml").write_text('name = "x"\nsystems = [{ name = "TRM alone", kind = "trm" }]\n')
    with pytest.raises(DeepRecError, match="no finished 'TRM alone' yet"):
        write_report(tmp_path)


def test_rankings_of_ones_own_are_read_with_care(site, tmp_path):  # noqa: F811
    dataset = load_dataset(load_config(site.config).data)
    path = tmp_path / "mine.tsv"
    task = dataset.tasks("test")[0]
    new, old = (
        dataset.catalog.ids[next(i for i in range(40) if (i in task.history) == seen)] for seen in (False, True)
    )
    for text, told in (
        (f"{task.user}\ti1\tnothing", "line 1: .* no item 'nothing'"),
        (f"{task.user}\ti1\n{task.user}\ti2", f"line 2: user '{task.user}'"),
        (f"{task.user}\ti1\ti1", "comes twice"),
        (f"{task.user}\t{old}", f"has item '{old}' in the history"),
        (f"other\t{new}", f"no line for user '{task.user}'"),
    ):
        path.write_text(text)
        with pytest.raises(DeepRecError, match=told):
            read_external_rankings(path, dataset, [task])
    path.write_text(f"{task.user}\t{new}")
    assert read_external_rankings(path, dataset, [task]) == [[dataset.catalog.index(new)]]
    with pytest.raises(DeepRecError, match="check the path"):
        read_external_rankings(Path("absent.tsv"), dataset, [task])


def test_lists_that_are_missing_are_told_of_and_stop_nothing(site, tmp_path):  # noqa: F811
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
    assert "| theirs | 60 |" in write_report(out)[0].read_text()


def test_rankings_of_the_peers_are_lists(tmp_path, monkeypatch):
    """The benchmark's file of places, -1 where there is nothing more, by the ids of the data."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "trm_peers"))
    from lists import write_lists

    dataset = toy_dataset(n_users=3)
    tasks, targets = dataset.tasks("test"), dataset.targets("test")
    others = [[item for item in range(40) if item not in task.history] for task in tasks]
    rankings = [others[0][::-1][:4], [*others[1][:2], -1, -1], [-1] * 4]
    np.savez(tmp_path / "data.npz", test_targets_T=[targets[task.id] for task in tasks])
    np.savez(tmp_path / "theirs-0.npz", ranked_TK=rankings)
    write_lists(dataset, tmp_path / "data.npz", tmp_path / "theirs-0")
    last = others[0][-1]
    assert (tmp_path / "theirs-0.tsv").read_text().startswith(f"u0\t{dataset.catalog.ids[last]}\t")
    assert read_external_rankings(tmp_path / "theirs-0.tsv", dataset, tasks) == [rankings[0], others[1][:2], []]
    np.savez(tmp_path / "data.npz", test_targets_T=[0, 0, 0])
    with pytest.raises(SystemExit, match="is of other data than toy"):
        write_lists(dataset, tmp_path / "data.npz", tmp_path / "theirs-0")


def test_a_damaged_part_is_named(experiment, tmp_path):
    path = tmp_path / "part.json"
    path.write_text(json.dumps({"key": "x"})[:-3])
    with pytest.raises(DeepRecError, match=r"part\.json is damaged"):
        load_part(path)
    path.write_text(json.dumps({"key": "x", "explorations": None}))  # of another version
    with pytest.raises(DeepRecError, match=r"part\.json is damaged, or of another version"):
        load_part(path)


def test_the_command_line_may_not_contradict_the_plan(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text('name = "x"\nsets = [{ source = "a" }]\nsystems = [{ name = "TRM alone", kind = "trm" }]')
    with pytest.raises(DeepRecError, match="seeds are the plan's"):
        load_plan(path, load_config(None, ["trm.seed=3"]))
    assert [each.source for each in load_plan(path, load_config(None, ["data.source=b"])).sets] == ["a"]
    assert [each.source for each in load_plan(path, Config(), ["b", "c"]).sets] == ["b", "c"]


def test_the_command_line_chooses_among_the_sets_of_a_plan(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text("""
name = "x"
sets = [{ source = "a", config.data.user_core = 7 }, { source = "folder/b" }, { source = "a", name = "late" }]

[[systems]]
name = "TRM alone"
kind = "trm"

[[systems]]
name = "of b"
kind = "ease"
sets = ["b"]

[[systems]]
name = "of two"
kind = "ease"
sets = ["b", "late"]
""")

    def chosen(*sources):
        plan = load_plan(path, Config(), sources)
        return {each.label: [system.name for system in plan.systems_of(each)] for each in plan.sets}, plan

    every = {"a": ["TRM alone"], "b": ["TRM alone", "of b", "of two"], "late": ["TRM alone", "of two"]}
    assert chosen()[0] == every
    found, plan = chosen("a")  # by source: both sets of it, each as the plan describes it
    assert found == {name: every[name] for name in ("a", "late")}
    assert plan.config_of(plan.sets[0], plan.systems[0], 0).data.user_core == 7
    assert chosen("late")[0] == {"late": every["late"]}  # by name
    assert chosen("b", "c")[0] == {"b": every["b"], "c": ["TRM alone"]}


def test_sets_that_cannot_be_read_do_not_stop_the_others(site, tmp_path):  # noqa: F811
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


class Stub(Workbench):
    """Trains nothing: it notes what it is asked to train, and gives weights that are there."""

    def train(self, dataset, *, tensorboard=False):
        self.seconds["trained"] = self.config
        return self.runs / "weights" / "recommendation"


def test_a_system_asks_with_the_weights_of_the_plan_s_training_not_of_its_own_settings(tmp_path, site):  # noqa: F811
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
training.train.advantage_normalisation = "group"
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
    assert (other.train.advantage_normalisation, other.explore.items_per_call, other.data.source) == (
        "group",
        7,
        "elsewhere",
    )
    assert plan.config_of(here, plan.systems[2], 0).train.advantage_normalisation == "batch"
    bench = Stub(load_config(site.config), runs=tmp_path)
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stub, "dataset", lambda bench: asked.append(bench.config.data.source) or toy_dataset())
        folder = Experiment(plan, tmp_path / "out", bench)._trained(here, plan.systems[2], 0, toy_dataset())
    assert (folder, asked) == (weights, ["elsewhere"])
    assert there.label == "there"


def test_a_report_leaves_out_what_was_made_for_another_plan(experiment, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(experiment[0], folder)
    text = (folder / "experiment.toml").read_text()
    (folder / "experiment.toml").write_text(text.replace("max_calls = 1", "max_calls = 2"))
    page = write_report(folder)[0].read_text()
    assert "Not finished: script, one call (0 of 2 seeds)." in page
    assert "| script, one call |" not in page


def test_another_adapter_in_the_package_is_another_plan(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    plan = load_plan(root / "experiments" / "main.toml", load_config(None))
    trained, untrained = (
        next(each for each in plan.systems if each.name == f"SmolLM2-135M, {name}") for name in ("trained", "untrained")
    )
    before = [plan.digest(plan.sets[0], each, 0) for each in (trained, untrained)]
    monkeypatch.setattr("deeprec.policies.tokenizer.SHIPPED", tmp_path)
    (tmp_path / "smollm2-135m-instruct").mkdir()
    (tmp_path / "smollm2-135m-instruct" / "adapter_model.safetensors").write_bytes(b"other weights")
    after = [plan.digest(plan.sets[0], each, 0) for each in (trained, untrained)]
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_failed_explorations_are_no_result(site, tmp_path):  # noqa: F811
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


def test_free_answers_are_known_as_they_were_before_there_was_a_choice(site):  # noqa: F811
    from deeprec.evaluation.runner import _key

    config = load_config(site.config)
    dataset = load_dataset(config.data)
    keys = []
    for answer in (None, "free", "pool"):
        asked = config.model_copy(update={"explore": config.explore.model_copy(update={"answer": answer})})
        explorer = SystemPlan(name="x", kind="explore")
        keys.append(_key(explorer, SetPlan(source="x"), 0, dataset, asked, dataset.tasks("test")))
    assert keys[0] == keys[1] != keys[2]


def test_what_the_catalogue_finds_a_guess_worth_is_another_system(site):  # noqa: F811
    """It may be as much, but on another catalogue, or with another TRM, it is something else."""
    from deeprec.evaluation.runner import _key

    config, table = load_config(site.config), SetPlan(source="x")
    dataset = load_dataset(config.data)
    said = config.model_copy(
        update={"explore": config.explore.model_copy(update={"preference_weight": DEFAULT_PREFERENCE_WEIGHT})}
    )
    for kind in ("themes", "recent", "script", "fusion", "explore"):
        system = SystemPlan(name="x", kind=kind)
        keys = [_key(system, table, 0, dataset, each, dataset.tasks("test")) for each in (config, said)]
        assert keys[0] != keys[1], kind


def test_changed_text_and_changed_files_are_changed_keys(site, tmp_path):  # noqa: F811
    from deeprec.evaluation.runner import _key

    config = load_config(site.config)
    dataset = load_dataset(config.data)
    columns = config.data.columns.model_copy(update={"categories": "title"})
    other = load_dataset(config.data.model_copy(update={"columns": columns}))
    assert dataset.fingerprint == other.fingerprint
    path = tmp_path / "lists.tsv"
    systems = {kind: SystemPlan(name="x", kind=kind) for kind in ("popularity", "trm", "themes", "recent", "explore")}
    systems["lists"] = SystemPlan(name="x", kind="lists", file=str(path))
    keys = {}
    for text, data in (("a", dataset), ("b", other)):
        path.write_text(text)
        for kind, system in systems.items():
            keys.setdefault(kind, set()).add(_key(system, SetPlan(source="x"), 0, data, config, data.tasks("test")))
    assert {kind for kind, found in keys.items() if len(found) == 2} == {"trm", "themes", "recent", "explore", "lists"}
