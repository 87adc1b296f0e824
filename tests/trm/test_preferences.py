"""Preferences from text and those of training; a phrase's number tells its item."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprec.config import TRMConfig
from deeprec.data.dataset import Sequences
from deeprec.trm import preferences
from deeprec.trm.preferences import (
    PHRASES,
    PhraseTable,
    PreferenceSampler,
    encode_preferences,
    frequent_phrases,
    item_phrases,
    recent_titles,
)
from toys import catalog_of


class Apart:
    """A text encoder in which every new text has a direction of its own, so that sums show what is in them."""

    width = 32

    def __init__(self):
        self.texts = []

    def encode(self, texts):
        vectors_ND = np.zeros((len(texts), self.width), dtype=np.float32)
        for row, text in enumerate(texts):
            if text not in self.texts:
                self.texts.append(text)
            vectors_ND[row, self.texts.index(text)] = 1
        return vectors_ND


# From text


def test_a_preference_is_the_direction_of_the_sum_of_its_phrases():
    encoder = Apart()
    encoder.encode(["war", "drama", "1990s"])
    vectors_QE, given_Q = encode_preferences(encoder, ["war", " drama ;\nwar", "", "1990s;war; drama", " ;\n"])
    expected_Q3 = torch.tensor([[1, 0, 0], [0.5**0.5, 0.5**0.5, 0], [0, 0, 0], [3**-0.5] * 3, [0, 0, 0]])
    torch.testing.assert_close(vectors_QE[:, :3], expected_Q3)
    assert not vectors_QE[:, 3:].any()
    assert given_Q.tolist() == [True, True, False, True, False]


def test_only_phrases_are_read():
    """Each one, and none of the blank ones between them."""
    encoder = Apart()
    encode_preferences(encoder, ["war; ;drama\n\n1990s;", "", "sea"])
    assert encoder.texts == ["war", "drama", "1990s", "sea"]


@pytest.mark.parametrize("texts", [[], [""], [";", " \n", ""]])
def test_a_preference_without_phrases_has_a_zero_vector(texts):
    vectors_QE, given_Q = encode_preferences(Apart(), texts)
    assert vectors_QE.shape == (len(texts), Apart.width)
    assert not vectors_QE.any()
    assert given_Q.shape == (len(texts),)
    assert not given_Q.any()


@given(st.permutations(["war", "drama", "1990s", "sea", "love"]), st.integers(1, 5))
def test_the_order_of_phrases_has_no_effect(order, count):
    encoder = Apart()
    encoder.encode(["war", "drama", "1990s", "sea", "love"])
    one, other = "; ".join(order[:count]), " \n".join(reversed(order[:count]))
    vectors_2E, _ = encode_preferences(encoder, [one, other])
    torch.testing.assert_close(vectors_2E[0], vectors_2E[1])
    assert float(vectors_2E[0].norm()) == pytest.approx(1)


# From items


def test_phrases_of_an_item_are_split_like_a_preference():
    """Two names in one category are two phrases."""
    catalog = catalog_of([("Drama; War", "War", "Comedy"), ("Noir",), ("Noir",)])
    assert item_phrases(catalog, 0) == ("Drama", "War", "Comedy")


def phrases_of_rows(phrase_table, encoder, rows_L):
    """The texts whose directions the rows have."""
    vectors_LE = phrase_table.vectors_PE[torch.from_numpy(np.atleast_1d(rows_L))]
    return [encoder.texts[int(vector_E.argmax())] for vector_E in vectors_LE if vector_E.any()]


def test_the_phrase_table_has_every_items_phrases_once():
    catalog = catalog_of(
        [("War", "Sea"), (), ("War",), tuple("abcdefg"), ("unknown",)],
        years=[1995, None, None, None, 2001],
        brands=["", "", "Acme", "", ""],
    )
    encoder = Apart()
    phrase_table = PhraseTable.build(catalog, encoder)
    rows = [phrases_of_rows(phrase_table, encoder, rows_L) for rows_L in phrase_table.items_IL]
    assert rows == [
        ["War", "Sea", "1990s"],
        ["Film 1"],  # an item without phrases has its title
        ["War", "Acme"],
        ["a", "b", "c", "d", "e", "f"],  # six at most
        ["2000s"],
    ]
    counts_I = (phrase_table.items_IL != phrase_table.padding).sum(1)
    assert counts_I.tolist() == [3, 1, 2, 6, 1]
    assert phrase_table.items_IL[0, 0] == phrase_table.items_IL[2, 0]  # War is one row
    assert phrase_table.padding == len(phrase_table.vectors_PE) - 1 == 12
    assert not phrase_table.vectors_PE[phrase_table.padding].any()
    for item, count in enumerate(counts_I):
        assert (phrase_table.items_IL[item, count:] == phrase_table.padding).all()
        assert (phrase_table.items_IL[item, :count] < phrase_table.padding).all()


@given(st.lists(st.sets(st.sampled_from("abcdef")), min_size=1, max_size=5))
def test_training_and_use_encode_the_same_phrases_alike(sets):
    """Vectors of rows of phrases are those of the text that names them, wherever the padding is."""
    encoder = Apart()
    phrase_table = PhraseTable.build(catalog_of([tuple("abcdef"), ("g",), ("h",)]), encoder)
    rows_NL = np.where(
        [[letter in phrases for letter in "abcdef"] for phrases in sets], phrase_table.items_IL[0], phrase_table.padding
    )
    vectors_QE, given_Q = encode_preferences(encoder, ["; ".join(sorted(phrases)) for phrases in sets])
    for ours, theirs in zip(phrase_table.vectors(rows_NL), (vectors_QE, given_Q), strict=True):
        torch.testing.assert_close(ours, theirs)


# Of training


EACH = 3
"""Phrases of each item below, of which number p is of item p // 3."""


