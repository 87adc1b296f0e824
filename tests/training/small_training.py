"""A training of seconds: toy data, a random model, and stand-ins for the text encoder and the observer of steps."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from deeprec.config import Config, ExploreConfig, SFTConfig, StageConfig, TrainConfig
from deeprec.explore.trace import Author
from deeprec.policies.transformers import TransformersPolicy
from deeprec.training.schedule import SFT
from tiny_models import bytes_tokenizer, tiny
from toys import toy_dataset

DATA = toy_dataset(n_users=200)
PARTS = (SFT, "one", "two")
TERMS = ("format", "invocation", "diversity", "hit", "rank", "pointwise")


class Hashes:
    """Stands in for MiniLM: every text has a random direction."""

    source, digest, width = "hashes", "1", 16

    def encode(self, texts: Sequence[str], *_: Any) -> Any:
        rows = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=16) for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(texts), 16)


def letters(trace: Any, target: int) -> float:
    """A reward that differs within groups of a random policy: its share of letters, and something of the target."""
    text = "".join(segment.text for segment in trace.segments if segment.author is Author.POLICY)
    return sum(letter.isalpha() for letter in text) / max(1, len(text)) + target / 1000


def config_of(**more: Any) -> Config:
    rewards = {f"{__name__}:letters": 1.0} | dict.fromkeys(TERMS, 0.5)
    settings = {
        "tasks_per_step": 2,
        "group_size": 2,
        "micro_batch_size": 2,
        "lora_rank": 4,
        "sft": SFTConfig(share=0.2, demonstrations=8, batch_size=4, learning_rate=1e-3),
        "stages": tuple(
            StageConfig(name=name, share=0.2, steps=2, learning_rate=1e-2, rewards=rewards) for name in ("one", "two")
        ),
    }
    explore = ExploreConfig(answer_size=3, items_per_call=3, max_calls=2, segment_tokens=240, history=2)
    return Config(explore=explore, train=TrainConfig(**settings | more))


LONGER = config_of(stages=[stage.model_copy(update={"steps": 3}) for stage in config_of().train.stages])


def fresh() -> TransformersPolicy:
    return TransformersPolicy(copy.deepcopy(tiny(bytes_tokenizer())), bytes_tokenizer())


class StepLog:
    """Keeps a training's steps. It can stop the training, as a kill would, before a step is saved."""

    def __init__(self, stop_at: tuple[str, int] | None = None) -> None:
        self.steps: dict[tuple[str, int], dict[str, float]] = {}
        self.stop_at = stop_at

    def __call__(self, part: str, step: int, steps: int, metrics: Any) -> None:
        if (part, step) == self.stop_at:
            raise KeyboardInterrupt
        assert step <= steps
        self.steps[part, step] = {name: value for name, value in metrics.items() if "time" not in name}
