"""The command line from outside, on a toy table and with a stand-in for MiniLM."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

import processes
from command_line import deeprec, files, manifest
from deeprec import cli
from deeprec.config import DEFAULT_PREFERENCE_WEIGHT, Config, load_config
from deeprec.data.sources import load_dataset
from deeprec.evaluation.plans import load_plan
from deeprec.runs import matching_runs
from deeprec.trm.run import trm_origin
from deeprec.trm.trm import TRM

DEEPREC = (sys.executable, "-c", "from deeprec.cli import main; main()")
FOLDER = "FOLDER"
"""Stands for the folder of a finished training in the arguments below."""

VERBS = (
    ["data", "describe"],
    ["assets", "list"],
    ["assets", "get"],
    ["assets", "path", "ml-100k"],
    ["trm", "train"],
    ["trm", "recommend", f"{FOLDER}/trm"],
    ["train"],
    ["explore"],
    ["play"],
    ["recommend", "--out", "recs.parquet"],
    ["serve"],
    ["mcp"],
    ["eval"],
    ["demo"],
    ["runs", "list"],
    ["runs", "show", FOLDER],
    ["runs", "compare", FOLDER, FOLDER],
    ["runs", "curves", FOLDER],
    ["experiment", "run"],
    ["experiment", "report", FOLDER],
    ["doctor"],
)


def words(verb):
    """Those of a verb itself, without arguments."""
    groups = ("data", "assets", "trm", "runs", "experiment")
    return tuple(verb[: 2 if verb[0] in groups else 1])


# Help


def test_help_is_quick():
    """Under 0.5 s, import of nothing heavy; the first of ten tries that is, since other programs want the cores too."""
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        done = subprocess.run([*DEEPREC, "--help"], check=True, capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
        assert "Usage:" in done.stdout
        if seconds[-1] < 0.5:
            return
    pytest.fail(f"deeprec --help took {min(seconds):.2f} s at best")


def test_help_of_every_verb_imports_nothing_heavy():
    code = f"""