def own_phrases(n_items, counts=None):
    counts_I = np.full(n_items, EACH) if counts is None else np.array(counts)
    items_IL = np.arange(n_items)[:, None] * EACH + np.arange(PHRASES)
    items_IL = np.where(np.arange(PHRASES) < counts_I[:, None], items_IL, n_items * EACH)
    return PhraseTable(torch.zeros(n_items * EACH + 1, 1), items_IL)


def numbered(*lengths):
    """Sequences in which every position has an item of its own, so that an item tells its position."""
    starts_U1 = np.cumsum([0, *lengths])
    return Sequences(np.arange(starts_U1[-1], dtype=np.int32), starts_U1)


NONE = {"PREFERENCE_DROPOUT": 0.0, "FREQUENT_SHARE": 0.0, "EXACT_SHARE": 0.0}


@contextmanager
def shares(**constants):
    """Constants of the module; shares that are not named are 0."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (NONE | constants).items():
            patch.setattr(preferences, name, value)
        yield


def draw(sequences, constants, positions, repeat=1, seed=0, phrase_table=None, config=TRMConfig()):  # noqa: B008
    """Phrases (N, 6) drawn for positions, each `repeat` times, and the padding."""
    phrase_table = phrase_table or own_phrases(int(sequences.items_N.max()) + 1)
    positions_N = np.repeat(np.asarray(positions), repeat)
    users_N = np.searchsorted(sequences.starts_U1, positions_N, side="right") - 1
    sampler = PreferenceSampler(phrase_table, sequences, config)
    with shares(**constants):
        rows_NL = sampler.draw(np.random.default_rng(seed), positions_N, users_N)
    assert rows_NL.shape == (positions_N.size, PHRASES)
    return rows_NL, phrase_table.padding


def items_of(rows_NL, padding):
    """For each row the items of its phrases."""
    return [{int(row) // EACH for row in rows_L if row != padding} for rows_L in rows_NL]


def the_item(sets):
    """The one item of each row."""
    assert all(len(items) == 1 for items in sets)
    return np.array([next(iter(items)) for items in sets])


def share(condition_N):
    return pytest.approx(np.mean(condition_N), abs=0.02)


def test_shares_of_kinds():
    """A long sequence among many others: at position 49 of 100 the items of a preference tell its kind."""
    sequences = numbered(100, *[10] * 200)
    constants = {"PREFERENCE_DROPOUT": 0.25, "FREQUENT_SHARE": 0.4, "LOOKAHEAD": 3}
    sets = items_of(*draw(sequences, constants, [49], 10_000))
    assert share([not items for items in sets]) == 0.25
    assert share([bool(items) and max(items) <= 49 for items in sets]) == 0.4
    assert share([bool(items) and 49 < min(items) <= max(items) <= 52 for items in sets]) == 0.35


@pytest.mark.parametrize(("dropped", "given_"), [(0.0, 1.0), (1.0, 0.0)])
def test_always_or_never(dropped, given_):
    rows_NL, padding = draw(numbered(9, 5, 30), {"PREFERENCE_DROPOUT": dropped}, range(8), 50)
    assert (rows_NL != padding).any(1).mean() == given_


def test_without_preferences_none_is_drawn():
    """`trm.preferences = false`, whatever the shares are."""
    off = TRMConfig(preferences=False)
    for constants in ({}, {"FREQUENT_SHARE": 1.0}, {"EXACT_SHARE": 1.0}):
        rows_NL, padding = draw(numbered(9, 5, 30), constants, range(8), 50, config=off)
        assert (rows_NL == padding).all()


@pytest.mark.parametrize(
    "constants", [{"EXACT_SHARE": 1.0, "LOOKAHEAD": 9}, {"LOOKAHEAD": 1}], ids=["exact", "a window of one"]
)
def test_exact_preferences_are_of_the_very_target(constants):
    positions = [0, 3, 7, 9, 12]
    rows_NL, padding = draw(numbered(9, 5), constants, positions, 20)
    np.testing.assert_array_equal(the_item(items_of(rows_NL, padding)), np.repeat(positions, 20) + 1)


def test_how_far_ahead_preferences_look():
    """0.4 of the target, the others of one of four: 0.4 + 0.6 / 4 of the first, 0.6 / 4 of each other."""
    rows_NL, padding = draw(numbered(30), {"EXACT_SHARE": 0.4, "LOOKAHEAD": 4}, [10], 10_000)
    ahead_N = the_item(items_of(rows_NL, padding)) - 10
    assert set(ahead_N.tolist()) == {1, 2, 3, 4}
    assert share(ahead_N == 1) == 0.55
    for step in (2, 3, 4):
        assert share(ahead_N == step) == 0.15


def test_the_window_ends_with_the_training_sequence():
    """At its end it is the last item, never one of the next user: positions 6 and 7 of 0..8."""
    rows_NL, padding = draw(numbered(9, 5), {"LOOKAHEAD": 5}, [6, 7], 300)
    items_N = the_item(items_of(rows_NL, padding))
    assert set(items_N[:300].tolist()) == {7, 8}
    assert set(items_N[300:].tolist()) == {8}


def test_some_of_an_items_phrases_are_drawn():
    """One to three, equally often; each phrase as often as any other; of an item with one phrase that one."""
    phrase_table = own_phrases(3, counts=[1, 3, 1])
    rows_NL, padding = draw(numbered(3), {"LOOKAHEAD": 1}, [0, 1], 10_000, phrase_table=phrase_table)
    of_three_NL, of_one_NL = np.split(rows_NL, 2)
    sizes_N = (of_three_NL != padding).sum(1)
    for size in (1, 2, 3):
        assert share(sizes_N == size) == 1 / 3
    for phrase in (3, 4, 5):
        assert share((of_three_NL == phrase).any(1)) == 2 / 3  # two phrases of three on average
        assert share((of_three_NL[sizes_N == 1] == phrase).any(1)) == 1 / 3
    assert [set(rows_L) - {padding} for rows_L in of_one_NL.tolist()] == [{6}] * 10_000


# Frequent phrases

# 0 War Sea, 1 War, 2 Love, 3 Sea Love, 4 nothing, 5 eight
FILMS = catalog_of([("War", "Sea"), ("War",), ("Love",), ("Sea", "Love"), (), tuple("abcdefgh"), (), (), (), ()])


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ((), []),
        ((4,), ["Film 4"]),  # an item without phrases has its title
        ((1,), ["War"]),
        ((0, 1), ["War", "Sea"]),
        ((0, 1, 2), ["War", "Love", "Sea"]),  # War twice; Love is later than Sea
        ((2, 0), ["War", "Sea", "Love"]),  # once each: the later item first, in its own order
        ((1, 1, 3, 2), ["Love", "War", "Sea"]),  # Love and War twice each, Love is later
        ((0, 3, 2, 5), ["Love", "Sea", "a"]),
        ((5, 4), ["Film 4", "a", "b"]),
        ((1, 1, 1, *[2, 3] * 10), ["Love", "Sea"]),  # the three first are too old
        ((1, *[3] * 19), ["Sea", "Love", "War"]),  # twenty in all: the first still counts
        ((1, *[3] * 20), ["Sea", "Love"]),  # and here it does not
        ((5, 5, 5, 2), ["a", "b", "c"]),
    ],
)
def test_frequent_phrases(history, expected):
    assert frequent_phrases(FILMS, history) == expected


def test_frequent_phrases_are_phrases_that_training_knows():
    """Six of an item: the seventh and eighth are never frequent."""
    catalog = catalog_of([tuple("abcdefgh"), ("x", "g"), ("y",), ("z",)])
    assert frequent_phrases(catalog, (0, 0, 0, 1)) == ["a", "b", "c"]
    assert "h" not in frequent_phrases(catalog, (0,))


def test_frequent_phrases_are_of_the_users_last_twenty_items():
    """Item 0 comes five times, but before the last twenty; the second user has none of the first's."""
    sequences = Sequences(np.array([*[0] * 5, *[1] * 3, *range(2, 19), 1], dtype=np.int32), np.array([0, 25, 26]))
    frequent_N3 = PreferenceSampler(own_phrases(19), sequences, TRMConfig()).frequent_N3
    assert frequent_N3[7].tolist() == [0, 1, 2]
    assert frequent_N3[24].tolist() == frequent_N3[25].tolist() == [3, 4, 5]


