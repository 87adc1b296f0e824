"""Fixtures of the training's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from small_training import DATA, Hashes, config_of

from deeprec.config import TRMConfig
from deeprec.training.schedule import shares
from deeprec.training.task_sets import TaskSets
from deeprec.trm.trm import TRM


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def task_sets() -> TaskSets:
    config = config_of().train
    parts, rest = DATA.divide(shares(config), config.seed)
    trm = TRM.fit(rest, TRMConfig(width=16, epochs=1), Hashes())  # type: ignore[arg-type]
    return TaskSets.prepare(parts, trm, DATA.catalog, config)
