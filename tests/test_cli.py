"""The command line from outside, on a toy table and with a stand-in for MiniLM."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import polars as pl
import pytest

import processes
from command_line import deeprec, files, manifest
from deeprec import cli
from deeprec.config import DEFAULT_PREFERENCE_WEIGHT, Config, load_config
from deeprec.data.sources import load_dataset
from deeprec.evaluation.plans import load_plan
from deeprec.retrieval.retriever import Query
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
    ["trm", "update", f"{FOLDER}/trm"],
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


def titles_in(text):
    return re.findall(r"Film \d+ \(\d+\)", text)


def test_what_is_asked_for_by_name_leads(site):
    """Where the TRM has it far down otherwise, with and without a history."""
    trm = TRM.load(site.trained / "trm")
    last = trm.retrieve([Query(())], len(trm.catalog))[0][-1].item
    title = trm.catalog.titles[last]
    for more in ([], ["--item", trm.catalog.titles[(last + 1) % 40]]):
        for asked in (title, title.split(" (")[0].upper(), f"Comedy; {title}", f"films like {title}"):
            result = deeprec("trm", "recommend", site.trained / "trm", "--preference", asked, *more)
            assert titles_in(result.out)[0] == title


def test_recommend_without_a_history(site):
    assert deeprec("trm", "recommend", site.trained / "trm", "-k", 2).out.count("Film") == 2


def test_update_and_explore_with_the_updated(site, tmp_path):
    """Two new films: one that u0 and u1 chose, one that nobody has chosen."""
    frame = pl.read_csv(site.root / "table.csv", infer_schema_length=0)
    items = frame.drop("user_id", "timestamp").unique("item_id", maintain_order=True)
    new = items.head(2).with_columns(item_id=pl.Series(["i40", "i41"]), title=pl.Series(["Film 40", "Film 41"]))
    chosen = [{"user_id": user, "item_id": "i40", "timestamp": "99"} for user in ("u0", "u1")]
    folder = tmp_path / "now"
    folder.mkdir()
    pl.concat([items, new]).write_csv(folder / "items.csv")
    now = pl.concat([frame.select("user_id", "item_id", "timestamp"), pl.DataFrame(chosen)])
    now.write_csv(folder / "interactions.csv")
    args = ["--config", site.config, "--runs", tmp_path / "runs"]
    result = deeprec("trm", "update", site.trained / "trm", "--data", folder, *args, "--set", "trm.epochs=1")
    assert result.code == 0, result.err
    told = [" ".join(line.replace("│", " ").split()) for line in result.out.splitlines()]
    assert "items known before, in the data 40" in told
    assert {"new items with interactions 1", "new items with none or too few, by their text 1"} <= {*told}
    (run,) = (tmp_path / "runs").iterdir()
    own = ["--set", f"data.source={folder}", "--trm", run / "trm"]
    result = deeprec("explore", *args, *own, "--item", "Film 41", "--item", "i3")
    assert result.code == 0, result.err
    assert "1. Film 41" in result.out
    result = deeprec("explore", *args, "--trm", run / "trm", "--set", f"data.source={folder}", "--user", "u0")
    assert result.code == 0, result.err
    result = deeprec("explore", *args, "--set", f"data.source={folder}", "--trm", site.trained / "trm")
    assert result.code == 2
    assert f"deeprec trm update {site.trained / 'trm'} --data {folder}" in result.err


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


def test_recommend_and_explore_take_filters(site, tmp_path):
    """Film i is of 1970 + i and of genre i mod 5."""
    only, stock = tmp_path / "only.txt", tmp_path / "stock.txt"
    only.write_text("i3\nFilm 8 (1978)\ni13\n")
    stock.write_text("i9\ni14\ngone\ni17\n")
    for options, films in (
        (("--category", "horror", "--years", "1980-1990"), {12, 17}),
        (("--category", "Horror", "--category", "war", "--years", "1979"), {9}),
        (("--years", "-1972"), {0, 1, 2}),
        (("--years", "2007-"), {37, 38, 39}),
        (("--only", "i7", "--only", only), {3, 7, 8, 13}),
        (("--available", stock), {9, 14, 17}),
        (("--available", stock, "--category", "War"), {9, 14}),
    ):
        listed = site("trm", "recommend", site.trained / "trm", *options)
        assert listed.code == 0, listed.err
        assert {int(i) for i in re.findall(r"│ i(\d+) ", listed.out)} == films
        explored = site("explore", "--item", "i20", *options)
        assert explored.code == 0, explored.err
        _, _, ranking = explored.out.partition("ranking: answer")
        found = {int(i) for i in re.findall(r"│ Film (\d+) ", ranking)}
        assert found <= films
        assert len(found) == min(3, len(films))
        assert "faults" not in explored.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--category", "Horor"), "No item has the category 'Horor': did you mean 'Horror'?"),
        (("--brand", "Fox"), "this catalogue has no brands."),
        (("--years", "nineties"), "--years nineties can't be read: give years as in 1990-1999, 1994, 1990- or -1999."),
        (("--years", "1900-1910"), "No item is of the years 1900 to 1910: in this catalogue years go from 1970 to"),
        (("--only", "i77"), "There is no item with the title or id 'i77' in the catalogue: did you mean"),
        (("--only", "no/such/file.txt"), "Nor is there a file of this name."),
        (("--available", "missing.txt"), "missing.txt can't be read"),
    ],
)
def test_a_filter_of_nothing_is_explained(site, options, said):
    for verb in (("trm", "recommend", site.trained / "trm"), ("explore", "--item", "i20")):
        result = site(*verb, *options)
        assert result.code == 2
        assert said in result.err
        assert "Traceback" not in result.err


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


def test_what_a_person_asks_for_by_name_leads(site):
    """Of what comes back to the person, beside calls of the script that name titles too."""
    trm = TRM.load(site.trained / "trm")
    last = trm.retrieve([Query(())], len(trm.catalog))[0][-1].item
    title = trm.catalog.titles[last]
    asked = title.split(" (")[0]
    result = site("play", "--item", trm.catalog.titles[(last + 1) % 40], stdin=f"{asked}\n\n1 2 3\n")
    assert result.code == 0, result.err
    _, _, shown = result.out.partition(f"<|begin_of_preference|>{asked}<|end_of_preference|>")
    assert titles_in(shown)[0] == title


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
