"""Ids and titles as data really have them, in every route, as an agent's tool, and on the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from mcp import Client

from deeprec.data.catalog import Catalog, ItemId, UserId
from deeprec.data.dataset import Dataset
from deeprec.serving.mcp import create_mcp
from deeprec.serving.service import Service
from serving.conftest import DATASET, SECONDS, serve, with_client

IDS = (
    "a/b",
    "c d",
    "https://shop.example/p?id=1&x=2",
    "é",
    "e\u0301",
    "%41",
    "A",
    "a",
    "..",
    ".",
    "#7",
    "q?",
    "a/b?c#d",
    "👨‍👩‍👧",
    '"q"',
    "o'k",
    "x;y",
    "+1",
    "null",
    "[1]",
    '{"a": 1}',
    "%2F",
    "%252F",
    "100%",
    "/",
    "//a/",
    "a/../b",
    "..\\b",
    "x" * 300,
    "כלב\u200f/1",
    "\u202eabc\u202c",
    "شماره‌۷",
    "<b>x</b>",
    "Film 3 (1973)",
    "tab\there",
    "i0\u00a0",
)
TITLES = ("می‌خواهم زنده بمانم (1970)", "👩🏽‍🚀", "അവന്‍ (1980)")


def awkward() -> Dataset:
    """The toy data with these ids for items and users, and these titles."""
    fields = {name: getattr(DATASET.catalog, name) for name in DATASET.catalog.__dataclass_fields__}
    ids = (*map(ItemId, IDS), *DATASET.catalog.ids[len(IDS) :])
    titles = (*TITLES, *DATASET.catalog.titles[len(TITLES) :])
    users = (*map(UserId, IDS), *DATASET.users[len(IDS) :])
    return replace(DATASET, catalog=Catalog(**fields | {"ids": ids, "titles": titles}), users=users)


AWKWARD = awkward()
USERS = [task.user for task in AWKWARD.tasks("test") if task.user in IDS]


def history_of(user: str) -> list[str]:
    (task,) = [task for task in AWKWARD.tasks("test") if task.user == user]
    return [AWKWARD.catalog.ids[item] for item in task.history]


@pytest.fixture
def there(service: Service) -> Service:
    return replace(service, dataset=AWKWARD)


@pytest.fixture
def client(there: Service) -> Iterator[httpx.Client]:
    running = serve(there)
    with httpx.Client(base_url=next(running), timeout=SECONDS) as client:
        yield client
    next(running, None)


def ids(items: Any) -> list[str]:
    return [item["id"] for item in items["items"]]


def test_a_user_with_any_id_has_a_history(client: httpx.Client) -> None:
    assert len(USERS) == len(IDS)
    for user in USERS:
        assert ids(client.get("/users", params={"user": user}).json()) == history_of(user)
        if user not in (".", ".."):  # which the client itself takes out of the path
            answer = client.get(f"/users/{quote(user, safe='')}")
            assert answer.status_code == 200, (user, answer.text)
            assert ids(answer.json()) == history_of(user)
        told = client.post("/recommend", json={"user": user, "k": 3}).json()
        assert len(told["ranking"]["items"]) == 3
    assert client.get("/users/a/b").json() == client.get("/users/a%2Fb").json()
    numbers = client.get("/metrics").text
    assert 'path="/users/{user}",status="200"' in numbers


def test_an_item_with_any_id_is_excluded_by_it(client: httpx.Client) -> None:
    queries = [{"history": [IDS[n - 1]], "exclude": [item]} for n, item in enumerate(IDS)]
    answer = client.post("/retrieve", json={"queries": queries, "k": 100})
    assert answer.status_code == 200, answer.text
    everything = set(AWKWARD.catalog.ids)
    for query, items in zip(queries, answer.json()["results"], strict=True):
        assert {item["id"] for item in items} == everything - {*query["history"], *query["exclude"]}
    whole = client.post("/recommend", json={"history": IDS, "k": 4})
    assert whole.status_code == 200, whole.text
    assert len(whole.json()["ranking"]["items"]) == len(everything) - len(IDS)


def test_a_title_keeps_its_joiners(client: httpx.Client) -> None:
    for title, item in zip(TITLES, IDS, strict=False):
        for written in (title, title.replace("\u200c", "").replace("\u200d", "")):
            (found, *_) = client.get("/items", params={"query": written}).json()["items"]
            assert (found["id"], found["title"]) == (item, title)
            body = {"history": [written], "calls": [{"preference": written, "thought": written}]}
            told = client.post("/recommend", json=body)
            assert told.status_code == 200, told.text
            assert told.json()["turns"][0]["preference"] == written
            assert item not in ids(told.json()["ranking"])


def test_a_title_with_an_invisible_character_is_refused(client: httpx.Client) -> None:
    for name in ("\u202eFilm 5 (1975)", "Film\t5 (1975)", "Fi\u200blm 5"):
        answer = client.post("/retrieve", json={"queries": [{"history": [name]}]})
        assert answer.status_code == 422
        assert "no item's id" in answer.json()["detail"]
        assert "invisible" in answer.json()["detail"]


def test_an_agent_reads_and_names_any_item_and_user(there: Service) -> None:
    async def ask(client: Client) -> None:
        for item, title in zip(IDS, AWKWARD.catalog.titles, strict=False):
            (read,) = (await client.read_resource(f"item://{quote(item, safe='')}")).contents
            told = json.loads(read.text)  # type: ignore[union-attr]
            assert (told["id"], told["title"]) == (item, title)
        for item in ("a/b", "https://shop.example/p?id=1&x=2", "q?", "#7", "👨‍👩‍👧", "//a/", "A"):  # as they are
            (read,) = (await client.read_resource(f"item://{item}")).contents
            assert json.loads(read.text)["id"] == item  # type: ignore[union-attr]
        for user in USERS:
            found = await client.call_tool("retrieve_items", {"user": user, "exclude": [IDS[0]], "k": 100})
            assert not found.is_error, (user, found.content)
            shown = ids(found.structured_content)
            assert not {*history_of(user), IDS[0]} & set(shown)
            assert len(shown) == len(AWKWARD.catalog) - len({*history_of(user), IDS[0]})
        told = await client.call_tool("explore", {"user": "null", "history": [], "k": 3})
        assert not told.is_error
        nobody = await client.call_tool("explore", {"user": None, "history": [IDS[2]], "k": 3})
        assert not nobody.is_error

    with_client(create_mcp(there), ask)


def test_an_agent_over_http_reads_them_too(there: Service) -> None:
    async def ask(client: Client) -> None:
        for item in IDS:
            (read,) = (await client.read_resource(f"item://{quote(item, safe='')}")).contents
            assert json.loads(read.text)["id"] == item  # type: ignore[union-attr]

    running = serve(there)
    with_client(f"{next(running)}/mcp", ask)
    next(running, None)
