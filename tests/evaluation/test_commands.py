"""`deeprec eval`, `demo` and `runs compare` from outside, interrupted and resumed."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from command_line import deeprec, manifest
from deeprec.errors import DeepRecError
from deeprec.evaluation.systems import Script, TRMAlone

SYSTEMS = ["popularity", "last-item transitions", "EASE", "TRM alone", "scripted explorer"]


def only(site, kind, before=()):
    (run,) = set(site.runs.glob(f"*-{kind}")) - set(before)
    return run


def systems(folder):
    (each,) = json.loads((folder / "report.json").read_text())["sets"]
    return each["systems"]


def results(folder):
    """What the report's parts say, without the time that was taken."""
    return [{key: value for key, value in each.items() if key != "seconds_per_user"} for each in systems(folder)]


@pytest.fixture(scope="module")
def evaluated(site):
    """The folder of a finished evaluation."""
    result = site("eval")
    assert result.code == 0, result.err
    run = only(site, "eval")
    assert f"deeprec eval --resume {run}\n" in result.out
    assert "popularity" in result.out
    assert f"Report: {run / 'report.md'}" in result.out
    return run


def test_eval_writes_its_report(site, evaluated):
    assert (manifest(evaluated)["kind"], manifest(evaluated)["status"]) == ("eval", "finished")
    assert manifest(evaluated)["dataset"] == manifest(site.trained)["dataset"]
    assert {path.name for path in evaluated.iterdir()} >= {"config.toml", "experiment.toml", "results", "report.html"}
    assert [system["name"] for system in systems(evaluated)] == SYSTEMS
    assert {len(system["users"]) for system in systems(evaluated)} == {60}
    markdown = (evaluated / "report.md").read_text()
    for text in (*SYSTEMS, "NDCG@3", "Recall@1"):
        assert text in markdown
    assert len(list(site.runs.glob("*-trm"))) == 1, "the trained TRM is used"


def test_a_finished_evaluation_resumed_is_the_same(site, evaluated):
    before, count = results(evaluated), len(list(site.runs.iterdir()))
    result = deeprec("eval", "--resume", evaluated)
    assert result.code == 0, result.err
    assert result.out.count("done before") == len(SYSTEMS)
    assert results(evaluated) == before
    assert len(list(site.runs.iterdir())) == count


def interrupted(system):
    """The command ends as by Ctrl-C when this class begins to rank."""

    def rank(*_, **__):
        raise KeyboardInterrupt

    patch = pytest.MonkeyPatch()
    patch.setattr(system, "rank", rank)
    return patch


@pytest.mark.parametrize(("command", "kind"), [("eval", "eval"), ("demo", "demo")])
def test_the_printed_hint_resumes_what_was_interrupted(site, command, kind):
    before = set(site.runs.glob(f"*-{kind}"))
    patch = interrupted(TRMAlone)
    try:
        stopped = site(command)
    finally:
        patch.undo()
    assert stopped.code == 130
    run = only(site, kind, before)
    assert manifest(run)["status"] == "interrupted"
    assert not (run / "report.md").exists()
    assert "popularity: NDCG@3" in stopped.out
    (hint,) = re.findall(r"if interrupted: deeprec (.*)\n", stopped.out)
    resumed = deeprec(*hint.split())
    assert resumed.code == 0, resumed.err
    assert "popularity: done before" in resumed.out
    assert "TRM alone: NDCG@3" in resumed.out
    assert manifest(run)["status"] == "finished"

    known = set(site.runs.glob(f"*-{kind}"))
    whole = site(command)
    assert whole.code == 0, whole.err
    assert results(only(site, kind, known)) == results(run)


def test_a_system_that_fails_is_told_after_the_table(site, monkeypatch):
    def rank(*_, **__):
        raise DeepRecError("3 of 60 explorations failed")

    before = set(site.runs.glob("*-eval"))
    with monkeypatch.context() as patch:
        patch.setattr(Script, "rank", rank)
        result = site("eval")
    run = only(site, "eval", before)
    assert (result.code, result.err) == (
        2,
        "deeprec: 1 of the results failed: scripted explorer: 3 of 60 explorations failed\n",
    )
    assert "Not finished: scripted explorer." in result.out
    assert manifest(run)["status"] == "failed"
    assert "Not finished: scripted explorer." in (run / "report.md").read_text()
    resumed = deeprec("eval", "--resume", run)
    assert (resumed.code, manifest(run)["status"]) == (0, "finished")
    assert "Not finished" not in (run / "report.md").read_text()


def test_an_experiment_is_resumed_alike(site, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'name = "x"\n[[systems]]\nname = "TRM alone"\nkind = "trm"\n[[systems]]\nname = "script"\nkind = "script"\n'
    )
    patch = interrupted(Script)
    try:
        assert site("experiment", "run", plan, "--out", tmp_path / "out").code == 130
    finally:
        patch.undo()
    resumed = deeprec("eval", "--resume", tmp_path / "out", "--runs", site.runs)
    assert resumed.code == 0, resumed.err
    assert "TRM alone: done before" in resumed.out
    assert [system["name"] for system in systems(tmp_path / "out")] == ["TRM alone", "script"]


def test_the_demo_ends_with_a_table_of_80_columns(site):
    result = site("demo", "--users", "10", columns=80)
    assert result.code == 0, result.err
    end = result.out[result.out.index("% to TRM alone") - 80 :].partition("\nReport: ")[0]
    lines = end.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if re.search(r" 0\.\d{4} +0\.\d{4} ", line)]
    assert [row.strip().partition("  ")[0] for row in rows] == [name for name in SYSTEMS if name != "EASE"]


@pytest.mark.parametrize("change", ["interactions", "text"])
def test_other_data_are_refused(site, evaluated, tmp_path, change):
    table = site.root / "table.csv"
    whole = table.read_bytes()
    other = (
        whole[: whole.rindex(b"\n", 0, -1) + 1] if change == "interactions" else whole.replace(b",Film ", b",Movie ")
    )
    assert other != whole
    count = len(list(site.runs.iterdir()))
    table.write_bytes(other)
    try:
        result = deeprec("eval", "--resume", evaluated)
    finally:
        table.write_bytes(whole)
    assert result.code == 2
    assert "was made on other data" in result.err
    assert len(list(site.runs.iterdir())) == count, "no model is trained for a run that is refused"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--set", "trm.width=8"), "leave out --config, --set, --users"),
        (("--users", "3"), "leave out --config, --set, --users"),
        (("--config", "CONFIG"), "leave out --config, --set, --users"),
    ],
    ids=str,
)
def test_what_is_resumed_has_its_configuration(site, evaluated, more, said):
    more = [str(site.config) if word == "CONFIG" else word for word in more]
    result = deeprec("eval", "--resume", evaluated, *more)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert said in result.err


def test_what_is_no_evaluation_is_not_resumed(site):
    for folder in (site.trained, "absent"):
        result = deeprec("eval", "--resume", folder)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert f"{folder} is not an evaluation's folder: start one with `deeprec eval`." in result.err


def test_evaluations_are_compared(site, evaluated, tmp_path):
    result = deeprec("runs", "compare", evaluated, evaluated)
    assert result.code == 0, result.err
    for name in SYSTEMS:
        assert name in result.out
    shutil.copytree(evaluated, tmp_path / "copy")
    (tmp_path / "copy" / "report.json").unlink()
    missing = deeprec("runs", "compare", evaluated, tmp_path / "copy")
    assert (missing.code, missing.err.count("\n")) == (2, 1)
    assert "deeprec eval --resume" in missing.err
