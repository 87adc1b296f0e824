"""Lists for all users: those of the recommender asked alone, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import gc
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from deeprec import Explorer, ScriptedPolicy, write_recommendations
from deeprec.batch.recommendations import _Explored, _Retrieved
from deeprec.config import ExploreConfig
from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.errors import DeepRecError
from deeprec.explore.policy import Chunk, Finish
from deeprec.retrieval.baselines import TransitionRetriever
from deeprec.retrieval.retriever import Hit, Query, Retriever
from deeprec.runs.progress import Progress
from toys import RecordingRetriever, toy_dataset

DATASET = toy_dataset()
CATALOG = DATASET.catalog
HISTORIES = [tuple(DATASET.sequence(u).tolist()) for u in range(len(DATASET.users))]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Retrieved, "users_a_part", 16)
    monkeypatch.setattr(_Explored, "users_a_part", 16)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "recs.parquet"


class Transitions(Retriever):
    """The transitions of the toy data, with a catalogue."""

    catalog = CATALOG
    digest = "one"

    def __init__(self, fail_after: int = 10_000) -> None:
        self.fitted = TransitionRetriever.fit(DATASET.train_sequences(), len(CATALOG))
        self.left, self.histories = fail_after, Counter[tuple[int, ...]]()

    def retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        self.left -= len(queries)
        if self.left < 0:
            raise KeyboardInterrupt
        self.histories.update(query.history for query in queries)
        return self.fitted.retrieve(queries, k)


class Failing(ScriptedPolicy):
    """Fails for some users, as if their server went away, so many times each; and counts whom it wrote for."""

    def __init__(self, users: Sequence[str] = (), times: int = 1, interrupt_after: int = 10_000) -> None:
        super().__init__()
        self.failing, self.times, self.left = dict.fromkeys(users, 0), times, interrupt_after
        self.asked = Counter[str]()

    def submit(self, requests: Sequence[Any]) -> None:
        self.asked.update(self.user(request.key) for request in requests)
        super().submit(requests)

    def step(self) -> list[Chunk]:
        return [self.failed(chunk) for chunk in super().step()]

    def failed(self, chunk: Chunk) -> Chunk:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        if self.failing.get(user := self.user(chunk.key), self.times) >= self.times:
            return chunk
        self.failing[user] += 1
        return Chunk(chunk.key, (), (), Finish.FAILED, "no server")

    @staticmethod
    def user(key: str) -> str:
        return key.rpartition(":")[2]


def explorer(policy: ScriptedPolicy | None = None) -> Explorer:
    return Explorer(policy or ScriptedPolicy(), Transitions(), CATALOG, ExploreConfig(items_per_call=4, batch_size=5))


class Told(Progress):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.counts: list[int] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def phase(self, name: str, total: int | None = None, *, unit: str = "") -> Any:
        told = self

        class Phase:
            def __enter__(self) -> Callable[..., None]:
                return lambda done, total=None, text="": told.counts.append(done)

            def __exit__(self, *args: object) -> None: ...

        assert (total, unit) == (60, "users")
        return Phase()


def lists(table: pl.DataFrame) -> dict[str, list[str]]:
    return {str(user): part["item"].to_list() for (user,), part in table.group_by("user", maintain_order=True)}


# Retrievers


def test_lists_are_those_of_the_retriever_asked_for_each_user_alone(out: Path) -> None:
    retriever = Transitions()
    write_recommendations(retriever, DATASET, out, k=4)
    table = pl.read_parquet(out)
    expected = [
        (user, f"i{hit.item}", CATALOG.titles[hit.item], rank, hit.score)
        for user, history in zip(DATASET.users, HISTORIES, strict=True)
        for rank, hit in enumerate(retriever.retrieve([Query(history, exclude=history)], 4)[0], start=1)
    ]
    assert table.rows() == expected
    assert len(expected) == 240
    assert table.schema == {
        "user": pl.String,
        "item": pl.String,
        "title": pl.String,
        "rank": pl.Int64,
        "score": pl.Float64,
    }


def test_the_whole_sequence_is_the_history_and_is_left_out(out: Path) -> None:
    retriever = RecordingRetriever(len(CATALOG))
    write_recommendations(retriever, DATASET, out)
    assert [query.history for query in retriever.queries] == HISTORIES
    assert [set(query.exclude) for query in retriever.queries] == list(map(set, HISTORIES))
    assert {query.preference for query in retriever.queries} == {""}


def test_the_trm_gives_the_frame_of_its_own_recommend(data_site: Any, tmp_path: Path) -> None:
    from deeprec import TRM, load_dataset

    trm, dataset = TRM.load(data_site.trained / "trm"), load_dataset(data_site.root / "table.csv")
    assert trm.digest is not None
    write_recommendations(trm, dataset, tmp_path / "recs.parquet", k=7)
    table, expected = pl.read_parquet(tmp_path / "recs.parquet"), trm.recommend(dataset, k=7)
    assert table.drop("score").equals(expected.drop("score"))
    assert table["score"].to_list() == pytest.approx(expected["score"].to_list(), abs=1e-5)


def test_a_recommender_of_other_data_reads_ids(out: Path) -> None:
    """The same items in another order."""
    write_recommendations(Transitions(), DATASET, out, k=3)
    other = dataclasses.replace(
        DATASET, catalog=Catalog.from_frame(CATALOG.to_frame().reverse()), items_N=39 - DATASET.items_N
    )
    write_recommendations(Transitions(), other, out.with_name("other.parquet"), k=3)
    assert pl.read_parquet(out).equals(pl.read_parquet(out.with_name("other.parquet")))
    larger = toy_dataset(n_items=41)
    with pytest.raises(DeepRecError, match="no item with the id 'i40'"):
        write_recommendations(Transitions(), larger, out.with_name("larger.parquet"))


def test_an_exhausted_catalogue_gives_shorter_lists(out: Path) -> None:
    write_recommendations(Transitions(), DATASET, out, k=100)
    assert {len(items) for items in lists(pl.read_parquet(out)).values()} == {28}


# Users


def test_some_users_in_their_order_each_once(out: Path) -> None:
    write_recommendations(Transitions(), DATASET, out, k=4)
    every = lists(pl.read_parquet(out))
    some = out.with_name("some.csv")
    write_recommendations(Transitions(), DATASET, some, k=4, users=["u41", "u3", "u41", "u7"])
    found = lists(pl.read_csv(some))
    assert list(found) == ["u41", "u3", "u7"]
    assert found == {user: every[user] for user in found}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"users": ["u1", "a", "b", "c", "d"]}, r"toy has no history of 4 of 5 users, as 'a', 'b', 'c'; .*'u0', 'u1'"),
        ({"users": []}, "list of users is empty"),
        ({"users": "u1"}, "not the text 'u1'"),
        ({"k": 0}, "at least 1, not 0"),
    ],
)
def test_a_mistake_leaves_nothing_behind(out: Path, options: dict[str, Any], said: str) -> None:
    for recommender in (Transitions(), explorer()):
        with pytest.raises(DeepRecError, match=said):
            write_recommendations(recommender, DATASET, out, **options)
    assert list(out.parent.iterdir()) == []


# Explorers


def test_an_explorer_s_lists_say_how_they_came_about(out: Path) -> None:
    write_recommendations(explorer(), DATASET, out, k=6)
    table = pl.read_parquet(out)
    expected = []
    for user, history in zip(DATASET.users, HISTORIES, strict=True):
        trace = explorer().recommend(history, k=6)
        found = trace.first_found()
        for rank, item in enumerate(trace.ranking, start=1):
            call, turn = found[item]
            expected.append((user, f"i{item}", CATALOG.titles[item], rank, call, turn.preference, "answer", None))
    assert table.rows() == expected
    assert len(expected) == 360
    assert table.columns[4:] == ["call", "preference", "origin", "error"]
    assert table.dtypes[3:] == [pl.Int64, pl.Int64, pl.String, pl.String, pl.String]
    assert {1, 2} <= set(table["call"])


def test_a_failed_exploration_is_repeated(out: Path) -> None:
    policy = Failing(["u3", "u17"])
    write_recommendations(explorer(policy), DATASET, out, k=6)
    write_recommendations(explorer(), DATASET, out.with_name("unbroken.parquet"), k=6)
    assert policy.failing == {"u3": 1, "u17": 1}
    assert out.read_bytes() == out.with_name("unbroken.parquet").read_bytes()


def test_one_that_fails_again_is_told(out: Path) -> None:
    told = Told()
    write_recommendations(explorer(Failing(["u3", "u17"], times=99)), DATASET, out, k=6, progress=told)
    table = pl.read_parquet(out)
    failed = table.filter(pl.col("error").is_not_null())
    assert set(failed["user"]) == {"u3", "u17"}
    assert set(failed["error"]) == {"no server"}
    assert set(failed["origin"]) == {"retriever without preference"}
    assert failed["call"].null_count() == failed["preference"].null_count() == len(failed) == 12
    expected = Transitions().retrieve([Query(HISTORIES[3], exclude=HISTORIES[3])], 6)[0]
    assert lists(table)["u3"] == [f"i{hit.item}" for hit in expected]
    assert told.messages == ["2 explorations failed: the column error says why, and origin what stands in."]


def test_where_many_fail_the_policy_is_at_fault(out: Path) -> None:
    """What was done before is kept, also of the part in which they fail."""
    users = [f"u{n}" for n in range(25, 60)]
    with pytest.raises(DeepRecError, match=r"\d+ of 15 explorations failed twice \(first: no server\)"):
        write_recommendations(explorer(Failing(users, times=99)), DATASET, out, k=6)
    assert not out.exists()
    policy = Failing()
    write_recommendations(explorer(policy), DATASET, out, k=6)
    assert set(policy.asked) == set(users)
    write_recommendations(explorer(), DATASET, out.with_name("unbroken.parquet"), k=6)
    assert out.read_bytes() == out.with_name("unbroken.parquet").read_bytes()


# Interruptions


@pytest.mark.parametrize("after", range(0, 61, 12))
def test_an_interrupted_retriever_goes_on_and_the_file_is_that_of_an_unbroken_run(out: Path, after: int) -> None:
    told = Told()
    with pytest.raises(KeyboardInterrupt):
        write_recommendations(Transitions(fail_after=min(after, 59)), DATASET, out, k=4)
    assert not out.exists()
    retriever = Transitions()
    write_recommendations(retriever, DATASET, out, k=4, progress=told)
    assert retriever.histories.total() == 60 - min(after, 59) // 15 * 15  # four parts of 15
    assert told.counts[-1] == 60
    assert told.counts == sorted(told.counts)
    write_recommendations(Transitions(), DATASET, out.with_name("unbroken.parquet"), k=4)
    assert out.read_bytes() == out.with_name("unbroken.parquet").read_bytes()
    assert {path.name for path in out.parent.iterdir()} == {out.name, "unbroken.parquet"}


@pytest.mark.parametrize("after", range(0, 200, 20))
def test_an_interrupted_explorer_explores_for_the_others_alone(out: Path, after: int) -> None:
    first = Failing(interrupt_after=after)
    with pytest.raises(KeyboardInterrupt):
        write_recommendations(explorer(first), DATASET, out, k=6)
    policy = Failing()
    write_recommendations(explorer(policy), DATASET, out, k=6)
    again = set(first.asked) & set(policy.asked)
    assert set(first.asked) | set(policy.asked) == set(DATASET.users)
    assert len(again) <= 5, "at most those in flight"
    write_recommendations(explorer(), DATASET, out.with_name("unbroken.parquet"), k=6)
    assert out.read_bytes() == out.with_name("unbroken.parquet").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda given: given | {"k": 5}, "another k:"),
        (lambda given: given | {"users": ["u1", "u2"]}, "another choice of users:"),
        (lambda given: given | {"recommender": RecordingRetriever(40)}, "another recommender:"),
        (lambda given: given | {"recommender": explorer()}, "another recommender:"),
        (lambda given: given | {"key": {"policy": "b"}}, "another recommender:"),
        (lambda given: given | {"dataset": toy_dataset(seed=1)}, "another data set:"),
        (
            lambda given: given | {
                "dataset": dataclasses.replace(
                    DATASET, catalog=dataclasses.replace(CATALOG, titles=("New", *CATALOG.titles[1:]))
                )
            },
            "another data set:",
        ),
    ],
)  # fmt: skip
def test_other_settings_are_not_mixed_in(out: Path, change: Callable[[Any], Any], said: str) -> None:
    given = {"recommender": Transitions(fail_after=40), "dataset": DATASET, "out": out, "k": 4}
    with pytest.raises(KeyboardInterrupt):
        write_recommendations(**given)
    with pytest.raises(DeepRecError, match=said):
        write_recommendations(**change(given | {"recommender": Transitions()}))


def test_a_retrained_model_is_another_recommender(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_recommendations(Transitions(fail_after=40), DATASET, out)
    monkeypatch.setattr(Transitions, "digest", "two")
    with pytest.raises(DeepRecError, match="another recommender:"):
        write_recommendations(Transitions(), DATASET, out)
    monkeypatch.setattr(Transitions, "digest", "one")
    write_recommendations(Transitions(), DATASET, out)


def test_the_limits_of_explorations_count_and_their_number_in_flight_does_not(out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_recommendations(explorer(Failing(interrupt_after=100)), DATASET, out)
    other = Explorer(Failing(), Transitions(), CATALOG, ExploreConfig(items_per_call=4, max_calls=2))
    with pytest.raises(DeepRecError, match="another recommender:"):
        write_recommendations(other, DATASET, out)
    more = Explorer(Failing(), Transitions(), CATALOG, ExploreConfig(items_per_call=4, batch_size=9))
    write_recommendations(more, DATASET, out)


# Memory


class Constant(Retriever):
    """The first items, at once."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        return [[Hit(ItemIdx(item), 1.0) for item in range(k)] for _ in queries]


def test_memory_does_not_grow_with_the_users(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Retrieved, "users_a_part", 250)
    peaks = []
    for n_users in (500, 3000):
        dataset = toy_dataset(n_users=n_users)
        assert dataset.fingerprint
        gc.collect()  # cycles that wait for the collector come and go at any time
        tracemalloc.start()
        write_recommendations(Constant(dataset.catalog), dataset, out.with_name(f"{n_users}.parquet"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert pl.scan_parquet(out.with_name("3000.parquet")).select(pl.len()).collect().item() == 30_000
    assert peaks[1] < 1.5 * peaks[0], peaks
