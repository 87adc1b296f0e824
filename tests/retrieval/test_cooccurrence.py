"""Co-occurrence against sums by hand and by loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.data.dataset import Sequences
from deeprec.retrieval import cooccurrence
from deeprec.retrieval.cooccurrence import WINDOW, CoOccurrence


def sequences(*rows):
    starts_U1 = np.cumsum([0, *map(len, rows)])
    return Sequences(np.array([item for row in rows for item in row], dtype=np.int32), starts_U1)


def shares(*rows, n_items):
    return CoOccurrence.fit(sequences(*rows), n_items).shares_II.toarray()


def test_shares_by_hand():
    """0 and 1 are one step apart (1.0), 0 and 2 two (0.7), 1 and 2 one, twice (1.0 + 1.0); 5 is added to each total."""
    found_II = shares([0, 1, 2], [2, 1], [3], n_items=5)
    expected_II = np.zeros((5, 5))
    expected_II[0, [1, 2]] = np.array([1.0, 0.7]) / (1.7 + 5)
    expected_II[1, [0, 2]] = np.array([1.0, 2.0]) / (3.0 + 5)
    expected_II[2, [0, 1]] = np.array([0.7, 2.0]) / (2.7 + 5)
    np.testing.assert_allclose(found_II, expected_II, rtol=1e-6)


def test_a_repeat_is_co_occurrence_with_itself():
    """0 follows itself, which counts at both of its places; 1 is one step from the second 0 and two from the first."""
    found_II = shares([0, 0, 1], n_items=2)
    np.testing.assert_allclose(found_II[0], np.array([2.0, 1.7]) / (3.7 + 5), rtol=1e-6)
    np.testing.assert_allclose(found_II[1], np.array([1.7, 0.0]) / (1.7 + 5), rtol=1e-6)


def test_score_offsets_by_hand():
    """The last item counts 1, the one before it 0.85; the score is log(1 + 400 * sum)."""
    found = CoOccurrence.fit(sequences([0, 1, 2], [2, 1], [3]), 5)
    near_II = found.shares_II.toarray()
    offsets_QI = found.score_offsets([(0, 1), (1,), (), (3, 4)]).toarray()
    np.testing.assert_allclose(offsets_QI[0], np.log(1 + 400 * (near_II[1] + 0.85 * near_II[0])), rtol=1e-6)
    np.testing.assert_allclose(offsets_QI[1], np.log(1 + 400 * near_II[1]), rtol=1e-6)
    assert not offsets_QI[2:].any()


ROWS = st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=30), min_size=1, max_size=6)


@given(rows=ROWS)
def test_shares_against_a_loop(rows):
    near_II = np.zeros((8, 8))
    for row in rows:
        for position, item in enumerate(row):
            for step in range(1, WINDOW + 1):
                if position + step < len(row):
                    near_II[item, row[position + step]] += 0.7 ** (step - 1)
                    near_II[row[position + step], item] += 0.7 ** (step - 1)
    expected_II = near_II / (near_II.sum(1, keepdims=True) + 5)
    np.testing.assert_allclose(shares(*rows, n_items=8), expected_II, atol=1e-6)


@given(rows=ROWS, kept=st.integers(1, 3))
def test_only_the_nearest_are_kept(rows, kept):
    whole_II = shares(*rows, n_items=8)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cooccurrence, "MAX_PARTNERS", kept)
        some_II = shares(*rows, n_items=8)
    for whole_I, some_I in zip(whole_II, some_II, strict=True):
        best = np.flatnonzero(some_I)
        np.testing.assert_allclose(some_I[best], whole_I[best])
        nearest = np.sort(whole_I[whole_I > 0])[::-1][:kept]
        np.testing.assert_allclose(np.sort(some_I[best])[::-1], nearest)  # of near equals, rounding chooses


@given(rows=ROWS, block=st.integers(1, 9))
def test_shares_do_not_depend_on_how_many_are_counted_at_once(rows, block):
    whole_II = shares(*rows, n_items=8)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cooccurrence, "_BLOCK", block)
        np.testing.assert_array_equal(shares(*rows, n_items=8), whole_II)


def test_only_the_last_items_of_a_history_count():
    found = CoOccurrence.fit(sequences([0, 1], [2, 3]), 4)
    long = (0, *[2] * WINDOW)
    np.testing.assert_array_equal(found.score_offsets([long]).toarray(), found.score_offsets([long[1:]]).toarray())
    assert found.score_offsets([long[:-1]]).toarray()[0, 1]


@pytest.mark.parametrize("rows", [[], [[3]], [[1], [2], [1]]], ids=["nobody", "one item", "singles"])
def test_without_co_occurrence_there_are_no_score_offsets(rows):
    found = CoOccurrence.fit(sequences(*rows), 4)
    assert found.shares_II.nnz == 0
    assert found.score_offsets([(1, 2), ()]).nnz == 0
    assert found.score_offsets([]).shape == (0, 4)


def test_new_items_co_occur_with_nothing():
    found = CoOccurrence.fit(sequences([0, 1, 2]), 3)
    grown = found.moved(np.arange(3), 5)
    np.testing.assert_array_equal(grown.score_offsets([(0, 4)]).toarray()[0, :3] > 0, [False, True, True])
    assert not grown.score_offsets([(0, 1, 2, 3, 4)]).toarray()[0, 3:].any()
    assert not grown.score_offsets([(3, 4)]).nnz


def test_arrays_that_do_not_fit_are_refused():
    arrays = CoOccurrence.fit(sequences([0, 1, 2]), 3).to_arrays()
    np.testing.assert_array_equal(CoOccurrence.from_arrays(arrays).shares_II.toarray(), shares([0, 1, 2], n_items=3))
    for name, values in {
        "items": arrays["items"] + 2,
        "starts": arrays["starts"][:-1],
        "shares": arrays["shares"][1:],
    }.items():
        with pytest.raises(ValueError, match="ind"):
            CoOccurrence.from_arrays(arrays | {name: values})


def test_items_move_with_their_shares():
    found = CoOccurrence.fit(sequences([0, 1, 2]), 3)
    moved = found.moved(np.array([4, 0, 2]), 5)
    np.testing.assert_array_equal(moved.shares_II.toarray()[np.ix_([4, 0, 2], [4, 0, 2])], found.shares_II.toarray())
    assert moved.shares_II.nnz == found.shares_II.nnz


def test_only_items_that_the_data_lack_keep_their_earlier_co_occurrence():
    """Not item 1, which the data have: what it was seen with may be a target now."""
    earlier, now = CoOccurrence.fit(sequences([0, 1], [2, 3]), 4), CoOccurrence.fit(sequences([0, 2]), 4)
    shares_II = now.filled(earlier, 3).shares_II.toarray()
    np.testing.assert_array_equal(shares_II[:3], now.shares_II.toarray()[:3])
    np.testing.assert_array_equal(shares_II[3], earlier.shares_II.toarray()[3])
    assert shares_II[3, 2] > 0
    assert not shares_II[1].any()
