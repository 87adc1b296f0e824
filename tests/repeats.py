"""Data in which users choose an item again, as tables of interactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from deeprec.config import DataConfig
from deeprec.data.dataset import Dataset
from deeprec.data.sources import load_dataset
from toys import GENRES, toy_dataset

# Each user's last two items are ones chosen before.
SHOP = {f"u{u}": [(3 * u + i) % 30 for i in (0, 1, 2, 3, 4, 5, 0, 1)] for u in range(40)}
# Plays of artists, several in a row; of every third user the last is an artist that is new.
PLAYS = {
    f"u{u}": [u % 6, u % 6, u % 6, (u + 1) % 6, (u + 1) % 6, u % 6, 6 + u % 4 if u % 3 == 0 else u % 6]
    for u in range(30)
}
# Baskets: everyone buys a staple again and again, and something else between.
BASKETS = {f"u{u}": [item for n in range(6) for item in (u % 4, 4 + (u + n) % 12)] for u in range(24)}
# One user never chooses anything else; the others choose nothing twice.
SINGLE = {"one": [3] * 5} | {f"u{u}": list(map(int, toy_dataset(20, 12, 6).sequence(u))) for u in range(20)}


def write(path: Path, sequences: Mapping[str, Sequence[int]]) -> Path:
    """Interaction n of each user is at second n, so a split by time cuts all users alike."""
    lines = ["user_id,item_id,timestamp,title,genres"]
    for user, items in sequences.items():
        lines += [f"{user},i{i},{n},Thing {i},{GENRES[i % len(GENRES)]}" for n, i in enumerate(items)]
    path.write_text("\n".join(lines) + "\n")
    return path


def load(folder: Path, sequences: Mapping[str, Sequence[int]], **options: object) -> Dataset:
    source = str(write(folder / "table.csv", sequences))
    chosen = {"source": source, "item_core": 1, "repeats": "keep", **options}
    return load_dataset(DataConfig.model_validate(chosen))
