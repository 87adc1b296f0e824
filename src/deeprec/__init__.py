"""DeepRec: a language model explores a catalogue with a recommender as its tool."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Imported on first use, so that `import deeprec` needs no torch.
_NAMES = {
    "Catalog": "deeprec.data.catalog",
    "Config": "deeprec.config",
    "Dataset": "deeprec.data.dataset",
    "DeepRecError": "deeprec.errors",
    "Explorer": "deeprec.explore.explorer",
    "Query": "deeprec.retrieval.retriever",
    "TRM": "deeprec.trm.trm",
    "Task": "deeprec.data.dataset",
    "TextEncoder": "deeprec.trm.text_encoder",
    "Trace": "deeprec.explore.trace",
    "TransformersPolicy": "deeprec.policies.transformers",
    "load_config": "deeprec.config",
    "load_dataset": "deeprec.data.sources",
}

__all__ = [*_NAMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'deeprec' has no attribute {name!r}")
    return getattr(import_module(_NAMES[name]), name)
