"""Small sources of data for the tests of readers."""

from __future__ import annotations

from pathlib import Path

from deeprec.config import DataConfig
from deeprec.data.catalog import ItemId
from deeprec.data.dataset import Dataset
from deeprec.data.sources import load_dataset

ITEMS = "item_id,title\n" + "".join(f"{n},Title {n}\n" for n in range(1, 5))


def load(source: Path | str, **options: object) -> Dataset:
    """Without cores."""
    options = {"user_core": 1, "item_core": 1, "source": str(source), **options}
    return load_dataset(DataConfig.model_validate(options))


def put(folder: Path, **files: str) -> Path:
    """Files by name in a folder; '__' in a name stands for the dot and '___' for the slash."""
    for name, text in files.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def sequence(dataset: Dataset, user: str) -> list[str]:
    """The ids of a user's items in order."""
    return [dataset.catalog.ids[item] for item in dataset.sequence(list(dataset.users).index(user))]


def categories(dataset: Dataset, item: str) -> tuple[str, ...]:
    return dataset.catalog.categories[dataset.catalog.index(ItemId(item))]
