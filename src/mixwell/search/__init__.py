"""Searches: which recipe suits one's own data and network, by successive halving on held-out training images."""

from mixwell.search.config import SearchConfig
from mixwell.search.plan import Plan
from mixwell.search.run import Found, search
from mixwell.search.trials import Metric, Trial

__all__ = ["Found", "Metric", "Plan", "SearchConfig", "Trial", "search"]
