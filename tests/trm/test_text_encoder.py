"""With the real MiniLM."""

from __future__ import annotations

import os

import numpy as np
import pytest

from deeprec.errors import DeepRecError
from deeprec.trm import text_encoder as module
from deeprec.trm.text_encoder import TextEncoder

TEXTS = [
    "Comedy; 1990s",
    "funny films of the nineties",
    "Toy Story (1995). Animation, Children's, Comedy. 1990s",
    "",
    "x",
    "a war film " * 100,  # longer than what is read
    "Amélie 🎬 <think>",
]


@pytest.fixture(scope="module")
def folder():
    from deeprec import assets

    try:
        return assets.fetch("minilm-l6")
    except DeepRecError as error:
        pytest.skip(f"MiniLM can't be had: {error}")


@pytest.fixture(scope="module")
def encoder(folder):
    return TextEncoder(folder)


def test_unit_vectors_in_order(encoder):
    vectors_ND = encoder.encode(TEXTS)
    assert vectors_ND.shape == (len(TEXTS), encoder.width) == (len(TEXTS), 384)
    assert vectors_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors_ND, axis=1), 1, atol=1e-5)
    backwards_ND = encoder.encode(TEXTS[::-1])
    np.testing.assert_array_equal(vectors_ND, backwards_ND[::-1])


def test_a_vector_does_not_depend_on_its_batch(folder, encoder):
    fresh = TextEncoder(folder)
    alone_ND = np.concatenate([fresh.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), alone_ND, atol=1e-5)
    many = TextEncoder(folder)
    many.encode([*(f"{'word ' * (i % 40)}{i}" for i in range(150)), *TEXTS])
    np.testing.assert_allclose(many.encode(TEXTS), alone_ND, atol=1e-5)


def test_similar_sentences_are_closer(encoder):
    sentences = [
        "A funny film for the whole family",
        "A comedy that parents and children enjoy",
        "A documentary about submarine warfare",
    ]
    cosines = encoder.encode(sentences) @ encoder.encode(sentences).T
    assert cosines[0, 1] > cosines[0, 2] + 0.2
    assert cosines[0, 1] > cosines[1, 2] + 0.2


def test_cached_texts_are_not_encoded_again(encoder, monkeypatch):
    first_ND = encoder.encode(TEXTS)
    monkeypatch.setattr(encoder, "_run", lambda texts: pytest.fail(f"encoded again: {texts}"))
    np.testing.assert_array_equal(encoder.encode([*TEXTS, *TEXTS])[len(TEXTS) :], first_ND)


def test_the_caller_can_write_into_the_vectors(encoder):
    vectors_ND = encoder.encode(TEXTS[:1])
    before_ND = vectors_ND.copy()
    vectors_ND *= 0
    np.testing.assert_array_equal(encoder.encode(TEXTS[:1]), before_ND)


def test_no_texts(encoder):
    assert encoder.encode([]).shape == (0, encoder.width)


# many texts, in blocks on disk

MANY = [f"{'a film ' * (i % 5)}number {i}" for i in range(22)]


@pytest.fixture
def blocks(monkeypatch):
    """Ten new texts are many, and eight make a block."""
    monkeypatch.setattr(module, "_BULK", 10)
    monkeypatch.setattr(module, "_BLOCK", 8)


@pytest.fixture
def encoded(monkeypatch):
    """How many texts the model encodes, call by call."""
    counts = []
    run = TextEncoder._run

    def counting(self, texts, *args):
        counts.append(len(texts))
        return run(self, texts, *args)

    monkeypatch.setattr(TextEncoder, "_run", counting)
    return counts


def test_many_texts_are_the_same_as_few(folder, encoder, blocks, tmp_path):
    many = TextEncoder(folder, tmp_path)
    texts = [*MANY, MANY[3], *TEXTS, MANY[0]]
    expected_ND = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(many.encode(texts), expected_ND, atol=1e-5)
    np.testing.assert_array_equal(many.encode(texts), many.encode(texts))
    assert not many._known
    np.testing.assert_allclose(TextEncoder(folder).encode(texts), expected_ND, atol=1e-5)


def test_the_next_start_reads_the_files(folder, blocks, encoded, tmp_path):
    cache = tmp_path / "not" / "there"
    first_ND = TextEncoder(folder, cache).encode(MANY)
    assert encoded == [8, 8, 6]
    assert len(list(cache.iterdir())) == 3
    again_ND = TextEncoder(folder, cache).encode(MANY)
    assert encoded == [8, 8, 6]
    np.testing.assert_array_equal(again_ND, first_ND)
    again_ND *= 0  # the caller's own
    np.testing.assert_array_equal(TextEncoder(folder, cache).encode(MANY), first_ND)