@pytest.mark.parametrize("position", [4, 19, 30])
def test_of_equally_frequent_phrases_the_more_recent_are_drawn(position):
    """Phrases that occur once each: the three of the last item; its first alone in a quarter, two in a quarter."""
    rows_NL, padding = draw(numbered(40), {"FREQUENT_SHARE": 1.0}, [position], 10_000)
    first = position * EACH
    counts = Counter(tuple(row for row in rows_L if row != padding) for rows_L in rows_NL.tolist())
    assert counts.keys() == {(first,), (first, first + 1), (first, first + 1, first + 2)}
    for phrases, expected in zip(sorted(counts), (0.25, 0.25, 0.5), strict=True):
        assert counts[phrases] / 10_000 == pytest.approx(expected, abs=0.02)


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4), seed=st.integers(0, 100))
def test_training_and_use_have_the_same_frequent_phrases(lengths, seed):
    """At each position those of the history up to it, ties included."""
    rng = np.random.default_rng(seed)
    catalog = catalog_of([tuple(rng.permutation(list("abcdefgh"))[: rng.integers(0, 9)]) for _ in range(12)])
    phrase_table, sequences = PhraseTable.build(catalog, Apart()), random_sequences(rng, lengths, 12)
    phrases = list(dict.fromkeys(phrase for item in range(12) for phrase in item_phrases(catalog, item)))
    sampler = PreferenceSampler(phrase_table, sequences, TRMConfig())
    for user, start in enumerate(sequences.starts_U1[:-1]):
        history = sequences[user].tolist()
        for position in range(len(history)):
            rows = sampler.frequent_N3[start + position]
            found = [phrases[row] for row in rows.tolist() if row != phrase_table.padding]
            assert found == frequent_phrases(catalog, history[: position + 1])


