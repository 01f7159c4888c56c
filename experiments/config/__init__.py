"""Typed, frozen configurations, a module for each kind. Wrong values are refused here, before any work is done."""

from experiments.config.checks import Stopped as Stopped
from experiments.config.checks import UserError as UserError
from experiments.config.checks import require as require
from experiments.config.checks import require_at_least as require_at_least
from experiments.config.checks import require_distinct as require_distinct
from experiments.config.compare import CompareConfig as CompareConfig
from experiments.config.compare import GridConfig as GridConfig
from experiments.config.compare import Quantity as Quantity
from experiments.config.data import SPLIT_PER_SEED as SPLIT_PER_SEED
from experiments.config.data import Augmentation as Augmentation
from experiments.config.data import DataConfig as DataConfig
from experiments.config.data import DataName as DataName
from experiments.config.measure import FlatnessConfig as FlatnessConfig
from experiments.config.measure import LandscapeConfig as LandscapeConfig
from experiments.config.measure import MeasureConfig as MeasureConfig
from experiments.config.model import ModelConfig as ModelConfig
from experiments.config.model import ModelName as ModelName
from experiments.config.train import Averaging as Averaging
from experiments.config.train import CheckpointsConfig as CheckpointsConfig
from experiments.config.train import DevicesConfig as DevicesConfig
from experiments.config.train import TrainConfig as TrainConfig
