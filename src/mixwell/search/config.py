"""What a search is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixwell.core.errors import ParameterError, closest, number_in
from mixwell.search.sampler import SAMPLERS, Sampler
from mixwell.search.trials import METRICS, Metric
from mixwell.train import TrainConfig

__all__ = ["SearchConfig"]


@dataclass(frozen=True)
class SearchConfig:
    """One search.

    Attributes:
        train: of every training; its `epochs` are those of the candidates that are trained longest, over which every
            candidate's learning rate is scheduled, and its `recipe` is not used.
        recipes: candidates, which may have ranges; all that train on the network in their own recipe if empty.
        epochs: budget, as epochs of all trainings together; or
        minutes: budget, as time of all trainings together.
        first: epochs after which candidates are compared first, at least.
        eta: of the candidates at a rung, one in so many goes on.
        metric: by which they are compared, on the held-out images.
        held_out: share of the training images that judge and are not trained on.
        tune: set the parameters alpha and prob free in candidates without ranges.
        samples: most candidates that are drawn from one recipe with ranges.
        sampler: how these are drawn.
        out: folder of the search; runs/search-DATA-MODEL-sSEED-HASH if not given.

    Raises:
        ParameterError: a value is out of range, or there is not one budget.
    """

    train: TrainConfig = field(default_factory=TrainConfig)
    recipes: tuple[str, ...] = ()
    epochs: int | None = None
    minutes: float | None = None
    first: int = 1
    eta: int = 3
    metric: Metric = "accuracy"
    held_out: float = 0.2
    tune: bool = False
    samples: int = 8
    sampler: Sampler = "tpe"
    out: Path | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.minutes is None):
            got = "neither" if self.epochs is None else "both"
            raise ParameterError(f"A search needs one budget, epochs or minutes, got {got}. Give epochs=60, or so.")
        if self.minutes is not None:
            number_in("minutes", self.minutes, 0, open_low=True)
        for name in ("epochs", "samples"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ParameterError(f"{name} must be a whole number >= 1, got {value!r}.")
        for name, known in (("metric", METRICS), ("sampler", SAMPLERS)):
            value = getattr(self, name)
            if value not in known:
                raise ParameterError(
                    f"{name} must be one of {', '.join(known)}, got {value!r}; {closest(str(value), known)}"
                )

    def settings(self, candidates: list[str], data: str) -> dict[str, Any]:
        """What must be the same when the search goes on: all but the budget, and how many are drawn.

        Args:
            candidates: the recipes and families that are searched.
            data: what is trained on and judged by.
        """
        train = {name: value for name, value in self.train.identity.items() if name != "recipe"}
        names = ("first", "eta", "metric", "held_out", "sampler")
        return {"candidates": candidates, "data": data, **{name: getattr(self, name) for name in names}, "train": train}

    def folder(self, settings: dict[str, Any]) -> Path:
        """The search's folder."""
        if self.out is not None:
            return Path(self.out).expanduser()
        text = json.dumps(settings, sort_keys=True)
        key = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        data = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in self.train.data)[:40]
        return Path("runs") / f"search-{data}-{self.train.model}-s{self.train.seed}-{key}"
