from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deeprec.config import Config, load_config
from deeprec.errors import DeepRecError
from deeprec.runs import JsonLines, Run, commit, environment, hardware, list_runs, versions


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "runs", "toy", Config(), ["deeprec", "eval"], kind="eval", fingerprint="abc")


def test_create_writes_a_complete_folder(run, tmp_path):
    assert run.path.parent == tmp_path / "runs"
    assert run.path.name.endswith("Z-toy")
    assert run.checkpoints.is_dir()
    assert load_config(run.config_path) == Config()
    manifest = json.loads(run.manifest_path.read_text())
    assert manifest["kind"] == "eval"
    assert manifest["command"] == ["deeprec", "eval"]
    assert manifest["status"] == "running"
    assert manifest["dataset"] == "abc"
    assert manifest["created"].endswith("+00:00")
    assert manifest["versions"]["python"].startswith("3.")
    assert manifest["hardware"]["cores"] >= 1
    assert manifest["commit"] == commit()
    assert [path.name for path in run.path.iterdir() if path.suffix == ".tmp"] == []


def test_the_resolved_configuration_comes_back(tmp_path):
    config = load_config(overrides=["trm.width=32", "eval.users=50"])
    run = Run.create(tmp_path, None, config, [], kind="trm")
    assert run.path.name.endswith("Z-trm")
    assert Run.open(run.path).config == config


def test_folders_are_unique_and_names_are_safe(tmp_path):
    made = [Run.create(tmp_path, "../a b/é", Config(), [], kind="eval").path for _ in range(4)]
    assert len(set(made)) == 4
    for path in made:
        assert path.parent == tmp_path
        assert "a-b-é" in path.name


def test_open_refuses_what_is_no_run(tmp_path, run):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "a web page"}')
    for path in (tmp_path, tmp_path / "absent", tmp_path / "web"):
        with pytest.raises(DeepRecError, match="is not a run's folder"):
            Run.open(path)
    assert Run.open(run.path).manifest == run.manifest


def test_metrics_come_back_in_order(run):
    before = time.time()
    run.append_metrics(0, {"loss": np.float32(0.5), "hits": 3})
    run.append_metrics(1, {"loss": math.nan, "reward": -math.inf})
    first, second = run.metrics
    assert abs(first.pop("time") - before) < 60
    second.pop("time")
    assert first == {"step": 0, "loss": 0.5, "hits": 3}
    assert second == {"step": 1, "loss": None, "reward": None}
    assert list(Run.open(run.path).metrics) == list(run.metrics)


def test_objects_come_back(tmp_path):
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.append({"user": "ü\n\ud800", "ids": [1, 2], "logprobs": (math.inf, -0.5), "deep": {"a": [math.nan]}})
    lines.append({"none": None})
    first = {"user": "ü\n\ud800", "ids": [1, 2], "logprobs": [None, -0.5], "deep": {"a": [None]}}
    assert list(JsonLines(lines.path)) == list(lines) == [first, {"none": None}]


def test_nothing_appended_reads_as_nothing(run):
    assert list(run.metrics) == []


def test_each_line_is_on_disk_at_once(run):
    run.metrics.append({"a": 1})
    assert run.metrics.path.read_bytes() == b'{"a": 1}\n'


WHOLE = b'{"a": 1}\n{"a": "\xc3\xa9"}\n'


@pytest.mark.parametrize(
    "torn",
    [b'{"a": 2', b"{", b'{"a": "\xc3', b"\x00\x00\x00", b"[1]", b"7", b"\xff\xfe\n", b'{"a": 2\n'],
)
def test_a_torn_line_is_dropped_and_counted(tmp_path, torn):
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.path.write_bytes(WHOLE + torn)
    assert list(lines) == [{"a": 1}, {"a": "é"}]
    assert lines.dropped == 1
    lines.append({"a": 3})
    assert list(lines) == [{"a": 1}, {"a": "é"}, {"a": 3}]
    assert lines.dropped == 1


def test_a_last_line_that_lacks_only_its_end_is_kept(tmp_path):
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.path.write_bytes(b'{"a": 1}')
    lines.append({"a": 2})
    assert list(lines) == [{"a": 1}, {"a": 2}]
    assert lines.dropped == 0


def test_every_cut_leaves_the_whole_lines(tmp_path):
    lines = JsonLines(tmp_path / "x.jsonl")
    for number in range(3):
        lines.append({"n": number, "text": "é}\n{"})
    whole = lines.path.read_bytes()
    for cut in range(len(whole)):
        lines.path.write_bytes(whole[:cut])
        found = [record["n"] for record in lines]
        assert found == list(range(len(found)))
        ended = whole[:cut].count(b"\n")
        # A line whose only loss is its end is whole.
        assert len(found) + lines.dropped == ended + (not whole[:cut].endswith(b"\n") and cut > 0)
        assert len(found) >= ended


WRITER = """
import sys
from pathlib import Path
from deeprec.config import Config
from deeprec.runs import JsonLines, Run
with Run.create(Path(sys.argv[1]), "killed", Config(), ["x"], kind="test") as run:
    long_lines = JsonLines(run.path / "long.jsonl")
    for step in range(10**9):
        run.append_metrics(step, {"value": step})
        long_lines.append({"step": step, "text": "x" * 20_000})
        print(step, flush=True)
"""


