"""The Model Context Protocol through its real client: in this process, over HTTP, and over stdin and stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters

import processes
from deeprec.serving.mcp import create_mcp
from deeprec.serving.service import Service
from serving.conftest import DATASET, Site, wait_for, with_client

HISTORY = ["Film 0 (1970)", "i5", "film 10"]


async def tour(client: Client) -> None:
    """What every transport must answer."""
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == {"retrieve_items", "search_titles", "explore"}
    assert tools["retrieve_items"].description
    assert tools["explore"].input_schema["properties"]["max_calls"]["anyOf"][0]["maximum"] == 20
    users = (await client.call_tool("search_titles", {"query": "film", "limit": 3})).structured_content["items"]
    assert len(users) == 3
    history = [users[0]["id"], users[1]["title"]]
    asked = {"preference": "War", "history": history, "k": 4, "exclude": [users[2]["id"]]}
    found = (await client.call_tool("retrieve_items", asked)).structured_content["items"]
    assert len(found) == 4
    assert not {item["id"] for item in found} & {item["id"] for item in users}
    told = (await client.call_tool("explore", {"history": history, "k": 3})).structured_content
    assert len(told["ranking"]["items"]) == 3
    assert told["turns"]
    details = await client.read_resource(f"item://{users[0]['id']}")
    assert json.loads(details.contents[0].text)["title"] == users[0]["title"]


def test_in_this_process(service: Service) -> None:
    with_client(create_mcp(service), tour)


def test_over_http(site: Site) -> None:
    with_client(f"{site.url}/mcp", tour)
    assert 'deeprec_requests_total{path="/mcp",status="200"}' in site.client.get("/metrics").text


def test_over_stdin_and_stdout(data_site: Any) -> None:
    files = ["--config", str(data_site.config), "--runs", str(data_site.runs)]
    command, *args = [*processes.DEEPREC, "mcp", *files]
    with_client(StdioServerParameters(command=command, args=args, env=processes.environment()), tour)


async def explore_endlessly(url: str, mode: str) -> None:
    async with Client(url, mode=mode) as client:
        await client.call_tool("explore", {"history": HISTORY, "policy": "endless"})


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize("way", ["cancelled", "killed"])
def test_a_client_that_leaves_frees_its_slot(site: Site, mode: str, way: str) -> None:
    worker = site.service.workers["endless"]
    here = str(Path(__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {here!r}); import anyio; from serving.test_mcp import explore_endlessly\n"
    code += f"anyio.run(explore_endlessly, {site.url + '/mcp'!r}, {mode!r})"
    if way == "killed":
        with subprocess.Popen([sys.executable, "-c", code], env=processes.environment()) as client:
            wait_for(lambda: worker.load() == (1, 0), 60)
            client.kill()
    else:

        async def session() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(explore_endlessly, f"{site.url}/mcp", mode)
                await anyio.to_thread.run_sync(wait_for, lambda: worker.load() == (1, 0), 60)
                group.cancel_scope.cancel()

        anyio.run(session)
    wait_for(lambda: worker.load() == (0, 0), 1)


def test_it_is_what_the_api_gives(site: Site) -> None:
    user = DATASET.tasks("test")[3].user
    over_http = site.client.post("/recommend", json={"user": user, "k": 3}).json()

    async def ask(client: Client) -> None:
        told = (await client.call_tool("explore", {"user": user, "k": 3})).structured_content
        assert told["turns"] == over_http["turns"]
        assert told["ranking"]["items"] == over_http["ranking"]["items"]

    with_client(create_mcp(site.service), ask)


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such tool": ("recommend", {}, "recommend"),
    "an unknown title": ("retrieve_items", {"history": ["No Such Film"]}, "no item with the title"),
    "an unknown user": ("explore", {"user": "nobody"}, "no user 'nobody'"),
    "nobody": ("explore", {}, "give a history or a user"),
    "both": ("retrieve_items", {"history": HISTORY, "user": "u1"}, "not both"),
    "no such policy": ("explore", {"history": HISTORY, "policy": "gpt"}, "no policy 'gpt'"),
    "k of all": ("retrieve_items", {"history": HISTORY, "k": 10**6}, "k"),
    "k in words": ("retrieve_items", {"history": HISTORY, "k": "ten"}, "k"),
    "a control character": ("retrieve_items", {"preference": "war\0"}, "control character"),
    "no query": ("search_titles", {}, "query"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_answered(service: Service, name: str) -> None:
    tool, arguments, said = BAD[name]

    async def ask(client: Client) -> None:
        answer = await client.call_tool(tool, arguments)
        assert answer.is_error
        assert said in answer.content[0].text
        assert "Traceback" not in answer.content[0].text

    with_client(create_mcp(service), ask)


def test_an_item_that_is_not_there_is_a_protocol_error(service: Service) -> None:
    async def ask(client: Client) -> None:
        with pytest.raises(Exception, match="no item with the id 'i999'"):
            await client.read_resource("item://i999")

    with_client(create_mcp(service), ask)
