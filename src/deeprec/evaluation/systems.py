"""What an evaluation compares: one class a system."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

from deeprec.assets.downloads import sha256_of
from deeprec.config import Config
from deeprec.data.dataset import Dataset, Task, excludes_history
from deeprec.evaluation.cached_results import TraceLog
from deeprec.evaluation.external_rankings import read_external_rankings
from deeprec.evaluation.metrics import ndcg_at, ranks_of
from deeprec.evaluation.models import Models
from deeprec.evaluation.one_shot import recall_titles, rerank
from deeprec.evaluation.plans import ASKS_MODEL, Kind, SystemPlan
from deeprec.evaluation.rankings import Rankings, Stream, fused, rankings_of
from deeprec.evaluation.worker_processes import spread
from deeprec.explore.explorer import Explorer
from deeprec.explore.policy import Policy
from deeprec.explore.protocol import PROTOCOL
from deeprec.explore.settings import ExploreSettings, limits_of, resolve_defaults
from deeprec.explore.trace import Trace
from deeprec.policies.adapters import identity_of, name_of
from deeprec.policies.scripted import ScriptedPolicy
from deeprec.retrieval.baselines import EASERetriever, PopularityRetriever, TransitionRetriever
from deeprec.retrieval.retriever import Retriever
from deeprec.runs.progress import SILENT, Progress

if TYPE_CHECKING:  # torch stays out of evaluations that need none
    from deeprec.trm.text_encoder import TextEncoder

_EASE_GRID = (20.0, 50.0, 200.0, 500.0, 1000.0)
_ONE_SHOT_KEYS = ("history", "answer_size", "segment_tokens", "context_tokens")

Rank = Callable[[Sequence[Task], int], Rankings]
"""At most `k` items for each task."""


@dataclass(frozen=True)
class Ranked:
    """What a system did, task by task.

    Attributes:
        rankings: best first.
        seconds_per_user: of ranking alone; None where unknown.
        traces: of systems that explore or ask a language model.
        explorer: that made the traces; None for systems that call no tool.
    """

    rankings: Sequence[Sequence[int]]
    seconds_per_user: float | None = None
    traces: Sequence[Trace] | None = None
    explorer: Explorer | None = None


class System(ABC):
    """A row of an evaluation's tables.

    Attributes:
        name: of the row.
        on_sample: whether it runs on the sample of users alone, as systems with a language model do.
        note: for the report; complete after `rank`.
    """

    name: str
    on_sample = False
    note = ""

    @abstractmethod
    def rank(self, tasks: Sequence[Task], k: int, log: TraceLog | None = None, progress: Progress = SILENT) -> Ranked:
        """At most `k` items for each task, none that it excludes and none twice; `log` holds traces that exist already,
        and takes new ones."""

    def cache_key(self) -> dict[str, Any]:
        """What decides its rankings, as JSON values; by default nothing is cached."""
        return {"object": uuid4().hex}


class RankingSystem(System):
    @abstractmethod
    def load(self) -> Rank:
        """The function that ranks."""

    def rank(self, tasks: Sequence[Task], k: int, log: TraceLog | None = None, progress: Progress = SILENT) -> Ranked:
        rankings_for, started = self.load(), time.perf_counter()
        with progress.phase(self.name):
            rankings = rankings_for(tasks, k)
        return Ranked(rankings, (time.perf_counter() - started) / len(tasks))


class ExploringSystem(System):
    """Ranks by traces."""

    @abstractmethod
    def load(self) -> tuple[Stream, Explorer | None]:
        """What makes the traces, and the explorer where it is one."""

    def rank(self, tasks: Sequence[Task], k: int, log: TraceLog | None = None, progress: Progress = SILENT) -> Ranked:
        stream, explorer = self.load()
        log = log or TraceLog()
        if explorer is not None:
            self.note = "; ".join(filter(None, [self.note, _weight_note(explorer.config)]))
        with progress.phase(self.name, len(tasks), unit=f"{self.name}, users") as advance:
            traces = log.explore(tasks, stream, advance)
        return Ranked([trace.ranking[:k] for trace in traces], log.seconds_per_user, traces, explorer)


class AnyRetriever(RankingSystem):
    """A retriever of your own, without a preference."""

    def __init__(self, name: str, retriever: Retriever) -> None:
        self.name, self._retriever = name, retriever

    def load(self) -> Rank:
        return partial(rankings_of, self._retriever)


class AnyExplorer(ExploringSystem):
    """An explorer of your own."""

    def __init__(self, name: str, explorer: Explorer) -> None:
        self.name, self._explorer = name, explorer
        self.on_sample = not isinstance(explorer.policy, ScriptedPolicy)

    def load(self) -> tuple[Stream, Explorer | None]:
        return self._explorer.stream, self._explorer  # in this process: a caller's retriever may not survive a fork


class PlannedSystem(System):
    """A system of a plan on one data set; `Kind` says what each does.

    Attributes:
        uses_trm: whether the TRM decides its rankings.
        explore_keys: keys of `explore` that decide its rankings; None: all.
        config: its own, with the weights of its training.
    """

    uses_trm = False
    explore_keys: ClassVar[Collection[str] | None] = ()

    def __init__(
        self, plan: SystemPlan, config: Config, dataset: Dataset, models: Models, file: Path | None = None
    ) -> None:
        self.name, self.on_sample = plan.name, plan.kind in ASKS_MODEL
        self.plan, self.config, self.dataset, self.models, self.file = plan, config, dataset, models, file

    def cache_key(self) -> dict[str, Any]:
        explore, catalog = self.config.explore, self.dataset.catalog
        key: dict[str, Any] = {"kind": self.plan.kind, "data": self.dataset.fingerprint}
        if not excludes_history(self.config.eval.exclude, self.dataset.exclude_history):
            key["exclude"] = "none"
        if self.file is not None:
            key["file"] = sha256_of(self.file)
        if self.uses_trm:
            key |= {"text": self.dataset.text_digest, "trm": self.models.trm(self.config).digest}
        if self.explore_keys != ():
            tree = explore.model_dump(mode="json", exclude={"batch_size"}) | limits_of(explore, catalog)
            keys = tree if self.explore_keys is None else self.explore_keys
            key |= {"protocol": PROTOCOL, "explore": {name: tree[name] for name in keys}}
        return key

    def explorer(self, policy: Policy) -> Explorer:
        return Explorer(policy, self.models.trm(self.config), self.dataset.catalog, self.config.explore)


class Baseline(PlannedSystem, RankingSystem):
    def load(self) -> Rank:
        retriever = PopularityRetriever if self.plan.kind == "popularity" else TransitionRetriever
        return partial(rankings_of, retriever.fit(self.dataset.train_sequences(), len(self.dataset.catalog)))


class EASE(PlannedSystem, RankingSystem):
    """With the regularisation that is best on the validation targets."""

    def load(self) -> Rank:
        tasks = self.dataset.tasks("validation", self.config.eval.exclude)
        targets, train = self.dataset.targets("validation"), self.dataset.train_sequences()
        wanted = [targets[task.id] for task in tasks]

        def ndcg(fitted: tuple[float, Retriever]) -> float:
            return float(ndcg_at(ranks_of(rankings_of(fitted[1], tasks, 10), wanted), 10).mean())

        each = ((value, EASERetriever.fit(train, len(self.dataset.catalog), value)) for value in _EASE_GRID)
        value, best = max(each, key=ndcg)
        self.note = f"regularisation {value:g} of {', '.join(f'{x:g}' for x in _EASE_GRID)}, by validation NDCG@10"
        return partial(rankings_of, best)


class TRMAlone(PlannedSystem, RankingSystem):
    uses_trm = True

    def load(self) -> Rank:
        return partial(rankings_of, self.models.trm(self.config))


class StatedPreference(PlannedSystem, RankingSystem):
    """The TRM with a preference that a rule draws from the history: its frequent phrases, or the latest titles."""

    uses_trm, explore_keys = True, ("preference_weight",)

    def load(self) -> Rank:
        from deeprec.trm.preferences import frequent_phrases, recent_titles

        trm, catalog = self.models.trm(self.config), self.dataset.catalog
        explore = resolve_defaults(self.config.explore, None, trm, catalog)
        self.note = _weight_note(explore)
        rule = frequent_phrases if self.plan.kind == "frequent-phrases" else recent_titles
        return lambda tasks, k: rankings_of(
            trm, tasks, k, lambda task: "; ".join(rule(catalog, task.history)), explore.preference_weight
        )


class External(PlannedSystem):
    def rank(self, tasks: Sequence[Task], k: int, log: TraceLog | None = None, progress: Progress = SILENT) -> Ranked:
        assert self.file is not None
        self.note = f"from {self.file}"
        return Ranked([ranking[:k] for ranking in read_external_rankings(self.file, self.dataset, tasks)])


class Script(PlannedSystem, ExploringSystem):
    uses_trm, explore_keys = True, None

    def load(self) -> tuple[Stream, Explorer | None]:
        explorer = self.explorer(ScriptedPolicy(self.config.explore.answer_size))
        return explorer.stream, explorer


class Fusion(PlannedSystem, RankingSystem):
    uses_trm, explore_keys = True, None

    def load(self) -> Rank:
        explorer = self.explorer(ScriptedPolicy(self.config.explore.answer_size))
        self.note, weight = _weight_note(explorer.config), explorer.config.preference_weight
        return lambda tasks, k: fused(explorer.retriever, tasks, explorer.run(tasks), k, weight)


class ModelSystem(PlannedSystem, ExploringSystem):
    """Asks a language model: to explore, unless a subclass asks something else."""

    uses_trm = True
    explore_keys: ClassVar[Collection[str] | None] = None

    def asking(self, policy: Policy) -> tuple[Stream, Explorer | None]:
        explorer = self.explorer(policy)
        return explorer.stream, explorer

    def load(self) -> tuple[Stream, Explorer | None]:
        self.note = name_of(self.config.policy)
        policy = self.models.policy(self.config)
        stream, explorer = self.asking(policy)
        return spread(stream, policy, self.config.explore.batch_size), explorer

    def cache_key(self) -> dict[str, Any]:
        return super().cache_key() | {"text": self.dataset.text_digest} | identity_of(self.config.policy)


class Titles(ModelSystem):
    uses_trm, explore_keys = False, _ONE_SHOT_KEYS

    def asking(self, policy: Policy) -> tuple[Stream, Explorer | None]:
        encode, catalog = self._encoder.encode, self.dataset.catalog
        titles_IE, config = encode(catalog.titles), self.config.explore
        return lambda tasks: recall_titles(policy, lambda x: encode(x) @ titles_IE.T, catalog, tasks, config), None

    def cache_key(self) -> dict[str, Any]:
        return super().cache_key() | {"text_encoder": self._encoder.digest}

    @cached_property
    def _encoder(self) -> TextEncoder:
        from deeprec.trm.text_encoder import TextEncoder

        return TextEncoder.load(source=self.config.trm.text_encoder, offline=self.models.offline)


class Rerank(ModelSystem):
    explore_keys = (*_ONE_SHOT_KEYS, "answer")

    def asking(self, policy: Policy) -> tuple[Stream, Explorer | None]:
        trm, catalog, candidates = self.models.trm(self.config), self.dataset.catalog, self.plan.candidates
        return lambda tasks: rerank(policy, trm, catalog, tasks, self.config.explore, candidates), None

    def cache_key(self) -> dict[str, Any]:
        return super().cache_key() | {"candidates": self.plan.candidates}


def _weight_note(explore: ExploreSettings) -> str:
    return f"preference weight {explore.preference_weight}"


KINDS: dict[Kind, type[PlannedSystem]] = {
    "popularity": Baseline,
    "transitions": Baseline,
    "ease": EASE,
    "trm": TRMAlone,
    "frequent-phrases": StatedPreference,
    "recent": StatedPreference,
    "external": External,
    "script": Script,
    "fusion": Fusion,
    "titles": Titles,
    "rerank": Rerank,
    "explore": ModelSystem,
}
