"""Leave-one-out by a table worked out by hand; parts of the users, cores, statistics."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from deeprec.config import DataConfig
from deeprec.data.dataset import Dataset, Task, k_core
from deeprec.data.sources import load_dataset
from deeprec.errors import DeepRecError

# user, item, time; the rows are out of order on purpose.
ROWS = [
    ("ann", 3, 30), ("bob", 1, 2), ("ann", 1, 10), ("cat", 4, 9), ("ann", 2, 20), ("eve", 3, 2), 
    ("eve", 4, 1),
    ("bob", 3, 3), ("bob", 2, 1), ("ann", 5, 50), ("cat", 5, 8), ("dan", 3, 7), ("ann", 4, 40), ("eve", 1, 4),
    ("eve", 2, 3),
]  # fmt: skip


def write(folder: Path, rows: list[tuple[str, int, int]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{user},{item},{time}\n" for user, item, time in rows)
    (folder / "interactions.csv").write_text(f"user_id,item_id,time\n{text}", encoding="utf-8")
    items = sorted({item for _, item, _ in rows})
    titles = "".join(f"{item},Title {item}\n" for item in items)
    (folder / "items.csv").write_text(f"item_id,title\n{titles}", encoding="utf-8")
    return folder


def load(folder: Path, **options: object) -> Dataset:
    options = {"user_core": 1, "item_core": 1, "source": str(folder), **options}
    return load_dataset(DataConfig.model_validate(options))


@pytest.fixture
def toy(tmp_path: Path) -> Dataset:
    return load(write(tmp_path, ROWS))


def item_ids(dataset: Dataset, items: object) -> str:
    return "".join(dataset.catalog.ids[item] for item in items)  # type: ignore[attr-defined]


def test_sequences_are_in_order_of_time(toy: Dataset) -> None:
    assert toy.users == ("ann", "bob", "cat", "dan", "eve")
    assert toy.catalog.ids == ("1", "2", "3", "4", "5")
    assert [item_ids(toy, toy.sequence(u)) for u in range(5)] == ["12345", "213", "54", "3", "4321"]
    assert toy.items_N.dtype == np.int32
    assert toy.starts_U1.tolist() == [0, 5, 8, 10, 11, 15]
    assert toy.times_N is not None
    assert toy.times_N.tolist() == [10, 20, 30, 40, 50, 1, 2, 3, 8, 9, 7, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("test", {"ann": ("1234", "5"), "bob": ("21", "3"), "eve": ("432", "1")}),
        ("validation", {"ann": ("123", "4"), "bob": ("2", "1"), "eve": ("43", "2")}),
    ],
)
def test_leave_one_out(toy: Dataset, split: str, expected: dict[str, tuple[str, str]]) -> None:
    tasks, targets = toy.tasks(split), toy.targets(split)  # type: ignore[arg-type]
    assert [task.id for task in tasks] == list(targets) == [f"{split}:{user}" for user in expected]
    assert {task.user: (item_ids(toy, task.history), item_ids(toy, [targets[task.id]])) for task in tasks} == expected


def test_training_sequences_hold_no_target(toy: Dataset) -> None:
    sequences = toy.train_sequences()
    assert [item_ids(toy, sequence) for sequence in sequences] == ["123", "2", "54", "3", "43"]
    assert len(sequences) == 5
    with pytest.raises(IndexError):
        sequences[5]


def test_a_task_cannot_carry_a_target(toy: Dataset) -> None:
    task = toy.tasks("test")[0]
    assert set(Task.__slots__) == {"id", "user", "history", "exclude_history", "include"}
    with pytest.raises((AttributeError, TypeError)):
        task.target = 1  # type: ignore[attr-defined]


def many_users(folder: Path, names: list[str]) -> Dataset:
    return load(write(folder, [(name, item, item) for name in names for item in range(5)]))


@pytest.mark.parametrize(
    ("per_user", "expected"),
    [
        (1, [("ann", "12", "3"), ("cat", "5", "4"), ("eve", "4", "3")]),
        (9, [("ann", "1", "23"), ("ann", "12", "3"), ("cat", "5", "4"), ("eve", "4", "3")]),
    ],
)
def test_past_tasks_lie_inside_the_training_sequences(
    toy: Dataset, per_user: int, expected: list[tuple[str, str, str]]
) -> None:
    tasks, followed = toy.past_tasks(per_user)
    assert [task.id for task in tasks] == list(followed)
    assert [(t.user, item_ids(toy, t.history), item_ids(toy, followed[t.id])) for t in tasks] == expected
    assert [task.id for task in tasks] == [f"train:{len(history)}:{user}" for user, history, _ in expected]


def users_of(parts: dict[str, Dataset]) -> dict[str, set[str]]:
    return {name: set(part.users) for name, part in parts.items()}


def test_parts_are_disjoint_stable_and_about_as_large_as_asked(tmp_path: Path) -> None:
    names = [f"user{n}" for n in range(1000)]
    dataset = many_users(tmp_path / "all", names)
    shares = {"cold": 0.2, "recommend": 0.5}
    parts, rest = dataset.divide(shares, seed=1)
    users = users_of(parts)
    assert not users["cold"] & users["recommend"]
    assert sorted([*users["cold"], *users["recommend"], *rest.users]) == sorted(dataset.users)
    # Four standard deviations of a binomial with 1,000 draws.
    assert abs(len(users["cold"]) - 200) < 51
    assert abs(len(users["recommend"]) - 500) < 64

    random.Random(0).shuffle(names)
    fewer, _ = many_users(tmp_path / "some", names[:500]).divide(shares, seed=1)
    for part, found in users_of(fewer).items():
        assert found == users[part] & set(names[:500])
    other, _ = dataset.divide(shares, seed=2)
    assert set(other["cold"].users) != users["cold"]


def test_parts_keep_their_users_sequences_and_times_over_one_catalogue(toy: Dataset) -> None:
    parts, rest = toy.divide({"a": 0.4, "b": 0.2}, seed=0)
    whole = {user: (toy.sequence(u).tolist(), times_of(toy, u)) for u, user in enumerate(toy.users)}
    for part in (*parts.values(), rest):
        assert part.catalog is toy.catalog
        for u, user in enumerate(part.users):
            assert (part.sequence(u).tolist(), times_of(part, u)) == whole[user]
    assert parts["a"].fingerprint != rest.fingerprint != toy.fingerprint


def times_of(dataset: Dataset, u: int) -> list[float]:
    assert dataset.times_N is not None
    return dataset.times_N[dataset.starts_U1[u] : dataset.starts_U1[u + 1]].tolist()


def test_all_users_serve_where_shares_sum_to_one(tmp_path: Path) -> None:
    dataset = many_users(tmp_path, [f"user{n}" for n in range(200)])
    parts, rest = dataset.divide({"a": 0.1, "b": 0.2, "c": 0.7}, seed=0)
    assert sum(len(part.users) for part in parts.values()) == 200
    assert (len(rest.users), len(rest.items_N), rest.past_tasks(3)) == (0, 0, ([], {}))


@pytest.mark.parametrize("shares", [{"a": 0.7, "b": 0.4}, {"a": -0.1}, {"a": float("nan")}])
def test_impossible_shares_are_refused(toy: Dataset, shares: dict[str, float]) -> None:
    with pytest.raises(DeepRecError, match="shares"):
        toy.divide(shares, seed=0)


def test_fingerprint_changes_with_sequences_and_ids_only(tmp_path: Path, toy: Dataset) -> None:
    shuffled = ROWS.copy()
    random.Random(3).shuffle(shuffled)
    assert load(write(tmp_path / "shuffled", shuffled)).fingerprint == toy.fingerprint
    later = [(user, item, time + 1000) for user, item, time in ROWS]
    assert load(write(tmp_path / "later", later)).fingerprint == toy.fingerprint
    swapped = [(user, {1: 2, 2: 1}.get(item, item) if user == "bob" else item, t) for user, item, t in ROWS]
    assert load(write(tmp_path / "swapped", swapped)).fingerprint != toy.fingerprint
    renamed = [(user.replace("dan", "dab"), item, time) for user, item, time in ROWS]
    assert load(write(tmp_path / "renamed", renamed)).fingerprint != toy.fingerprint
    assert len(toy.fingerprint) == 64


def brute_core(pairs: list[tuple[int, int]], user_core: int, item_core: int) -> list[tuple[int, int]]:
    while True:
        kept = [
            (u, i)
            for u, i in pairs
            if sum(u == v for v, _ in pairs) >= user_core and sum(i == j for _, j in pairs) >= item_core
        ]
        if kept == pairs:
            return pairs
        pairs = kept


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("user_core", "item_core"), [(2, 3), (4, 4), (1, 5)])
def test_k_core_is_that_of_a_plain_loop(seed: int, user_core: int, item_core: int) -> None:
    generator = np.random.default_rng(seed)
    pairs = list(zip(generator.integers(0, 12, 60).tolist(), generator.integers(0, 15, 60).tolist(), strict=True))
    frame = k_core(pl.DataFrame(pairs, schema=["user", "item"], orient="row"), user_core, item_core)
    assert frame.rows() == brute_core(pairs, user_core, item_core)


def test_k_core_goes_on_until_nothing_changes() -> None:
    chain = pl.DataFrame({"user": list("aabbccd"), "item": [1, 2, 2, 3, 3, 4, 4]})
    assert k_core(chain, 2, 2).is_empty()


def test_describe(toy: Dataset) -> None:
    said = toy.describe()
    assert (said["users"], said["items"], said["interactions"]) == (5, 5, 15)
    assert said["density"] == pytest.approx(15 / 25)
    assert said["interactions_per_user"] == {"min": 1, "median": 3.0, "max": 5}
    assert said["interactions_per_item"] == {"min": 2, "median": 3.0, "max": 4}
    assert (said["first_date"], said["last_date"]) == (None, None), "10..50 are no dates"
    assert said["tied_times"] == 0.0
    assert (said["with_year"], said["distinct_titles"], said["ambiguous_titles"]) == (0.0, 5, 0)


def test_ties_are_counted_within_a_user(tmp_path: Path) -> None:
    day = 86_400
    rows = [
        ("a", 1, 10_000 * day), ("a", 2, 10_000 * day), ("a", 3, 10_001 * day),
        ("b", 1, 10_001 * day), ("b", 2, 10_002 * day),
    ]  # fmt: skip
    said = load(write(tmp_path, rows)).describe()
    assert said["tied_times"] == pytest.approx(2 / 5)
    assert (said["first_date"], said["last_date"]) == ("1997-05-19", "1997-05-21")
