"""The server under load on loopback: `/retrieve` by many clients, explorations, and requests beyond capacity.

Starts `deeprec serve` with the options after `--`, 16 slots and `serve.seconds=600`, so that no exploration reaches its
time limit; one that fails ends the benchmark. The server trains a missing TRM first. Clients ask for users of the data,
with two categories of the catalogue as the preference. Explorations of the same users run one after another, then at
once, in several rounds. Beyond capacity, 16 more clients ask together than can run and wait.

    python benchmarks/serving_load.py [--clients 200] [--seconds 60] [--explorations 16] [-- --config FILE ...]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from deeprec.runs import environment
from deeprec.serving.schemas import MAX_HISTORY
from deeprec.serving.server import QUEUE_PER_SLOT

SLOTS = 16
CAPACITY = SLOTS * (1 + QUEUE_PER_SLOT)


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> tuple[httpx.Response, float]:
    """The response, and the seconds to it."""
    started = time.perf_counter()
    response = await client.post(path, json=body)
    return response, time.perf_counter() - started


async def retrieve(url: str, bodies: list[dict[str, Any]], clients: int, seconds: float) -> dict[str, Any]:
    """Each client has its own connection and asks again after each response."""
    until = time.perf_counter() + seconds
    latencies: list[float] = []
    statuses: Counter[int] = Counter()

    async def run_client(number: int) -> None:
        rng = random.Random(number)
        # A shared pool searches all its connections at every request, which would dominate the measurement.
        async with httpx.AsyncClient(base_url=url, timeout=600, verify=False) as client:
            while time.perf_counter() < until:
                response, took = await post(client, "/retrieve", rng.choice(bodies))
                statuses[response.status_code] += 1
                latencies.append(took)

    await asyncio.gather(*(run_client(number) for number in range(clients)))
    p50, p99 = np.percentile(latencies, [50, 99])
    return {
        "requests": len(latencies),
        "statuses": dict(statuses),
        "requests a second": round(len(latencies) / seconds, 1),
        "p50 ms": round(1000 * p50, 1),
        "p99 ms": round(1000 * p99, 1),
        "p99 / p50": round(p99 / p50, 2),
    }


def stop_reasons(responses: list[httpx.Response]) -> dict[str, int]:
    """Counts of how explorations ended. The benchmark ends at one that failed or timed out: it was cut short."""
    rankings = [response.raise_for_status().json()["ranking"] for response in responses]
    for ranking in rankings:
        if ranking["error"]:
            sys.exit(f"an exploration failed: {ranking['error']}")
    return dict(Counter(ranking["stop"] for ranking in rankings))


async def explore(client: httpx.AsyncClient, users: list[str], n_alone: int, rounds: int) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    for _ in range(rounds):
        started = time.perf_counter()
        sequential = [await post(client, "/recommend", {"user": user}) for user in users[:n_alone]]
        alone = time.perf_counter() - started
        started = time.perf_counter()
        concurrent = await asyncio.gather(*(post(client, "/recommend", {"user": user}) for user in users))
        together = time.perf_counter() - started
        found.append(
            {
                "one by one, s each": round(alone / n_alone, 2),
                "at once, s each": round(together / len(users), 2),
                "ratio": round(alone / n_alone / (together / len(users)), 2),
                "ended": stop_reasons([response for response, _ in [*sequential, *concurrent]]),
            }
        )
    return {"explorations": len(users), "one by one": n_alone, "rounds": found}


async def beyond_capacity(client: httpx.AsyncClient, users: list[str]) -> dict[str, Any]:
    chosen = [users[number % len(users)] for number in range(CAPACITY + SLOTS)]
    timed = await asyncio.gather(*(post(client, "/recommend", {"user": user}) for user in chosen))
    responses = [response for response, _ in timed]
    refused = [response for response in responses if response.status_code == 429]
    accepted = [response for response in responses if response.status_code == 200]
    after, _ = await post(client, "/recommend", {"user": users[0]})
    return {
        "asked": len(chosen),
        "statuses": dict(Counter(response.status_code for response in responses)),
        "refusals with Retry-After": sum("retry-after" in response.headers for response in refused),
        "answers with ten items": sum(len(response.json()["ranking"]["items"]) == 10 for response in accepted),
        "status afterwards": after.status_code,
        "ended": stop_reasons([*accepted, after]),
    }


async def measure(url: str, args: argparse.Namespace) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        ready = (await client.get("/ready")).json()
        histories = [(await client.get(f"/users/{user}")).json()["items"] for user in ready["users"]]
        words = sorted({name for items in histories for item in items for name in item["categories"]})
        rng = random.Random(0)
        bodies = [
            {
                "queries": [
                    {
                        "history": [item["id"] for item in items][-MAX_HISTORY:],
                        "preference": "; ".join(rng.sample(words, 2)),
                    }
                ],
                "k": 10,
            }
            for items in histories
            for _ in range(10)
        ]
        return {
            "retrieve": await retrieve(url, bodies, args.clients, args.seconds),
            "explore": await explore(client, ready["users"][: args.explorations], args.alone, args.rounds),
            "beyond capacity": await beyond_capacity(client, ready["users"]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--explorations", type=int, default=16, help="users; at most 16")
    parser.add_argument("--alone", type=int, default=16, help="how many of these are also explored one after another")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("options", nargs="*", help="of deeprec serve, after --")
    args = parser.parse_args()
    limits = ["serve.port=0", f"serve.slots={SLOTS}", "serve.seconds=600"]
    settings = [part for limit in limits for part in ("--set", limit)]
    command = [str(Path(sys.executable).with_name("deeprec")), "serve", *args.options, *settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            url = next((found[0] for line in server.stdout if (found := re.findall(r"http://[\d.]+:\d+", line))), None)
            if url is None:
                sys.exit(f"the server does not start: {' '.join(command)}")
            found = asyncio.run(measure(url, args))
        finally:
            server.terminate()
    print(json.dumps({"environment": environment(sys.argv), "command": command[1:]} | found, indent=1))


if __name__ == "__main__":
    main()
