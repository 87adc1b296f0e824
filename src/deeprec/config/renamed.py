"""Keys of earlier versions, and what became of each. A stage's keys are written as `train.stages.KEY`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

OLD_KEYS = {
    "trm.neighbours": "now trm.cooccurrence",
    "trm.lexical": "now trm.bm25",
    "explore.trust": "now explore.preference_weight",
    "train.reach": "now train.max_target_rank",
    "train.samples": "now train.group_size",
    "train.updates": "now train.updates_per_step",
    "train.rows": "now train.micro_batch_size",
    "train.negative": "now train.negative_advantage_weight",
    "train.whitening": "now advantage_normalisation in each of train.stages",
    "train.stages.whitening": "now advantage_normalisation",
    "train.warm_start": "now train.sft",
    "train.warm_start.share": "now train.sft.share",
    "train.warm_start.tasks": "now train.sft.demonstrations",
    "train.warm_start.beside": "now train.sft.extra_datasets",
    "train.warm_start.learning_rate": "now train.sft.learning_rate",
    "train.warm_start.batch_size": "now train.sft.batch_size",
    "trm.heads": "a constant now: 2",
    "trm.dropout": "a constant now: 0.2",
    "trm.patience": "a constant now: 5 validations",
    "trm.batch_places": "a constant now: 2048 positions",
    "trm.weight_decay": "a constant now: 0",
    "trm.averaging": "a constant now: 3 epochs",
    "trm.id_dropout": "a constant now: 0.1",
    "trm.preference_dropout": "a constant now: 0.3, and trm.preferences = false trains without preferences",
    "trm.history_preference": "a constant now: 0.3",
    "trm.preference_window": "a constant now: 5 items",
    "trm.exact_preference": "a constant now: 0.3",
    "policy.timeout": "a constant now: 60 seconds",
    "policy.retries": "a constant now: 3",
    "rewards.format_penalty": "a constant now: -1",
    "rewards.invocation_step": "a constant now: 0.5",
    "rewards.invocation_calls": "a constant now: 3",
    "rewards.diversity_scale": "a constant now: 0.2",
    "rewards.hit_value": "a constant now: 1",
    "rewards.rank_step": "a constant now: 0.2",
    "rewards.pointwise_scale": "a constant now: 10",
    "train.per_user": "a constant now: 20 items",
    "explore.top_p": "a constant now: 1",
    "train.top_p": "a constant now: 0.95",
    "train.clip_low": "a constant now: 0.2",
    "train.clip_high": "a constant now: 0.28",
    "train.grad_norm": "a constant now: 1",
    "train.replacements": "a constant now: 1 round",
    "train.save_every": "a constant now: 1 step",
    "eval.bootstrap": "a constant now: 2000 resamples",
    "eval.confidence": "a constant now: 0.95",
    "eval.seed": "a constant now: 0",
    "eval.processes": "a constant now: one for each of PyTorch's threads, 8 at most",
    "serve.queue": "a constant now: four times serve.slots",
    "serve.queries": "a constant now: 1024",
    "serve.untrained": "a constant now: true",
    "explore.horizon": "gone: an exploration goes on to its answer",
    "train.stages.horizon": "gone: an exploration goes on to its answer",
    "train.stages.rewards.foresight": "gone: hit, rank and pointwise reward the outcome",
    "rewards": "gone: the constants of rewards are fixed",
    "rewards.foresight_scale": "gone: hit, rank and pointwise reward the outcome",
    "policy.price_read": "gone: traces count tokens and no cost",
    "policy.price_written": "gone: traces count tokens and no cost",
}
"""What each key is: now another, a constant now, or gone."""


def find_old_key(tree: Any) -> tuple[str, str] | None:
    """The first old key in a tree of settings, and what it is today; None where all keys may be of today."""
    for path in _paths(tree):
        key = ".".join(part for part in path if not part.isdecimal())
        if key in OLD_KEYS:
            return ".".join(path), OLD_KEYS[key]
    return None


def _paths(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key, keys of a section before the section itself."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, child in children:
        yield from _paths(child, (*path, str(key)))
        yield (*path, str(key))
