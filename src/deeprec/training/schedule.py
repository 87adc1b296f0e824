"""The parts of a training, by its configuration: SFT, then the stages. Nothing here needs torch."""

from __future__ import annotations

from itertools import takewhile

from deeprec.config import TrainConfig

SFT = "sft"
_OF_STAGES = ("tasks_per_step", "group_size", "updates_per_step", "temperature", "negative_advantage_weight")
"""Keys that SFT does not read."""


def shares(config: TrainConfig) -> dict[str, float]:
    """Each part's share of the users. SFT without demonstrations takes none; a stage without steps keeps its users, so
    that leaving it out changes nothing else."""
    sft = config.sft
    return {SFT: sft.share if sft.demonstrations else 0.0} | {stage.name: stage.share for stage in config.stages}


def active(config: TrainConfig) -> list[str]:
    """The parts that train something, in order."""
    sft = [SFT] if config.sft.demonstrations and config.sft.share else []
    return sft + [stage.name for stage in config.stages if stage.steps and stage.share]


def shared_parts(config: TrainConfig, other: TrainConfig) -> list[str]:
    """The leading parts that both trainings have in common: same users, same settings, and no time limit."""

    def with_others(*names: str) -> TrainConfig:
        return config.model_copy(update={name: getattr(other, name) for name in names})

    if config.minutes is not None or shares(config) != shares(other) or with_others("stages", *_OF_STAGES) != other:
        return []
    names = [SFT]
    if with_others("stages") == other:
        same = takewhile(lambda pair: pair[0] == pair[1], zip(config.stages, other.stages, strict=False))
        names += [stage.name for stage, _ in same]
    return [name for name in names if name in active(config)]