def test_texts_at_the_end_cost_themselves_only(folder, blocks, encoded, tmp_path):
    first_ND = TextEncoder(folder, tmp_path).encode(MANY[:20])
    grown_ND = TextEncoder(folder, tmp_path).encode(MANY)
    assert encoded == [8, 8, 4, 6]
    np.testing.assert_array_equal(grown_ND[:16], first_ND[:16])


def test_what_was_asked_before_does_not_change_the_blocks(folder, blocks, encoded, tmp_path):
    TextEncoder(folder, tmp_path).encode(MANY)
    other = TextEncoder(folder, tmp_path)
    other.encode(MANY[:3])
    other.encode(MANY)
    assert encoded == [8, 8, 6, 3]


def test_other_texts_and_other_encoders_have_other_files(folder, blocks, encoded, tmp_path):
    TextEncoder(folder, tmp_path).encode(MANY[:10])
    TextEncoder(folder, tmp_path).encode([*MANY[:9], "another"])
    other = TextEncoder(folder, tmp_path)
    other._origin = ["other weights"]
    other.encode(MANY[:10])
    assert encoded == [8, 2, 2, 8, 2]


def test_an_encoder_is_known_by_its_files(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    before = TextEncoder(tmp_path)._origin
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b"\n")
    after = TextEncoder(tmp_path)._origin
    assert len(before) == len(after)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "zeros", "nan", "shape", "dtype"])
def test_damaged_files_are_encoded_anew(folder, blocks, encoded, tmp_path, damage):
    first_ND = TextEncoder(folder, tmp_path).encode(MANY)
    for path in tmp_path.iterdir():
        whole_MD = np.load(path)
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:-100])
        elif damage in ("empty", "garbage"):
            path.write_bytes(b"" if damage == "empty" else b"\x93NUMPYgarbage" * 99)
        elif damage in ("zeros", "nan"):  # what a power cut makes of a page
            whole_MD[-1] = 0 if damage == "zeros" else np.nan
            np.save(path, whole_MD)
        else:
            np.save(path, whole_MD[1:] if damage == "shape" else whole_MD.astype(np.float64))
    np.testing.assert_array_equal(TextEncoder(folder, tmp_path).encode(MANY), first_ND)
    assert encoded == [8, 8, 6] * 2
    TextEncoder(folder, tmp_path).encode(MANY)
    assert encoded == [8, 8, 6] * 2


def test_a_killed_encoding_goes_on(folder, blocks, encoded, tmp_path):
    def kill(done, total):
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TextEncoder(folder, tmp_path).encode(MANY, kill)
    TextEncoder(folder, tmp_path).encode(MANY)
    assert encoded == [8, 8, 6]  # what was reported as done is kept


def test_a_cache_that_cannot_be_written_does_no_harm(folder, blocks, tmp_path):
    (tmp_path / "file").touch()
    vectors_ND = TextEncoder(folder, tmp_path / "file").encode(MANY)
    np.testing.assert_array_equal(vectors_ND, TextEncoder(folder).encode(MANY))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_does_no_harm(folder, blocks, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert TextEncoder(folder, tmp_path).encode(MANY).shape == (22, 384)
    assert not list(tmp_path.iterdir())


def test_few_texts_leave_nothing_on_disk(folder, blocks, tmp_path):
    encoder = TextEncoder(folder, tmp_path)
    encoder.encode(MANY[:9])
    encoder.encode(MANY[:18])  # nine of them new
    assert not list(tmp_path.iterdir())


def test_progress(folder, blocks, tmp_path):
    for encoder in (TextEncoder(folder, tmp_path), TextEncoder(folder, tmp_path)):
        calls = []
        encoder.encode([*MANY, *MANY], lambda *counts, calls=calls: calls.append(counts))
        assert [total for _, total in calls] == [22] * len(calls)
        dones = [done for done, _ in calls]
        assert dones == sorted(set(dones))
        assert {8, 16, 22} <= set(dones)


def test_the_last_texts_are_cached(folder, encoded, monkeypatch):
    monkeypatch.setattr(module, "_CACHED", 3)
    encoder = TextEncoder(folder)
    encoder.encode(["a", "b", "c"])
    encoder.encode(["a"])
    encoder.encode(["d"])  # b was used longest ago
    assert list(encoder._known) == ["c", "a", "d"]
    assert encoded == [3, 1]
    vectors_ND = encoder.encode([*MANY[:5], "a", *MANY[:5]])  # more than are cached
    assert len(encoder._known) == 3
    np.testing.assert_array_equal(vectors_ND[:5], vectors_ND[6:])
    assert encoded == [3, 1, 5]


def test_the_loaded_encoder_keeps_its_files_in_the_cache(folder, blocks, monkeypatch, tmp_path):
    from deeprec import assets

    monkeypatch.setattr(assets, "fetch", lambda name, offline: folder)
    monkeypatch.setenv("DEEPREC_CACHE", str(tmp_path))
    TextEncoder.load(offline=True).encode(MANY)
    assert len(list((tmp_path / "text-vectors").glob("*.npy"))) == 3
