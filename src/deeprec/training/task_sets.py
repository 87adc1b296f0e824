"""The tasks that a policy trains on, of users whom the TRM never met and whose next items it does not know."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from deeprec.config import TrainConfig
from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.data.dataset import Dataset, Task
from deeprec.errors import DeepRecError
from deeprec.retrieval.retriever import queries_of
from deeprec.training.schedule import SFT
from deeprec.trm.trm import TRM

TARGETS_PER_USER = 20  # a training user's last items that serve as targets
_RANKED = 4096  # tasks ranked at once: their queries take several times the memory of the tasks
# The part's name when the shipped adapters were trained; it seeds the order of tasks, which stays the same.
_SHUFFLE_NAMES = {SFT: "warm-start"}


@dataclass(frozen=True, eq=False)
class TaskSets:
    """The tasks of each part, in random order, whose targets the TRM alone ranks within `train.max_target_rank`."""

    catalog: Catalog
    retriever: TRM  # trained on all users but those of the parts
    tasks: dict[str, list[Task]]
    followed: dict[str, tuple[ItemIdx, ...]]  # by task id, what the user chose next in training, the target first

    @classmethod
    def prepare(cls, parts: Mapping[str, Dataset], retriever: TRM, catalog: Catalog, config: TrainConfig) -> TaskSets:
        """From the parts of `Dataset.divide`, and the TRM of the other users; DeepRecError where one has no tasks."""
        tasks: dict[str, list[Task]] = {}
        followed: dict[str, tuple[ItemIdx, ...]] = {}
        for name, part in parts.items():
            candidates, after = part.past_tasks(TARGETS_PER_USER)
            kept: list[Task] = []
            for start in range(0, len(candidates), _RANKED):
                some = candidates[start : start + _RANKED]
                ranks = retriever.ranks(queries_of(some), [after[task.id][0] for task in some])
                kept += [task for task, rank in zip(some, ranks, strict=True) if 0 <= rank < config.max_target_rank]
            if not kept and part.users:
                fault = f"the TRM ranks no item of its {len(part.users)} users among the first {config.max_target_rank}"
                raise DeepRecError(f"{name!r} has no tasks: {fault}. Raise its share or train.max_target_rank.")
            random.Random(f"{config.seed}:{_SHUFFLE_NAMES.get(name, name)}").shuffle(kept)
            tasks[name] = kept
            followed |= {task.id: after[task.id] for task in kept}
        return cls(catalog, retriever, tasks, followed)
