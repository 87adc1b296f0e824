"""Titles to items and back, and what may be said of an item."""

from __future__ import annotations

import io
import random
import re
import time
import unicodedata

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.data.catalog import (
    Catalog,
    ItemId,
    ItemIdx,
    Resolution,
    ResolutionStatus,
    build_catalog,
    neutralise,
    normalise_title,
)
from deeprec.errors import DeepRecError

ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=40)


def catalogue(titles: list[str], years: list[int | None] | None = None, title_chars: int = 80) -> Catalog:
    n = len(titles)
    ids = [f"i{position}" for position in range(n)]
    return build_catalog(ids, titles, years or [None] * n, [""] * n, [()] * n, [""] * n, title_chars)


@pytest.fixture
def movies() -> Catalog:
    return build_catalog(
        ids=["1", "2", "3", "4", "5"],
        titles=["Toy Story", "Sabrina", "Sabrina", "Heat", "  "],
        years=[1995, 1954, 1995, 1995, None],
        brands=["Pixar", "", "", "", ""],
        categories=[["Films", "Animation", "Comedy"], ["Films", "Comedy"], ["Films"], ["Films"], ["unknown"]],
        descriptions=["Toys <live>.", "", "", "word " * 400, ""],
        title_chars=80,
    )


def found(item: int) -> Resolution:
    return Resolution(ItemIdx(item), ResolutionStatus.FOUND)


UNKNOWN = Resolution(None, ResolutionStatus.UNKNOWN)
AMBIGUOUS = Resolution(None, ResolutionStatus.AMBIGUOUS)


def test_display_titles_have_the_year_once_and_empty_ones_a_name(movies: Catalog) -> None:
    assert movies.titles == (
        "Toy Story (1995)",
        "Sabrina (1954)",
        "Sabrina (1995)",
        "Heat (1995)",
        "Untitled item 5",
    )
    assert catalogue(["Alien (1979)"], [1979]).titles == ("Alien (1979)",)
    assert catalogue(["2001 (1968)"], [1969]).titles == ("2001 (1968) (1969)",)


def test_titles_are_cut_at_a_word_before_the_year() -> None:
    cut = catalogue(["The quick brown fox, jumps over", "abcdefghijklmnop"], [1999, None], title_chars=10)
    assert cut.titles == ("The quick (1999)", "abcdefghij")
    assert catalogue(["The quick brown fox (1999)"], [1999], title_chars=20).titles == ("The quick brown fox (1999)",)


def test_index_names_close_ids(movies: Catalog) -> None:
    assert movies.index(ItemId("4")) == 3
    shop = build_catalog(["B0001", "B0002"], ["a", "b"], [None] * 2, [""] * 2, [()] * 2, [""] * 2, 80)
    with pytest.raises(DeepRecError, match=r"'B000'.*'B000[12]'"):
        shop.index(ItemId("B000"))


