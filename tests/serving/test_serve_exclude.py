"""A server excludes the history unless the data repeat it, or its setting says otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest
from mcp import Client

from deeprec.config import Exclude
from deeprec.policies.scripted import ScriptedWriter
from deeprec.serving.mcp import create_mcp
from deeprec.serving.service import TRM_ALONE, Service
from serving.conftest import DATASET, SECONDS, serve, with_client

HISTORY = ["i0", "i1"]  # what the retriever of these tests gives first
SETTINGS: list[tuple[bool, Exclude | None, bool]] = [
    (True, None, True),
    (False, None, False),
    (True, "none", False),
    (False, "history", True),
]
"""What the data say, the setting, and whether the history is excluded."""


@pytest.fixture(params=SETTINGS, ids=str)
def served(request: pytest.FixtureRequest, service: Service) -> tuple[Service, bool]:
    data, setting, excluded = request.param
    return replace(service, dataset=replace(DATASET, exclude_history=data), exclude=setting), excluded


def test_every_way_to_ask_excludes_alike(served: tuple[Service, bool]) -> None:
    service, excluded = served
    running = serve(service)
    with httpx.Client(base_url=next(running), timeout=SECONDS) as client:
        asked = {"queries": [{"history": HISTORY}, {"history": HISTORY, "exclude": ["i2"]}], "k": 3}
        first, second = (
            [item["id"] for item in each] for each in client.post("/retrieve", json=asked).json()["results"]
        )
        assert first == (["i2", "i3", "i4"] if excluded else ["i0", "i1", "i2"])
        assert second == (["i3", "i4", "i5"] if excluded else ["i0", "i1", "i3"])
        for policy in ("script", TRM_ALONE):
            for who in ({"history": HISTORY}, {"user": DATASET.users[0]}):
                told = client.post("/recommend", json={**who, "policy": policy, "k": 40}).json()["ranking"]
                ids = {item["id"] for item in told["items"]}
                of_user = {DATASET.catalog.ids[item] for item in service.task(DATASET.users[0]).history}
                history = set(HISTORY) if "history" in who else of_user
                assert ids == {*DATASET.catalog.ids} - (history if excluded else set())
                assert told["faults"] == []
    next(running, None)


def test_the_tool_says_and_does_what_the_server_excludes(served: tuple[Service, bool]) -> None:
    service, excluded = served

    async def ask(client: Client) -> None:
        (tool,) = [tool for tool in (await client.list_tools()).tools if tool.name == "retrieve_items"]
        assert ("without those of the history" in (tool.description or "")) == excluded
        answer: Any = await client.call_tool("retrieve_items", {"history": HISTORY, "k": 2})
        found = [item["id"] for item in answer.structured_content["items"]]
        assert found == (["i2", "i3"] if excluded else HISTORY)

    with_client(create_mcp(service), ask)


def test_an_exploration_of_the_server_may_answer_with_the_history(service: Service) -> None:
    open_ = replace(service, exclude="none")
    explorer = open_.workers["script"].explorer
    (trace,) = explorer.run([open_.task(None, HISTORY)])
    assert {0, 1} <= set(trace.ranking)
    assert trace.well_formed
    assert ScriptedWriter(3)(trace.segments[0].text)
