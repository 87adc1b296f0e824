from __future__ import annotations

import numpy as np
import pytest

from deeprec.data.catalog import ItemIdx
from deeprec.data.dataset import Sequences
from deeprec.errors import DeepRecError
from deeprec.retrieval import baselines
from deeprec.retrieval.baselines import EASERetriever
from deeprec.retrieval.retriever import Query
from deeprec.testing import RetrieverContract
from toys import toy_dataset


class TestEASEContract(RetrieverContract):
    @pytest.fixture
    def n_items(self):
        return 40

    @pytest.fixture
    def retriever(self, n_items):
        return EASERetriever.fit(toy_dataset(n_items=n_items).train_sequences(), n_items, 10.0)


def test_weights_solve_the_paper_s_problem():
    """min |X - XB|² + λ|B|² with a zero diagonal, item by item by least squares: Steck (2019), section 3.1."""
    rows = [(0, 1, 2), (0, 1), (1, 2, 2), (0, 3), (3, 2)]  # a repeated interaction counts once
    sequences = Sequences(
        np.array([item for row in rows for item in row], dtype=np.int32), np.cumsum([0, *map(len, rows)])
    )
    weights_II = EASERetriever.fit(sequences, 5, 0.5).weights_II
    seen_UI = np.zeros((5, 5))
    for user, row in enumerate(rows):
        seen_UI[user, list(row)] = 1
    for item in range(5):
        others = [other for other in range(5) if other != item]
        left = seen_UI[:, others]
        solved = np.linalg.solve(left.T @ left + 0.5 * np.eye(4), left.T @ seen_UI[:, item])
        assert weights_II[others, item] == pytest.approx(solved, abs=1e-6)
        assert weights_II[item, item] == 0


def test_a_history_counts_each_item_once_and_in_any_order():
    retriever = EASERetriever.fit(toy_dataset().train_sequences(), 40, 10.0)
    one = Query((ItemIdx(1), ItemIdx(2)))
    other = Query((ItemIdx(2), ItemIdx(1), ItemIdx(2)))
    assert retriever.retrieve([one], 5) == retriever.retrieve([other], 5)


def test_a_catalogue_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(baselines, "MOST_ITEMS", 39)
    with pytest.raises(DeepRecError, match="at most 39 items"):
        EASERetriever.fit(toy_dataset().train_sequences(), 40, 10.0)