def test_sigkill_while_appending(tmp_path):
    source = Path(__file__).parents[1] / "src"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(source)},
    )
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(200)][-1]
    writer.send_signal(signal.SIGKILL)
    rest, _ = writer.communicate(timeout=60)
    assert writer.returncode == -signal.SIGKILL
    # A print cut short by the kill has no end of line.
    acknowledged = max([acknowledged, *map(int, rest.split(b"\n")[:-1])])

    (summary,) = list_runs(tmp_path)
    assert summary.status == "running"
    run = Run.open(summary.path)
    for lines in (run.metrics, JsonLines(run.path / "long.jsonl")):
        steps = [record["step"] for record in lines]
        assert steps == list(range(len(steps)))
        assert len(steps) > acknowledged
        assert lines.dropped <= 1
    run.append_metrics(-1, {"value": 0})
    assert list(run.metrics)[-1]["step"] == -1


def test_a_run_that_ends_well(run):
    with run:
        time.sleep(0.02)
    assert run.manifest["status"] == "finished"
    assert 0.02 <= run.manifest["wall_seconds"] < 60


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), "interrupted", None),
        (ValueError("bad"), "failed", "ValueError: bad"),
        (SystemExit(2), "failed", "SystemExit: 2"),
    ],
)
def test_how_a_run_ended_is_recorded_and_the_exception_goes_on(run, error, status, message):
    with pytest.raises(type(error)) as caught, run:
        raise error
    assert caught.value is error
    assert run.manifest["status"] == status
    assert run.manifest["error"] == message


def test_a_run_taken_up_again(run):
    time.sleep(0.02)
    with pytest.raises(KeyboardInterrupt), run:
        raise KeyboardInterrupt
    first = run.manifest["wall_seconds"]
    with Run.open(run.path) as again:
        assert again.manifest["status"] == "running"
        time.sleep(0.02)
    assert again.manifest["status"] == "finished"
    assert again.manifest["wall_seconds"] >= first + 0.02
    assert again.manifest["created"] == run.manifest["created"]


def test_record_adds_to_the_manifest(run):
    run.record(dataset="def", items=3)
    assert (run.manifest["dataset"], run.manifest["items"]) == ("def", 3)
    assert run.manifest["kind"] == "eval"


def test_a_manifest_write_that_fails_leaves_the_old_one(run, monkeypatch):
    old = run.manifest

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DeepRecError, match="disk is full"):
        run.finish("finished")
    assert run.manifest == old
    # A full disk does not hide why a run ended.
    with pytest.raises(ValueError, match="bad") as caught, run:
        raise ValueError("bad")
    assert "disk is full" in caught.value.__notes__[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_explained(run):
    run.metrics.path.symlink_to("/dev/full")
    with pytest.raises(DeepRecError, match=r"disk is full, .*metrics\.jsonl"):
        run.append_metrics(0, {"loss": 1})


def test_other_faults_of_the_disk_are_not_called_full(run):
    run.metrics.path.mkdir()
    with pytest.raises(IsADirectoryError):
        run.append_metrics(0, {"loss": 1})


def test_a_root_that_is_a_file_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeepRecError, match="can't be written"):
        Run.create(tmp_path / "file", "x", Config(), [], kind="eval")
    with pytest.raises(DeepRecError, match="can't be written"):
        Run.create(tmp_path / "file" / "runs", "x", Config(), [], kind="eval")


def test_list_runs_passes_over_foreign_folders(tmp_path):
    assert list_runs(tmp_path / "absent") == []
    first = Run.create(tmp_path, "z", Config(), ["deeprec", "eval"], kind="eval")
    first.record(created="2020-01-01T00:00:00+00:00")
    first.finish("finished")
    second = Run.create(tmp_path, "a", Config(), [], kind="trm")
    for name, content in [("torn", '{"kind": "e'), ("list", "[]"), ("other", '{"name": 1}')]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(content)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    found = list_runs(tmp_path)
    assert [(entry.path, entry.kind, entry.status) for entry in found] == [
        (first.path, "eval", "finished"),
        (second.path, "trm", "running"),
    ]
    assert Run.open(found[0].path).manifest["command"] == ["deeprec", "eval"]
    assert found[0].wall_seconds >= 0


def test_hardware_and_versions():
    machine = hardware()
    assert set(machine) == {"cpu", "cores", "memory_gib", "gpu", "os"}
    assert machine["cpu"]
    assert machine["memory_gib"] is None or 0.1 < machine["memory_gib"] < 1e5
    assert versions()["polars"]


def test_environment_is_text():
    lines = environment(["deeprec", "eval"])
    assert lines["command"] == "deeprec eval"
    assert f"{hardware()['cores']} cores" in lines["hardware"]
    assert "python 3." in lines["versions"]
    assert lines["date"].endswith("UTC")
    assert all(isinstance(value, str) for value in lines.values())


def test_importing_and_creating_runs_imports_no_torch(tmp_path):
    code = """
import sys
from pathlib import Path
from deeprec.config import Config
from deeprec.runs import Run
Run.create(Path(sys.argv[1]), None, Config(), [], kind="x").finish("finished")
sys.exit("torch" in sys.modules)
"""
    source = Path(__file__).parents[1] / "src"
    environ = os.environ | {"PYTHONPATH": str(source)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environ, check=False)
    assert done.returncode == 0
