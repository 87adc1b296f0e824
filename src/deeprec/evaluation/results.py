"""Analyses of results: per-user metrics over seeds, comparisons, and what explorations had after each call."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from deeprec.evaluation.cached_results import CachedResult, Explorations, Users
from deeprec.evaluation.intervals import Interval, PairedInterval, mean_interval, paired_interval, regression_estimator
from deeprec.evaluation.metrics import Floats, Ints, ndcg_at, per_user

ENOUGH = 10  # users of a sample that distinguish two systems: fewer say nothing about all users


@dataclass(frozen=True)
class Result:
    """One system on one set, each seed on the same users.

    Attributes:
        seeds: None stands for the seeds of the configuration.
        against, note: as the plan has them.
    """

    name: str
    seeds: tuple[int | None, ...]
    parts: tuple[CachedResult, ...]
    cutoffs: tuple[int, ...]
    against: tuple[str, ...] = ()
    note: str = ""

    @property
    def users(self) -> tuple[str, ...]:
        return self.parts[0].users

    @property
    def explorations(self) -> list[Explorations]:
        return [part.explorations for part in self.parts if part.explorations is not None]

    @cached_property
    def metrics(self) -> dict[str, Floats]:
        """By name, as 'NDCG@10', a value for each user (U,): the mean over the seeds."""
        each = [per_user(np.array(part.ranks, dtype=np.int64), self.cutoffs) for part in self.parts]
        return {name: np.mean([metrics[name] for metrics in each], axis=0) for name in each[0]}

    def mean(self, metric: str, chosen_U: np.ndarray | None = None) -> Interval:
        return mean_interval(self.metrics[metric] if chosen_U is None else self.metrics[metric][chosen_U])

    @cached_property
    def raw(self) -> Floats:
        """Of explorations: NDCG at the last cutoff of each user's answer alone (U,), 0 for a failed answer."""
        raw_SU = np.array([run.raw for run in self.explorations], dtype=np.int64)
        return np.asarray(ndcg_at(raw_SU, max(self.cutoffs)).mean(axis=0))

    @property
    def ever_valid(self) -> bool:
        runs = self.explorations
        return any(not all(run.fallback) or any(run.well_formed) or max(run.raw) >= 0 for run in runs)

    def on(self, seeds: Collection[int | None]) -> Result:
        """The same with these seeds alone, at least one."""
        kept = [(seed, part) for seed, part in zip(self.seeds, self.parts, strict=True) if seed in seeds]
        return replace(self, seeds=tuple(seed for seed, _ in kept), parts=tuple(part for _, part in kept))

    def minus(self, other: Result, metric: str) -> PairedInterval | None:
        """The difference on the users and the seeds that both ran on; None where there are none."""
        if self.seeds != other.seeds:
            common = {*self.seeds} & {*other.seeds}
            return self.on(common).minus(other.on(common), metric) if common else None
        ours, theirs = (dict(zip(each.users, each.metrics[metric], strict=True)) for each in (self, other))
        users = [user for user in ours if user in theirs]
        ours_U, theirs_U = (np.array([values[user] for user in users]) for values in (ours, theirs))
        return paired_interval(ours_U, theirs_U) if users else None

    def minus_on_all(self, base: Result, others: Sequence[Result], metric: str) -> PairedInterval | None:
        """The difference to the base on all of its users, estimated with `regression_estimator`; `others` are further
        controls, which ran on all of these.

        None where ours ran on all of them, where users or seeds differ, or where ours ran on too few: `ENOUGH` of its
        users must have more than 0, and on as many must ours and each of the others differ from the base.
        """
        known = dict(zip(self.users, self.metrics[metric].tolist(), strict=True))
        alike = all(each.users == base.users and each.seeds == self.seeds for each in (base, *others))
        if not alike or len(known) >= len(base.users) or not known.keys() <= set(base.users):
            return None
        ours_U = np.array([known.get(user, np.nan) for user in base.users])
        base_U, *others_U = (each.metrics[metric] for each in (base, *others))
        ran_U = ~np.isnan(ours_U)
        informative = [ours_U > 0, *(each_U != base_U for each_U in (ours_U, *others_U))]
        if min(int((each_U & ran_U).sum()) for each_U in informative) < ENOUGH:
            return None
        return regression_estimator(ours_U, np.column_stack([base_U, *others_U]), base_U)

    @property
    def seconds_per_user(self) -> float | None:
        known = [part.seconds_per_user for part in self.parts if part.seconds_per_user is not None]
        return float(np.mean(known)) if known else None

    @property
    def tokens_per_user(self) -> float | None:
        return float(np.mean([each.tokens for each in self.explorations])) if self.explorations else None


