"""`train_policy` in a process of its own, with a stand-in for MiniLM: CONFIG RUNS [section.key=value ...]."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from small_training import Hashes

from deeprec.config import load_config
from deeprec.data.sources import load_dataset
from deeprec.runs.run import Run
from deeprec.training.run import train_policy
from deeprec.trm.text_encoder import TextEncoder


def main(config: str, runs: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    stand_in: Any = lambda **_: Hashes()  # noqa: E731
    TextEncoder.load = stand_in  # type: ignore[method-assign]
    append = Run.append_metrics

    def append_slowly(run: Run, step: int, metrics: Mapping[str, float]) -> None:
        append(run, step, metrics)
        time.sleep(0.5)  # so that a test's signal comes before the last step has ended

    Run.append_metrics = append_slowly  # type: ignore[method-assign]
    settings = load_config(Path(config), overrides)
    train_policy(load_dataset(settings.data), settings, Path(runs))


if __name__ == "__main__":
    main(*sys.argv[1:])
