"""The analyses against tables made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from deeprec.evaluation.cached_results import Explorations, Part, Population
from deeprec.evaluation.figures import Outcome, by_oracle, by_turn, gini, reach, thirds
from deeprec.evaluation.oracle_ablation import OracleAblation

BOOTSTRAP = {"confidence": 0.95, "resamples": 200, "seed": 0}


def part(ranks, rankings=None, explorations=None, users=None):
    n = len(ranks)
    return Part(
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


def explored(answered, pooled=None, found=None, retrieved=None, oracle_ablation=None):
    n = len(answered)
    return Explorations(
        answered=tuple(answered),
        pooled=tuple(pooled or (-1,) * n),
        found=tuple(found or (0,) * n),
        retrieved=tuple(retrieved or ((),) * n),
        tokens=(10,) * n,
        well_formed=(True,) * n,
        fallback=(False,) * n,
        stops={"answered": n},
        cost=0.0,
        oracle_ablation=oracle_ablation,
    )


def outcome(*parts, cutoffs=(1, 10)):
    return Outcome("x", tuple(range(len(parts))), parts, cutoffs, BOOTSTRAP)


def test_metrics_are_means_over_seeds_of_each_user():
    found = outcome(part([0, -1, 2]), part([0, 0, -1]))
    assert found.metrics["NDCG@10"].tolist() == [1.0, 0.5, 0.25]  # 1 / log2(4) = 0.5, half of it
    assert found.metrics["Recall@1"].tolist() == [1.0, 0.5, 0.0]
    assert found.mean("NDCG@10").mean == pytest.approx(1.75 / 3)


def test_a_comparison_is_on_common_users_whatever_their_order():
    ours = outcome(part([0, -1], users=["b", "a"]))
    theirs = outcome(part([-1, 0, 0], users=["a", "c", "b"]))
    change = ours.against(theirs, "NDCG@10")
    assert (change.users, change.difference) == (2, 0.0)
    assert ours.against(outcome(part([0], users=["z"])), "NDCG@10") is None


def test_a_comparison_is_on_common_seeds():
    """Theirs is 1 with seed 0 and 0 with seed 1; ours was run with seed 1 alone, and is 0.5."""
    ours = Outcome("x", (1,), (part([2]),), (10,), BOOTSTRAP)
    theirs = outcome(part([0]), part([-1]), cutoffs=(10,))
    assert ours.against(theirs, "NDCG@10").difference == 0.5
    assert ours.against(theirs.on(frozenset({0})), "NDCG@10") is None


def test_a_sample_is_extended_by_what_controls_have_on_all():
    """Ours has what the control has, on 40 of 80 users in an order of its own; the control is right for half of all,
    the base for a quarter."""
    base, control = outcome(part([0, -1, -1, -1] * 20)), outcome(part([-1, 0] * 40))
    chosen = [(7 * position) % 80 for position in range(40)]
    users = [f"u{u}" for u in chosen]
    ours = outcome(part([-1 if u % 2 == 0 else 0 for u in chosen], users=users))
    change = ours.extended(base, [control], "NDCG@10")
    assert (change.difference, change.users, change.base) == (pytest.approx(0.25), 80, 0.25)
    assert control.extended(base, [control], "NDCG@10") is None  # ran on all
    assert ours.extended(base, [ours], "NDCG@10") is None  # not known of all
    assert ours.extended(base, [outcome(part([0] * 80), part([0] * 80))], "NDCG@10") is None  # other seeds
    strangers = outcome(part([0] * 40, users=[f"v{u}" for u in range(40)]))
    assert strangers.extended(base, [control], "NDCG@10") is None


def test_what_tells_nothing_apart_is_not_extended():
    base, control = outcome(part([0, -1] * 40)), outcome(part([-1, 0] * 40))
    users = [f"u{u}" for u in range(40)]
    missing = outcome(part([-1] * 40, users=users))
    as_base = outcome(part([0, -1] * 20, users=users))
    hardly = outcome(part([-1, 0] * 4 + [1, -1] + [0, -1] * 15, users=users))
    enough = outcome(part([-1, 0] * 5 + [0, -1] * 15, users=users))
    told = [each.extended(base, [control], "NDCG@10") for each in (missing, as_base, hardly, enough)]
    assert [change is not None for change in told] == [False, False, False, True]
    twin = outcome(part([0, -1] * 39 + [-1, 0]))
    assert enough.extended(base, [twin], "NDCG@10") is None  # a control that is the base in the sample


def test_what_was_answered_is_told_apart_from_what_was_served():
    with_fallback = outcome(
        part([0, 1], explorations=explored(answered=(0, -1))), part([0, 1], explorations=explored((-1, 0)))
    )
    assert with_fallback.answered.tolist() == [0.5, 0.5]
    assert outcome(part([0])).answered is None


def test_what_explorations_had_after_each_call():
    """Four users; targets came in call 1 at place 0, in call 2 at place 3, never, and in call 1 at place 1."""
    explorations = explored((0, -1, -1, 1), (0, 3, -1, 1), (1, 2, 0, 1), ((3, 2), (3, 3), (3,), (3, 1)))
    first, second = by_turn(outcome(part([0, 3, -1, 1], explorations=explorations)))
    assert (first.share, first.new, first.pool_hit.mean) == (1.0, 3.0, 0.5)
    assert first.ndcg.mean == pytest.approx((1 + 1 / np.log2(3)) / 4)
    assert (second.share, second.new, second.pool_hit.mean) == (0.75, 2.0, 0.75)
    assert second.ndcg.mean == pytest.approx((1 + 1 / np.log2(3) + 1 / np.log2(5)) / 4)
    assert by_turn(outcome(part([0]))) == []
    assert by_turn(outcome(part([0], explorations=explored((0,))))) == []  # one look, no call
    nothing = explored((-1,) * 4, retrieved=((3,),) * 4)
    first, second = by_turn(
        outcome(part([0, 3, -1, 1], explorations=explorations), part([-1] * 4, explorations=nothing))
    )
    assert (first.pool_hit.mean, second.pool_hit.mean, second.share) == (0.25, 0.375, 0.375)


def test_what_explorations_had_been_with_one_link_replaced():
    """Two users, two seeds; a place of 2 is worth 0.5. What was served says nothing about any of it."""
    one = OracleAblation(alone=(0, -1), reordered=(2, -1), completed=(2, 2), told=(-1, -1), believed=(0, 0))
    two = OracleAblation(alone=(2, 2), reordered=(-1, -1), completed=(0, -1), told=(0, 2), believed=(0, 0))
    runs = explored((-1, -1), found=(3, 0), oracle_ablation=one), explored((-1, -1), found=(0, 1), oracle_ablation=two)
    parts = [part([-1, -1], explorations=run) for run in runs]
    found = by_oracle(outcome(*parts))
    assert {name: (hit, ranked.metrics["NDCG@10"].tolist()) for name, (hit, ranked) in found.items()} == {
        "no exploring": (0.75, [0.75, 0.25]),
        "ranking by the tool": (0.25, [0.25, 0.0]),
        "ranking oracle": (0.5, [0.5, 0.5]),
        "retrieval oracle": (0.75, [0.75, 0.25]),
        "preference oracle": (0.5, [0.5, 0.25]),
        "preference oracle, trust 1": (1.0, [1.0, 1.0]),
    }
    change = found["preference oracle"][1].against(outcome(part([0, -1]), part([0, -1])), "NDCG@10")
    assert (change.users, change.difference) == (2, -0.125)
    assert by_oracle(outcome(parts[0], part([0, 0], explorations=explored((0, 0))))) == {}  # one seed has no links
    assert by_oracle(outcome(part([0]))) == {}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([1, 1, 1, 1], 0.0), ([0, 0, 0, 4], 0.75), ([1, 3], 0.25), ([0, 0], 0.0)],
)
def test_gini(counts, expected):
    assert gini(np.array(counts)) == pytest.approx(expected)


def test_reach_is_of_the_users_that_are_asked_for():
    population = Population("", ("u0", "u1"), (1, 1), (0, 0), (3, 0, 0, 1))
    found = reach(outcome(part([0, 0], rankings=[(0, 3), (1, 2)])), frozenset({"u0"}), population, 2)
    assert found.coverage == 0.5
    # One is added to each count: shares 4/8 and 2/8, so 1 and 2 bits.
    assert found.novelty == pytest.approx(1.5)
    assert found.gini == pytest.approx(0.5)


def test_thirds_keep_equal_values_together():
    values = {"a": 1, "b": 1, "c": 1, "d": 5, "e": 9, "f": 9}
    bounds, groups = thirds(values, ["f", "a", "d"])
    assert bounds == [(1, 1), (5, 5), (9, 9)]
    assert [group.tolist() for group in groups] == [[False, True, False], [False, False, True], [True, False, False]]
    bounds, groups = thirds(dict.fromkeys("abc", 4), ["a", "c"])
    assert bounds == [(4, 4)]
    assert [group.tolist() for group in groups] == [[True, True]]
    bounds, _ = thirds({str(n): n for n in range(9)}, ["0"])
    assert bounds == [(0, 2), (3, 5), (6, 8)]
