"""The analyses against tables made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from deeprec.evaluation.cached_results import CachedResult, Explorations, Users
from deeprec.evaluation.oracle_ablation import OracleAblation
from deeprec.evaluation.results import Result, by_oracle, by_turn, gini, reach, thirds


def part(ranks, rankings=None, explorations=None, users=None):
    n = len(ranks)
    return CachedResult(
        key="",
        plan="",
        fingerprint="",
        users=tuple(users or (f"u{u}" for u in range(n))),
        ranks=tuple(ranks),
        rankings=tuple(rankings or ((),) * n),
        seconds_per_user=1.0,
        note="",
        environment={},
        explorations=explorations,
    )


def explored(raw, pooled=None, found=None, retrieved=None, oracle_ablation=None):
    n = len(raw)
    return Explorations(
        raw=tuple(raw),
        pooled=tuple(pooled or (-1,) * n),
        found=tuple(found or (0,) * n),
        retrieved=tuple(retrieved or ((),) * n),
        tokens=(10,) * n,
        well_formed=(True,) * n,
        fallback=(False,) * n,
        stops={"answered": n},
        oracle_ablation=oracle_ablation,
    )


def result(*parts, cutoffs=(1, 10)):
    return Result("x", tuple(range(len(parts))), parts, cutoffs)


def test_metrics_are_means_over_seeds_of_each_user():
    found = result(part([0, -1, 2]), part([0, 0, -1]))
    assert found.metrics["NDCG@10"].tolist() == [1.0, 0.5, 0.25]  # 1 / log2(4) = 0.5, half of it
    assert found.metrics["Recall@1"].tolist() == [1.0, 0.5, 0.0]
    assert found.mean("NDCG@10").mean == pytest.approx(1.75 / 3)


def test_a_comparison_is_on_common_users_whatever_their_order():
    ours = result(part([0, -1], users=["b", "a"]))
    theirs = result(part([-1, 0, 0], users=["a", "c", "b"]))
    change = ours.minus(theirs, "NDCG@10")
    assert (change.users, change.difference) == (2, 0.0)
    assert ours.minus(result(part([0], users=["z"])), "NDCG@10") is None


def test_a_comparison_is_on_common_seeds():
    """Theirs is 1 with seed 0 and 0 with seed 1; ours was run with seed 1 alone, and is 0.5."""
    ours = Result("x", (1,), (part([2]),), (10,))
    theirs = result(part([0]), part([-1]), cutoffs=(10,))
    assert ours.minus(theirs, "NDCG@10").difference == 0.5
    assert ours.minus(theirs.on(frozenset({0})), "NDCG@10") is None


def test_the_difference_on_all_users_is_estimated_from_a_sample():
    """Ours has what the control has, on 40 of 80 users in an order of its own; the control is right for half of all,
    the base for a quarter."""
    base, control = result(part([0, -1, -1, -1] * 20)), result(part([-1, 0] * 40))
    chosen = [(7 * position) % 80 for position in range(40)]
    users = [f"u{u}" for u in chosen]
    ours = result(part([-1 if u % 2 == 0 else 0 for u in chosen], users=users))
    change = ours.minus_on_all(base, [control], "NDCG@10")
    assert (change.difference, change.users, change.base) == (pytest.approx(0.25), 80, 0.25)
    assert control.minus_on_all(base, [control], "NDCG@10") is None  # ran on all
    assert ours.minus_on_all(base, [ours], "NDCG@10") is None  # not known of all
    assert ours.minus_on_all(base, [result(part([0] * 80), part([0] * 80))], "NDCG@10") is None  # other seeds
    strangers = result(part([0] * 40, users=[f"v{u}" for u in range(40)]))
    assert strangers.minus_on_all(base, [control], "NDCG@10") is None


def test_what_distinguishes_nothing_is_not_estimated():
    base, control = result(part([0, -1] * 40)), result(part([-1, 0] * 40))
    users = [f"u{u}" for u in range(40)]
    missing = result(part([-1] * 40, users=users))
    as_base = result(part([0, -1] * 20, users=users))
    hardly = result(part([-1, 0] * 4 + [1, -1] + [0, -1] * 15, users=users))
    enough = result(part([-1, 0] * 5 + [0, -1] * 15, users=users))
    estimates = [each.minus_on_all(base, [control], "NDCG@10") for each in (missing, as_base, hardly, enough)]
    assert [change is not None for change in estimates] == [False, False, False, True]
    twin = result(part([0, -1] * 39 + [-1, 0]))
    assert enough.minus_on_all(base, [twin], "NDCG@10") is None  # a control that is the base in the sample


def test_raw_answers_are_kept_apart_from_rankings_with_fallback():
    with_fallback = result(
        part([0, 1], explorations=explored(raw=(0, -1))), part([0, 1], explorations=explored((-1, 0)))
    )
    assert with_fallback.raw.tolist() == [0.5, 0.5]


def test_what_explorations_had_after_each_call():
    """Four users; targets came in call 1 at rank 0, in call 2 at rank 3, never, and in call 1 at rank 1."""
    explorations = explored((0, -1, -1, 1), (0, 3, -1, 1), (1, 2, 0, 1), ((3, 2), (3, 3), (3,), (3, 1)))
    first, second = by_turn(result(part([0, 3, -1, 1], explorations=explorations)))
    assert (first.share, first.new, first.pool_recall.mean) == (1.0, 3.0, 0.5)
    assert first.ndcg.mean == pytest.approx((1 + 1 / np.log2(3)) / 4)
    assert (second.share, second.new, second.pool_recall.mean) == (0.75, 2.0, 0.75)
    assert second.ndcg.mean == pytest.approx((1 + 1 / np.log2(3) + 1 / np.log2(5)) / 4)
    assert by_turn(result(part([0]))) == []
    assert by_turn(result(part([0], explorations=explored((0,))))) == []  # one look, no call
    nothing = explored((-1,) * 4, retrieved=((3,),) * 4)
    first, second = by_turn(
        result(part([0, 3, -1, 1], explorations=explorations), part([-1] * 4, explorations=nothing))
    )
    assert (first.pool_recall.mean, second.pool_recall.mean, second.share) == (0.25, 0.375, 0.375)


def test_explorations_with_one_part_replaced():
    """Two users, two seeds; a rank of 2 counts 0.5. The rankings with fallback say nothing about any of it."""
    one = OracleAblation(
        alone=(0, -1), reordered=(2, -1), completed=(2, 2), preference=(-1, -1), full_preference=(0, 0)
    )
    two = OracleAblation(alone=(2, 2), reordered=(-1, -1), completed=(0, -1), preference=(0, 2), full_preference=(0, 0))
    runs = explored((-1, -1), found=(3, 0), oracle_ablation=one), explored((-1, -1), found=(0, 1), oracle_ablation=two)
    parts = [part([-1, -1], explorations=run) for run in runs]
    found = by_oracle(result(*parts))
    assert {name: (hit, ranked.metrics["NDCG@10"].tolist()) for name, (hit, ranked) in found.items()} == {
        "none, with fallback": (0.5, [0.0, 0.0]),
        "no exploring": (0.75, [0.75, 0.25]),
        "ranking by the tool": (0.25, [0.25, 0.0]),
        "ranking oracle": (0.5, [0.5, 0.5]),
        "retrieval oracle": (0.75, [0.75, 0.25]),
        "preference oracle": (0.5, [0.5, 0.25]),
        "preference oracle, preference weight 1": (1.0, [1.0, 1.0]),
    }
    change = found["preference oracle"][1].minus(result(part([0, -1]), part([0, -1])), "NDCG@10")
    assert (change.users, change.difference) == (2, -0.125)
    assert by_oracle(result(parts[0], part([0, 0], explorations=explored((0, 0))))) == {}  # one seed has no ablation
    assert by_oracle(result(part([0]))) == {}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([1, 1, 1, 1], 0.0), ([0, 0, 0, 4], 0.75), ([1, 3], 0.25), ([0, 0], 0.0)],
)
def test_gini(counts, expected):
    assert gini(np.array(counts)) == pytest.approx(expected)


def test_reach_is_of_the_users_that_are_asked_for():
    users = Users("", "", ("u0", "u1"), (1, 1), (0, 0), (3, 0, 0, 1))
    found = reach(result(part([0, 0], rankings=[(0, 3), (1, 2)])), frozenset({"u0"}), users, 2)
    # Half of the items; one is added to each count: shares 4/8 and 2/8, so 1 and 2 bits.
    assert found == pytest.approx((0.5, 0.5, 1.5))


def test_thirds_keep_equal_values_together():
    values = {"a": 1, "b": 1, "c": 1, "d": 5, "e": 9, "f": 9}
    bounds, groups = zip(*thirds(values, ["f", "a", "d"]), strict=True)
    assert bounds == ((1, 1), (5, 5), (9, 9))
    assert [group.tolist() for group in groups] == [[False, True, False], [False, False, True], [True, False, False]]
    ((bounds, group),) = thirds(dict.fromkeys("abc", 4), ["a", "c"])
    assert (bounds, group.tolist()) == ((4, 4), [True, True])
    assert [bounds for bounds, _ in thirds({str(n): n for n in range(9)}, ["0"])] == [(0, 2), (3, 5), (6, 8)]
