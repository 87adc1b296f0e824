"""The OpenAPI document, checked against the server by schemathesis."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx

from deeprec.serving.service import Service
from serving.conftest import Site, films, serve

# A valid string may be no item's title: such a request is refused, though the document allows it.
LEFT_OUT = "positive_data_acceptance"
# A request with too many ids may be too large before anyone counts them.
REFUSALS = "[checks.negative_data_rejection]\nexpected-statuses = [400, 404, 405, 406, 413, 415, 422]\n"


def test_the_stream_is_in_it(site: Site) -> None:
    document = site.client.get("/openapi.json").json()
    responses = document["paths"]["/recommend"]["post"]["responses"]
    content = responses["200"]["content"]
    assert set(content) == {"application/json", "text/event-stream"}
    events = content["text/event-stream"]["itemSchema"]["oneOf"]
    assert [event["properties"]["event"]["const"] for event in events] == ["text", "turn", "ranking"]
    for event in events[1:]:
        name = event["properties"]["data"]["contentSchema"]["$ref"].removeprefix("#/components/schemas/")
        assert name in document["components"]["schemas"]
    assert "RecommendResponse" in content["application/json"]["schema"]["$ref"]
    assert "Retry-After" in responses["429"]["headers"]


def test_what_the_document_says_holds(service: Service, tmp_path: Path) -> None:
    running = serve(replace(service, dataset=films()))
    url = next(running)
    options = ["--checks=all", f"--exclude-checks={LEFT_OUT}", "--max-examples=30", "--seed=7", "--no-color"]
    (tmp_path / "schemathesis.toml").write_text(REFUSALS)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "generated" in done.stdout
    numbers = httpx.get(f"{url}/metrics").text
    for path in ("/recommend", "/retrieve", "/items", "/users/{user}", "/map"):
        answered = re.search(rf'deeprec_requests_total{{path="{re.escape(path)}",status="200"}} (.*)', numbers)
        assert answered is not None, f"{path} was never asked for what there is"
    next(running, None)
