"""The server under load, on loopback: `/retrieve` by many clients, explorations at once and one after another, and past
capacity.

Starts `deeprec serve` with the options after `--`, 16 slots and 16 places to wait, and `serve.seconds=600`, so that no
exploration is cut off by its time; one that fails ends the benchmark. A TRM of that configuration that is not there is
trained first. Clients ask for users of the data, each with two categories of the catalogue as the preference.
Explorations at once and one after another are of the same users, or of some of them, in two rounds in turn. Past
capacity, half as many again as there are slots and places to wait ask together.

    python benchmarks/serving.py [--clients 200] [--seconds 60] [--explorations 16] [--alone 16] [-- --config FILE ...]
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
from deeprec.serving.schemas import HISTORY

SLOTS, QUEUE = 16, 16


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> tuple[httpx.Response, float]:
    started = time.perf_counter()
    answer = await client.post(path, json=body)
    return answer, time.perf_counter() - started


async def retrieve(url: str, bodies: list[dict[str, Any]], clients: int, seconds: float) -> dict[str, Any]:
    """Each client has a connection of its own, and asks again as soon as it is answered."""
    until = time.perf_counter() + seconds
    spent: list[float] = []
    statuses: Counter[int] = Counter()

    async def customer(number: int) -> None:
        rng = random.Random(number)
        # One pool for all would look through all its connections at every request, and be what is measured.
        async with httpx.AsyncClient(base_url=url, timeout=600, verify=False) as client:
            while time.perf_counter() < until:
                answer, took = await ask(client, "/retrieve", rng.choice(bodies))
                statuses[answer.status_code] += 1
                spent.append(took)

    await asyncio.gather(*(customer(number) for number in range(clients)))
    p50, p99 = np.percentile(spent, [50, 99])
    return {
        "requests": len(spent),
        "statuses": dict(statuses),
        "requests a second": round(len(spent) / seconds, 1),
        "p50 ms": round(1000 * p50, 1),
        "p99 ms": round(1000 * p99, 1),
        "p99 / p50": round(p99 / p50, 2),
    }


def endings(answers: list[httpx.Response]) -> dict[str, int]:
    """How explorations ended. One that failed, or that the clock cut off, was not measured at its full length."""
    rankings = [answer.raise_for_status().json()["ranking"] for answer in answers]
    for ranking in rankings:
        if ranking["error"]:
            sys.exit(f"an exploration failed: {ranking['error']}")
    return dict(Counter(ranking["stop"] for ranking in rankings))


async def explore(client: httpx.AsyncClient, users: list[str], alone_for: int, rounds: int) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    for _ in range(rounds):
        started = time.perf_counter()
        lonely = [await ask(client, "/recommend", {"user": user}) for user in users[:alone_for]]
        alone = time.perf_counter() - started
        started = time.perf_counter()
        answers = await asyncio.gather(*(ask(client, "/recommend", {"user": user}) for user in users))
        together = time.perf_counter() - started
        found.append(
            {
                "one by one, s each": round(alone / alone_for, 2),
                "at once, s each": round(together / len(users), 2),
                "ratio": round(alone / alone_for / (together / len(users)), 2),
                "ended": endings([answer for answer, _ in [*lonely, *answers]]),
            }
        )
    return {"explorations": len(users), "one by one": alone_for, "rounds": found}


async def past_capacity(client: httpx.AsyncClient, users: list[str]) -> dict[str, Any]:
    asked = [users[position % len(users)] for position in range((SLOTS + QUEUE) * 3 // 2)]
    answers = [each for each, _ in await asyncio.gather(*(ask(client, "/recommend", {"user": user}) for user in asked))]
    refused = [answer for answer in answers if answer.status_code == 429]
    accepted = [answer for answer in answers if answer.status_code == 200]
    after, _ = await ask(client, "/recommend", {"user": users[0]})
    return {
        "asked": len(asked),
        "statuses": dict(Counter(answer.status_code for answer in answers)),
        "refusals with Retry-After": sum("retry-after" in answer.headers for answer in refused),
        "answers with ten items": sum(len(answer.json()["ranking"]["items"]) == 10 for answer in accepted),
        "status afterwards": after.status_code,
        "ended": endings([*accepted, after]),
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
                        "history": [item["id"] for item in items][-HISTORY:],
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
            "past capacity": await past_capacity(client, ready["users"]),
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
    limits = ["serve.port=0", f"serve.slots={SLOTS}", f"serve.queue={QUEUE}", "serve.seconds=600"]
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
