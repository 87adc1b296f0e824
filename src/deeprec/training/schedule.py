"""The parts of a training, by its configuration."""

from __future__ import annotations

from deeprec.config import TrainConfig

SFT = "sft"


def shares(config: TrainConfig) -> dict[str, float]:
    """Of the users, by stage, the warm start included. A stage of no steps keeps its users, so that leaving a stage out
    changes nothing else; a warm start of no lessons takes none."""
    warm = config.sft
    return {SFT: warm.share if warm.demonstrations else 0.0} | {stage.name: stage.share for stage in config.stages}


def active(config: TrainConfig) -> list[str]:
    """The parts of a training that do something, in order."""
    warm = [SFT] if config.sft.demonstrations and config.sft.share else []
    return warm + [stage.name for stage in config.stages if stage.steps and stage.share]
