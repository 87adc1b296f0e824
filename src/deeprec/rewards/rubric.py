"""The hierarchical reward: the weighted sum of its terms."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deeprec.data.catalog import ItemIdx
from deeprec.errors import DeepRecError
from deeprec.explore.trace import Trace
from deeprec.rewards import outcome, process
from deeprec.rewards.process import Embed

Reward = Callable[[Trace, ItemIdx], float]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scored:
    """A trace's reward."""

    terms: dict[str, float]  # unweighted, by name
    total: float  # their weighted sum
    trm_total: float = 0.0  # the reward of answering the same task with the TRM's own list, without a call


@dataclass(frozen=True, slots=True)
class Rubric:
    """Named rewards with weights. A term of weight 0 is a metric: it is computed and reported, and changes nothing."""

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]

    @classmethod
    def build(cls, weights: Mapping[str, float], embed: Embed, text_ID: Vectors, collaborative_ID: Vectors) -> Rubric:
        """The rubric of those of the paper's six terms, and of your own, that the weights name.

        Args:
            weights: by a term's name, or by `package.module:function` for a `Reward` of your own.
            embed: preferences to unit vectors, for invocation and diversity.
            text_ID, collaborative_ID: vectors of the items' texts, and of the TRM, of any length.
        """
        text_ID, collaborative_ID = _unit(text_ID), _unit(collaborative_ID)
        paper: dict[str, Reward] = {
            "format": lambda trace, _: process.format_reward(trace),
            "invocation": lambda trace, _: process.invocation_reward(trace, embed),
            "diversity": lambda trace, _: process.diversity_reward(trace, embed),
            "hit": outcome.hit_reward,
            "rank": outcome.rank_reward,
            "pointwise": lambda trace, target: outcome.pointwise_reward(trace, target, text_ID, collaborative_ID),
        }
        return cls({name: paper.get(name) or _imported(name, paper) for name in weights}, weights)

    def score(self, trace: Trace, target: ItemIdx) -> Scored:
        terms = {name: reward(trace, target) for name, reward in self.rewards.items()}
        return Scored(terms, sum(self.weights[name] * value for name, value in terms.items()))


def _imported(name: str, known: Mapping[str, Reward]) -> Reward:
    """The user's own reward, named `package.module:function`."""
    module, _, function = name.partition(":")
    try:
        reward: Reward = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        own = "your own is named package.module:function, in a module on PYTHONPATH."
        raise DeepRecError(f"There is no reward {name!r} ({error}): known are {', '.join(known)}; {own}") from None
    return reward


def _unit(vectors_ID: Vectors) -> Vectors:
    units_ID: Vectors = vectors_ID / np.maximum(np.linalg.norm(vectors_ID, axis=1, keepdims=True), 1e-12)
    return units_ID
