"""Text to a language model's tokens and back, and what all that load language models share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deeprec.config import PolicyConfig
from deeprec.errors import DeepRecError


class TokenizerCodec:
    """Encodes piece by piece, without special tokens but a start token where the tokenizer sets one."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        # What the tokenizer itself puts before a text; its settings don't tell for all kinds of tokenizer.
        opened = tokenizer("a")["input_ids"][:1]
        self.start = opened if opened == [tokenizer.bos_token_id] else []

    def encode(self, text: str, *, first: bool = False) -> list[int]:
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return [*self.start, *tokens] if first else tokens

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def model_source(config: PolicyConfig, *, offline: bool) -> str:
    """Where the model's files are: the folder of a fetched asset, or what the configuration names, folder or hub id."""
    from deeprec import assets

    source = str(Path(config.model).expanduser())
    return str(assets.fetch(source, offline=offline)) if source in assets.ASSETS else source


def adapter_folder(config: PolicyConfig) -> Path | None:
    """The folder of the adapter, where one is configured.

    Raises:
        DeepRecError: it holds none.
    """
    if config.adapter is None:
        return None
    adapter = Path(config.adapter).expanduser()
    if not (adapter / "adapter_config.json").is_file():
        raise DeepRecError(f"policy.adapter={config.adapter!r} holds no adapter_config.json.")
    return adapter


def unloadable(config: PolicyConfig, error: Exception) -> DeepRecError:
    from deeprec import assets

    known = ", ".join(assets.ASSETS)
    return DeepRecError(
        f"policy.model={config.model!r} can't be loaded (assets: {known}; or a model folder, or a hub id): "
        f"{brief(error)}"
    )


def brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
