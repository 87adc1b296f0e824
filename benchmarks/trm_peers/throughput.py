"""Training throughput side by side: the TRM, RecTools' SASRec and RecBole's SASRec, in user sequences a second.

All train on each user's last 51 training interactions, at width 64, 2 layers, 2 heads, 50 inputs and batches of 128.
For the TRM and RecTools a user is then one row; RecBole makes a row of every interaction. Sequences/s are users over
the seconds of an epoch of training steps, validation not counted; of RecBole's epoch a part is timed, and scaled by
its share of the batches. The systems take turns, each in its own process, so that a slower minute meets all of them.

    .venv/bin/python benchmarks/trm_peers/throughput.py [--set ml-100k] [--rounds 3] [--seconds 60] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from export import export, load
from jobs import run, settings_of

from deeprec.evaluation.tables import markdown_table
from deeprec.runs import environment

INPUTS = 50
NEVER = 1_000_000
SYSTEMS: dict[str, dict[str, Any]] = {
    "trm": {"width": 64, "layers": 2, "history": INPUTS, "batch_positions": 128 * INPUTS},
    "rectools-sasrec": settings_of("rectools-sasrec") | {"windows": False, "validate_every": NEVER},
    "recbole-sasrec": settings_of("recbole-sasrec") | {"train_batch_size": 128, "validate_every": NEVER},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="ml-100k", help="asset or folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60, help="budget of a peer's process, preparation included")
    parser.add_argument("--epochs", type=int, default=5, help="of the TRM in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/trm_peers"))
    args = parser.parse_args()
    folder = args.out / Path(args.set).name
    data = folder / "data.npz"
    if not data.exists():
        folder.mkdir(parents=True, exist_ok=True)
        export(load(args.set), data)
    with np.load(data) as file:
        users = int((np.diff(file["starts_U1"]) >= 2).sum())
    SYSTEMS["trm"]["epochs"] = args.epochs
    shutil.rmtree(folder / "throughput", ignore_errors=True)  # all rounds belong to one run
    rates: dict[str, list[float]] = {system: [] for system in SYSTEMS}
    records = []
    for number in range(args.rounds):
        for system, settings in SYSTEMS.items():
            record = run(
                system,
                source=args.set,
                data=data,
                out=folder / "throughput" / f"{system}-{number}",
                seed=number,
                budget=1e9 if system == "trm" else args.seconds,
                patience=NEVER,
                threads=args.threads,
                settings=settings,
                last=INPUTS + 1,
            )
            if record is None:
                sys.exit(f"{system} failed")
            rates[system].append(users / _epoch_seconds(record["laps"]))
            records.append(record)
    ratios = {
        system: [ours / theirs for ours, theirs in zip(rates["trm"], values, strict=True)]
        for system, values in rates.items()
        if system != "trm"
    }
    table = []
    for system, values in rates.items():
        cells = [system, f"{median(values):,.1f}", ", ".join(f"{value:,.1f}" for value in values), "", ""]
        if system in ratios:
            cells[3:] = [f"{median(ratios[system]):.2f}", ", ".join(f"{ratio:.2f}" for ratio in ratios[system])]
        table.append(cells)
    lines = markdown_table(["system", "sequences/s, median", "by round", "TRM / it, median", "by round"], table)
    notes = environment(sys.argv)
    lines += ["", *(f"- {name}: {text}" for name, text in notes.items()), f"- users: {users:,}", ""]
    print("\n".join(lines))
    result = {"environment": notes, "users": users, "sequences_per_second": rates, "ratio": ratios, "runs": records}
    (folder / "throughput.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (folder / "throughput.md").write_text("\n".join(lines), encoding="utf-8")


def _epoch_seconds(laps: list[list[float]]) -> float:
    """The median of an epoch's seconds, the first one apart where there are others: it warms up."""
    whole = [seconds for share, seconds in laps if share == 1]
    if whole:
        return median(whole[1:] or whole)
    share, seconds = laps[0]
    return seconds / share


if __name__ == "__main__":
    main()
