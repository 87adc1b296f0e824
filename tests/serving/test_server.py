"""`deeprec serve` as a process: it prints its address, answers, and ends on a signal."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
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


SIGNS = [signal.SIGINT, signal.SIGTERM]


def started(*command, **options):
    return subprocess.Popen(
        [*processes.DEEPREC, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=processes.environment(),
        text=True,
        **options,
    )


def ended(process, sign, seconds=2.0):
    """What the process says on the way out; it must be quick, quiet and of the usual status."""
    began = time.monotonic()
    process.send_signal(sign)
    try:
        process.wait(timeout=30)
    finally:
        process.kill()
    took = time.monotonic() - began
    out, err = (stream.read() for stream in (process.stdout, process.stderr))
    assert took < seconds, f"{took:.1f} s: {err}"
    assert "Traceback" not in out + err, err
    assert "Exception" not in err, err
    assert process.returncode in (130, -sign) if sign == signal.SIGINT else process.returncode == -sign, err


def options_of(data_site):
    return "--config", data_site.config, "--runs", data_site.runs


@pytest.mark.parametrize("sign", SIGNS)
def test_it_ends_at_once_with_a_stream_and_a_session_open(data_site, sign):
    """The client's own server is silent, so the policy never ends; an agent's session keeps a stream, too."""
    with socket.create_server(("127.0.0.1", 0)) as silent, data_site_of_a_model(data_site, silent) as process:
        address = ""
        while not address:
            line = process.stdout.readline()
            assert line, process.communicate()
            address = "".join(re.findall(r"http://127\.0\.0\.1:\d+", line))
        body = {"user": "u3", "stream": True, "policy": "untrained"}
        with (
            httpx.Client(base_url=address, timeout=30) as client,
            client.stream("POST", "/recommend", json=body) as answer,
            client.stream("GET", "/mcp", headers=session(client)) as agent,
        ):
            assert answer.status_code == agent.status_code == 200
            asked = threading.Thread(target=httpx.post, args=(f"{address}/recommend",), daemon=True,
                                     kwargs={"json": body | {"stream": False}, "timeout": 30})  # fmt: skip
            asked.start()
            time.sleep(0.5)
            ended(process, sign)


def session(client):
    """The headers of a session of the Model Context Protocol before 2026, whose stream stays open."""
    said = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    accept = {"Accept": "application/json, text/event-stream"}
    begun = client.post(
        "/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": said}, headers=accept
    )
    return accept | {"Mcp-Session-Id": begun.headers["mcp-session-id"]}


@contextlib.contextmanager
def data_site_of_a_model(data_site, silent):
    """`deeprec serve` with a model behind a server that lists it, and then says nothing."""

    def answer():
        models = b'{"data": [{"id": "m"}]}'
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(models)}\r\n\r\n"
        kept = []
        with contextlib.suppress(OSError):
            while True:
                connection, _ = silent.accept()
                kept.append(connection)
                if connection.recv(4096).startswith(b"GET"):
                    connection.sendall(head.encode() + models)

    threading.Thread(target=answer, daemon=True).start()
    url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
    settings = ["serve.port=0", "policy.kind=openai", f"policy.url={url}", "policy.model=m"]
    with started("serve", *[word for each in settings for word in ("--set", each)], *options_of(data_site)) as process:
        yield process


@pytest.mark.parametrize("sign", SIGNS)
def test_a_tool_of_an_agent_ends_at_once(data_site, sign):
    with started("mcp", *options_of(data_site), stdin=subprocess.PIPE) as process:
        said = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        process.stdin.write(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": said}) + "\n")
        process.stdin.flush()
        assert "serverInfo" in process.stdout.readline()
        ended(process, sign)


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("command", ["serve", "mcp"])
@pytest.mark.parametrize("after", [0.2, 0.6, 1.5, 3.0])
def test_it_ends_at_once_while_it_is_loading(data_site, command, sign, after):
    settings = ["--set", "serve.port=0"] if command == "serve" else []
    real = [sys.executable, "-c", "from deeprec.cli import main; main()"]  # it loads MiniLM, too
    given = [command, *settings, *options_of(data_site), "--offline"]
    with subprocess.Popen(
        [*real, *map(str, given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=processes.environment(),
    ) as process:
        time.sleep(after)
        ended(process, sign, seconds=4)  # the program's own end takes a second with torch, and more on a busy machine


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
