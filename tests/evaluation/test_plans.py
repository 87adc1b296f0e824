"""Plans: what is read, what is refused, and what they leave out."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from deeprec.config import Config, load_config
from deeprec.errors import DeepRecError
from deeprec.evaluation.external_rankings import external_file
from deeprec.evaluation.plans import Plan, SetPlan, built_in_plan, dump_plan, load_plan


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name = [3]", "name"),
        ('name = "x"', "systems"),
        ('name = "x"\nsystems = [{ name = "TRM alone", kind = "magic" }]', "kind"),
        ('name = "x"\nsystems = [{ name = "other", kind = "trm" }]', "baseline 'TRM alone' is not run on set"),
        ('name = "x"\nsystems = [{ name = "TRM alone", kind = "external" }]', "needs one"),
        ('name = "x"\nsystems = [{ name = "TRM alone", kind = "trm", make = "x" }]', "`make` says how"),
        ('name = "x"\nsystems = [{ name = "TRM alone", kind = "trm", train = "cold-start" }]', "`train` is for"),
        ('name = "x"\nsystems = [{ name = "TRM alone", kind = "explore", train_on = "y" }]', "need `train`"),
        (
            'name = "x"\nsystems = [{ name = "TRM alone", kind = "explore", train = "a", train_on = "y" }]',
            "names unknown sets: ['y']",
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
            'name = "x"\nsystems = [{ name = "TRM alone", kind = "explore", train = "warm" }]',
            "sft, cold-start",
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
        ('name = "x"\nsystems = 5', "key systems:"),
        ('name = "x"\nsets = 5\nsystems = [{ name = "TRM alone", kind = "trm" }]', "key sets:"),
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


def test_the_main_plan_is_one():
    root = Path(__file__).parents[2]
    plan = load_plan(root / "experiments" / "main.toml", load_config(root / "configs" / "cpu.toml"))
    models = {each.name: each for each in plan.systems if each.kind == "explore"}
    adapters = {name: plan.config_of(plan.sets[0], each, 0).policy.adapter for name, each in models.items()}
    assert [adapter for name, adapter in adapters.items() if ", trained" in name] == ["shipped", "shipped"]
    assert adapters["SmolLM2-135M, untrained"] == "none"
    (peer,) = (each for each in plan.systems if each.kind == "external")
    with pytest.raises(
        DeepRecError, match=r"this makes it: python benchmarks/trm_peers/run\.py --sets ml-100k --systems"
    ):
        external_file(peer, plan.sets[0], 99)
    # What a system asks with is no part of the training that made it.
    trained = models["SmolLM2-135M, trained, one call"].model_copy(update={"train": "sft"})
    expected = load_config(root / "configs" / "cpu.toml", ['data.source="ml-100k"'])
    assert plan.training_of(plan.sets[0], trained, 0) == expected


def test_a_plan_survives_its_own_file(site):
    plan = built_in_plan(
        "comparison", load_config(site.config, ["explore.preference_weight=0.5", "policy.kind=transformers"])
    )
    assert plan.config["explore"]["preference_weight"] == 0.5
    assert "source" not in plan.config["data"]
    assert Plan.model_validate(tomllib.loads(dump_plan(plan))) == plan


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


def test_the_command_line_may_not_contradict_the_plan(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text('name = "x"\nsets = [{ source = "a" }]\nsystems = [{ name = "TRM alone", kind = "trm" }]')
    with pytest.raises(DeepRecError, match="seeds are the plan's"):
        load_plan(path, load_config(None, ["trm.seed=3"]))
    with pytest.raises(DeepRecError, match="seeds are the plan's"):
        built_in_plan("comparison", load_config(None, ["trm.seed=3"]))
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


def test_another_adapter_in_the_package_is_another_plan(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    plan = load_plan(root / "experiments" / "main.toml", load_config(None))
    trained, untrained = (
        next(each for each in plan.systems if each.name == f"SmolLM2-135M, {name}") for name in ("trained", "untrained")
    )
    before = [plan.digest(plan.sets[0], each, 0) for each in (trained, untrained)]
    monkeypatch.setattr("deeprec.policies.adapters.SHIPPED", tmp_path)
    (tmp_path / "smollm2-135m-instruct").mkdir()
    (tmp_path / "smollm2-135m-instruct" / "adapter_model.safetensors").write_bytes(b"other weights")
    after = [plan.digest(plan.sets[0], each, 0) for each in (trained, untrained)]
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_an_evaluation_has_the_seeds_of_its_configuration(tmp_path):
    config = load_config(None, ["trm.seed=3", "explore.seed=4", "eval.users=9"])
    for name in ("eval", "demo"):
        plan = built_in_plan(name, config)
        assert plan.runs == (None,)
        found = plan.config_of(plan.sets[0], plan.systems[0], None)
        assert (found.trm, found.explore, found.eval) == (config.trm, config.explore, config.eval)
        (tmp_path / "plan.toml").write_text(dump_plan(plan))
        assert load_plan(tmp_path / "plan.toml", Config()) == plan


def test_a_demo_has_as_many_systems_as_its_table_has_rows():
    names = {name: [each.name for each in built_in_plan(name, Config()).systems] for name in ("eval", "demo")}
    assert len(names["demo"]) == 6
    assert [name for name in names["eval"] if name != "EASE"] == names["demo"]


def test_without_a_language_model_its_systems_are_left_out():
    scripted = load_config(None, ["policy.kind=scripted"])
    for name in ("comparison", "eval", "demo"):
        kinds = {system.kind for system in built_in_plan(name, scripted).systems}
        assert "script" in kinds
        assert not kinds & {"titles", "rerank", "explore"}


def test_folders_of_files_of_one_name_differ(tmp_path):
    (tmp_path / "other").mkdir()
    files = [tmp_path / "seen.inter", tmp_path / "other" / "seen.inter"]
    for file in files:
        file.touch()
    one, two = (SetPlan(source=str(file)) for file in files)
    assert one.label == two.label == "seen"
    assert one.folder != two.folder
    assert one.folder.startswith("seen-")
    assert SetPlan(source="ml-100k").folder == "ml-100k"
