"""Catalogues of titles alone: the script and the demonstrations still ask for something, and answer in full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from deeprec.config import ExploreConfig
from deeprec.data.catalog import Catalog, build_catalog
from deeprec.data.dataset import Dataset
from deeprec.explore.explorer import Explorer
from deeprec.explore.protocol import Fault, item_lines, prompt
from deeprec.explore.trace import Trace
from deeprec.policies.scripted import ScriptedPolicy, ScriptedWriter
from deeprec.policies.text import WordTokenizer
from deeprec.retrieval.retriever import phrases_of
from deeprec.training.demonstrations import DemonstrationPolicy
from toys import GENRES, RecordingRetriever, toy_dataset

N = 40
KANA = "アイウエオカキクケコ"


def part_number(n: int) -> str:
    return f"MX-{2041 + n // 7}/{n % 7} M{4 + n % 5}x{10 + n}; A2, 100 pcs"


def one_word(n: int) -> str:
    return ("Hammer", "Saw", "Chisel", "Anvil", "Rasp", "Vice", "Awl", "Plane")[n % 8] + ("" if n < 8 else str(n))


def number(n: int) -> str:
    return str(1900 + 7 * n)


def repeated(n: int) -> str:
    """Every title is that of four items."""
    return f"Nitrile Gloves, Size {n // 4}"


def very_long(n: int) -> str:
    return f"Laboratory beaker number {n} " + "of borosilicate glass with spout and white graduation " * 8


def japanese(n: int) -> str:
    return f"{KANA[n % 10]}{KANA[n // 10]}の冒険{'TV' if n % 3 else '劇場版'} 第{n}期"


def thai(n: int) -> str:
    return f"น้ำปลาแท้ตราปลาหมึก {n} มล." if n % 2 else f"กะทิกล่อง {n} มล."


def marks(n: int) -> str:
    """Titles of which nothing but marks is left, and such as look like other lines."""
    return ("…", "; ;", "2. Alien", "- categories: x", "10", "title 3", '"', "User:")[n % 8] + (
        "" if n < 8 else f" {n}"
    )


KINDS = [part_number, one_word, number, repeated, very_long, japanese, thai, marks]
Titles = Callable[[int], str]


def titled(titles: Titles, n_items: int = N, *, categories: bool = False, title_chars: int = 80) -> Catalog:
    """One of ten items has categories, if any has."""
    blank = [""] * n_items
    return build_catalog(
        ids=[f"i{n}" for n in range(n_items)],
        titles=[titles(n) for n in range(n_items)],
        years=[None] * n_items,
        brands=blank,
        categories=[(GENRES[n % 5],) if categories and n % 10 == 0 else () for n in range(n_items)],
        descriptions=blank,
        title_chars=title_chars,
    )


def shop(titles: Titles, *, n_items: int = N, length: int = 8, **more: bool | int) -> Dataset:
    toy = toy_dataset(n_users=20, n_items=n_items, length=length)
    return replace(toy, catalog=titled(titles, n_items, **more))  # type: ignore[arg-type]


def explored(data: Dataset, **limits: int) -> tuple[list[Trace], RecordingRetriever]:
    retriever = RecordingRetriever(len(data.catalog))
    explorer = Explorer(ScriptedPolicy(), retriever, data.catalog, ExploreConfig(**limits))  # type: ignore[arg-type]
    return explorer.run(data.tasks("test")), retriever


@pytest.mark.parametrize("titles", KINDS)
@pytest.mark.parametrize("categories", [False, True])
def test_the_script_answers_in_full_and_asks_for_nothing_twice(titles: Titles, categories: bool) -> None:
    traces, _ = explored(shop(titles, categories=categories))
    assert {trace.faults for trace in traces} == {()}
    for trace in traces:
        assert len(trace.raw_ranking) == trace.answer_size == 10
        preferences = [turn.preference for turn in trace.turns]
        assert len(set(preferences)) == len(preferences) >= 2


@pytest.mark.parametrize("titles", KINDS)
def test_the_script_says_words_and_titles_of_the_history(titles: Titles) -> None:
    data = shop(titles)
    for trace in explored(data)[0]:
        shown = " ".join(data.catalog.titles[item] for item in trace.history[-6:]).lower().replace(";", ",")
        for turn in trace.turns[:2]:
            for phrase in phrases_of(turn.preference):
                assert phrase.lower() in shown or phrase == "something else"


def test_what_the_script_says_of_titles_alone() -> None:
    """By hand: words of several titles; then the latest titles; then what answers and history share."""
    history = (
        "Steel Hex Nut",
        "Nitrile Gloves, Blue",
        "Copper Wire",
        "Nitrile Gloves; Large, Powder-Free, 100 Pack, Box",
    )
    write = ScriptedWriter()
    talk = prompt(item_lines(history, [()] * 4), answer_size=3, items_per_call=3, max_calls=3)
    asked = []
    lists = (["Latex Gloves", "Copper Tape"], ["Hex Bolt", "Wire Brush"], ["Tape"])
    for found in lists:
        segment = write(talk)
        asked.append(segment.partition("<|begin_of_preference|>")[2].partition("<|end_of_preference|>")[0])
        talk += (
            segment + "\n\n<|begin_of_item_list|>\n" + item_lines(found, [()] * len(found)) + "<|end_of_item_list|>\n\n"
        )
    assert asked == [
        "nitrile; gloves; Nitrile Gloves, Large, Powder-Free, 100 Pack",
        "Nitrile Gloves, Large, Powder-Free, 100 Pack; Copper Wire; Nitrile Gloves, Blue",
        "gloves; copper",
    ]


@pytest.mark.parametrize(("n_items", "length"), [(9, 4), (12, 6), (15, 13), (9, 9)])
def test_a_catalogue_that_is_smaller_than_the_answer_is_answered_as_far_as_it_goes(n_items: int, length: int) -> None:
    traces, _ = explored(shop(one_word, n_items=n_items, length=length))
    for trace in traces:
        left = n_items - len(trace.history)
        assert trace.answer_size == min(10, left) == len(trace.raw_ranking)
        assert trace.well_formed
        assert f"Recommend the {trace.answer_size} items" in trace.segments[0].text


def test_the_script_asks_on_while_its_answer_is_short() -> None:
    """Eight calls of four items fill an answer of thirty; without need there are three."""
    traces, _ = explored(shop(japanese, n_items=60), answer_size=30, items_per_call=4, max_calls=8)
    assert {len(trace.turns) for trace in traces} == {8}
    assert all(trace.well_formed for trace in traces)
    traces, _ = explored(shop(japanese, n_items=60), answer_size=3, items_per_call=4, max_calls=8)
    assert {len(trace.turns) for trace in traces} == {3}


def test_the_script_stops_where_nothing_more_comes_back() -> None:
    """A retriever may know fewer items than the catalogue has."""
    data = shop(one_word)
    retriever = RecordingRetriever(len(data.catalog), never=range(4, N))
    for trace in Explorer(ScriptedPolicy(), retriever, data.catalog).run(data.tasks("test")):
        assert trace.faults == (Fault.LINES,)
        assert [len(turn.hits) for turn in trace.turns][1:] == [0]


def test_the_script_answers_a_new_user_in_full() -> None:
    data = shop(part_number)
    trace = Explorer(ScriptedPolicy(), RecordingRetriever(N), data.catalog).recommend([])
    assert trace.well_formed
    assert [turn.preference for turn in trace.turns] == ["something new", "MX-2041/0 M4x10, A2, 100 pcs"]


@pytest.mark.parametrize("titles", KINDS)
@pytest.mark.parametrize("categories", [False, True])
@pytest.mark.parametrize("limits", [{}, {"answer_size": 25, "items_per_call": 9}])
def test_demonstrations_are_well_formed_and_ask_for_nothing_twice(
    titles: Titles, categories: bool, limits: dict[str, int]
) -> None:
    data = shop(titles, categories=categories)
    tasks, followed = data.past_tasks(2)
    config = ExploreConfig(**limits)  # type: ignore[arg-type]
    policy = DemonstrationPolicy(data.catalog, tasks, followed, WordTokenizer(), config, seed=0)
    found = [trace for trace, _ in policy.examples(RecordingRetriever(N))]
    assert not policy.faults
    assert len(found) == len(tasks) > 20
    for trace in found:
        preferences = [turn.preference for turn in trace.turns]
        assert len(set(preferences)) == len(preferences)
        for preference in preferences:
            phrases = phrases_of(preference)
            assert len(set(phrases)) == len(phrases)
