"""`deeprec serve` as a process: it prints its address, answers, and ends on a signal."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

import processes
from command_line import deeprec
from deeprec.errors import DeepRecError
from deeprec.serving.projection import project
from deeprec.serving.server import TOKEN, token_for

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal(data_site, sign):
    process = subprocess.Popen(
        [
            *processes.DEEPREC,
            "serve",
            "--set",
            "serve.port=0",
            "--config",
            str(data_site.config),
            "--runs",
            str(data_site.runs),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=processes.environment(),
    )
    try:
        address = ""
        while not address:
            line = process.stdout.readline()
            assert line, process.communicate()
            address = "".join(re.findall(r"http://127\.0\.0\.1:\d+", line))
        with httpx.Client(base_url=address, timeout=30) as client:
            user = client.get("/ready").json()["users"][0]
            told = client.post("/recommend", json={"user": user, "k": 3}).json()
            assert len(told["ranking"]["items"]) == 3
            assert "<title>DeepRec" in client.get("/").text
            assert len(client.get("/map").json()["points"]) == len(client.get("/map").json()["ids"])
        process.send_signal(sign)
        out, log = process.communicate(timeout=30)
    finally:
        process.kill()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert {"/recommend", "/ready"} <= {line["path"] for line in lines}
    assert user not in {str(value) for line in lines for value in line.values()}
    assert "Traceback" not in out + log
    assert process.returncode in (0, 130, -sign)
    assert (data_site.trained / "map.safetensors").exists()


def test_the_demo_ends_by_naming_it(data_site):
    makefile = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "demo", "VENV=v"], capture_output=True, text=True, cwd=ROOT
    )
    assert makefile.stdout.splitlines()[-1].split() == ["v/bin/deeprec", "demo"]
    told = data_site("demo", "--set", "policy.kind=scripted", "--users", "2")
    assert told.code == 0, told.err
    offer = re.match(r"Next: deeprec (serve) \(explore on a page", told.out.splitlines()[-1])
    assert offer is not None, told.out
    assert deeprec(offer[1], "--dry-run").code == 0


def test_the_containers_options_are_options() -> None:
    """No image is built here; the real command line parses what it would run."""
    entry = next(line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("ENTRYPOINT "))
    program, *options = json.loads(entry.removeprefix("ENTRYPOINT "))
    assert program == "deeprec"
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    more = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", services["deeprec-gpu"]["command"]).split()
    for arguments in (options, options + more):
        told = deeprec(*arguments, "--dry-run")
        assert told.code == 0, told.err
        assert 'host = "0.0.0.0"' in told.out
    assert ":?" in services["deeprec"]["environment"][TOKEN]
    assert 'kind = "openai"' in told.out


def test_a_taken_port_is_an_error(data_site):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = data_site("serve", "--set", f"serve.port={port}")
    assert result.code == 2
    assert f"127.0.0.1:{port} can't be bound" in result.err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
def test_an_open_address_needs_a_token(host, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(DeepRecError, match=TOKEN):
        token_for(host)
    monkeypatch.setenv(TOKEN, "sesame")
    assert token_for(host) == "sesame"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_loopback_address_needs_none(host, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    assert token_for(host) is None


@pytest.mark.parametrize("n", [1, 3, 40])
def test_the_map_is_kept_and_made_again_when_its_file_is_damaged(tmp_path, n):
    vectors = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    path = tmp_path / "map.safetensors"
    points = project(vectors, path)
    assert points.shape == (n, 2)
    assert points.min() >= 0
    assert points.max() <= 1
    stamp = path.stat().st_mtime_ns
    assert np.array_equal(project(vectors, path), points)
    assert path.stat().st_mtime_ns == stamp
    path.write_bytes(path.read_bytes()[:40])
    assert np.allclose(project(vectors, path), points, atol=1e-3)
    assert np.allclose(project(vectors, tmp_path / "not there" / "map.safetensors"), points, atol=1e-3)
