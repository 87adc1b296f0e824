"""DeepRec: a language model explores a catalogue with a recommender as its tool."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Imported on first use, so that `import deeprec` needs no torch. `__init__.pyi` tells type checkers the same.
_MODULES = {
    "Catalog": "deeprec.data.catalog",
    "Config": "deeprec.config",
    "Dataset": "deeprec.data.dataset",
    "DeepRecError": "deeprec.errors",
    "ExploreConfig": "deeprec.config",
    "Explorer": "deeprec.explore.explorer",
    "Hit": "deeprec.retrieval.retriever",
    "ItemFilter": "deeprec.data.filters",
    "Policy": "deeprec.explore.policy",
    "Query": "deeprec.retrieval.retriever",
    "Report": "deeprec.evaluation.report",
    "Retriever": "deeprec.retrieval.retriever",
    "ScriptedPolicy": "deeprec.policies.scripted",
    "System": "deeprec.evaluation.systems",
    "TRM": "deeprec.trm.trm",
    "TRMConfig": "deeprec.config",
    "Task": "deeprec.data.dataset",
    "TextPolicy": "deeprec.policies.text",
    "Trace": "deeprec.explore.trace",
    "evaluate": "deeprec.evaluation.evaluate",
    "load_config": "deeprec.config",
    "load_dataset": "deeprec.data.sources",
    "load_items": "deeprec.data.sources",
    "load_policy": "deeprec.policies.loading",
    "top_hits": "deeprec.retrieval.retriever",
    "train_policy": "deeprec.training.run",
    "update_trm": "deeprec.trm.update",
    "write_recommendations": "deeprec.batch.recommendations",
}

__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'deeprec' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
