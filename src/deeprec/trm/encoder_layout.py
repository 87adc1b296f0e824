"""The sentence-transformers layout: what the files of a text encoder say of pooling, longest text and prompt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from deeprec.errors import DeepRecError

BARE_TOKENS = 128  # that are read of a text by a model without the layout

Pooling = Literal["mean", "cls", "lasttoken"]
_PARTS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
_FLAG = "pooling_mode_"  # of older files, which have a truth value for each kind of pooling


@dataclass(frozen=True)
class Layout:
    """How a text becomes a vector.

    Attributes:
        model: the folder of the transformer and its tokenizer.
        folders: all whose files decide the vectors.
        published: whether the files of the layout are there; else there is only a transformer.
        max_tokens: of a text, the prompt included; None for as many as the transformer reads.
        prompt: what comes before every text.
    """

    model: Path
    folders: tuple[Path, ...]
    published: bool = True
    pooling: Pooling = "mean"
    max_tokens: int | None = None
    prompt: str = ""
    lower: bool = False  # whether it reads lower case alone


def read_layout(folder: Path) -> Layout:
    """The layout of an encoder's folder. DeepRecError for parts that are not understood; OSError, ValueError, KeyError
    and the like if a file is missing or damaged."""
    if not (folder / "modules.json").is_file():
        return Layout(folder, (folder,), published=False)
    parts = _read(folder / "modules.json")
    kinds = [part["type"].rpartition(".")[2] for part in parts]
    if kinds not in _PARTS:
        raise _not_understood(folder, f"parts {', '.join(kinds)}")
    model, pooling = (folder / part["path"] for part in parts[:2])
    settings: dict[str, Any] = next((_read(file) for file in sorted(model.glob("sentence_*_config.json"))), {})
    named = folder / "config_sentence_transformers.json"
    prompts = _read(named) if named.is_file() else {}
    # Items and preferences must lie in one space, so all texts get the prompt of one kind.
    of_kind = prompts.get("prompts") or {}
    prompt = of_kind.get("query") or of_kind.get(prompts.get("default_prompt_name")) or ""
    return Layout(
        model,
        tuple(dict.fromkeys((folder, model, pooling))),
        pooling=_pooling(folder, _read(pooling / "config.json"), prompt),
        max_tokens=settings.get("max_seq_length"),
        prompt=prompt,
        lower=bool(settings.get("do_lower_case")),
    )


def _pooling(folder: Path, config: dict[str, Any], prompt: str) -> Pooling:
    modes = config.get("pooling_mode") or [
        name.removeprefix(_FLAG).removesuffix("_token").removesuffix("_tokens")
        for name, used in config.items()
        if name.startswith(_FLAG) and used
    ]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if prompt and not config.get("include_prompt", True):
        raise _not_understood(folder, f"pooling {', '.join(modes)} without the prompt")
    for known in get_args(Pooling):
        if modes == [known]:
            return known
    raise _not_understood(folder, f"pooling {', '.join(modes)}")


def _not_understood(folder: Path, what: str) -> DeepRecError:
    return DeepRecError(
        f"The text encoder in {folder} has the {what}, but DeepRec reads those of a transformer with mean, cls or "
        "lasttoken pooling: name one of these in trm.text_encoder."
    )


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
