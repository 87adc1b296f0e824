"""Policies that write whole segments: what the writer reads, where it is cut, and the tokens of words."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.explore.policy import Chunk, Finish, Request
from deeprec.policies.text import TextPolicy, WordTokenizer
from deeprec.testing import PolicyContract, request, write


class Letters:
    """One token a character, and a start token."""

    def encode(self, text: str, *, first: bool = False) -> list[int]:
        return [-1] * first + [ord(letter) for letter in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join("[START]" if token < 0 else chr(token) for token in tokens)


def recite(conversation: str) -> str:
    return f"I read {len(conversation)} letters, and I say no more than that."


class TestWordTokenizer(PolicyContract):
    @pytest.fixture
    def policy(self) -> TextPolicy:
        return TextPolicy(recite)


class TestLetters(PolicyContract):
    @pytest.fixture
    def policy(self) -> TextPolicy:
        return TextPolicy(recite, Letters())


@given(st.lists(st.text()))
def test_words_are_lossless(texts: list[str]) -> None:
    words = WordTokenizer()
    tokens = [words.encode(text, first=position == 0) for position, text in enumerate(texts)]
    assert [words.decode(part) for part in tokens] == texts
    assert words.decode([token for part in tokens for token in part]) == "".join(texts)
    assert [words.encode(text) for text in texts] == tokens


def test_a_word_is_a_token() -> None:
    assert len(WordTokenizer().encode("One two\n  three ")) == 4


def test_no_word_is_kept() -> None:
    words = WordTokenizer()
    tokens = words.encode("One two three")
    assert not vars(words)
    assert WordTokenizer().decode(tokens) == "One two three"


@pytest.mark.parametrize("word", ["x" * 10_000, "🎬" * 3000, "\0", "\ud800", "\n" * 9000])
def test_words_of_any_kind_can_be_written_down(word: str) -> None:
    tokens = json.loads(json.dumps(WordTokenizer().encode(word)))
    assert WordTokenizer().decode(tokens) == word


def said(text: str, *, stops: tuple[str, ...] = (), limit: int = 100) -> tuple[str, Finish | None]:
    policy = TextPolicy(lambda _: text, Letters())
    chunk = write(policy, [request(policy, "a", stops=stops, limit=limit)])["a"]
    return policy.decode(chunk.tokens), chunk.finish


def test_the_first_stop_ends_the_text() -> None:
    assert said("one two three", stops=("three", "two")) == ("one two", Finish.STOP)
    assert said("one two three", stops=("four",)) == ("one two three", Finish.END)
    assert said("") == ("", Finish.END)


def test_the_limit_ends_it_before_the_stop() -> None:
    assert said("one two", stops=("two",), limit=6) == ("one tw", Finish.LENGTH)
    assert said("one two", stops=("two",), limit=7) == ("one two", Finish.STOP)


def test_the_writer_reads_the_whole_conversation() -> None:
    read: list[str] = []

    def writer(conversation: str) -> str:
        read.append(conversation)
        return "And?"

    policy = TextPolicy(writer, Letters())
    tokens = policy.encode("Once upon", first=True)
    write(policy, [Request("a", tokens, (), 9)])
    write(policy, [Request("a", [*tokens, *policy.encode(" a time")], (), 9)])
    assert read == ["[START]Once upon", "[START]Once upon a time"]


def test_all_open_requests_are_written_in_one_step() -> None:
    policy = TextPolicy(lambda _: "Hm.", Letters())
    policy.submit([request(policy, key) for key in "ab"])
    assert policy.step() == [Chunk(key, tuple(policy.encode("Hm.")), (), Finish.END) for key in "ab"]
