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
_TIMEOUT = timedelta(hours=12)  # processes wait for each other: the main one may train a TRM, or explore longer


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def broadcast(value: _T) -> _T:
    """The main process's value, in all of them; each must call this."""
    values = [value]
    if world_size() > 1:
        broadcast_object_list(values)
    return values[0]


@contextmanager
def main_process_first() -> Iterator[bool]:
    """The main process runs the block before the others do. Yields whether this is the main one."""
    if world_size() == 1:
        yield True
        return
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_TIMEOUT)
    with state.main_process_first():
        yield state.is_main_process


def require_equal_shares(config: TrainConfig) -> None:
    """DeepRecError unless the processes can share each step."""
    n, tasks, batch = world_size(), config.tasks_per_step, config.sft.batch_size
    micro, updates = config.micro_batch_size, config.updates_per_step
    if tasks % n or tasks // n * config.group_size % (micro * updates) or batch % (n * min(micro, batch)):
        keys = f"train.micro_batch_size ({micro}), in a stage also of train.updates_per_step ({updates})"
        raise DeepRecError(
            f"{n} processes can't share a step: train.tasks_per_step ({tasks}) and train.sft.batch_size ({batch}) must "
            f"be multiples of {n}, and each process's part of them a multiple of {keys}."
        )
