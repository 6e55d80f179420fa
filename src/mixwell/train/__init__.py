"""Training runs: configuration, engine, and run folders that survive anything."""

from mixwell.train.config import TrainConfig
from mixwell.train.engine import TIME_FIELDS, Result, train
from mixwell.train.evaluation import Evaluation, evaluate
from mixwell.train.folder import RunFolder

__all__ = ["TIME_FIELDS", "Evaluation", "Result", "RunFolder", "TrainConfig", "evaluate", "train"]
