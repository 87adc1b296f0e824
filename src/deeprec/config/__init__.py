"""Frozen configuration: one TOML file a run, dotted overrides, unknown keys are errors."""

from deeprec.config.loading import dump_config, load_config, parse_config, subsection
from deeprec.config.schema import (
    DEFAULT_PREFERENCE_WEIGHT,
    TRAINABLE,
    USUAL_COLUMNS,
    Columns,
    Config,
    DataConfig,
    EvalConfig,
    ExploreConfig,
    Guidance,
    PolicyConfig,
    Section,
    ServeConfig,
    SFTConfig,
    StageConfig,
    TrainConfig,
    TRMConfig,
)

__all__ = [
    "DEFAULT_PREFERENCE_WEIGHT",
    "TRAINABLE",
    "USUAL_COLUMNS",
    "Columns",
    "Config",
    "DataConfig",
    "EvalConfig",
    "ExploreConfig",
    "Guidance",
    "PolicyConfig",
    "SFTConfig",
    "Section",
    "ServeConfig",
    "StageConfig",
    "TRMConfig",
    "TrainConfig",
    "dump_config",
    "load_config",
    "parse_config",
    "subsection",
]
