"""Keys of earlier versions, and what became of each. A stage's keys are written as `train.stages.KEY`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

RENAMED = {
    "trm.neighbours": "trm.cooccurrence",
    "trm.lexical": "trm.bm25",
    "explore.trust": "explore.preference_weight",
    "train.reach": "train.max_target_rank",
    "train.samples": "train.group_size",
    "train.updates": "train.updates_per_step",
    "train.rows": "train.micro_batch_size",
    "train.negative": "train.negative_advantage_weight",
    "train.whitening": "advantage_normalisation in each of train.stages",
    "train.stages.whitening": "advantage_normalisation",
    "train.warm_start": "train.sft",
    "train.warm_start.share": "train.sft.share",
    "train.warm_start.tasks": "train.sft.demonstrations",
    "train.warm_start.beside": "train.sft.extra_datasets",
    "train.warm_start.learning_rate": "train.sft.learning_rate",
    "train.warm_start.batch_size": "train.sft.batch_size",
}

CONSTANT = {
    "trm.heads": "2",
    "trm.dropout": "0.2",
    "trm.patience": "5 validations",
    "trm.batch_places": "2048 positions",
    "trm.weight_decay": "0",
    "trm.averaging": "3 epochs",
    "trm.id_dropout": "0.1",
    "trm.preference_dropout": "0.3, and trm.preferences = false trains without preferences",
    "trm.history_preference": "0.3",
    "trm.preference_window": "5 items",
    "trm.exact_preference": "0.3",
    "policy.timeout": "60 seconds",
    "policy.retries": "3",
    "explore.top_p": "1",
    "rewards.format_penalty": "-1",
    "rewards.invocation_step": "0.5",
    "rewards.invocation_calls": "3",
    "rewards.diversity_scale": "0.2",
    "rewards.hit_value": "1",
    "rewards.rank_step": "0.2",
    "rewards.pointwise_scale": "10",
    "train.per_user": "20 items",
    "train.top_p": "0.95",
    "train.clip_low": "0.2",
    "train.clip_high": "0.28",
    "train.grad_norm": "1",
    "train.replacements": "1 round",
    "train.save_every": "1 step",
    "eval.bootstrap": "2000 resamples",
    "eval.confidence": "0.95",
    "eval.seed": "0",
    "eval.processes": "one for each of PyTorch's threads, 8 at most",
    "serve.queue": "four times serve.slots",
    "serve.queries": "1024",
    "serve.untrained": "true",
}

GONE = {
    "explore.horizon": "an exploration goes on to its answer",
    "train.stages.horizon": "an exploration goes on to its answer",
    "train.stages.rewards.foresight": "hit, rank and pointwise reward the outcome",
    "rewards": "the constants of rewards are fixed",
    "rewards.foresight_scale": "hit, rank and pointwise reward the outcome",
    "policy.price_read": "traces count tokens and no cost",
    "policy.price_written": "traces count tokens and no cost",
}


def find_old_key(tree: Any) -> tuple[str, str] | None:
    """The first old key in a tree of settings, and what became of it; None where all keys may be of today."""
    for path in _paths(tree):
        key = ".".join(part for part in path if not part.isdecimal())
        if key in RENAMED:
            return ".".join(path), f"is now {RENAMED[key]}"
        if key in CONSTANT:
            return ".".join(path), f"is a constant now: {CONSTANT[key]}"
        if key in GONE:
            return ".".join(path), f"is gone: {GONE[key]}"
    return None


def _paths(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key, keys of a section before the section itself."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, child in children:
        yield from _paths(child, (*path, str(key)))
        yield (*path, str(key))
