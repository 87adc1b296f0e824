"""Demonstrations: well-formed explorations of a user's training data, and which of their tokens SFT learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deeprec.config import ExploreConfig
from deeprec.data.catalog import ItemIdx, UserId
from deeprec.data.dataset import Dataset, Task
from deeprec.explore import protocol
from deeprec.explore.protocol import STOPS, Fault
from deeprec.explore.trace import Author, Trace
from deeprec.policies.text import WordTokenizer
from deeprec.retrieval.baselines import PopularityRetriever
from deeprec.retrieval.retriever import Retriever, phrases_of
from deeprec.training.demonstrations import AHEAD, DemonstrationPolicy, Example
from deeprec.trm.preferences import frequent_phrases, item_phrases
from repeats import PLAYS, SHOP, SINGLE, load
from toys import RecordingRetriever, catalog_of, toy_dataset

DATA = toy_dataset()
CONFIG = ExploreConfig(answer_size=5, items_per_call=6, max_calls=3, segment_tokens=200)


def demonstrate(
    data: Dataset = DATA, retriever: Retriever | None = None, seed: int = 0, **limits: int
) -> tuple[DemonstrationPolicy, list[tuple[Trace, Example]]]:
    tasks, followed = data.past_tasks(4)
    demonstrator = DemonstrationPolicy(
        data.catalog, tasks, followed, WordTokenizer(), CONFIG.model_copy(update=limits), seed=seed
    )
    retriever = retriever or PopularityRetriever.fit(data.train_sequences(), len(data.catalog))
    return demonstrator, list(demonstrator.examples(retriever))


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_every_exploration_is_well_formed_and_never_asks_the_same_twice(calls: int) -> None:
    demonstrator, found = demonstrate(max_calls=calls)
    assert len(found) == len(demonstrator.tasks)
    for trace, _ in found:
        assert trace.well_formed
        assert len({turn.preference for turn in trace.turns}) == len(trace.turns)


def test_demonstrations_vary_in_their_limits_and_state_them() -> None:
    """After equally many lists one demonstration calls again and another must answer; only the prompt tells which."""
    demonstrator, found = demonstrate(items_per_call=3)
    seen = set()
    for trace, _ in found:
        limits = demonstrator.limits(demonstrator.tasks[trace.task])
        prompt = trace.segments[0].text
        assert f"up to {limits.max_calls} times" in prompt
        assert f"Recommend the {limits.answer_size} items" in prompt
        assert len(trace.raw_ranking) == trace.answer_size == limits.answer_size
        no_calls_left = [
            protocol.NO_CALLS in segment.text for segment in trace.segments if segment.author is not Author.POLICY
        ]
        assert no_calls_left == [False] + [turn == limits.max_calls for turn in range(1, len(trace.turns) + 1)]
        seen.add((limits.max_calls, len(trace.turns)))
    assert seen == {(1, 1), (2, 2), (3, 2), (3, 3)}
    sizes = [trace.answer_size for trace, _ in found]
    assert set(sizes) == {1, 2, 3, 4, 5}
    assert sizes.count(5) > len(sizes) / 2


def test_the_policys_tokens_are_learned_and_the_environments_are_not() -> None:
    for trace, example in demonstrate()[1]:
        tokens, written, _ = trace.tokens()
        assert (list(example.tokens), list(example.learned)) == (tokens, written)
        own = [segment.author is Author.POLICY for segment in trace.segments for _ in segment.tokens]
        assert list(example.learned) == own


def test_the_first_word_tells_whether_a_call_follows() -> None:
    for trace, _ in demonstrate(items_per_call=3)[1]:
        assert trace.thought.startswith("I rank ")
        assert not any(turn.thought.startswith("I rank ") for turn in trace.turns)


def test_the_answer_is_what_came_back_in_order() -> None:
    for trace, _ in demonstrate()[1]:
        assert list(trace.raw_ranking) == list(trace.pool[: trace.answer_size])


def test_the_first_call_has_the_latest_names_and_the_most_frequent_phrase() -> None:
    """It uses no hindsight, as the trained model has none either."""
    demonstrator, found = demonstrate()
    for trace, _ in found:
        shown = trace.history[-CONFIG.history :]
        titles = [DATA.catalog.titles[item].partition(" (")[0] for item in reversed(shown[-3:])]
        assert phrases_of(trace.turns[0].preference) == [
            *dict.fromkeys(titles),
            frequent_phrases(DATA.catalog, shown)[0],
        ]
    others = {name: tuple(reversed(items)) for name, items in demonstrator.followed.items()}
    blind = DemonstrationPolicy(
        DATA.catalog, list(demonstrator.tasks.values()), others, WordTokenizer(), CONFIG, seed=0
    )
    retriever = PopularityRetriever.fit(DATA.train_sequences(), len(DATA.catalog))
    firsts = [[trace.turns[0].preference for trace, _ in each.examples(retriever)] for each in (demonstrator, blind)]
    assert firsts[0] == firsts[1]


def test_later_calls_say_what_the_next_items_share_with_the_history() -> None:
    """Toy titles share no words. A later call has a new phrase that both the next items and the history have, else the
    name of the latest item that is new, else a phrase of it.
    """
    demonstrator, found = demonstrate()
    kinds = names = 0
    for trace, _ in found:
        first, *later = ([*phrases_of(turn.preference)] for turn in trace.turns)
        if not later:
            continue
        shown = trace.history[-CONFIG.history :]
        phrases = [set(item_phrases(DATA.catalog, item)) - set(first) for item in shown]
        ahead = demonstrator.followed[trace.task][:AHEAD]
        again = [set().union(*phrases) & set(item_phrases(DATA.catalog, item)) for item in ahead]
        older = [DATA.catalog.titles[item].partition(" (")[0] for item in shown[:-3]]
        if any(again):
            assert set(later[0]) <= next(filter(None, again))
        elif older:
            assert later[0] == [older[-1]]
        else:
            assert set(later[0]) <= next((each for each in reversed(phrases) if each), {"something else"})
        kinds += any(again)
        names += not any(again) and bool(older)
    assert kinds
    assert names


def test_similar_items_of_the_history_are_named() -> None:
    """Items of the history whose titles share words with the next one, the most similar first."""
    titles = [f"Thing{item} alone" for item in range(40)]
    titles[3], titles[4], titles[5] = "Acme hex bolt (1973)", "Acme nut", "Zeta glue"
    titles[7], titles[9] = "Acme washer", "Acme steel hex bolt"
    catalog = replace(DATA.catalog, titles=tuple(titles))
    history, followed = (tuple(map(ItemIdx, positions)) for positions in ((0, 4, 3, 2, 5, 7), (9, 11)))
    task = Task("t", UserId("u"), history)
    demonstrator = DemonstrationPolicy(catalog, [task], {"t": followed}, WordTokenizer(), CONFIG, seed=0)
    (trace, _), *_ = demonstrator.examples(RecordingRetriever(40))
    assert phrases_of(trace.turns[0].preference)[:3] == ["Acme washer", "Zeta glue", "Thing2 alone"]
    assert phrases_of(trace.turns[1].preference) == ["Acme hex bolt", "Acme nut"]


def test_held_out_items_are_never_mentioned() -> None:
    """Validation and test items have words of their own; no demonstration and no query contains them."""
    data = toy_dataset(n_users=4, seed=3)
    held_out = {int(item) for u in range(4) for item in data.sequence(u)[-2:]}
    only = held_out - {int(item) for item in data.train_sequences().items_N}
    assert only
    catalog = catalog_of([("SECRET",) if item in only else ("Drama",) for item in range(len(data.catalog))])
    titles = tuple(f"SECRET {i}" if i in only else title for i, title in enumerate(catalog.titles))
    data = replace(data, catalog=replace(catalog, titles=titles))
    retriever = RecordingRetriever(len(catalog), never=only)
    _, found = demonstrate(data, retriever)
    assert found
    assert all("SECRET" not in segment.text for trace, _ in found for segment in trace.segments)
    assert all("SECRET" not in query.preference for query in retriever.queries)


def test_words_vary_with_the_seed_and_follow_from_it() -> None:
    texts = [[trace.to_json() for trace, _ in demonstrate(seed=seed)[1]] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    openings = {trace.turns[0].thought for trace, _ in demonstrate()[1]}
    assert len(openings) > 20


def test_a_demonstration_that_breaks_a_limit_is_left_out() -> None:
    tasks, followed = DATA.past_tasks(1)
    for cramped in ({"segment_tokens": 12}, {"context_tokens": 64}):
        demonstrator = DemonstrationPolicy(
            DATA.catalog, tasks, followed, WordTokenizer(), CONFIG.model_copy(update=cramped), seed=0
        )
        assert not list(demonstrator.examples(RecordingRetriever(len(DATA.catalog))))
        assert demonstrator.faults[Fault.NO_ANSWER] == len(tasks)


def test_a_title_of_several_items_names_one_that_came_back() -> None:
    catalog = replace(DATA.catalog, titles=("Twin",) * 12 + DATA.catalog.titles[12:])
    catalog = type(catalog)(**{name: getattr(catalog, name) for name in catalog.__dataclass_fields__})
    demonstrator, found = demonstrate(replace(DATA, catalog=catalog))
    assert set(demonstrator.faults) <= {Fault.LINES}  # too few titles that differ, and nothing else
    assert len(found) + demonstrator.faults[Fault.LINES] == len(demonstrator.tasks)
    twins = [(line.item, trace.pool) for trace, _ in found for line in trace.answer if line.text == "Twin"]
    assert twins
    assert all(item in pool for item, pool in twins)


@pytest.mark.llm
def test_demonstrations_have_the_tokens_that_the_model_would_write() -> None:
    from deeprec.config import PolicyConfig
    from deeprec.policies.transformers import TransformersPolicy

    policy = TransformersPolicy.load(PolicyConfig(adapter="none"))
    tasks, followed = DATA.past_tasks(1)
    config = CONFIG.model_copy(update={"segment_tokens": 400})
    demonstrator = DemonstrationPolicy(DATA.catalog, tasks[:5], followed, policy, config, seed=0)
    for trace, _ in demonstrator.examples(RecordingRetriever(len(DATA.catalog))):
        for segment in trace.segments:
            if segment.author is Author.POLICY:
                assert list(segment.tokens) == policy.encode(segment.text)
                assert segment.text.endswith(STOPS)


def test_demonstrations_may_answer_with_what_the_user_chose_before(tmp_path: Path) -> None:
    for name, sequences in (("plays", PLAYS), ("shop", SHOP), ("single", SINGLE)):
        (tmp_path / name).mkdir()
        data = load(tmp_path / name, sequences)
        demonstrator, found = demonstrate(data)
        assert len(found) == len(demonstrator.tasks), demonstrator.faults
        assert any({*trace.raw_ranking} & {*trace.history} for trace, _ in found)
        assert all("none from the history" not in trace.segments[0].text for trace, _ in found)
