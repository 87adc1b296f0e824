"""Several processes that train one policy together, as `accelerate launch` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from deeprec.config import TrainConfig
from deeprec.errors import DeepRecError

_T = TypeVar("_T")
_PATIENCE = timedelta(hours=12)
"""The others wait so long for the first: it may train a TRM, or explore longer than they."""


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the first process, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def broadcast(value: _T) -> _T:
    """The first process's value, in all of them; each must ask."""
    told = [value]
    if world_size() > 1:
        broadcast_object_list(told)
    return told[0]


@contextmanager
def main_process_first() -> Iterator[bool]:
    """The first process goes through the block before the others do. Yields whether this is the first."""
    if world_size() == 1:
        yield True
        return
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    with state.main_process_first():
        yield state.is_main_process


def require_equal_shares(config: TrainConfig) -> None:
    """See that the processes can share each step.

    Raises:
        DeepRecError: they can't.
    """
    n = world_size()
    rows, tasks, batch = config.micro_batch_size, config.tasks_per_step, config.sft.batch_size
    if tasks % n or tasks // n * config.group_size % (rows * config.updates_per_step) or batch % (n * min(rows, batch)):
        raise DeepRecError(
            f"{n} processes can't share a step: train.tasks_per_step ({tasks}) and train.sft.batch_size "
            f"({batch}) must be multiples of {n}, and each share one of train.micro_batch_size ({rows}), times updates in a stage."
        )
