"""What cannot be trained, found before anything is."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from mixwell.bench.cells import Cell, state_of
from mixwell.core.errors import MixwellError
from mixwell.data import DataSet
from mixwell.train import TrainConfig, check
from mixwell.train.named import data_of

__all__ = ["misfits"]

_NAMED = 4
"""Configs that a message names."""


def misfits(cells: Sequence[Cell]) -> list[str]:
    """Say which configs cannot be trained, and why: one text per reason.

    Cells whose run folder is there were checked when they were begun.
    """
    sets: dict[str, DataSet | MixwellError] = {}
    seen: set[str] = set()
    reasons: dict[str, list[str]] = defaultdict(list)
    for cell in cells:
        config = cell.config
        key = json.dumps({**config.identity, "seed": 0}, sort_keys=True)
        if key in seen or state_of(cell).begun:
            continue
        seen.add(key)
        data = _loaded(config, sets)
        try:
            if isinstance(data, MixwellError):
                raise data
            check(config, dataset=data)
        except MixwellError as error:
            where = config.data if error is data else f"{config.data}, {config.model}"
            reasons[str(error)].append(f"{config.recipe} ({where})")
    return [f"{_named(configs)}: {reason}" for reason, configs in reasons.items()]


def _loaded(config: TrainConfig, sets: dict[str, Any]) -> DataSet | MixwellError:
    """The data of a config, or why it cannot be loaded; once for all that have the same."""
    key = json.dumps(
        [config.data, str(config.root), config.augment, config.augment_options, config.data_options], sort_keys=True
    )
    if key not in sets:
        try:
            sets[key] = data_of(config)
        except MixwellError as error:
            sets[key] = error
    found: DataSet | MixwellError = sets[key]
    return found


def _named(configs: Sequence[str]) -> str:
    named = list(dict.fromkeys(configs))
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return f"{', '.join(named[:_NAMED])}{more}"
