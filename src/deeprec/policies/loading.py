"""The policy that a configuration, or a name, stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from deeprec.config import Config, PolicyConfig
from deeprec.errors import DeepRecError
from deeprec.policies.adapters import bare
from deeprec.policies.scripted import ScriptedPolicy
from deeprec.policies.tokenizer import refuse_unsupported

if TYPE_CHECKING:  # each imports an engine
    from deeprec.explore.policy import Policy
    from deeprec.policies.transformers import TransformersPolicy
    from deeprec.policies.vllm import VllmPolicy

P = TypeVar("P", bound="Policy")


def load_policy(
    source: str | Path | PolicyConfig | Config, *, rows: int | None = None, offline: bool = False
) -> Policy:
    """Load a policy; DeepRecError if that fails, or it can't explore as the configuration says.

    Args:
        source: `scripted`; the URL of an OpenAI-compatible server with one model; an asset's name, a folder of a model
            or of an adapter that was trained, or a hub id; or a configuration.
        rows: explorations in flight at once, at most; default: `explore.batch_size`.
    """
    if isinstance(source, str | Path):
        source = _named(str(source))
    config = source if isinstance(source, Config) else Config(policy=source)
    match config.policy.kind:
        case "scripted":
            return ScriptedPolicy()
        case "vllm":
            return load_vllm(config, offline=offline)
        case "transformers":
            return load_transformers(config, offline=offline)
        case "openai":
            from deeprec.policies.openai import OpenAIPolicy

            return _load(OpenAIPolicy, config)
        case "openvino":
            from deeprec.policies.openvino import OpenVinoPolicy

            rows, tokens = rows or config.explore.batch_size, config.explore.context_tokens
            return _load(OpenVinoPolicy, config, offline=offline, rows=rows, tokens=tokens)


def load_transformers(config: Config, *, offline: bool = False, training: bool = False) -> TransformersPolicy:
    from deeprec.policies.transformers import TransformersPolicy

    return _load(TransformersPolicy, config, training, offline=offline)


def load_vllm(config: Config, *, offline: bool = False, training: bool = False) -> VllmPolicy:
    from deeprec.policies.vllm import VllmPolicy

    return _load(
        VllmPolicy,
        config,
        training,
        offline=offline,
        lora_rank=config.train.lora_rank if training else 0,
        max_model_len=config.explore.context_tokens,
        max_num_seqs=config.explore.batch_size,
        gpu_memory_utilization=config.policy.gpu_share or (0.4 if training else 0.9),
    )


def _named(source: str) -> PolicyConfig:
    if source == "scripted":
        return PolicyConfig(kind="scripted")
    if source.startswith(("http://", "https://")):
        return PolicyConfig(kind="openai", url=source, model="")
    adapter = Path(source).expanduser() / "adapter_config.json"
    if adapter.is_file():
        try:
            base = str(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
        except (ValueError, LookupError, TypeError):
            raise DeepRecError(f"{adapter} names no base model: bring the adapter's folder back.") from None
        return PolicyConfig(model=base, adapter=source)
    return PolicyConfig(model=source)


def _load(kind: type[P], config: Config, training: bool = False, **options: Any) -> P:
    """Whether the policy can explore as the configuration says is checked first: loading may take minutes."""
    explore, source, engine = config.explore, config.policy, cast("Any", kind)
    refuse_unsupported(kind, source.kind, constrained=explore.answer == "pool", sampled=explore.temperature > 0)
    policy: P = engine.load(bare(source) if training else source, **options)
    if policy.context_limit < explore.context_tokens:
        limit = f"the {policy.context_limit} tokens that {source.model or 'the model'} reads"
        raise DeepRecError(f"explore.context_tokens={explore.context_tokens} is more than {limit}: lower it.")
    return policy
