"""What people and agents ask for by name leads, over HTTP and the Model Context Protocol; guesses are left alone."""

from __future__ import annotations

from typing import Any

import httpx
from mcp import Client

from deeprec.config import load_config
from deeprec.data.sources import load_dataset
from deeprec.retrieval.retriever import Query
from deeprec.serving.mcp import create_mcp
from deeprec.serving.server import open_service
from deeprec.trm.run import load_or_train_trm
from serving.conftest import Site, serve, with_client

HISTORY = ["Film 0 (1970)"]


def test_only_what_a_client_asks_is_a_request(site: Site) -> None:
    asked: Any = site.service.retriever
    body = {"queries": [{"preference": "Film 33"}, {"history": HISTORY, "preference_weight": 0.1}]}
    assert site.client.post("/retrieve", json=body).status_code == 200

    async def retrieve(client: Client) -> None:
        await client.call_tool("retrieve_items", {"preference": "Film 33"})

    with_client(f"{site.url}/mcp", retrieve)
    assert [query.requested for query in asked.queries] == [True] * 3
    explored: Any = site.service.workers["script"].explorer.retriever
    calls = [{"preference": "Film 33"}, {"preference": "Film 34", "by_policy": True}]
    turns = site.client.post("/recommend", json={"history": HISTORY, "calls": calls}).json()["turns"]
    assert [query.requested for query in explored.queries] == [not turn["by_policy"] for turn in turns]
    assert [turn["by_policy"] for turn in turns][:2] == [False, True]


def test_a_title_that_is_asked_for_comes_first(data_site: Any) -> None:
    config = load_config(data_site.config, [])
    dataset = load_dataset(config.data)
    trm, folder = load_or_train_trm(dataset, config, data_site.runs, offline=True)
    last = trm.retrieve([Query(())], len(trm.catalog))[0][-1].item
    title, name = trm.catalog.titles[last], trm.catalog.titles[last].split(" (")[0]
    other = trm.catalog.titles[(last + 1) % 40]
    found: list[str] = []
    with open_service(dataset, trm, folder, config, offline=True) as service:
        running = serve(service)
        url = next(running)
        queries = [{"preference": name}, {"preference": f"Comedy; {title}", "history": [other]}]
        results = httpx.post(f"{url}/retrieve", json={"queries": queries, "k": 3}).json()["results"]
        found += [items[0]["title"] for items in results]
        calls = [{"preference": f"something like {name}"}]
        told = httpx.post(f"{url}/recommend", json={"history": [other], "calls": calls}, timeout=60).json()
        found.append(told["turns"][0]["items"][0]["title"])
        next(running, None)

        async def retrieve(client: Client) -> None:
            asked = {"preference": name, "history": [other], "k": 3}
            content: Any = (await client.call_tool("retrieve_items", asked)).structured_content
            found.append(content["items"][0]["title"])

        with_client(create_mcp(service), retrieve)
    assert found == [title] * 4
