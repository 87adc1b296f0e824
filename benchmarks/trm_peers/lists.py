"""Rankings of a run by the data's own ids, as a system of the kind `external` of a plan reads them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from deeprec.data.dataset import Dataset


def write_lists(dataset: Dataset, data: Path, run: Path) -> None:
    """`<run>.tsv` from `<run>.npz`: a line `user<TAB>item<TAB>item...` for each test user, best first.

    Args:
        data: the export that the run read; it must be of this data set.
    """
    tasks, targets = dataset.tasks("test"), dataset.targets("test")
    with np.load(data) as file:
        if file["test_targets_T"].tolist() != [targets[task.id] for task in tasks]:
            sys.exit(f"{data} is of other data than {dataset.name} is today: remove its folder, and run again.")
    with np.load(Path(f"{run}.npz")) as file:
        ranked_TK = file["ranked_TK"]
    ids = dataset.catalog.ids
    lines = [
        "\t".join([task.user, *(ids[item] for item in ranked_K if item >= 0)])
        for task, ranked_K in zip(tasks, ranked_TK.tolist(), strict=True)
    ]
    part = Path(f"{run}.tsv.part")
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(part, Path(f"{run}.tsv"))