def test_recent_titles_are_the_latest_ones():
    catalog = catalog_of([()] * 5)
    assert recent_titles(catalog, (0, 4, 1, 3)) == ["Film 3", "Film 1", "Film 4"]
    assert recent_titles(catalog, (2,)) == ["Film 2"]
    assert recent_titles(catalog, ()) == []


def test_frequent_phrases_do_not_depend_on_how_many_are_counted_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    phrase_table, sequences = shared_phrases(rng, 9), random_sequences(rng, [40, 3, 25], 9)
    whole = PreferenceSampler(phrase_table, sequences, TRMConfig()).frequent_N3
    monkeypatch.setattr("deeprec.trm.preferences._BLOCK", 7)
    np.testing.assert_array_equal(PreferenceSampler(phrase_table, sequences, TRMConfig()).frequent_N3, whole)


def shared_phrases(rng, n_items):
    """Item i has up to six of the phrases i, i + 1 and so on, so that items share them."""
    counts_I = rng.integers(1, PHRASES + 1, n_items)
    items_IL = np.arange(n_items)[:, None] + np.arange(PHRASES)
    padding = n_items + PHRASES
    items_IL = np.where(np.arange(PHRASES) < counts_I[:, None], items_IL, padding)
    return PhraseTable(torch.zeros(padding + 1, 1), items_IL)


