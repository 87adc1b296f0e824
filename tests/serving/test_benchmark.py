"""The benchmark of the server: it measures explorations that ended well, and fails otherwise."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deeprec.serving.service import Service
from deeprec.serving.worker import Worker
from serving.conftest import SECONDS, explorer, serve

SHORT = argparse.Namespace(clients=200, seconds=2, explorations=2, alone=1, rounds=1)


@pytest.fixture
def measure() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "serving_load.py"
    spec = importlib.util.spec_from_file_location("serving_load", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda url: asyncio.run(module.measure(url, SHORT))


def test_it_says_how_explorations_ended(service: Service, measure: Any) -> None:
    running = serve(service)
    found = measure(next(running))
    assert set(found["retrieve"]["statuses"]) == {200}
    assert found["explore"]["rounds"][0]["ended"] == {"answered": 3}
    assert found["beyond capacity"]["ended"] == {"answered": 97}
    next(running, None)


def test_explorations_that_fail_are_no_measurement(service: Service, measure: Any) -> None:
    def fail(_: str) -> str:
        raise RuntimeError("out of memory")

    worker = Worker(explorer(fail), slots=8, queue=100, seconds=SECONDS)
    running = serve(replace(service, workers={"broken": worker}))
    with pytest.raises(SystemExit, match="an exploration failed: the policy failed"):
        measure(next(running))
    next(running, None)
    worker.close()