def test_strangers_who_name_what_is_not_there_cost_little() -> None:
    """Twenty thousand titles; difflib needed half a second for each."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlucm", k=draw.randint(2, 9))) for _ in range(3000)]
    shop = catalogue([" ".join(draw.choices(words, k=draw.randint(1, 6))) for _ in range(20_000)])
    assert shop.find(shop.titles[7]) == shop.resolve(shop.titles[7]).item
    started = time.perf_counter()
    for number in range(10):
        for ask in (shop.find, lambda name: shop.index(ItemId(name))):
            with pytest.raises(DeepRecError, match="There is no item"):
                ask(f"a title that is unknown {number}")
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("text", "within", "expected"),
    [
        ("Toy Story (1995)", None, found(0)),
        ("  “toy   STORY (1995)”. ", None, found(0)),
        ("Toy Story", None, found(0)),
        ("Toy", None, UNKNOWN),
        ("I recommend Toy Story (1995)", None, UNKNOWN),
        ("Toy Story (1996)", None, UNKNOWN),
        ("", None, UNKNOWN),
        ("Sabrina", None, AMBIGUOUS),
        ("Sabrina (1954)", None, found(1)),
        ("Sabrina", {2, 3}, found(2)),
        ("Sabrina", {1, 2}, AMBIGUOUS),
        ("Sabrina", {0}, AMBIGUOUS),
        ("Heat", {0, 1}, found(3)),
        ("Heat", set(), found(3)),
        ("untitled item 5", None, found(4)),
    ],
)
def test_resolve(movies: Catalog, text: str, within: set[ItemIdx] | None, expected: Resolution) -> None:
    assert movies.resolve(text, within) == expected


def test_a_full_title_beats_another_items_title_without_year() -> None:
    both = catalogue(["Heat", "Heat"], [None, 1995])
    assert both.resolve("Heat") == found(0)
    assert both.resolve("Heat (1995)") == found(1)
    assert both.resolve("Heat", {ItemIdx(1)}) == found(1), "the pool decides first"


def test_equal_titles_are_ambiguous_until_the_pool_decides() -> None:
    twins = catalogue(["Widget", "widget!", "Gadget"])
    assert twins.resolve("WIDGET") == AMBIGUOUS
    assert twins.resolve("WIDGET", [ItemIdx(1), ItemIdx(2)]) == found(1)
    assert twins.resolve("WIDGET", [ItemIdx(2)]) == AMBIGUOUS


def test_phrases_say_what_sets_an_item_apart(movies: Catalog) -> None:
    assert movies.phrases(ItemIdx(0)) == ("Animation", "Comedy", "1990s", "Pixar")
    assert movies.phrases(ItemIdx(1)) == ("Comedy", "1950s")
    assert movies.phrases(ItemIdx(4)) == ()
    assert "Films" in movies.categories[0], "left out of phrases only"


def test_text_holds_everything_a_text_encoder_may_see(movies: Catalog) -> None:
    assert movies.text(ItemIdx(0)) == "Toy Story (1995). Pixar. Films, Animation, Comedy. 1990s. Toys ‹live›."
    assert movies.text(ItemIdx(2)) == "Sabrina (1995). Films. 1990s"
    assert 280 < len(movies.text(ItemIdx(3))) < 340


def test_title_report() -> None:
    report = catalogue(
        ["Sabrina", "Sabrina", "Ice Storm", "Ice Storm", "Widget", "widget.", "", "Heat"],
        [1954, 1995, 1997, 1997, None, None, None, None],
    ).title_report()
    assert report.distinct == 7
    assert (report.empty, report.empty_examples) == (1, ("Untitled item i6",))
    assert (report.ambiguous, report.ambiguous_examples) == (4, ("Ice Storm (1997)", "Widget", "widget."))


def test_saved_and_loaded_back_it_is_the_same(movies: Catalog) -> None:
    for write, read in (
        (pl.DataFrame.write_parquet, pl.read_parquet),
        (pl.DataFrame.write_ndjson, pl.read_ndjson),
    ):
        buffer = io.BytesIO()
        write(movies.to_frame(), buffer)
        buffer.seek(0)
        loaded = Catalog.from_frame(read(buffer))
        assert vars(loaded) == {field: vars(movies)[field] for field in vars(loaded)}
        assert loaded.resolve("Toy Story") == found(0)
    with pytest.raises(DeepRecError, match="'brand'"):
        Catalog.from_frame(movies.to_frame().drop("brand"))


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("<think>", "‹think›"),
        ("<|im_end|>", "‹|im_end|›"),
        ("＜think＞", "‹think›"),
        ("a\nb\r\n\tc\x00d", "a b c d"),
        ("pay\u202epal\u200b\ufeff", "paypal"),
        ("pay\u200dpal\u200c", "paypal"),
        ("\u200f\u200dسلام\u200c \u200dx", "سلام x"),
        ("می\u200b\u200c\u200dخواهم", "می\u200cخواهم"),
        ("<\u200dthink\u200d>", "‹think›"),
        ("line\u2028break\u00a0here", "line break here"),
        ("\ud800x", "x"),
        ("  Amélie  ", "Amélie"),
    ],
)
def test_neutralise(raw: str, clean: str) -> None:
    assert neutralise(raw) == clean


@given(ANY_TEXT)
def test_neutral_text_can_hold_no_tag_and_no_trick(text: str) -> None:
    clean = neutralise(text)
    assert not set("<>＜＞\n\r\t") & set(clean)
    visible = clean.replace("\u200c", "").replace("\u200d", "")
    assert not {unicodedata.category(char) for char in visible} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert not re.search("^[\u200c\u200d]|[\u200c\u200d]{2}|[\\s‹›a-zA-Z][\u200c\u200d][\\s‹›a-zA-Z]", clean)
    assert clean == clean.strip()
    assert "  " not in clean
    assert neutralise(clean) == clean
    clean.encode("utf-8")


JOINED = {
    "Persian": "می‌خواهم زنده بمانم",
    "Persian, after a digit": "خانهٔ ۱۲‌ساله‌ها",
    "Persian, with Latin letters": "بهترین DVD‌ها",
    "Persian, an abbreviation": "سال ۱۳۹۹ ه‍.ش.",
    "Urdu": "علم‌الحیات",
    "Malayalam, at the end of a word": "അവന്‍ വന്നു",
    "Malayalam, at the end of the title": "ഞാന്‍",
    "Hindi": "क्‍ष और र्‍य",
    "Bengali, before the virama": "র‍্যাব",
    "Sinhala": "ශ්‍රී ලංකා",
    "a family": "👨‍👩‍👧 film",
    "a flag": "🏳️‍🌈",
    "an astronaut's skin": "👩🏽‍🚀",
    "an arrow": "🙂‍↔️",
    "a black bird": "🐦‍⬛",
}


@pytest.mark.parametrize("title", JOINED.values(), ids=JOINED)
def test_joiners_stay_where_they_join(title: str) -> None:
    assert set("\u200c\u200d") & set(title)
    bare = title.replace("\u200c", "").replace("\u200d", "")
    assert neutralise(f"\u202b {title}\u200b") == title
    assert normalise_title(bare) == normalise_title(title)
    items = catalogue([title, "Another"])
    assert items.titles[0] == title
    assert items.resolve(title) == items.resolve(bare) == found(0)


def test_a_cut_title_has_no_joiner_at_its_end() -> None:
    title = "Film " + "👨‍👩‍👧" * 20
    for chars in range(8, 40):
        (cut, _) = catalogue([title, "x"], title_chars=chars).titles
        assert neutralise(cut) == cut
        assert not cut.endswith("\u200d")


@given(st.text(st.sampled_from("abc XYZ.é京"), max_size=20))
def test_neutralise_keeps_ordinary_text(text: str) -> None:
    assert neutralise(text) == " ".join(text.split())


@given(ANY_TEXT)
def test_normalised_titles_stay_as_they_are(text: str) -> None:
    key = normalise_title(text)
    assert normalise_title(key) == key
    assert bool(key) == bool(neutralise(text)) or not unicodedata.normalize("NFKC", text).strip()


@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    st.sampled_from(["upper", "quote", "dots"]),
)
def test_the_same_title_written_otherwise_has_the_same_key(text: str, way: str) -> None:
    if way == "upper":
        # Characters whose upper case is not their own fold ('ı') are other letters.
        other = "".join(c.upper() if c.upper().casefold() == c.casefold() else c for c in text)
    else:
        other = f"“{text}”" if way == "quote" else f"{text}..."
    if normalise_title(text).strip("\"'`´“”„‟‘’‚‛«»‹› .,;:!?…"):
        assert normalise_title(other) == normalise_title(text)


@given(st.lists(st.tuples(ANY_TEXT, st.none() | st.integers(1900, 2030)), min_size=1, max_size=8))
def test_every_display_title_resolves_to_its_item_or_is_ambiguous(rows: list[tuple[str, int | None]]) -> None:
    items = catalogue([title for title, _ in rows], [year for _, year in rows])
    for position, title in enumerate(items.titles):
        resolution = items.resolve(title)
        assert resolution == found(position) or resolution == AMBIGUOUS
        twins = [t for t in items.titles if normalise_title(t) == normalise_title(title)]
        assert (resolution.status is ResolutionStatus.FOUND) == (len(twins) == 1)


@given(st.text("ab ", min_size=1, max_size=12), st.text("ab ", min_size=1, max_size=6))
def test_a_part_of_a_title_is_not_the_title(title: str, more: str) -> None:
    if normalise_title(title) and normalise_title(title + more) != normalise_title(title):
        assert catalogue([title + more]).resolve(title).status is ResolutionStatus.UNKNOWN


def test_where_an_id_is_anothers_title_one_can_say_which_counts() -> None:
    catalog = build_catalog(
        ids=["187", "330"],
        titles=["Godfather: Part II, The", "187"],
        years=[None, None],
        brands=["", ""],
        categories=[(), ()],
        descriptions=["", ""],
        title_chars=80,
    )
    assert catalog.find("187") == 1
    assert catalog.find("187", id_first=True) == 0
    assert catalog.find("godfather: part ii, the", id_first=True) == 0
