"""The examples of docs/guides/serving.md run as they stand, against a server of this test."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deeprec.serving.service import Service
from serving.conftest import films, serve

TEXT = (Path(__file__).parents[2] / "docs" / "guides" / "serving.md").read_text(encoding="utf-8")
CURLS = [
    command
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    for command in re.findall(r"^curl (?:.*\\\n)*.*", block, re.M)
]
SCRIPTS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    """Of a server that has the films which the examples name."""
    running = serve(replace(service, dataset=films()))
    yield next(running)
    next(running, None)


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_answer(url: str) -> None:
    assert len(CURLS) == 4
    whole, stream, retrieved, items = (
        run(["bash", "-c", each.replace("http://127.0.0.1:8000", url)]) for each in CURLS
    )
    assert len(json.loads(whole)["ranking"]["items"]) == 5
    assert "event: ranking" in stream
    assert len(json.loads(retrieved)["results"][0]) == 5
    assert json.loads(items)["items"][0]["title"] == "Toy Story (1995)"


def test_the_scripts_run(url: str) -> None:
    assert len(SCRIPTS) == 2
    streamed, agent = (run([sys.executable, "-c", each.replace("http://127.0.0.1:8000", url)]) for each in SCRIPTS)
    assert len(streamed.splitlines()) >= 3  # two calls and the ranking
    assert "'items'" in agent
