"""Where a model and its adapter come from, and the prompt defaults that an adapter brings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deeprec import assets
from deeprec.assets import ASSETS, fetch
from deeprec.assets.downloads import sha256_of
from deeprec.config import ExploreConfig, PolicyConfig
from deeprec.errors import DeepRecError
from deeprec.explore.policy import PromptDefaults
from deeprec.policies.tokenizer import explain_errors

SHIPPED = Path(assets.__file__).with_name("adapters")
"""Adapters in the package, in folders named after the asset that is their model."""
_PROMPT_DEFAULTS = "deeprec.json"
_DECIDING = ("*.safetensors", "*.gguf", "*.bin", _PROMPT_DEFAULTS)  # files that decide what a folder's model writes


@contextmanager
def model_source(config: PolicyConfig, *, offline: bool) -> Iterator[str]:
    """The folder of a fetched asset, or the folder or hub id that the configuration names; explains loading errors."""
    source = str(Path(config.model).expanduser())
    known = f"assets: {', '.join(ASSETS)}; or a model folder, or a hub id"
    with explain_errors(f"policy.model={config.model!r} can't be loaded ({known})"):
        yield str(fetch(source, offline=offline)) if source in ASSETS else source


def adapter_folder(config: PolicyConfig) -> Path | None:
    """The folder of the configured adapter, or of the shipped one for the model; None without one."""
    if config.adapter == "none" or config.kind not in ("transformers", "openvino", "vllm"):
        return None
    if config.adapter == "shipped":
        shipped = SHIPPED / config.model
        return shipped if config.model in ASSETS and shipped.is_dir() else None
    adapter = Path(config.adapter).expanduser()
    if not (adapter / "adapter_config.json").is_file():
        why = "holds no adapter_config.json" if adapter.is_dir() else "is not there; if its run was moved, say where to"
        raise DeepRecError(f"The adapter {config.adapter!r} {why}.")
    return adapter


def digests_of(folder: Path | None) -> list[str]:
    """Digests of the weights and prompt defaults in a folder: tomorrow it may hold others."""
    return [sha256_of(file) for file in sorted(f for form in _DECIDING for f in folder.glob(form))] if folder else []


def identity_of(config: PolicyConfig) -> dict[str, Any]:
    """What decides the texts of a configured policy, as JSON values: of an adapter or a local model the weights count,
    and not the folder."""
    folders = (adapter_folder(config), Path(config.model).expanduser())
    return {
        "policy": config.model_dump(mode="json", exclude={"adapter", "gpu_share", "url"}),
        "weights": [digest for folder in folders for digest in digests_of(folder)],
    }


def bare(config: PolicyConfig) -> PolicyConfig:
    """The same without an adapter."""
    return config.model_copy(update={"adapter": "none"})


def name_of(config: PolicyConfig) -> str:
    """Name of a policy for tables: its model, and what it has learned."""
    name = Path(config.model).name
    if adapter := adapter_folder(config):
        return f"{name}, trained" if config.adapter == "shipped" else f"{name} + {adapter.name}"
    return f"{name}, untrained" if config.model in ASSETS else name


def read_prompt_defaults(adapter: Path | None) -> PromptDefaults | None:
    """What `write_prompt_defaults` left beside an adapter; None without an adapter or such a file."""
    if adapter is None or not (path := adapter / _PROMPT_DEFAULTS).is_file():
        return None
    try:
        return _defaults_of(ExploreConfig.model_validate_json(path.read_bytes(), strict=True))
    except ValueError:
        raise DeepRecError(f"{path} is damaged: restore the adapter's folder, or remove this file.") from None


def write_prompt_defaults(adapter: Path, explore: ExploreConfig) -> None:
    text = json.dumps(asdict(_defaults_of(explore)), indent=2)
    (adapter / _PROMPT_DEFAULTS).write_text(f"{text}\n", encoding="utf-8")


def _defaults_of(explore: ExploreConfig) -> PromptDefaults:
    return PromptDefaults(explore.guidance or PromptDefaults().guidance, explore.preference_weight)
