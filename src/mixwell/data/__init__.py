"""Data sets and the loader that turns them into batches."""

from mixwell.data.loader import Loader
from mixwell.data.memory import InMemory
from mixwell.data.noise import with_label_noise
from mixwell.data.sets import DataSet, from_datasets, load, named
from mixwell.data.split import held_out

__all__ = ["DataSet", "InMemory", "Loader", "from_datasets", "held_out", "load", "named", "with_label_noise"]
