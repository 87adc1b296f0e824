"""BM25 against sums by hand."""

from __future__ import annotations

import re
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.data.catalog import build_catalog
from deeprec.retrieval import bm25
from deeprec.retrieval.bm25 import BM25, words


def catalog(*titles, categories=None):
    n = len(titles)
    ids, blank = [f"i{i}" for i in range(n)], [""] * n
    return build_catalog(ids, titles, [None] * n, blank, categories or [()] * n, blank, 80)


@pytest.fixture
def rare(monkeypatch):
    """In small catalogues every word is in more than a tenth of the items."""
    monkeypatch.setattr(bm25, "MAX_ITEM_SHARE", 0.5)


def test_scores_by_hand(rare):
    """A word in n of N titles has ln(1 + (N - n + 0.5) / (n + 0.5)); a title of L words (1.75 in the mean) counts it
    1 / (1 + 1.5 (0.25 + 0.75 L / 1.75)).
    """
    found = BM25(catalog("red steel nut", "red bolt", "paper", "glue"))
    red, steel, bolt = log(1 + 2.5 / 2.5), log(1 + 3.5 / 1.5), log(1 + 3.5 / 1.5)
    long, short = 1 / (1 + 1.5 * (0.25 + 0.75 * 3 / 1.75)), 1 / (1 + 1.5 * (0.25 + 0.75 * 2 / 1.75))
    scores_QI = found.scores(["Red; steel", "bolt, red", "", "wood"]).toarray()
    first = [(red + steel) * long, red * short, 0, 0]
    second = [red * long, (red + bolt) * short, 0, 0]
    expected_QI = [first, second, [0] * 4, [0] * 4]
    np.testing.assert_allclose(scores_QI, expected_QI, rtol=1e-5)


def test_a_repeated_word_counts_once_and_case_has_no_effect(rare):
    found = BM25(catalog("red steel nut", "red bolt", "paper", "glue"))
    one, twice = found.scores(["steel nut", "STEEL nut; steel, Nut"]).toarray()
    np.testing.assert_array_equal(one, twice)


def test_words_of_many_items_are_ignored():
    titles = [f"kit number{n}" for n in range(20)]
    found = BM25(catalog(*titles)).scores(["kit", "number7", "kit number7"]).toarray()
    assert not found[0].any()
    assert np.flatnonzero(found[1]).tolist() == [7]
    np.testing.assert_array_equal(found[1], found[2])


def test_categories_and_brands_are_words_too(rare):
    found = BM25(catalog("a nut", "a bolt", "glue", categories=[("Hex Nuts",), (), ()]))
    assert np.flatnonzero(found.scores(["hex"]).toarray()[0]).tolist() == [0]


def test_words_of_too_many_items_are_ignored_whatever_their_share(monkeypatch):
    monkeypatch.setattr(bm25, "MAX_ITEMS", 2)
    found = BM25(catalog("red", "red", "red", "blue", "blue", *[f"number{n}" for n in range(95)]))
    assert np.diff(found.scores(["red", "blue"]).indptr).tolist() == [0, 2]


def test_stop_words_are_ignored(rare):
    found = BM25(catalog("pack of nuts", "glue", "paper", "ink"))
    assert not found.scores(["of the"]).nnz


@pytest.mark.parametrize("titles", [(), ("!", "?")])
def test_a_catalogue_without_words_has_no_scores(titles):
    scores_QI = BM25(catalog(*titles)).scores(["red", ""])
    assert scores_QI.shape == (2, len(titles))
    assert not scores_QI.nnz


@given(texts=st.lists(st.text(max_size=20), max_size=5))
def test_any_preference_has_scores_of_its_own(texts):
    """None raises, none is below zero, and none depends on the others."""
    found = BM25(catalog(*[f"red number{n} paper{n % 5}" for n in range(30)]))
    scores_QI = found.scores(texts).toarray()
    assert scores_QI.shape == (len(texts), 30)
    assert (scores_QI >= 0).all()
    for text, scores_I in zip(texts, scores_QI, strict=True):
        np.testing.assert_array_equal(found.scores([text]).toarray()[0], scores_I)


# languages

