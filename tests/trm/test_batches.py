"""Training batches on sequences whose items tell their positions, against a naive loop."""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprec.config import TRMConfig
from deeprec.data.dataset import Sequences
from deeprec.errors import DeepRecError
from deeprec.trm import batches as batches_module
from deeprec.trm import preferences
from deeprec.trm.batches import Batches
from deeprec.trm.preferences import PHRASES, PhraseTable
from toys import toy_dataset


def numbered(lengths):
    """Sequences in which every position has an item of its own, so that an item tells its position."""
    starts_U1 = np.cumsum([0, *lengths])
    return Sequences(np.arange(starts_U1[-1], dtype=np.int32), starts_U1)


def own_phrases(n_items):
    """Item i has phrase i."""
    items_IL = np.full((n_items, PHRASES), n_items)
    items_IL[:, 0] = np.arange(n_items)
    return PhraseTable(torch.zeros(n_items + 1, 1), items_IL)


def batches_of(sequences, **options):
    return Batches(sequences, own_phrases(int(sequences.items_N.max(initial=-1)) + 1), TRMConfig(**options))


@contextmanager
def constants(**values):
    """Of `batches` and `preferences`, while an epoch is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(batches_module if hasattr(batches_module, name) else preferences, name, value)
        yield


def contents(batches):
    """Everything of an epoch, comparable."""
    return [tuple(getattr(batch, field.name).tolist() for field in dataclasses.fields(batch)) for batch in batches]


def windows(sequences, history, number, **options):
    """The inputs of each window of an epoch."""
    return [
        tuple(inputs_T[real_T].tolist())
        for batch in batches_of(sequences, history=history, **options).epoch(number)
        for inputs_T, real_T in zip(batch.inputs_BT, batch.real_BT, strict=True)
    ]


def user_of(sequences, position):
    return int(np.searchsorted(sequences.starts_U1, position, side="right")) - 1


LENGTHS = st.lists(st.integers(0, 23), min_size=1, max_size=12).filter(lambda lengths: max(lengths) > 1)


@settings(max_examples=80)
@given(
    lengths=LENGTHS,
    history=st.integers(1, 7),
    batch_positions=st.integers(1, 40),
    number=st.integers(0, 3),
    seed=st.integers(0, 3),
)
def test_every_target_comes_once_an_epoch_after_what_was_before_it(lengths, history, batch_positions, number, seed):
    sequences = numbered(lengths)
    padding = sum(lengths)
    targets = Counter()
    with constants(BATCH_POSITIONS=batch_positions):
        batches = list(batches_of(sequences, history=history, seed=seed).epoch(number))
    for batch in batches:
        assert batch.inputs_BT.dtype == batch.targets_N.dtype == torch.int64
        assert batch.inputs_BT.shape == batch.real_BT.shape
        assert batch.inputs_BT.shape[1] <= history
        assert torch.equal(batch.real_BT, batch.inputs_BT != padding)
        assert batch.real_BT[:, 0].all()
        assert batch.real_BT.any(0).all()  # no position that is padding in every row
        assert not (batch.real_BT[:, 1:] & ~batch.real_BT[:, :-1]).any()  # padded on the right only
        assert batch.phrases_NL.shape == (batch.targets_N.numel(), PHRASES)
        assert batch.targets_N.numel() == batch.real_BT.sum()
        targets.update(batch.targets_N.tolist())
        # Items are positions, so a window is a run of numbers, and each is followed by its target.
        assert torch.equal(batch.inputs_BT[batch.real_BT] + 1, batch.targets_N)
        for inputs_T, real_T in zip(batch.inputs_BT, batch.real_BT, strict=True):
            window = inputs_T[real_T].tolist()
            assert window == list(range(window[0], window[-1] + 1))
            assert user_of(sequences, window[0]) == user_of(sequences, window[-1] + 1)
    expected = set(range(sum(lengths))) - set(sequences.starts_U1.tolist())  # all but the first of each sequence
    assert targets == dict.fromkeys(expected, 1)


@settings(max_examples=60)
@given(
    lengths=LENGTHS,
    history=st.integers(1, 7),
    lookahead=st.integers(1, 6),
    ahead=st.booleans(),
    number=st.integers(0, 3),
)
def test_a_preference_is_of_its_own_position(lengths, history, lookahead, ahead, number):
    """Of the next items or of the last twenty, in both cases of the same user's, and in the order of the targets."""
    sequences = numbered(lengths)
    shares = {"FREQUENT_SHARE": 0.0 if ahead else 1.0, "PREFERENCE_DROPOUT": 0.0, "EXACT_SHARE": 0.0}
    with constants(LOOKAHEAD=lookahead, **shares):
        batches = list(batches_of(sequences, history=history).epoch(number))
    for batch in batches:
        for target, rows_L in zip(batch.targets_N.tolist(), batch.phrases_NL.tolist(), strict=True):
            items = [row for row in rows_L if row != sum(lengths)]
            assert items
            assert {user_of(sequences, item) for item in items} == {user_of(sequences, target)}
            if ahead:
                assert target <= min(items) <= max(items) < target + lookahead
            else:
                assert target - 20 <= min(items) <= max(items) < target


