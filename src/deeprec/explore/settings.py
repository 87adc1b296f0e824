"""The settings of one exploration: the configuration with every default resolved."""

from __future__ import annotations

from deeprec.config import DEFAULT_PREFERENCE_WEIGHT, ExploreConfig, Guidance
from deeprec.data.catalog import Catalog
from deeprec.errors import DeepRecError
from deeprec.explore.policy import PromptDefaults
from deeprec.retrieval.retriever import Retriever

_SEGMENT = 220
_THOUGHT = 60
_TOKEN = 2
"""Bytes of a title per token. Words take four or more, but digits and marks, which many titles have, take one each."""


class ExploreSettings(ExploreConfig):
    """`ExploreConfig` without None; `resolve_defaults` makes it."""

    segment_tokens: int
    guidance: Guidance
    preference_weight: float
    request_weight: float  # of people's preferences: the configured one, else the default for people
    top_p: float = 1.0  # sample from the smallest set of tokens that holds this probability


def resolve_defaults(
    config: ExploreConfig, prompt_defaults: PromptDefaults | None, retriever: Retriever, catalog: Catalog | None = None
) -> ExploreSettings:
    """Fill unset options: the policy's defaults first, then the retriever's calibrated preference weight.

    The catalogue is of the items that are shown; default: the retriever's, or a DeepRecError if it has none.
    """
    if isinstance(config, ExploreSettings):  # its answer or calls may have changed since
        return config.model_copy(update={"items_per_call": items_of(config)})
    defaults = prompt_defaults or PromptDefaults()
    weight = config.preference_weight
    resolved = limits_of(config, catalog or catalog_of(retriever)) | {
        "guidance": config.guidance or defaults.guidance,
        "preference_weight": first_weight(weight, defaults.preference_weight, retriever.preference_weight),
        "request_weight": first_weight(weight),
    }
    # Not validated again: a training's seeds are larger than those that a configuration may have.
    return ExploreSettings.model_construct(**(dict(config) | resolved))


def first_weight(*weights: float | None) -> float:
    """The first preference weight that is set, else the default for what people ask for."""
    return next((weight for weight in weights if weight is not None), DEFAULT_PREFERENCE_WEIGHT)


def items_of(config: ExploreConfig) -> int:
    """Items a call returns: never so few that all calls together could not fill the answer."""
    return max(config.items_per_call, -(-config.answer_size // config.max_calls))


def limits_of(config: ExploreConfig, catalog: Catalog) -> dict[str, int]:
    """`items_per_call`, enough for all calls to fill the answer, and `segment_tokens`: by default a thought and an
    answer of long titles."""
    line = 4 + catalog.long_title // _TOKEN  # a number, a point, an end of line
    return {
        "items_per_call": items_of(config),
        "segment_tokens": config.segment_tokens or max(_SEGMENT, _THOUGHT + config.answer_size * line),
    }


def catalog_of(retriever: Retriever) -> Catalog:
    if retriever.catalog is None:
        raise DeepRecError(f"{type(retriever).__name__} has no catalogue: pass one, as in Explorer(..., catalog).")
    return retriever.catalog
