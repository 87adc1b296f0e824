"""Where a model and its adapter come from, and the prompt defaults that an adapter brings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from deeprec import assets
from deeprec.assets import ASSETS, fetch
from deeprec.assets.downloads import sha256_of
from deeprec.config import ExploreConfig, PolicyConfig, guidance_of
from deeprec.errors import DeepRecError
from deeprec.explore.policy import PromptDefaults

SHIPPED = Path(assets.__file__).with_name("adapters")
"""Adapters that we trained, in folders by the asset that is their model."""
_PROMPT_DEFAULTS = "deeprec.json"
"""Beside an adapter's weights: the `Habits` of a policy that has it."""
_DECIDING = ("*.safetensors", "*.gguf", "*.bin", _PROMPT_DEFAULTS)
"""Files that decide what a folder's model writes."""


def model_source(config: PolicyConfig, *, offline: bool) -> str:
    """Where the model's files are: the folder of a fetched asset, or what the configuration names, folder or hub id."""
    source = str(Path(config.model).expanduser())
    return str(fetch(source, offline=offline)) if source in ASSETS else source


def adapter_folder(config: PolicyConfig) -> Path | None:
    """The folder of the adapter that is configured, or of the one that we ship for the model; None without one.

    Raises:
        DeepRecError: it holds none.
    """
    if config.adapter == "none" or config.kind not in ("transformers", "openvino", "vllm"):
        return None
    if config.adapter == "shipped":
        shipped = SHIPPED / config.model
        return shipped if config.model in ASSETS and shipped.is_dir() else None
    adapter = Path(config.adapter).expanduser()
    if not (adapter / "adapter_config.json").is_file():
        raise DeepRecError(f"The adapter {config.adapter!r} holds no adapter_config.json.")
    return adapter


def digests_of(folder: Path | None) -> list[str]:
    """Of an adapter's or a model's weights and habits: their folder's name may stand for others tomorrow."""
    return (
        [sha256_of(file) for file in sorted(file for form in _DECIDING for file in folder.glob(form))] if folder else []
    )


def bare(config: PolicyConfig) -> PolicyConfig:
    """The same without an adapter."""
    return config.model_copy(update={"adapter": "none"})


def name_of(config: PolicyConfig) -> str:
    """Of a policy, for tables: its model, and what it has learned."""
    name = Path(config.model).name
    if adapter := adapter_folder(config):
        return f"{name}, trained" if config.adapter == "shipped" else f"{name} + {adapter.name}"
    return f"{name}, untrained" if config.model in ASSETS else name


def read_prompt_defaults(adapter: Path | None) -> PromptDefaults | None:
    """What an adapter was trained with, as `write_habits` left it; None without one, or where it left nothing."""
    if adapter is None or not (path := adapter / _PROMPT_DEFAULTS).is_file():
        return None
    try:
        explore = ExploreConfig.model_validate(json.loads(path.read_bytes()), strict=True)
        return PromptDefaults(guidance_of(explore), explore.preference_weight)
    except ValueError:
        raise DeepRecError(f"{path} is damaged: bring the adapter's folder back, or remove this file.") from None


def write_prompt_defaults(adapter: Path, explore: ExploreConfig) -> None:
    prompt_defaults = PromptDefaults(guidance_of(explore), explore.preference_weight)
    (adapter / _PROMPT_DEFAULTS).write_text(json.dumps(asdict(prompt_defaults), indent=2) + "\n", encoding="utf-8")
