"""The world in which a policy is trained: users whom the TRM never met, so that it does not know their next items."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from deeprec.config import ExploreConfig, TrainConfig
from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.data.dataset import Dataset, Task
from deeprec.errors import DeepRecError
from deeprec.retrieval.retriever import queries_of
from deeprec.trm.trm import TRM

PER_USER = 20
"""A training user's last items that serve as targets."""
_RANKED = 4096
"""Tasks whose queries are in memory at once, which take several times the room of the tasks."""


def require_free_answers(explore: ExploreConfig) -> None:
    """See that what is learned from is what the policy itself would write.

    Raises:
        DeepRecError: it is not.
    """
    if explore.answer == "pool":
        raise DeepRecError("explore.answer='pool' is not for training, which learns from what is freely sampled.")


@dataclass(frozen=True, eq=False)
class TaskSets:
    """What a policy is trained with.

    Attributes:
        retriever: a TRM trained on all users but those of the stages.
        tasks: of each stage, in a random order; the TRM alone ranks each target within `train.max_target_rank`.
        followed: by task id, what the user chose next in the training part, the target first.
    """

    catalog: Catalog
    retriever: TRM
    tasks: dict[str, list[Task]]
    followed: dict[str, tuple[ItemIdx, ...]]

    @classmethod
    def prepare(cls, parts: Mapping[str, Dataset], retriever: TRM, catalog: Catalog, config: TrainConfig) -> TaskSets:
        """From the parts of `Dataset.divide`, and the TRM of the others.

        Raises:
            DeepRecError: a stage has no tasks.
        """
        tasks: dict[str, list[Task]] = {}
        followed: dict[str, tuple[ItemIdx, ...]] = {}
        for name, part in parts.items():
            all_tasks, after = part.past_tasks(PER_USER)
            kept: list[Task] = []
            for start in range(0, len(all_tasks), _RANKED):
                some = all_tasks[start : start + _RANKED]
                ranks = retriever.ranks(queries_of(some), [after[task.id][0] for task in some])
                kept += [task for task, rank in zip(some, ranks, strict=True) if 0 <= rank < config.max_target_rank]
            if not kept and part.users:
                raise DeepRecError(
                    f"Stage {name!r} has no tasks: of its {len(part.users)} users' items the TRM ranks none among the "
                    f"first {config.max_target_rank}. Raise its share or train.max_target_rank."
                )
            random.Random(f"{config.seed}:{name}").shuffle(kept)
            tasks[name] = kept
            followed |= {task.id: after[task.id] for task in kept}
        return cls(catalog, retriever, tasks, followed)

    def targets(self) -> dict[str, ItemIdx]:
        return {task: items[0] for task, items in self.followed.items()}