import sys
from deeprec.cli import main
for verb in {[[], *[list(words(verb)) for verb in VERBS]]!r}:
    sys.argv = ["deeprec", *verb, "--help"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, verb
heavy = {{"torch", "transformers", "polars", "numpy", "scipy", "requests"}}
print("HEAVY", sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def commands(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_verb_takes_the_same_options():
    from typer.main import get_command

    found = dict(commands(get_command(cli.app)))
    listed = set(map(words, VERBS))
    assert found.keys() == listed, "VERBS lists every verb"
    for path, command in found.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--config", "--set", "--dry-run", "--offline", "--runs"} <= options, path
        assert command.help, path


def test_version():
    import deeprec as package

    result = deeprec("--version")
    assert (result.code, result.out.strip()) == (0, package.__version__)


# Dry runs


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_dry_run_prints_the_configuration_and_does_nothing(site, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    before = files(site.root)
    args = [word.replace(FOLDER, str(site.trained)) for word in verb]
    overrides = ["trm.width=48", "eval.users=9"]
    result = deeprec(*args, "--config", site.config, "--dry-run", "--set", overrides[0], "--set", overrides[1])
    assert (result.code, result.err) == (0, "")
    printed = tmp_path / "printed.toml"
    printed.write_text(result.out)
    expected = load_config(site.config, overrides)
    assert expected.trm.width == 48
    if verb[:2] == ["experiment", "run"]:
        plan = load_plan(printed, Config())
        assert {plan.config_of(plan.sets[0], system, 0).trm.width for system in plan.systems} == {48}
    else:
        assert load_config(printed) == expected
    assert files(site.root) == before
    assert list(tmp_path.iterdir()) == [printed]


def test_a_dry_run_of_an_experiment_prints_its_plan(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plan.toml"
    path.write_text('name = "x"\n[[sets]]\nsource = "a"\n[[systems]]\nname = "TRM alone"\nkind = "trm"\n')
    result = deeprec("experiment", "run", path, "--data", "b", "--set", "trm.width=48", "--dry-run")
    assert (result.code, result.err) == (0, "")
    printed = tmp_path / "printed.toml"
    printed.write_text(result.out)
    plan = load_plan(printed, Config())
    assert ([each.source for each in plan.sets], plan.systems[0].name) == (["b"], "TRM alone")
    assert plan.config_of(plan.sets[0], plan.systems[0], 0).trm.width == 48
    assert set(tmp_path.iterdir()) == {path, printed}


# Mistakes


@pytest.fixture(scope="module")
def evaluated(site):
    """The folder of a finished evaluation."""
    before = set(site.runs.iterdir())
    result = site("eval")
    assert result.code == 0, result.err
    (run,) = set(site.runs.iterdir()) - before
    assert f"deeprec eval --resume {run}" in result.out
    assert "popularity" in result.out
    return run


CONFIGURED = ("--config", "CONFIG")
MISTAKES = {
    "unknown key": (["data", "describe", "--set", "trm.widht=3"], "'trm.widht'"),
    "unknown key in the file": (["data", "describe", "--config", "misspelt.toml"], "'trm.layer'"),
    "malformed override": (["data", "describe", "--set", "trm.width"], "section.key=value"),
    "value that does not fit": (["data", "describe", "--set", "trm.width=wide"], "'trm.width'"),
    "no configuration file": (["data", "describe", "--config", "absent.toml"], "no configuration file absent.toml"),
    "no data": (["trm", "train", "--set", "data.source=absent.csv"], "absent.csv"),
    "unknown user": (["explore", "--user", "nobody", *CONFIGURED], "no user 'nobody'"),
    "unknown user plays": (["play", "--user", "nobody", *CONFIGURED], "u0, u1, u2"),
    "misspelt title": (["explore", "--item", "Fillm 33", *CONFIGURED], "did you mean 'Film 33 (2003)'"),
    "strange title": (["play", "--item", "日本語", *CONFIGURED], "no item with the title or id '日本語'"),
    "misspelt title for a TRM": (
        ["trm", "recommend", f"{FOLDER}/trm", "--item", "Film 3", "--item", "Fillm 33"],
        "did you mean 'Film 33 (2003)'",
    ),
    "no TRM": (["trm", "recommend", "absent"], "absent holds no trained TRM"),
    "a run instead of a TRM": (["trm", "recommend", FOLDER], "holds no trained TRM"),
    "a table of no known format": (["recommend", "--out", "recs.xlsx", *CONFIGURED], "recs.xlsx names no format"),
    "a table that is there": (["recommend", "--out", f"{FOLDER}/metrics.jsonl", *CONFIGURED], "metrics.jsonl is there"),
    "no file of users": (["recommend", "--out", "a.csv", "--users", "absent", *CONFIGURED], "There is no file absent"),
    "a file of no users": (
        ["recommend", "--out", "a.csv", "--users", "misspelt.toml", *CONFIGURED],
        "has no history of 2 of 2 users, as '[trm]', 'layer = 3'; its users are for instance 'u0', 'u1', 'u2'",
    ),
    "no run to show": (["runs", "show", "absent"], "absent is not a run's folder"),
    "no evaluation to compare": (["runs", "compare", FOLDER, "absent"], "deeprec eval"),
    "curves of no training": (["runs", "curves", FOLDER], "holds no steps of a policy's training"),
    "no run to resume": (["eval", "--resume", "absent"], "absent is not an evaluation's folder"),
    "resume and set": (["eval", "--resume", FOLDER, "--set", "eval.split=test"], "leave out --config, --set, --users"),
    "resume and users": (["eval", "--resume", FOLDER, "--users", "3"], "leave out --config, --set, --users"),
    "resume and config": (["eval", "--resume", FOLDER, *CONFIGURED], "leave out --config, --set, --users"),
    "unknown asset": (["assets", "get", "nonsense"], "nonsense"),
    "unknown asset's path": (["assets", "path", "nonsense"], "nonsense"),
}


@pytest.mark.parametrize(("args", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(site, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "misspelt.toml").write_text("[trm]\nlayer = 3\n")
    before = files(site.root)
    result = deeprec(*(word.replace(FOLDER, str(site.trained)).replace("CONFIG", str(site.config)) for word in args))
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("deeprec: ")
    assert result.err.endswith("\n")
    assert result.err.count("\n") == 1
    assert said in result.err
    assert files(site.root) == before
    assert [path.name for path in tmp_path.iterdir()] == ["misspelt.toml"]


def test_a_title_of_several_items_asks_for_an_id():
    from deeprec.data.catalog import build_catalog
    from deeprec.errors import DeepRecError

    catalog = build_catalog(
        ids=["a", "b", "c", "Heat"],
        titles=["Heat", "Heat", "Twin", "Other"],
        years=[1986, 1995, None, None],
        brands=[""] * 4,
        categories=[()] * 4,
        descriptions=[""] * 4,
        title_chars=80,
    )
    assert [catalog.find(name) for name in ("twin", "Heat (1995)", "b", "HEAT (1986).")] == [2, 1, 1, 0]
    assert catalog.find("Heat") == 3  # an id, where the title alone is not clear
    with pytest.raises(DeepRecError, match=r"'heat' is the title of 2 items: give the id of one, as a, b\."):
        catalog.find("heat")


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    done = subprocess.run([*DEEPREC, "runs", "show", "absent"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "deeprec: absent is not a run's folder: give one that `deeprec runs` lists.\n"


# What the commands do


def test_data_describe(site):
    result = deeprec("data", "describe", "--config", site.config)
    assert result.code == 0
    for line in ("users", "60", "720"):  # 60 users of 12 interactions
        assert line in result.out


def test_a_trained_model_is_used_again_and_a_changed_one_is_trained(site, tmp_path):
    again = deeprec("trm", "train", "--config", site.config, "--runs", site.runs)
    assert again.out.splitlines() == [f"The trained TRM lies in {site.trained / 'trm'}"]
    short = ["--config", site.config, "--runs", tmp_path, "--set", "trm.epochs=1"]
    for count, extra in ((1, []), (1, []), (2, ["--again"]), (3, ["--set", "trm.seed=1"])):
        assert deeprec("trm", "train", *short, *extra).code == 0
        assert len(list(tmp_path.iterdir())) == count


def test_training_leaves_its_curve_and_configuration(site):
    assert manifest(site.trained)["status"] == "finished"
    assert load_config(site.trained / "config.toml") == load_config(site.config)
    metrics = [json.loads(line) for line in (site.trained / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics] == list(range(1, len(metrics) + 1))
    assert 6 <= len(metrics) <= 10  # it may stop five epochs after the best
    assert all(record["loss"] > 0 and 0 <= record["validation NDCG@10"] <= 1 for record in metrics)


@pytest.mark.parametrize("preference", ["", "War; 1980s"])
def test_recommend_for_a_new_user(site, preference):
    from deeprec.retrieval.retriever import Query

    folder = site.trained / "trm"
    trm = TRM.load(folder)
    history = tuple(map(trm.catalog.find, ("i0", "i5", "i10")))
    hits = trm.retrieve([Query(history, preference, history)], 7)[0]
    args = ["--item", "Film 0", "--item", "film 5 (1975)", "--item", "i10", "-k", 7]
    result = deeprec("trm", "recommend", folder, *args, "--preference", preference)
    assert result.code == 0, result.err
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in result.out.splitlines() if "Film" in line]
    assert rows == [
        [str(position), trm.catalog.ids[hit.item], trm.catalog.titles[hit.item]]
        for position, hit in enumerate(hits, start=1)
    ]


def test_recommend_without_a_history(site):
    assert deeprec("trm", "recommend", site.trained / "trm", "-k", 2).out.count("Film") == 2


@pytest.mark.parametrize("who", [["--user", "u3"], ["--item", "Film 7", "--item", "i12"], []], ids=" ".join)
def test_explore(site, who):
    result = site("explore", *who)
    assert result.code == 0, result.err
    assert result.out.count("<|begin_of_item_list|>") > 1
    assert "ranking: answer" in result.out
    assert "ended by: answered" in result.out
    assert ("held-out item" in result.out) == ("--item" not in who)
    assert len(list(site.runs.glob("*-trm"))) == 1


def test_explore_shows_the_history_that_was_named(site):
    shown = site("explore", "--item", "Film 7", "--item", "i12").out
    lines = [line.strip("│ ") for line in shown.splitlines()]  # the prompt is shown in a box
    history = lines[lines.index("User:") + 1 : lines.index("Assistant:")]
    assert [line for line in history if "Film" in line] == ["1. Film 7 (1977)", "2. Film 12 (1982)"]


def test_runs_list_and_show(site, evaluated):
    listed = deeprec("runs", "list", "--runs", site.runs).out
    assert str(site.trained) in listed
    assert str(evaluated) in listed
    assert listed.index(site.trained.name) < listed.index(evaluated.name)
    shown = deeprec("runs", "show", site.trained)
    assert shown.code == 0
    for text in ('"kind": "trm"', "[trm]", "width = 16", '"step": 6'):
        assert text in shown.out
    assert deeprec("runs", "list", "--runs", site.root / "absent").code == 0
    assert not (site.root / "absent").exists()


def test_a_trm_of_before_is_passed_over(site, tmp_path):
    shutil.copytree(site.trained, tmp_path / site.trained.name)
    config = load_config(site.config)
    dataset = load_dataset(config.data)

    def latest(dataset):
        return next(matching_runs(tmp_path, "trm", config, ("data", "trm"), trm_origin(dataset)), None)

    path = tmp_path / site.trained.name / "manifest.json"
    record = json.loads(path.read_text())
    assert record["preference_weight"] == TRM.load(site.trained / "trm").preference_weight
    assert latest(dataset).path == path.parent
    retitled = replace(dataset, catalog=replace(dataset.catalog, titles=("New", *dataset.catalog.titles[1:])))
    assert retitled.fingerprint == dataset.fingerprint
    assert latest(retitled) is None
    path.write_text(json.dumps({name: value for name, value in record.items() if name != "format_version"}))
    assert latest(dataset) is None


def test_play(site):
    result = site("play", "--user", "u3", stdin="Comedy; 1970s\nWar\n\n3 1 2\n")
    assert result.code == 0, result.err
    own, _, script = result.out.partition("the scripted explorer on the same user")
    assert "<|begin_of_preference|>Comedy; 1970s<|end_of_preference|>" in own
    assert "ranking: answer" in own
    assert "2 tool calls" in own
    assert "ranking: answer" in script


def test_a_person_s_preference_weighs_more_than_the_script_s(site, monkeypatch):
    retrieve, asked = TRM.retrieve, []

    def kept(trm, queries, k):
        asked.extend((query.preference_weight, trm.preference_weight) for query in queries if query.preference)
        return retrieve(trm, queries, k)

    monkeypatch.setattr(TRM, "retrieve", kept)
    assert site("play", "--user", "u3", stdin="Comedy; 1970s\nWar\n\n3 1 2\n").code == 0
    stated, guessed = asked[:2], asked[2:]
    assert [weight for weight, _ in stated] == [DEFAULT_PREFERENCE_WEIGHT] * 2
    assert guessed
    assert all(weight == calibrated != DEFAULT_PREFERENCE_WEIGHT for weight, calibrated in guessed)


def test_play_with_a_poor_ranking_shows_the_faults_and_goes_on(site):
    result = site("play", "--user", "u3", stdin="Comedy\n\n1 1 99 x\n")
    assert result.code == 0, result.err
    assert "wrong number of answer lines" in result.out
    assert "answer and retrieved items" in result.out


@pytest.mark.parametrize("stdin", ["", "Comedy\n", "Comedy\n\n"], ids=["at once", "after a call", "at the ranking"])
def test_play_ends_with_its_input(site, stdin):
    result = site("play", "--user", "u3", stdin=stdin)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == "The input ended: nothing was ranked."
    assert result.err == ""


# Interruption


def test_ctrl_c_while_training_is_resumable(site, tmp_path):
    runs = tmp_path / "runs"
    args = ["trm", "train", "--config", str(site.config), "--runs", str(runs), "--set", "trm.epochs=12"]
    status, err = processes.stopped(
        [*processes.DEEPREC, *args],
        signal.SIGINT,
        lambda: any(path.read_bytes().count(b"\n") >= 2 for path in runs.glob("*/metrics.jsonl")),
    )
    assert status == 130
    assert err == "deeprec: interrupted; what was finished is kept.\n"
    (run,) = runs.iterdir()
    assert manifest(run)["status"] == "interrupted"
    assert not (run / "trm").exists()
    done = (run / "metrics.jsonl").read_bytes().count(b"\n")
    assert 2 <= done < 12

    resumed = deeprec(*args)
    assert resumed.code == 0, resumed.err
    assert f"Resuming the TRM in {run}" in resumed.out
    assert list(runs.iterdir()) == [run]
    assert manifest(run)["status"] == "finished"
    assert deeprec(*args, "--again").code == 0
    (unbroken,) = set(runs.iterdir()) - {run}
    weights = [next((path / "trm").glob("*/model.safetensors")).read_bytes() for path in (run, unbroken)]
    assert weights[0] == weights[1]
