"""Data sets, TRMs and policies that the systems of an evaluation share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deeprec.config import Config
from deeprec.data.dataset import Dataset
from deeprec.data.sources import load_dataset
from deeprec.explore.policy import Policy
from deeprec.policies.loading import load_policy
from deeprec.runs.progress import SILENT, Progress

if TYPE_CHECKING:  # torch stays out of evaluations that need none
    from deeprec.trm.trm import TRM


class Models:
    """Loads or trains what a configuration names, and keeps it for the next system: the TRMs of the latest data set and
    seed, and the latest policy."""

    def __init__(self, runs: Path, *, offline: bool = False, progress: Progress = SILENT) -> None:
        self.runs, self.offline, self.progress = runs, offline, progress
        self._datasets: dict[str, Dataset] = {}
        self._trms: dict[tuple[str, str], TRM] = {}
        self._policies: dict[str, Policy] = {}

    def dataset(self, config: Config) -> Dataset:
        key = config.data.model_dump_json()
        if key not in self._datasets:
            with self.progress.phase("load the data"):
                self._datasets[key] = load_dataset(config.data, offline=self.offline)
        return self._datasets[key]

    def trm(self, config: Config) -> TRM:
        from deeprec.trm.run import load_or_train_trm

        of = f"{config.trm.seed} {config.data.model_dump_json()}"
        self._trms = {key: trm for key, trm in self._trms.items() if key[0] == of}
        if (key := (of, config.trm.model_dump_json())) not in self._trms:
            self._trms[key], _ = load_or_train_trm(
                self.dataset(config), config, self.runs, offline=self.offline, progress=self.progress
            )
        return self._trms[key]

    def policy(self, config: Config) -> Policy:
        limits = config.explore.model_dump_json(include={"context_tokens", "batch_size", "answer_size"})
        key = config.policy.model_dump_json() + limits
        if key not in self._policies:
            self._policies.clear()
            with self.progress.phase("load the language model"):
                self._policies[key] = load_policy(config, offline=self.offline)
        return self._policies[key]

    def trained(self, config: Config, part: str) -> Path:
        """The weights of a part of a training; an unfinished training is resumed first."""
        from deeprec.training.run import latest_training, train_policy

        dataset = self.dataset(config)
        known = latest_training(dataset, config, self.runs, offline=self.offline)
        if known is not None and (known.path / part).is_dir():
            return known.path / part
        self._policies.clear()  # the training needs the memory
        weights = train_policy(dataset, config, self.runs, offline=self.offline, progress=self.progress)
        return weights.parent / part
