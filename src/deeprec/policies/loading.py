"""The policy that a configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeprec.config import Config
from deeprec.errors import DeepRecError
from deeprec.policies.adapters import bare
from deeprec.policies.scripted import ScriptedPolicy
from deeprec.policies.tokenizer import greedy_only, unconstrained

if TYPE_CHECKING:  # each brings an engine along
    from deeprec.explore.policy import Policy
    from deeprec.policies.openvino import OpenVinoPolicy
    from deeprec.policies.transformers import TransformersPolicy
    from deeprec.policies.vllm import VllmPolicy


def load_policy(config: Config, *, rows: int | None = None, offline: bool = False) -> Policy:
    """The policy of a configuration.

    Args:
        rows: explorations under way at once, at most; default: `explore.batch_size`.

    Raises:
        DeepRecError: it can't be loaded, or explore as the configuration says.
    """
    kind = config.policy.kind
    if kind == "scripted":
        return ScriptedPolicy(config.explore.answer_size)
    if config.explore.answer == "pool" and kind not in ("transformers", "openvino"):
        raise unconstrained(kind)
    if config.explore.temperature > 0 and kind == "openvino":
        raise greedy_only()
    if kind == "vllm":
        return load_vllm(config, offline=offline)
    if kind == "openai":
        from deeprec.policies.openai import OpenAIPolicy

        server = OpenAIPolicy.load(config.policy)
        _see_that_contexts_fit(config, server.context_limit)
        return server
    if kind == "openvino":
        return _load_openvino(config, rows or config.explore.batch_size, offline=offline)
    return load_transformers(config, offline=offline)


def load_transformers(config: Config, *, offline: bool = False, training: bool = False) -> TransformersPolicy:
    """Likewise; for a training, without the adapter."""
    from deeprec.policies.transformers import TransformersPolicy

    policy = TransformersPolicy.load(bare(config.policy) if training else config.policy, offline=offline)
    _see_that_contexts_fit(config, policy.context_limit)
    return policy


def load_vllm(config: Config, *, offline: bool = False, training: bool = False) -> VllmPolicy:
    """Likewise; for a training, with room for its adapter."""
    from deeprec.policies.vllm import VllmPolicy

    return VllmPolicy.load(
        bare(config.policy) if training else config.policy,
        offline=offline,
        lora_rank=config.train.lora_rank if training else 0,
        max_model_len=config.explore.context_tokens,
        max_num_seqs=config.explore.batch_size,
        gpu_memory_utilization=config.policy.gpu_share or (0.4 if training else 0.9),
    )


def _load_openvino(config: Config, rows: int, *, offline: bool) -> OpenVinoPolicy:
    from deeprec.policies.openvino import OpenVinoPolicy

    policy = OpenVinoPolicy.load(config.policy, offline=offline, rows=rows, tokens=config.explore.context_tokens)
    _see_that_contexts_fit(config, policy.context_limit)
    return policy


def _see_that_contexts_fit(config: Config, limit: int) -> None:
    """
    Raises:
        DeepRecError: contexts may become longer than the model reads.
    """
    if limit < config.explore.context_tokens:
        raise DeepRecError(
            f"explore.context_tokens={config.explore.context_tokens} is more than the {limit} "
            f"that {config.policy.model} reads: lower it."
        )
