"""Text to a language model's tokens and back, and what all that load language models share."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deeprec.assets import ASSETS, fetch
from deeprec.config import ExploreConfig, PolicyConfig, guidance_of
from deeprec.downloads import sha256_of
from deeprec.errors import DeepRecError
from deeprec.policies.policy import Finish, Habits, Request

SHIPPED = Path(__file__).parents[1] / "adapters"
"""Adapters that we trained, in folders by the asset that is their model."""
_HABITS = "deeprec.json"
"""Beside an adapter's weights: the `Habits` of a policy that has it."""
_DECIDING = ("*.safetensors", "*.gguf", "*.bin", _HABITS)
"""Files that decide what a folder's model writes."""


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


def ends_of(generation: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end any text, by a `GenerationConfig` of transformers (None without one) and a tokenizer."""
    ends = generation.eos_token_id if generation is not None else None
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    return frozenset([*ends, *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])])


class Ending:
    """Watches the tokens of a segment, one after another, for its end.

    Args:
        ends: tokens that end any text.
    """

    def __init__(self, codec: TokenizerCodec, request: Request, ends: Collection[int]) -> None:
        self.codec, self.request, self.ends = codec, request, ends
        self.written = 0
        # Every token adds at least one byte or nothing, so a stop that just ended lies in so many of the last.
        self._longest = max((len(stop.encode()) for stop in request.stops), default=1)
        self._tail: list[int] = []

    def after(self, token: int) -> Finish | None:
        """Whether this token, the next one, ends the segment, and why."""
        self.written += 1
        self._tail = [*self._tail[-self._longest :], token]
        text = self.codec.decode(self._tail)
        if any(stop in text for stop in self.request.stops):
            return Finish.STOP
        if token in self.ends:
            return Finish.END
        return Finish.LENGTH if self.written >= self.request.max_new_tokens else None


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


def read_habits(adapter: Path | None) -> Habits | None:
    """What an adapter was trained with, as `write_habits` left it; None without one, or where it left nothing."""
    if adapter is None or not (path := adapter / _HABITS).is_file():
        return None
    try:
        explore = ExploreConfig.model_validate(json.loads(path.read_bytes()), strict=True)
        return Habits(guidance_of(explore), explore.trust)
    except ValueError:
        raise DeepRecError(f"{path} is damaged: bring the adapter's folder back, or remove this file.") from None


def write_habits(adapter: Path, explore: ExploreConfig) -> None:
    habits = Habits(guidance_of(explore), explore.trust)
    (adapter / _HABITS).write_text(json.dumps(asdict(habits), indent=2) + "\n", encoding="utf-8")


def refuse_constraints(requests: Sequence[Request], kind: str) -> None:
    """For policies whose tokens are chosen elsewhere.

    Raises:
        DeepRecError: a request has a constraint.
    """
    if any(request.constraint for request in requests):
        raise unconstrained(kind)


def unconstrained(kind: str) -> DeepRecError:
    return DeepRecError(
        f"policy.kind={kind!r} can't hold answers to explore.answer='pool': use transformers or openvino, or "
        "free answers."
    )


def greedy_only() -> DeepRecError:
    return DeepRecError("policy.kind='openvino' is greedy: set explore.temperature=0, or use policy.kind=transformers.")


def unloadable(config: PolicyConfig, error: Exception) -> DeepRecError:
    known = ", ".join(ASSETS)
    return DeepRecError(
        f"policy.model={config.model!r} can't be loaded (assets: {known}; or a model folder, or a hub id): "
        f"{brief(error)}"
    )


def brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
