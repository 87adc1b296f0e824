"""Frozen configuration: one TOML file a run, dotted overrides, unknown keys are errors."""

from deeprec.config.loading import dump_config as dump_config
from deeprec.config.loading import load_config as load_config
from deeprec.config.loading import parse_config as parse_config
from deeprec.config.loading import subsection as subsection
from deeprec.config.schema import DEFAULT_PREFERENCE_WEIGHT as DEFAULT_PREFERENCE_WEIGHT
from deeprec.config.schema import DEFAULT_TEXT_ENCODER as DEFAULT_TEXT_ENCODER
from deeprec.config.schema import TRAINABLE as TRAINABLE
from deeprec.config.schema import USUAL_COLUMNS as USUAL_COLUMNS
from deeprec.config.schema import Columns as Columns
from deeprec.config.schema import Config as Config
from deeprec.config.schema import DataConfig as DataConfig
from deeprec.config.schema import EvalConfig as EvalConfig
from deeprec.config.schema import Exclude as Exclude
from deeprec.config.schema import ExploreConfig as ExploreConfig
from deeprec.config.schema import Guidance as Guidance
from deeprec.config.schema import PolicyConfig as PolicyConfig
from deeprec.config.schema import Section as Section
from deeprec.config.schema import ServeConfig as ServeConfig
from deeprec.config.schema import SFTConfig as SFTConfig
from deeprec.config.schema import StageConfig as StageConfig
from deeprec.config.schema import TrainConfig as TrainConfig
from deeprec.config.schema import TRMConfig as TRMConfig
