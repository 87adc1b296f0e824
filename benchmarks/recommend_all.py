"""`deeprec recommend --users all`: users a second, peak memory, and whether the lists are those of the retriever.

    python benchmarks/recommend_all.py --set data.source=../shared/data/ml-1m --set trm.epochs=3 [--by policy]

Each step is a process of its own, whose peak memory is its `ru_maxrss`: loading the data alone; the data and the TRM;
the command, once unbroken, and once killed by SIGKILL after its first part and repeated. Users a second are those of
the command without the time of the step before. Then each user of a sample is asked for alone, by `Retriever.retrieve`
or by `Explorer.recommend`, and the lists are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the benchmark's own process stays small, since its peak memory counts in those that it starts
    from deeprec.config import Config
    from deeprec.data.dataset import Dataset
    from deeprec.trm.trm import TRM

COMMAND = [sys.executable, "-c", "from deeprec.cli import main; main()"]


def load(overrides: list[str], runs: Path, with_trm: bool) -> tuple[Config, Dataset, TRM | None]:
    from deeprec.config import load_config
    from deeprec.data.sources import load_dataset

    config = load_config(None, overrides)
    dataset = load_dataset(config.data)
    if not with_trm:
        return config, dataset, None
    from deeprec.trm.run import load_or_train_trm

    return config, dataset, load_or_train_trm(dataset, config, runs)[0]


def compare(overrides: list[str], runs: Path, by: str, out: Path, sample: int) -> dict[str, Any]:
    """The lists of the file and those that users get alone."""
    import polars as pl

    from deeprec.explore.explorer import Explorer
    from deeprec.policies.loading import load_policy
    from deeprec.retrieval.retriever import Query

    config, dataset, trm = load(overrides, runs, with_trm=True)
    assert trm is not None
    explorer = Explorer(load_policy(config), trm, dataset.catalog, config.explore) if by == "policy" else None
    found = {str(user): part for (user,), part in pl.read_parquet(out).group_by("user", maintain_order=True)}
    users = range(0, len(dataset.users), max(1, len(dataset.users) // sample))
    k, same, furthest = config.explore.answer_size, 0, 0.0
    for u in users:
        history, part = tuple(dataset.sequence(u).tolist()), found[dataset.users[u]]
        if explorer is not None:
            alone = list(explorer.recommend(history, k).ranking)
        else:
            hits = trm.retrieve([Query(history, exclude=frozenset(history))], k)[0]
            alone = [hit.item for hit in hits]
            pairs = zip(part["score"].to_list(), hits, strict=True)
            furthest = max(furthest, *(abs(score - hit.score) for score, hit in pairs))
        same += part["item"].to_list() == [trm.catalog.ids[item] for item in alone]
    return {"users in the file": len(found), "compared": len(users), "same lists": same, "scores differ by": furthest}


def measured(command: list[str]) -> tuple[float, float, str]:
    """Seconds and peak MiB of a process, and what it printed."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, stdout=printed)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{' '.join(command)} ended with status {process.returncode}")
        printed.seek(0)
        return time.perf_counter() - started, usage.ru_maxrss / 1024, printed.read()


def kill(command: list[str], parts: Path) -> int:
    """Kill the command after its first part; returns how many there are then."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(parts.glob("*.parquet")):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    return len(list(parts.glob("*.parquet")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="as of `deeprec`")
    parser.add_argument("--by", choices=("trm", "policy"), default="trm")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--sample", type=int, default=1000, help="users that are asked for alone")
    parser.add_argument("--step", choices=("data", "trm", "compare"), help="(a process of the benchmark)")
    parser.add_argument("--out", type=Path, help="(of a step)")
    args = parser.parse_args()
    if args.step == "compare":
        print(json.dumps(compare(args.overrides, args.runs, args.by, args.out, args.sample)))
    elif args.step:
        _, dataset, _ = load(args.overrides, args.runs, args.step == "trm")
        sizes = {"users": len(dataset.users), "items": len(dataset.catalog), "interactions": len(dataset.items_N)}
        print(json.dumps(sizes))
    else:
        run(args)


def run(args: argparse.Namespace) -> None:
    settings = [word for override in args.overrides for word in ("--set", override)]
    shared = [*settings, "--runs", str(args.runs)]
    step = [sys.executable, __file__, *shared, "--by", args.by, "--sample", str(args.sample), "--step"]
    measured([*COMMAND, "trm", "train", *shared])
    found: dict[str, Any] = {}
    for name in ("data", "trm"):
        seconds, peak, printed = measured([*step, name])
        found[f"load {name}"] = {"seconds": seconds, "peak MiB": peak}
        found["data"] = json.loads(printed)
    with tempfile.TemporaryDirectory() as folder:
        unbroken, resumed = Path(folder) / "unbroken.parquet", Path(folder) / "resumed.parquet"
        command = [*COMMAND, "recommend", "--by", args.by, *shared, "--out"]
        total, peak, _ = measured([*command, str(unbroken)])
        found["recommend"] = {
            "seconds": total,
            "users a second": found["data"]["users"] / (total - found["load trm"]["seconds"]),
            "peak MiB": peak,
            "file MiB": unbroken.stat().st_size / 2**20,
        }
        parts = kill([*command, str(resumed)], resumed.with_name(f"{resumed.name}.parts"))
        seconds, _, _ = measured([*command, str(resumed)])
        same = resumed.read_bytes() == unbroken.read_bytes()
        found["killed and repeated"] = {"parts at the kill": parts, "seconds after": seconds, "same bytes": same}
        found["lists"] = json.loads(measured([*step, "compare", "--out", str(unbroken)])[2])
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