@settings(max_examples=60)
@given(lengths=LENGTHS, history=st.integers(1, 9), batch_positions=st.integers(1, 60), number=st.integers(0, 3))
def test_batches_have_about_as_many_positions_as_asked(lengths, history, batch_positions, number):
    """A window more or less; the rest makes one smaller batch."""
    with constants(BATCH_POSITIONS=batch_positions):
        batches = batches_of(numbered(lengths), history=history)
        sizes, steps = sorted(batch.targets_N.numel() for batch in batches.epoch(number)), batches.steps
    assert sizes[0] > 0
    assert sizes[-1] <= batch_positions + history
    assert all(size >= batch_positions - history for size in sizes[1:])
    if batch_positions >= history:
        assert abs(len(sizes) - steps) <= 1


def test_little_of_a_batch_is_padding(monkeypatch):
    """Windows of all lengths up to 50: in random order two fifths would be."""
    monkeypatch.setattr(batches_module, "BATCH_POSITIONS", 1024)
    lengths = np.random.default_rng(0).integers(2, 52, 2000)
    cells = positions = 0
    for batch in batches_of(numbered(lengths), history=50).epoch(0):
        cells += batch.real_BT.numel()
        positions += batch.targets_N.numel()
    assert positions == (lengths - 1).sum()
    assert positions / cells > 0.85


def test_long_and_short_windows_alternate(monkeypatch):
    """Windows of a batch are alike, but batches are shuffled: no epoch begins with the long ones."""
    monkeypatch.setattr(batches_module, "BATCH_POSITIONS", 256)
    lengths = [40] * 100 + [5] * 1000
    widths = [batch.inputs_BT.shape[1] for batch in batches_of(numbered(lengths)).epoch(0)]
    assert len(widths) > 20
    assert widths != sorted(widths, reverse=True)
    assert 5 < np.mean(widths[: len(widths) // 2]) < 38


def test_an_epoch_follows_from_the_seed_and_its_number(monkeypatch):
    monkeypatch.setattr(batches_module, "BATCH_POSITIONS", 16)
    sequences = numbered([30, 40, 12, 9])
    options = {"history": 5}
    batches = batches_of(sequences, **options)
    epochs = [contents(batches.epoch(number)) for number in range(3)]
    assert contents(batches.epoch(1)) == epochs[1]
    assert contents(batches_of(sequences, **options).epoch(2)) == epochs[2]  # without those before it
    assert contents(batches_of(sequences, **options, seed=1).epoch(0)) != epochs[0]


def test_borders_move_from_epoch_to_epoch():
    """The first window of a long sequence has every length up to the limit, in one epoch or another."""
    sequences = numbered([23, 6])
    epochs = [sorted(windows(sequences, 5, number)) for number in range(40)]
    assert {len(epoch[0]) for epoch in epochs} == {1, 2, 3, 4, 5}
    for epoch in epochs:
        long = [len(window) for window in epoch if window[0] < 23]
        assert set(long[1:-1]) <= {5}  # all but the first and the last are whole
        assert epoch[-1] == tuple(range(23, 28))  # six items have five inputs, which fit: nothing is cut
    seeds = {tuple(map(len, sorted(windows(sequences, 5, 0, seed=seed)))) for seed in range(20)}
    assert len(seeds) > 1


def test_a_sequence_of_one_gives_nothing():
    assert sorted(windows(numbered([1, 3, 0, 1, 2, 1]), 5, 0)) == [(1, 2), (5,)]


@pytest.mark.parametrize("lengths", [[], [0], [1, 1, 0, 1]])
def test_too_short_sequences_are_refused(lengths):
    with pytest.raises(DeepRecError, match="nothing to train on: no user has two training interactions"):
        batches_of(numbered(lengths))


def test_validation_and_test_items_never_come():
    """Each user's last two items are in no sequence but their own, so they can't come by another user."""
    dataset = toy_dataset(n_users=30, n_items=40)
    items_N = dataset.items_N.copy()
    ends_U = dataset.starts_U1[1:]
    items_N[ends_U - 1] = 40
    items_N[ends_U - 2] = 41
    sequences = type(dataset)(**vars(dataset) | {"items_N": items_N}).train_sequences()
    batches = Batches(sequences, own_phrases(42), TRMConfig(history=6))
    seen = set()
    for number in range(5):
        for batch in batches.epoch(number):
            seen |= {*batch.inputs_BT[batch.real_BT].tolist(), *batch.targets_N.tolist()}
            seen |= set(batch.phrases_NL.ravel().tolist()) - {42}
    assert seen == set(range(40))
