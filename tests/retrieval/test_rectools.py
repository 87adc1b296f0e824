"""The guide's retriever around models of RecTools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adapters import DATASET, N_ITEMS, AdapterContract, guide, ndcg

from deeprec.retrieval.baselines import EASERetriever
from deeprec.retrieval.retriever import Query, Retriever

pytest.importorskip("rectools", reason="RecTools needs its own environment: see CONTRIBUTING.md")


class TestRecTools(AdapterContract):
    @pytest.fixture
    def names(self) -> dict[str, Any]:
        return guide("rectools")

    @pytest.fixture
    def retriever(self, names: dict[str, Any]) -> Retriever:
        found: Retriever = names["retrievers"]["EASE"]
        return found

    def test_it_ranks_as_rectools_does(self, names: dict[str, Any], retriever: Retriever) -> None:
        """For users of the training, by RecTools' own `recommend`."""
        columns, users = names["Columns"], np.arange(20)
        lists = names["ease"].recommend(users, names["fitted_to"], k=5, filter_viewed=True)
        histories = [tuple(sequence.tolist()) for sequence in DATASET.train_sequences()][:20]
        for user, hits in enumerate(retriever.retrieve([Query(h, exclude=h) for h in histories], 5)):
            expected = lists[lists[columns.User] == user]
            assert [hit.item for hit in hits] == expected[columns.Item].tolist()
            np.testing.assert_allclose([hit.score for hit in hits], expected[columns.Score], atol=1e-5)

    def test_it_is_close_to_our_ease(self, retriever: Retriever) -> None:
        ours = EASERetriever.fit(DATASET.train_sequences(), N_ITEMS, 50.0)
        assert ndcg(retriever) == pytest.approx(ndcg(ours), abs=0.02)
