"""Data sets and the loader that turns them into batches."""

from mixwell.data.loader import Loader
from mixwell.data.memory import InMemory
from mixwell.data.sets import DataSet, from_datasets, load, named
from mixwell.data.split import held_out

__all__ = ["DataSet", "InMemory", "Loader", "from_datasets", "held_out", "load", "named"]
