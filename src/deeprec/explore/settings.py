"""The settings of one exploration: the configuration with every default resolved."""

from __future__ import annotations

from deeprec.config import DEFAULT_PREFERENCE_WEIGHT, ExploreConfig, Guidance, items_of
from deeprec.data.catalog import Catalog
from deeprec.errors import DeepRecError
from deeprec.explore.policy import PromptDefaults
from deeprec.retrieval.retriever import Retriever

_SEGMENT = 220
_THOUGHT = 60
_TOKEN = 2
"""Bytes of a title per token. Words take four or more, but digits and marks, which many titles have, take one each."""


class ExploreSettings(ExploreConfig):
    """`ExploreConfig` without None; `resolve_defaults` makes it.

    Attributes:
        items_per_call: at least so many that all calls together can fill the answer.
        request_weight: preference weight of people's requests: the configured one, else the default for people.
    """

    segment_tokens: int
    guidance: Guidance
    preference_weight: float
    request_weight: float


def resolve_defaults(
    config: ExploreConfig, prompt_defaults: PromptDefaults | None, retriever: Retriever, catalog: Catalog | None = None
) -> ExploreSettings:
    """Fill unset options: the policy's defaults first, then the retriever's calibrated preference weight.

    Args:
        catalog: of the items that are shown; default: the retriever's.

    Raises:
        DeepRecError: there is no catalogue.
    """
    if isinstance(config, ExploreSettings):
        return config
    defaults = prompt_defaults or PromptDefaults()
    weights = (config.preference_weight, defaults.preference_weight, retriever.preference_weight)
    requested = DEFAULT_PREFERENCE_WEIGHT if config.preference_weight is None else config.preference_weight
    resolved = {
        "guidance": config.guidance or defaults.guidance,
        "preference_weight": next((weight for weight in weights if weight is not None), DEFAULT_PREFERENCE_WEIGHT),
        "request_weight": requested,
        "segment_tokens": segment_tokens_of(config, catalog or catalog_of(retriever)),
        "items_per_call": items_of(config),
    }
    # Not validated again: a training's seeds are larger than those that a configuration may have.
    return ExploreSettings.model_construct(**(dict(config) | resolved))


def segment_tokens_of(config: ExploreConfig, catalog: Catalog) -> int:
    """New tokens between two tool results: the configured limit, or room for a thought and an answer of long titles."""
    if config.segment_tokens is not None:
        return config.segment_tokens
    line = 4 + catalog.long_title // _TOKEN  # a number, a point, an end of line
    return max(_SEGMENT, _THOUGHT + config.answer_size * line)


def catalog_of(retriever: Retriever) -> Catalog:
    """
    Raises:
        DeepRecError: the retriever has no catalogue.
    """
    if retriever.catalog is None:
        raise DeepRecError(f"{type(retriever).__name__} has no catalogue: pass one, as in Explorer(..., catalog).")
    return retriever.catalog
