"""One user, one language model, four ways to ask: the same exploration."""

from __future__ import annotations

import io
import re
from typing import Any

import httpx
import pytest
from mcp import Client
from rich.console import Console
from serve.test_mcp import with_client

from deeprec.cli.workbench import Workbench
from deeprec.config import load_config
from deeprec.explore.explorer import Explorer
from deeprec.explore.trace import Author
from deeprec.serving.mcp import create_mcp
from serving.conftest import serve
from test_cli import site, stand_in  # noqa: F401 (fixtures)

SETTINGS = [
    "policy.kind=transformers",
    "policy.dtype=float32",
    "explore.segment_tokens=60",
    'explore.guidance="example"',
]


@pytest.mark.llm
def test_the_command_the_api_the_protocol_and_python_tell_the_same(site: Any) -> None:  # noqa: F811
    user = "u3"
    bench = Workbench(load_config(site.config, SETTINGS), site.runs, offline=True, console=Console(file=io.StringIO()))
    dataset = bench.dataset()
    (trace,) = Explorer(bench.policy(), bench.trm(dataset)[0], dataset.catalog, bench.config.explore).run(
        [bench.task(dataset, user, [])]
    )
    written = [segment.text for segment in trace.segments if segment.author is Author.POLICY]
    titles = [dataset.catalog.titles[item] for item in trace.with_fallback()[0]]
    assert trace.policy_tokens > 20

    with bench.service() as service:
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
    said = site("explore", "--user", user, "--offline", *overrides)
    assert said.code == 0, said.err
    plain = said.out.replace("\n", "")
    assert all(text.replace("\n", "") in plain for text in written)
    assert f"{trace.policy_tokens} tokens written" in said.out
    assert re.findall(r"│ \d+ +│ (Film \d+ \(\d+\))", said.out) == titles
