"""Training runs: configuration, engine, and run folders that survive anything."""

from mixwell.train.config import TrainConfig
from mixwell.train.engine import TIME_FIELDS, Result, check, train
from mixwell.train.evaluation import Evaluation, evaluate
from mixwell.train.folder import RunFolder
from mixwell.train.runs import Run, Trained, trained

__all__ = [
    "TIME_FIELDS",
    "Evaluation",
    "Result",
    "Run",
    "RunFolder",
    "TrainConfig",
    "Trained",
    "check",
    "evaluate",
    "train",
    "trained",
]
