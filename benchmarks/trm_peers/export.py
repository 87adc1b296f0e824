"""A DeepRec data set as one .npz that every peer's environment reads; see `peer.Data`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from peer import Ragged

from deeprec.config import load_config
from deeprec.data.dataset import Dataset
from deeprec.data.sources import load_dataset
from deeprec.trm.text_encoder import TextEncoder


def load(source: str) -> Dataset:
    return load_dataset(load_config(None, [f'data.source="{source}"']).data)


def export(dataset: Dataset, path: Path) -> None:
    """Training sequences, both splits' tasks and the items' text vectors, all by internal item index."""
    train, catalog = dataset.train_sequences(), dataset.catalog
    arrays = {
        "items_N": train.items_N.astype(np.int64),
        "starts_U1": train.starts_U1,
        "text_IE": TextEncoder.load().encode(catalog.texts()),
    }
    for split in ("validation", "test"):
        tasks, targets = dataset.tasks(split), dataset.targets(split)
        histories = Ragged.of([task.history for task in tasks])
        arrays[f"{split}_items_N"] = histories.items_N
        arrays[f"{split}_starts_T1"] = histories.starts_U1
        arrays[f"{split}_targets_T"] = np.array([targets[task.id] for task in tasks], dtype=np.int64)
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, **arrays)
    part.replace(path)