_BEFORE = re.compile(
    r"\b(?!(?:an|and|are|as|at|be|but|by|for|if|in|into|is|it|no|not|of|on|or|such|that|the|their|then|there|these|they|"
    r"this|to|was|will|with)\b)\w\w+"
)
_WESTERN = st.characters(max_codepoint=0x52F, exclude_categories=("Mn", "Mc", "Me", "Cf", "Cs"))  # to Cyrillic


@given(st.text(_WESTERN) | st.lists(st.text(_WESTERN, max_size=4) | st.sampled_from(["the", "of"])).map(" ".join))
def test_words_of_latin_greek_and_cyrillic_are_those_that_spaces_and_marks_part(text):
    assert words(text) == _BEFORE.findall(text.lower())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Toy Story (1995) of THE 3D-printer x", "toy story 1995 3d printer"),
        ("千と千尋の神隠し (2001)", "千と と千 千尋 尋の の神 神隠 隠し 2001"),
        (
            "ドラゴンボールＺ 第１２話・ＤＶＤ",
            "ドラ ラゴ ゴン ンボ ボー ール 第 12 話 dvd",
        ),  # z alone is no word, as ever
        ("ﾄﾞﾗｺﾞﾝ", "ドラ ラゴ ゴン"),
        ("iPhone１５手机壳", "iphone15 手机 机壳"),
        ("二〇二〇年、東京", "二〇 〇二 二〇 〇年 東京"),
        ("犬", "犬"),
        ("ต้มยำกุ้ง 12 ชิ้น", "ต้ม มย ยำ ำกุ้ กุ้ง 12 ชิ้น"),
        ("ພາສາ", "ພາ າສ ສາ"),
        ("ភាសាខ្មែរ", "ភាសា សាខ្ ខ្មែ មែរ"),
        ("မြန်မာ", "မြန် န်မာ"),
        ("해리포터와 돌", "해리 리포 포터 터와 돌"),
        ("हिन्दी की किताब", "हिन्दी की किताब"),
        ("தமிழ் புத்தகம்", "தமிழ் புத்தகம்"),
    ],
)
def test_words_of_many_languages(text, expected):
    assert words(text) == expected.split()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Phở bò", "Pho\u031b\u0309 bo\u0300"),  # composed, and as file names of a Mac are
        ("ガラス", "カ\u3099ラス"),
        ("한글", "\u1112\u1161\u11ab\u1100\u1173\u11af"),
        ("ＡＢＣ１２３", "abc123"),
        ("می\u200cخواهم", "میخواهم"),
        ("ភាសា\u200bខ្មែរ", "ភាសាខ្មែរ"),
    ],
)
def test_the_same_text_in_another_form_has_the_same_words(one, other):
    assert words(one) == words(other) != []


JAPANESE = ("千と千尋の神隠し (2001)", "となりのトトロ (1988)", "ドラゴンボールZ", "進撃の巨人 Season 2", "黒い猫と僕")
CHINESE = ("红楼梦", "三国演义（上）", "华为手机壳 ５Ｇ", "小米手机充电器", "龙井茶叶 500克")
THAI = ("น้ำปลาแท้ตราปลาหมึก", "กะทิกล่อง 250 มล.", "พริกแกงเขียวหวาน", "ข้าวหอมมะลิใหม่ 5 กก.", "กระทะเหล็กหล่อ")


@pytest.mark.parametrize(
    ("titles", "preference", "expected"),
    [
        (JAPANESE, "神隠し", [0]),
        (JAPANESE, "トトロの映画", [1]),
        (JAPANESE, "ﾄﾞﾗｺﾞﾝﾎﾞｰﾙ", [2]),
        (JAPANESE, "season 2; 巨人", [3]),
        (JAPANESE, "猫", [4]),
        (CHINESE, "三国", [1]),
        (CHINESE, "手机", [2, 3]),
        (CHINESE, "5g", [2]),
        (CHINESE, "茶", [4]),
        (THAI, "ข้าวหอมมะลิ", [3]),
        (THAI, "แกงเขียวหวาน", [2]),
        (THAI, "น้ำปลา", [0]),
    ],
)
def test_a_wish_finds_the_items_that_bear_its_words(rare, titles, preference, expected):
    scores_I = BM25(catalog(*titles, "Toy Story (1995)", "Heat")).scores([preference]).toarray()[0]
    assert sorted(np.argsort(-scores_I, kind="stable")[: len(expected)].tolist()) == expected
    assert scores_I[expected].min() > np.delete(scores_I, expected).max()
