"""The guide's retrievers around models of other libraries, exactly as it shows them, and what each must do."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deeprec
from deeprec.retrieval.baselines import PopularityRetriever
from deeprec.retrieval.retriever import Retriever, queries_of
from deeprec.testing import RetrieverContract
from toys import catalog_of, toy_dataset

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "retrieval.md"
N_ITEMS = 43  # the last three occur nowhere


DATASET = dataclasses.replace(toy_dataset(n_users=200), catalog=catalog_of([("War",)] * N_ITEMS))


@cache
def guide(library: str) -> dict[str, Any]:
    """The names that the guide's block on a library leaves."""
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (code,) = (block for block in blocks if f"\nfrom {library}" in block)
    trm = PopularityRetriever.fit(DATASET.train_sequences(), N_ITEMS)  # in its place, for the evaluation
    names: dict[str, Any] = {"deeprec": deeprec, "dataset": DATASET, "trm": trm}
    exec(code, names)
    return names


def ndcg(retriever: Retriever) -> float:
    """NDCG@10 of the test items."""
    tasks, targets = DATASET.tasks("test"), DATASET.targets("test")
    lists = [[hit.item for hit in hits] for hits in retriever.retrieve(queries_of(tasks), 10)]
    ranks = [
        found.index(targets[task.id]) for task, found in zip(tasks, lists, strict=True) if targets[task.id] in found
    ]
    return float((1 / np.log2(np.array(ranks) + 2)).sum()) / len(tasks)


class AdapterContract(RetrieverContract):
    @pytest.fixture
    def n_items(self) -> int:
        return N_ITEMS

    def test_it_is_better_than_popularity(self, retriever: Retriever) -> None:
        popular = PopularityRetriever.fit(DATASET.train_sequences(), N_ITEMS)
        assert ndcg(retriever) > 1.05 * ndcg(popular)

    def test_an_explorer_drives_it(self, retriever: Retriever) -> None:
        trace = deeprec.Explorer(deeprec.ScriptedPolicy(), retriever).recommend(["Film 3", "Film 8"], k=5)
        assert len(trace.titles) == 5
