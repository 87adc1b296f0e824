from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.retrieval import (
    RetrievalHitRate,
    RetrievalMRR,
    RetrievalNormalizedDCG,
    RetrievalRecall,
)

from deeprec.evaluation.metrics import mrr_at, ndcg_at, per_user, ranks_of, recall_at


def test_ranks_are_places_of_the_targets():
    rankings = [[7, 3, 5], [3, 7, 5], [5, 3, 7], [1, 2], []]
    assert ranks_of(rankings, [7, 7, 7, 7, 7]).tolist() == [0, 1, 2, -1, -1]


def test_a_ranking_that_names_an_item_twice_is_a_bug():
    with pytest.raises(ValueError, match="ranking 1 names an item twice"):
        ranks_of([[1, 2], [4, 5, 4]], [1, 5])


def test_rankings_and_targets_are_of_one_length():
    with pytest.raises(ValueError, match="longer than"):
        ranks_of([[1], [2]], [1, 2, 3])


# 1 / log2(rank + 2): 1, 0.6309..., 0.5, ..., 1 / log2(11) at rank 9.
@pytest.mark.parametrize(
    ("rank", "k", "recall", "ndcg", "mrr"),
    [
        (0, 1, 1, 1, 1),
        (1, 1, 0, 0, 0),
        (1, 5, 1, 0.6309297536, 0.5),
        (2, 5, 1, 0.5, 1 / 3),
        (4, 5, 1, 0.3868528072, 0.2),
        (5, 5, 0, 0, 0),
        (9, 10, 1, 0.2890648264, 0.1),
        (10, 10, 0, 0, 0),
        (-1, 1, 0, 0, 0),
        (-1, 10, 0, 0, 0),
    ],
)
def test_hand_computed(rank, k, recall, ndcg, mrr):
    ranks_U = np.array([rank])
    assert recall_at(ranks_U, k).tolist() == [recall]
    assert ndcg_at(ranks_U, k) == pytest.approx([ndcg], abs=1e-10)
    assert mrr_at(ranks_U, k) == pytest.approx([mrr])


def test_per_user_names_each_metric_and_cutoff():
    columns = per_user(np.array([0, 7, -1]), (1, 10))
    assert list(columns) == ["NDCG@1", "NDCG@10", "Recall@1", "Recall@10", "MRR@1", "MRR@10"]
    assert columns["Recall@10"].tolist() == [1, 1, 0]
    assert columns["MRR@10"].tolist() == [1, 0.125, 0]


def test_a_cutoff_is_at_least_one():
    with pytest.raises(ValueError, match="cutoff"):
        recall_at(np.array([0]), 0)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_against_torchmetrics(k):
    users, items = 200, 30
    rng = np.random.default_rng(5)
    scores_UI = rng.permuted(np.tile(np.arange(items, dtype=np.float64), (users, 1)), axis=1)
    targets_U = rng.integers(0, items, users)
    rankings = np.argsort(-scores_UI, axis=1).tolist()
    ours = per_user(ranks_of(rankings, targets_U.tolist()), [k])

    relevant_UI = np.arange(items) == targets_U[:, None]
    arguments = {
        "preds": torch.tensor(scores_UI.ravel(), dtype=torch.float32),
        "target": torch.tensor(relevant_UI.ravel()),
        "indexes": torch.arange(users).repeat_interleave(items),
    }
    for name, metric in [
        ("NDCG", RetrievalNormalizedDCG),
        ("Recall", RetrievalRecall),
        ("Recall", RetrievalHitRate),
        ("MRR", RetrievalMRR),
    ]:
        # The mean of a per-user metric hides swaps between users, so each user is also compared alone.
        theirs = metric(top_k=k)(**arguments).item()
        assert ours[f"{name}@{k}"].mean() == pytest.approx(theirs, abs=1e-6), metric.__name__
        for user in range(20):
            one = {key: value[user * items : (user + 1) * items] for key, value in arguments.items()}
            assert ours[f"{name}@{k}"][user] == pytest.approx(metric(top_k=k)(**one).item(), abs=1e-6)


@given(st.integers(-1, 40), st.integers(1, 30))
def test_order_of_the_metrics(rank, k):
    ranks_U = np.array([rank])
    recall, ndcg, mrr = (metric(ranks_U, k)[0] for metric in (recall_at, ndcg_at, mrr_at))
    assert 0 <= mrr <= ndcg <= recall <= 1
    assert recall == (0 <= rank < k)
    assert recall_at(ranks_U, k + 1)[0] >= recall


def test_ndcg_of_places_about_the_cutoff():
    np.testing.assert_allclose(ndcg_at(np.array([-1, 0, 1, 9, 10]), 10), [0, 1, 1 / np.log2(3), 1 / np.log2(11), 0])
