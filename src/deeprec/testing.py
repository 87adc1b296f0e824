"""For tests, ours and yours: a small data set to learn on."""

from __future__ import annotations

import numpy as np

from deeprec.data.catalog import UserId, build_catalog
from deeprec.data.dataset import Dataset
from deeprec.data.report import LoadReport

GENRES = ("Comedy", "Drama", "Horror", "Sci-Fi", "War")


def toy_dataset(n_users: int = 60, n_items: int = 40, length: int = 12, seed: int = 0) -> Dataset:
    """Users of `length` interactions who mostly stay in one genre; items are `Film 0 (1970)`, `Film 1 (1971)`, ...

    Item i is of genre i mod 5; items without a repeat in any sequence, no times.
    """
    rng = np.random.default_rng(seed)
    catalog = build_catalog(
        ids=[f"i{i}" for i in range(n_items)],
        titles=[f"Film {i}" for i in range(n_items)],
        years=[1970 + i for i in range(n_items)],
        brands=[""] * n_items,
        categories=[(GENRES[i % len(GENRES)],) for i in range(n_items)],
        descriptions=[""] * n_items,
        title_chars=80,
    )
    sequences = []
    for _ in range(n_users):
        weights_I = np.where(np.arange(n_items) % len(GENRES) == rng.integers(len(GENRES)), 10.0, 1.0)
        sequences.append(rng.choice(n_items, length, replace=False, p=weights_I / weights_I.sum()))
    return Dataset(
        name="toy",
        catalog=catalog,
        users=tuple(UserId(f"u{u}") for u in range(n_users)),
        items_N=np.concatenate(sequences).astype(np.int32),
        starts_U1=np.arange(0, n_users * length + 1, length, dtype=np.int64),
        times_N=None,
        report=LoadReport({}, (), 0, "first", 0, 0, 0, ()),
    )