@dataclass(frozen=True, slots=True)
class AfterTurn:
    """What explorations had after so many calls.

    Attributes:
        share: of the explorations that made so many calls.
        new: items that the call returned, a mean over these.
        pool_recall: share of all users whose target was retrieved by then.
        ndcg: of all users, ranked by the items in the order in which they came, had everyone stopped there.
    """

    turn: int
    share: float
    new: float
    pool_recall: Interval
    ndcg: Interval


def by_turn(result: Result) -> list[AfterTurn]:
    """Of every call that one exploration in a hundred makes; empty for systems that call no tool."""
    runs, k, found = result.explorations, max(result.cutoffs), []
    counts_N = np.array([len(calls) for run in runs for calls in run.retrieved], dtype=np.int64)
    found_SU, pooled_SU = np.array([run.found for run in runs]), np.array([run.pooled for run in runs])
    for turn in range(1, counts_N.max(initial=0) + 1):
        if (share := float((counts_N >= turn).mean())) < 0.01:
            break
        new = [calls[turn - 1] for run in runs for calls in run.retrieved if len(calls) >= turn]
        there_SU = (found_SU > 0) & (found_SU <= turn)
        gains_SU = ndcg_at(np.where(there_SU, pooled_SU, -1), k)
        intervals = [mean_interval(values_SU.mean(axis=0)) for values_SU in (there_SU, gains_SU)]
        found.append(AfterTurn(turn, share, float(np.mean(new)), *intervals))
    return found


def by_oracle(result: Result) -> dict[str, tuple[float, Result]]:
    """Explorations as they are and with one part replaced: the share of users whose target is in the pool, or in the
    list that stands for it, and the result. Empty for systems without an oracle ablation."""
    runs = result.explorations
    ablations = [run.oracle_ablation for run in runs if run.oracle_ablation is not None]
    if not runs or len(ablations) < len(runs):
        return {}
    replaced = {
        "no exploring": [each.alone for each in ablations],
        "ranking by the tool": [each.reordered for each in ablations],
        "ranking oracle": [tuple(0 if call else -1 for call in run.found) for run in runs],
        "retrieval oracle": [each.completed for each in ablations],
        "preference oracle": [each.preference for each in ablations],
        "preference oracle, preference weight 1": [each.full_preference for each in ablations],
    }
    found = {"none, with fallback": (float(np.mean(np.array([run.found for run in runs]) > 0)), result)}
    for name, ranks in replaced.items():
        parts = tuple(replace(part, ranks=each) for part, each in zip(result.parts, ranks, strict=True))
        found[name] = (float(np.mean(np.array(ranks) >= 0)), replace(result, parts=parts))
    return found


def common_users(results: Sequence[Result]) -> frozenset[str]:
    """Those that all systems ran on."""
    return frozenset.intersection(*(frozenset(result.users) for result in results))


def reach(result: Result, users: frozenset[str], of: Users, k: int) -> tuple[float, float, float]:
    """What a system shows of the catalogue to the given users, at least one, as a mean over the seeds: the share of the
    items that anyone was shown; `gini` of how often each was shown; and the mean information of a shown item in bits,
    -log2 of its share of the training interactions (one added to each)."""
    counts_I = np.array(of.item_counts, dtype=np.float64) + 1
    bits_I = -np.log2(counts_I / counts_I.sum())
    each = []
    for part in result.parts:
        shown = [item for user, row in zip(part.users, part.rankings, strict=True) if user in users for item in row[:k]]
        shown_I = np.bincount(np.array(shown, dtype=np.int64), minlength=len(counts_I))
        each.append(((shown_I > 0).mean(), gini(shown_I), bits_I[shown].mean() if shown else np.nan))
    coverage, unevenness, novelty = np.mean(each, axis=0).tolist()
    return coverage, unevenness, novelty


def gini(counts_I: Ints) -> float:
    """Of counts: the mean absolute difference of two of them, divided by twice their mean; 0 where all are equal."""
    total, n = counts_I.sum(), len(counts_I)
    return float(np.arange(1 - n, n, 2) @ np.sort(counts_I) / (n * total)) if total else 0.0


def thirds(values: Mapping[str, int], users: Sequence[str]) -> list[tuple[tuple[int, int], np.ndarray]]:
    """Bounds (least and greatest value) of three groups of about equal size of all users, and which of `users` are in
    each. Equal values are in one group, so groups differ in size where many are equal, and may be fewer."""
    every_U = np.sort(np.array(list(values.values())))
    cuts = np.unique(every_U[[-(-len(every_U) * third // 3) - 1 for third in (1, 2)]])
    group_U = np.searchsorted(cuts, every_U)
    own_U = np.searchsorted(cuts, np.array([values[user] for user in users]))
    members = [every_U[group_U == g] for g in range(len(cuts) + 1)]
    return [((int(of_U[0]), int(of_U[-1])), own_U == g) for g, of_U in enumerate(members) if len(of_U)]