def random_sequences(rng, lengths, n_items):
    starts_U1 = np.cumsum([0, *lengths])
    return Sequences(rng.integers(0, n_items, starts_U1[-1]).astype(np.int32), starts_U1)


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=5)


@settings(max_examples=40)
@given(lengths=LENGTHS, n_items=st.integers(1, 9), seed=st.integers(0, 100))
def test_no_phrase_is_more_frequent_than_those_drawn(lengths, n_items, seed):
    """Against a loop that counts."""
    rng = np.random.default_rng(seed)
    phrase_table, sequences = shared_phrases(rng, n_items), random_sequences(rng, lengths, n_items)
    positions = range(sequences.items_N.size)
    rows_NL, padding = draw(sequences, {"FREQUENT_SHARE": 1.0}, positions, 1, seed, phrase_table)
    for position, rows_L in zip(positions, rows_NL.tolist(), strict=True):
        start = sequences.starts_U1[np.searchsorted(sequences.starts_U1, position, side="right") - 1]
        recent = sequences.items_N[max(start, position - 19) : position + 1]
        counts = Counter(int(row) for item in recent for row in phrase_table.items_IL[item] if row != padding)
        drawn = [row for row in rows_L if row != padding]
        assert 1 <= len(drawn) == len(set(drawn)) <= 3
        assert set(drawn) <= counts.keys()
        assert min(counts[row] for row in drawn) >= max((counts[row] for row in counts if row not in drawn), default=0)


# All kinds together


@settings(max_examples=40)
@given(
    lengths=LENGTHS,
    n_items=st.integers(1, 6),
    parts=st.tuples(*[st.integers(0, 3)] * 3).filter(any),
    lookahead=st.integers(1, 6),
    exact=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 100),
)
def test_no_phrase_twice_and_none_of_anyone_else(lengths, n_items, parts, lookahead, exact, seed):
    rng = np.random.default_rng(seed)
    phrase_table, sequences = shared_phrases(rng, n_items), random_sequences(rng, lengths, n_items)
    positions = range(sequences.items_N.size)
    empty, frequent, _ = (part / sum(parts) for part in parts)
    constants = {
        "PREFERENCE_DROPOUT": empty,
        "FREQUENT_SHARE": frequent,
        "LOOKAHEAD": lookahead,
        "EXACT_SHARE": exact,
    }
    rows_NL, padding = draw(sequences, constants, positions, 3, seed, phrase_table)
    for row, rows_L in enumerate(rows_NL.tolist()):
        drawn = [phrase for phrase in rows_L if phrase != padding]
        assert len(set(drawn)) == len(drawn)
        user = int(np.searchsorted(sequences.starts_U1, row // 3, side="right")) - 1
        assert set(drawn) <= set(phrase_table.items_IL[sequences[user]].ravel().tolist())


def test_draws_follow_the_generator():
    sequences, constants = numbered(40, 40), {"FREQUENT_SHARE": 0.4}
    one, again, other = (draw(sequences, constants, range(39), 5, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
