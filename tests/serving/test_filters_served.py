"""Filters over HTTP and the Model Context Protocol, and a stock that changes while the server runs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client

from deeprec.errors import DeepRecError
from deeprec.serving.available import AvailableFile
from deeprec.serving.mcp import create_mcp
from deeprec.serving.schemas import MAX_IDS
from deeprec.serving.service import Service
from serving.conftest import SECONDS, Site, serve, with_client

HISTORY = ["Film 0 (1970)", "i5", "film 10"]
# Film i is of genre i mod 5 and of 1970 + i.
HORROR_OF_THE_EIGHTIES: dict[str, Any] = {"categories": ["horror"], "years": [1980, 1989]}


def ids(items: list[dict[str, Any]]) -> list[str]:
    return [item["id"] for item in items]


def test_each_query_has_its_own_filter(site: Site) -> None:
    queries: list[dict[str, Any]] = [
        {"history": HISTORY, "filter": HORROR_OF_THE_EIGHTIES},
        {"history": ["i12"], "filter": HORROR_OF_THE_EIGHTIES},
        {"history": HISTORY},
        {"history": HISTORY, "filter": {"ids": ["i39", "Film 38 (2008)", "i0"]}},
        {"history": HISTORY, "filter": {}},
    ]
    results = site.client.post("/retrieve", json={"queries": queries, "k": 3}).json()["results"]
    assert list(map(ids, results)) == [["i12", "i17"], ["i17"], ["i1", "i2", "i3"], ["i38", "i39"], ["i1", "i2", "i3"]]


@pytest.mark.parametrize("policy", ["script", "trm-alone"])
def test_an_exploration_obeys_to_its_end(site: Site, policy: str) -> None:
    body = {"history": HISTORY, "policy": policy, "k": 10, "filter": {"categories": ["Horror", "War"]}}
    told = site.client.post("/recommend", json=body).json()
    found = ids(told["ranking"]["items"]) + [i for turn in told["turns"] for i in ids(turn["items"])]
    assert {int(i[1:]) % 5 for i in found} == {2, 4}
    assert len(told["ranking"]["items"]) == 10
    few = site.client.post("/recommend", json=body | {"filter": HORROR_OF_THE_EIGHTIES}).json()["ranking"]
    assert sorted(ids(few["items"])) == ["i12", "i17"]
    assert few["faults"] == []
    assert few["stop"] == "answered"
    none = site.client.post("/recommend", json=body | {"filter": {"ids": ["i0", "i10"]}}).json()["ranking"]
    assert (none["items"], none["faults"], none["error"]) == ([], [], None)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a category that is not there": ({"categories": ["Horor"]}, "did you mean 'Horror'?"),
    "a brand that is not there": ({"brands": ["Fox"]}, "this catalogue has no brands"),
    "an item that is not there": ({"ids": ["i99"]}, "There is no item with the title or id 'i99'"),
    "no id": ({"ids": []}, "filter.ids: "),
    "years of nothing": ({"years": [1800, 1810]}, "years go from 1970 to 2009"),
    "years backwards": ({"years": [1990, 1980]}, "run backwards"),
    "one year": ({"years": [1990]}, "filter.years"),
    "years in words": ({"years": ["1990", "1999"]}, "filter.years"),
    "nothing together": ({"categories": ["War"], "ids": ["i0"]}, "No item passes the filter (category 'War', 1 ids)"),
    "an unknown part": ({"category": "War"}, "filter.category"),
}


def test_the_largest_filter_of_ids_of_ordinary_length_fits(site: Site) -> None:
    named = [f"an-id-of-ordinary-length-{n}" for n in range(MAX_IDS - 1)]
    answer = site.client.post("/retrieve", json={"queries": [{"history": HISTORY, "filter": {"ids": ["i39", *named]}}]})
    assert answer.status_code == 422
    assert "'an-id-of-ordinary-length-0'" in answer.json()["detail"]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_filter_gets_one_sentence(site: Site, name: str) -> None:
    wrong, said = WRONG[name]
    path = "queries.0." if "filter." in said else ""
    for answer, where in (
        (site.client.post("/retrieve", json={"queries": [{"filter": wrong}]}), path),
        (site.client.post("/recommend", json={"history": HISTORY, "filter": wrong}), ""),
    ):
        assert answer.status_code == 422
        assert where + said in answer.json()["detail"]


def test_what_a_filter_may_name(site: Site) -> None:
    told = site.client.get("/filters").json()
    assert sorted(told["categories"]) == ["Comedy", "Drama", "Horror", "Sci-Fi", "War"]
    assert (told["brands"], told["years"]) == ([], [1970, 2009])
    schemas = site.client.get("/openapi.json").json()["components"]["schemas"]
    assert set(schemas["Filter"]["properties"]) == {"categories", "brands", "years", "ids"}
    for name in ("RecommendRequest", "RetrieveQuery"):
        assert "Filter" in str(schemas[name]["properties"]["filter"])


def test_an_agent_filters_too(service: Service) -> None:
    async def ask(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert all("filter" in tools[name].input_schema["properties"] for name in ("retrieve_items", "explore"))
        asked = {"history": HISTORY, "filter": HORROR_OF_THE_EIGHTIES}
        found = (await client.call_tool("retrieve_items", asked)).structured_content
        assert ids(found["items"]) == ["i12", "i17"]
        told = (await client.call_tool("explore", asked | {"k": 5})).structured_content
        assert sorted(ids(told["ranking"]["items"])) == ["i12", "i17"]
        wrong = await client.call_tool("retrieve_items", {"filter": {"categories": ["Horor"]}})
        assert wrong.is_error
        assert "did you mean 'Horror'?" in wrong.content[0].text  # type: ignore[union-attr]

    with_client(create_mcp(service), ask)


def test_a_stock_restricts_every_answer_and_may_change(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "stock.txt"
    path.write_text("i12\ni30\ni31\ni0\nnot here\n")
    running = serve(replace(service, available=AvailableFile(path)))

    def retrieved(**parts: Any) -> list[str]:
        answer = client.post("/retrieve", json={"queries": [{"history": ["i0"], **parts}], "k": 10})
        return ids(answer.json()["results"][0])

    with httpx.Client(base_url=next(running), timeout=SECONDS) as client:
        assert retrieved() == ["i12", "i30", "i31"]
        assert retrieved(filter={"categories": ["Horror"]}) == ["i12"]
        told = client.post("/recommend", json={"history": ["i0"]}).json()
        assert sorted(ids(told["ranking"]["items"])) == ["i12", "i30", "i31"]
        path.write_text("i5\n")
        assert retrieved() == ["i5"]
        os.remove(path)  # it stays as it was
        assert retrieved() == ["i5"]
        path.write_text("i6\ni7\n")
        assert retrieved() == ["i6", "i7"]
    next(running, None)


def test_a_stock_that_is_not_there_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(DeepRecError, match=r"stock.txt can't be read .*one id a line"):
        AvailableFile(tmp_path / "stock.txt")
