"""A million interactions of a user's own: loaded and split within time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl

INTERACTIONS = 1_000_000
SECONDS = 20
GIBIBYTES = 2

MEASURE = """
import json, re, sys, time
from pathlib import Path
start = time.perf_counter()
from deeprec.config import DataConfig
from deeprec.data.sources import load_dataset
dataset = load_dataset(DataConfig(source=sys.argv[1], user_core=1, item_core=1, repeats="keep"))
splits = {split: (dataset.tasks(split), dataset.targets(split)) for split in ("validation", "test")}
sequences = dataset.train_sequences()
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "peak_kib": int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]),
    "interactions": len(dataset.items_N),
    "users": len(dataset.users),
    "trained": len(sequences.items_N),
    "tasks": {split: [len(tasks), len(targets)] for split, (tasks, targets) in splits.items()},
    "torch": "torch" in sys.modules,
}))
"""


def test_a_million_rows(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    users = np.sort(generator.integers(0, 50_000, INTERACTIONS))
    items = (generator.pareto(1.0, INTERACTIONS) * 100).astype(np.int64) % 20_000
    order = generator.permutation(INTERACTIONS)
    frame = pl.DataFrame({"user": users[order], "item": items[order], "time": order + 1_600_000_000})
    frame.select(
        user_id=pl.format("user-{}", "user"),
        item_id=pl.format("B{}", "item"),
        rating=pl.lit(5),
        timestamp="time",
    ).write_csv(tmp_path / "interactions.csv")
    names = [f"Product {n}, in blue" for n in range(20_000)]
    pl.DataFrame({"item_id": [f"B{n}" for n in range(20_000)], "title": names}).write_csv(tmp_path / "items.csv")

    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert run.returncode == 0, run.stderr
    measured = json.loads(run.stdout)
    print(measured)
    lengths = np.unique(users, return_counts=True)[1]
    assert measured["interactions"] == INTERACTIONS
    assert measured["users"] == len(lengths)
    assert measured["trained"] == int(np.where(lengths >= 3, lengths - 2, lengths).sum())
    assert measured["tasks"] == {
        "validation": [int((lengths >= 3).sum())] * 2,
        "test": [int((lengths >= 3).sum())] * 2,
    }
    assert measured["seconds"] < SECONDS
    assert measured["peak_kib"] < GIBIBYTES * 2**20
    assert not measured["torch"]
