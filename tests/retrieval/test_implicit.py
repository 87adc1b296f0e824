"""The guide's retrievers around ALS and BPR of implicit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adapters import DATASET, AdapterContract, guide

from deeprec.retrieval.retriever import Query, Retriever


class TestImplicit(AdapterContract):
    @pytest.fixture
    def names(self) -> dict[str, Any]:
        return guide("implicit")

    @pytest.fixture(params=["ALS", "BPR"])
    def retriever(self, names: dict[str, Any], request: pytest.FixtureRequest) -> Retriever:
        found: Retriever = names["retrievers"][request.param]
        return found

    def test_als_ranks_as_implicit_does(self, names: dict[str, Any]) -> None:
        """For a user whose history is the training sequence: by implicit's own `recommend`."""
        histories = [tuple(sequence.tolist()) for sequence in DATASET.train_sequences()][:20]
        found = names["retrievers"]["ALS"].retrieve([Query(h, exclude=h) for h in histories], 5)
        matrix = names["training"][:20]
        items, scores = names["als"].recommend(np.arange(20), matrix, N=5, recalculate_user=True)
        assert [[hit.item for hit in hits] for hits in found] == items.tolist()
        np.testing.assert_allclose([[hit.score for hit in hits] for hits in found], scores, atol=1e-5)

    def test_the_guide_s_report_has_both(self, names: dict[str, Any]) -> None:
        assert set(names["report"].table()["system"]) == {"TRM", "ALS", "BPR"}
