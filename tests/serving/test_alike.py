"""One user, one language model, four interfaces: the same exploration."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from mcp import Client

from deeprec.config import load_config
from deeprec.data.sources import load_dataset
from deeprec.explore.explorer import Explorer
from deeprec.explore.trace import Author
from deeprec.policies.loading import load_policy
from deeprec.serving.mcp import create_mcp
from deeprec.serving.server import open_service
from deeprec.trm.run import load_or_train_trm
from serving.conftest import serve, with_client

SETTINGS = [
    "policy.kind=transformers",
    "policy.dtype=float32",
    "explore.segment_tokens=60",
    'explore.guidance="example"',
]


@pytest.mark.llm
def test_the_command_the_api_the_protocol_and_python_agree(data_site: Any) -> None:
    user = "u3"
    config = load_config(data_site.config, SETTINGS)
    dataset = load_dataset(config.data)
    trm, folder = load_or_train_trm(dataset, config, data_site.runs, offline=True)
    task = next(task for task in dataset.tasks("test") if task.user == user)
    explorer = Explorer(load_policy(config, offline=True), trm, dataset.catalog, config.explore)
    (trace,) = explorer.run([task])
    written = [segment.text for segment in trace.segments if segment.author is Author.POLICY]
    titles = [dataset.catalog.titles[item] for item in trace.ranking]
    assert trace.policy_tokens > 20

    with open_service(dataset, trm, folder, config, offline=True) as service:
        running = serve(service)
        over_http = httpx.post(f"{next(running)}/recommend", json={"user": user, "k": 3}, timeout=120).json()
        next(running, None)
        agent: dict[str, Any] = {}

        async def explore(client: Client) -> None:
            agent.update((await client.call_tool("explore", {"user": user, "k": 3})).structured_content or {})

        with_client(create_mcp(service), explore)
    for told in (over_http, agent):
        assert [(turn["thought"], turn["preference"]) for turn in told["turns"]] == [
            (turn.thought, turn.preference) for turn in trace.turns
        ]
        assert told["ranking"]["tokens"] == trace.policy_tokens
        assert told["ranking"]["stop"] == trace.stop.value
        assert [item["title"] for item in told["ranking"]["items"]] == titles

    overrides = [part for setting in SETTINGS for part in ("--set", setting)]
    said = data_site("explore", "--user", user, "--offline", *overrides)
    assert said.code == 0, said.err
    plain = said.out.replace("\n", "")
    assert all(text.replace("\n", "") in plain for text in written)
    assert f"{trace.policy_tokens} tokens written" in said.out
    assert re.findall(r"│ \d+ +│ (Film \d+ \(\d+\))", said.out) == titles
