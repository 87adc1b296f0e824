from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.config import DEFAULT_PREFERENCE_WEIGHT
from deeprec.data.catalog import ItemIdx
from deeprec.data.dataset import Sequences
from deeprec.errors import DeepRecError
from deeprec.retrieval.baselines import PopularityRetriever, TransitionRetriever
from deeprec.retrieval.retriever import Hit, Query, phrases_of, top_hits
from deeprec.testing import RetrieverContract
from toys import toy_dataset


def items(*numbers):
    return tuple(map(ItemIdx, numbers))


def sequences(*rows):
    starts_U1 = np.cumsum([0, *map(len, rows)])
    return Sequences(np.array([item for row in rows for item in row], dtype=np.int32), starts_U1)


class TestPopularityContract(RetrieverContract):
    @pytest.fixture
    def n_items(self):
        return 40

    @pytest.fixture
    def retriever(self, n_items):
        return PopularityRetriever.fit(toy_dataset(n_items=n_items).train_sequences(), n_items)


class TestTransitionContract(RetrieverContract):
    @pytest.fixture
    def n_items(self):
        return 40

    @pytest.fixture
    def retriever(self, n_items):
        return TransitionRetriever.fit(toy_dataset(n_items=n_items).train_sequences(), n_items)


def test_a_semicolon_or_a_line_break_separates_phrases():
    assert phrases_of(" war;drama ;; \n1990s\n") == ["war", "drama", "1990s"]
    assert phrases_of("sci-fi, or war. at sea\tin  space") == ["sci-fi, or war. at sea\tin  space"]
    assert phrases_of("") == phrases_of(" ;\n") == []


@given(st.lists(st.text(st.characters(exclude_characters=";\n", exclude_categories=["Cs"]))), st.sampled_from(";\n"))
def test_any_phrases_are_found_again(phrases, separator):
    expected = [phrase.strip() for phrase in phrases if phrase.strip()]
    assert phrases_of(separator.join(phrases)) == expected
    assert phrases_of("; ".join(expected)) == expected


def test_queries_and_explorations_have_the_same_default_weight():
    """So that `deeprec trm recommend`, `explore` and Python give the same answers."""
    assert Query(items(1), "war").preference_weight == DEFAULT_PREFERENCE_WEIGHT > 0
    assert Query(items(1), "war") != Query(items(1), "war", preference_weight=0.5)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_preference_weight_out_of_bounds_is_refused(weight):
    with pytest.raises(DeepRecError, match="preference weight is between 0 and 1"):
        Query(items(1), "war", preference_weight=weight)


def positions(scores, k, exclude=()):
    return [hit.item for hit in top_hits(np.array([scores], dtype=float), [Query((), exclude=exclude)], k)[0]]


def test_top_hits_gives_ties_to_the_lower_index():
    assert positions([1, 2, 1, 2, 1], 3) == [1, 3, 0]
    assert positions([0] * 50, 4) == [0, 1, 2, 3]
    assert positions([0] * 50, 4, exclude=items(0, 2)) == [1, 3, 4, 5]


def test_top_hits_gives_scores_and_no_more_than_there_are():
    hits = top_hits(np.array([[0.5, -1.0, 2.0]]), [Query((), exclude=items(0))], 9)
    assert hits == [[Hit(ItemIdx(2), 2.0), Hit(ItemIdx(1), -1.0)]]
    assert positions([1, 2], 0) == []
    assert positions([1, 2], 2, exclude=items(0, 1)) == []
    assert top_hits(np.empty((0, 3)), [], 2) == []


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.sets(st.integers(0, 29)), st.integers(0, 35))
def test_top_hits_is_a_sort(scores, exclude, k):
    exclude = {item for item in exclude if item < len(scores)}
    expected = sorted((i for i in range(len(scores)) if i not in exclude), key=lambda i: (-scores[i], i))[:k]
    assert positions(scores, k, exclude=items(*exclude)) == expected


def test_popularity_counts_interactions_and_reads_no_query():
    retriever = PopularityRetriever.fit(sequences([2, 1], [2, 0, 1], [2]), 4)
    expected = [Hit(ItemIdx(2), 3.0), Hit(ItemIdx(1), 2.0), Hit(ItemIdx(0), 1.0), Hit(ItemIdx(3), 0.0)]
    for query in (Query(()), Query(items(3), "war")):
        assert retriever.retrieve([query], 4) == [expected]


def test_transitions_are_counted_inside_sequences_only():
    """0→1, 1→2 | 2→0, 0→1 | 3 alone | 1→3: nothing from 2 to 2, from 1 to 3 once, from 3 to 1 never."""
    retriever = TransitionRetriever.fit(sequences([0, 1, 2], [2, 0, 1], [3], [1, 3]), 5)
    expected_II = np.zeros((5, 5))
    expected_II[0, 1] = 2
    expected_II[1, 2] = expected_II[2, 0] = expected_II[1, 3] = 1
    np.testing.assert_array_equal(retriever.counts_II.toarray(), expected_II)


def test_transitions_rank_followers_of_the_last_item_then_by_popularity():
    retriever = TransitionRetriever.fit(sequences([0, 1, 2], [2, 0, 1], [3], [1, 3]), 5)
    # Counts: 0 twice, 1 thrice, 2 twice, 3 twice, 4 never. Popularity breaks ties by count / 4.
    ranked = retriever.retrieve([Query(items(3, 0)), Query(items(1)), Query(items(4)), Query(())], 5)
    assert [[hit.item for hit in hits] for hits in ranked] == [
        [1, 0, 2, 3, 4],  # after 0 came 1
        [2, 3, 1, 0, 4],  # after 1 came 2 and 3, as popular as each other
        [1, 0, 2, 3, 4],  # nothing came after 4: popularity
        [1, 0, 2, 3, 4],
    ]
    assert [hit.score for hit in ranked[0]] == [2 + 3 / 4, 2 / 4, 2 / 4, 2 / 4, 0]


def test_popularity_never_outweighs_a_transition():
    retriever = TransitionRetriever.fit(sequences([0, 1], *[[2]] * 100), 3)
    assert [hit.item for hit in retriever.retrieve([Query(items(0))], 3)[0]] == [1, 2, 0]


@pytest.mark.parametrize("rows", [([], [0, 1]), ([0, 1], []), ([], [0], [], [0, 1], [], [])])
def test_users_without_interactions_do_no_harm(rows):
    expected_II = np.zeros((2, 2))
    expected_II[0, 1] = 1
    np.testing.assert_array_equal(TransitionRetriever.fit(sequences(*rows), 2).counts_II.toarray(), expected_II)


def test_nothing_to_learn_from():
    retriever = TransitionRetriever.fit(sequences(), 3)
    assert [hit.item for hit in retriever.retrieve([Query(items(1))], 3)[0]] == [0, 1, 2]
