"""With the real MiniLM."""

from __future__ import annotations

import numpy as np
import pytest

from deeprec.errors import DeepRecError
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


def test_known_texts_are_not_read_again(encoder, monkeypatch):
    first_ND = encoder.encode(TEXTS)
    monkeypatch.setattr(encoder, "_learn", lambda texts: pytest.fail(f"read again: {texts}"))
    np.testing.assert_array_equal(encoder.encode([*TEXTS, *TEXTS])[len(TEXTS) :], first_ND)


def test_the_caller_can_write_into_the_vectors(encoder):
    vectors_ND = encoder.encode(TEXTS[:1])
    before_ND = vectors_ND.copy()
    vectors_ND *= 0
    np.testing.assert_array_equal(encoder.encode(TEXTS[:1]), before_ND)


def test_no_texts(encoder):
    assert encoder.encode([]).shape == (0, encoder.width)
