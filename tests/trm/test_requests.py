"""What is asked for outright leads the TRM's answers, and guesses are as they were."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from deeprec.config import TRMConfig
from deeprec.data.catalog import ItemIdx, build_catalog
from deeprec.data.dataset import Sequences
from deeprec.retrieval.cooccurrence import CoOccurrence
from deeprec.retrieval.names import Names
from deeprec.retrieval.retriever import Query
from deeprec.trm.network import PreferenceSASRec
from deeprec.trm.trm import TRM
from stand_ins import HashedWords

NAMED = ["Batman (1989)", "Heat", "Batman Returns (1992)", "Dark City", "Body Heat", "Batman & Robin"]
N_ITEMS = 300
REQUESTS = ["Batman", "films like Batman Returns", "Batman; dark", "heat", "Batman; number7; Comedy", "number123"]


def catalog_of(titles):
    n = len(titles)
    categories = [["Comedy", "Drama"][item % 2 :][:1] for item in range(n)]
    return build_catalog([f"i{item}" for item in range(n)], titles, [None] * n, [""] * n, categories, [""] * n, 80)


CATALOG = catalog_of([*NAMED, *[f"Film number{n}" for n in range(len(NAMED), N_ITEMS)]])


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(1)
    return Sequences(rng.integers(0, N_ITEMS, 2000).astype(np.int32), np.arange(0, 2001, 20))


def build(sequences, index="exact"):
    """With random weights, as far from the names as any."""
    torch.manual_seed(0)
    config = TRMConfig(width=16, layers=1, history=8, cooccurrence=1.0, index=index)
    encoder = HashedWords()
    model = PreferenceSASRec(config, torch.from_numpy(encoder.encode(CATALOG.texts())))
    torch.nn.init.normal_(model.ids.weight)
    return TRM(model, CATALOG, encoder, config, CoOccurrence.fit(sequences, N_ITEMS))


@pytest.fixture(scope="module", params=["exact", "hnsw"])
def trm(request, sequences):
    if request.param == "hnsw":
        pytest.importorskip("faiss")
    return build(sequences, request.param)


def queries(sequences, requested=True):
    histories = [(), *[tuple(map(ItemIdx, sequences.items_N[start : start + 9].tolist())) for start in (0, 40, 99)]]
    return [
        Query(history, request, frozenset(history), requested=requested)
        for request in REQUESTS
        for history in histories
    ]


def test_named_items_come_first_and_equals_as_usual(trm, sequences):
    asked = queries(sequences)
    usual_QI = trm.scores([dataclasses.replace(query, requested=False) for query in asked])
    levels_QI = Names(CATALOG).levels([query.preference for query in asked]).toarray()
    for query, usual_I, levels_I, hits in zip(asked, usual_QI, levels_QI, trm.retrieve(asked, 12), strict=True):
        order_I = np.lexsort((-usual_I, -levels_I))
        expected = [item for item in order_I.tolist() if item not in query.exclude][:12]
        assert [hit.item for hit in hits] == expected
        assert levels_I[expected[0]] > 0
        assert levels_I[expected[-1]] == 0


def test_scores_ranks_and_hits_agree(trm, sequences):
    asked = queries(sequences)
    scores_QI = trm.scores(asked)
    for place in (0, 4, 11):
        lists = trm.retrieve(asked, 12)
        assert trm.ranks(asked, [hits[place].item for hits in lists]).tolist() == [place] * len(asked)
    for scores_I, hits in zip(scores_QI, lists, strict=True):
        np.testing.assert_allclose(scores_I[[hit.item for hit in hits]], [hit.score for hit in hits], atol=1e-3)


def test_excluded_items_stay_out(trm):
    batmen = [ItemIdx(item) for item, title in enumerate(NAMED) if "Batman" in title]
    (hits,) = trm.retrieve([Query((batmen[0],), "Batman", frozenset(batmen[:2]), requested=True)], 5)
    assert hits[0].item == batmen[2]
    assert not {hit.item for hit in hits} & set(batmen[:2])


def test_a_guess_knows_no_names(trm, sequences, monkeypatch):
    """Whatever its weight."""
    guesses = [dataclasses.replace(query, preference_weight=1.0) for query in queries(sequences, requested=False)]
    requests = [dataclasses.replace(query, requested=True) for query in guesses]
    assert np.abs(trm.scores(guesses) - trm.scores(requests)).max() > 1
    with monkeypatch.context() as patch:
        patch.setattr(Names, "levels", None)
        before_QI = trm.scores(guesses)
    both_QI = trm.scores([query for pair in zip(guesses, requests, strict=True) for query in pair])[::2]
    np.testing.assert_allclose(both_QI, before_QI, atol=1e-4)


@pytest.mark.parametrize("nothing", [{"preference_weight": 0.0}, {"preference": ""}, {"preference": "Comedy; 1990s"}])
def test_a_request_that_names_nothing_is_answered_as_usual(trm, sequences, nothing):
    asked = [dataclasses.replace(query, **nothing) for query in queries(sequences)]
    usual = [dataclasses.replace(query, requested=False) for query in asked]
    np.testing.assert_array_equal(trm.scores(asked), trm.scores(usual))
    assert trm.retrieve(asked, 5) == trm.retrieve(usual, 5)


def test_new_items_can_be_asked_for(sequences):
    trm = build(sequences)
    assert trm.recommend([[]], preference="Batman")["title"][0] == "Batman (1989)"
    titles = [f"Robocop {n}" for n in range(3)]
    trm.add_items(dataclasses.replace(catalog_of(titles), ids=tuple(f"n{n}" for n in range(3))))
    assert set(trm.recommend([[]], k=3, preference="Robocop")["title"]) == set(titles)


def test_people_who_ask_trm_recommend_ask_outright(sequences):
    trm = build(sequences)
    table = trm.recommend({"ann": ["Heat"], "bob": []}, k=3, preference="heat; Batman & Robin")
    assert table.filter(user="ann")["title"][:2].to_list() == ["Batman & Robin", "Body Heat"]
    assert set(table.filter(user="bob")["title"][:2]) == {"Heat", "Batman & Robin"}
    assert table.filter(user="bob")["title"][2] == "Body Heat"
