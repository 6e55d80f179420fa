"""What finished runs came to: one row per recipe and setting, with intervals over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student
from torch import nn

from mixwell.core.errors import RunError
from mixwell.core.recipe import Recipe, create
from mixwell.data import DataSet, Loader, load
from mixwell.nets import create_net
from mixwell.train import RunFolder

__all__ = ["Estimate", "Row", "Run", "Trained", "rows_of", "trained"]


@dataclass(frozen=True)
class Run:
    """A finished run, as its folder tells it.

    Attributes:
        folder: where it is.
        recipe: what was mixed and how.
        seed: of everything random.
        setting: all else that says what was trained.
        facts: all of run.json.
        history: one record per epoch.
    """

    folder: Path
    recipe: str
    seed: int
    setting: Mapping[str, Any]
    facts: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read a run folder.

        Raises:
            RunError: there is no run, or it is damaged or unfinished.
        """
        folder = RunFolder(path)
        if not folder.exists:
            raise RunError(f"{path} holds no run.json, so it is no run. Give a folder that `mixwell train` made.")
        facts = folder.run()
        if facts["status"] != "finished":
            raise RunError(
                f"The run in {path} is unfinished. Finish it with the command that began it, then report it."
            )
        setting = {name: value for name, value in facts["identity"].items() if name not in ("recipe", "seed")}
        return cls(path, facts["identity"]["recipe"], facts["seed"], setting, facts, tuple(folder.history()))


@dataclass(frozen=True)
class Estimate:
    """A figure over seeds.

    Attributes:
        mean: over the seeds.
        margin: half the width of the 95% interval of the mean, by Student's t; None for a single seed.
    """

    mean: float
    margin: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The estimate from one value per seed."""
        mean, count = float(np.mean(values)), len(values)
        if count < 2:
            return cls(mean, None)
        return cls(mean, float(student.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count)))


@dataclass(frozen=True)
class Row:
    """One recipe in one setting.

    Attributes:
        recipe: what was mixed and how.
        setting: those parts of the setting in which the report's runs differ.
        runs: one per seed.
        accuracy, ece, nll: on the test set after the last epoch.
        seconds: training time of an epoch.
        relative: that time over the time of `none` in the same setting; None without such a run.
    """

    recipe: str
    setting: Mapping[str, Any]
    runs: tuple[Run, ...]
    accuracy: Estimate
    ece: Estimate
    nll: Estimate
    seconds: Estimate
    relative: float | None

    def curve(self, field: str) -> list[float | None]:
        """The mean over seeds of a field of the history, by epoch; None where an epoch lacks it."""
        epochs = zip(*(run.history for run in self.runs), strict=True)
        return [
            float(np.mean([record[field] for record in records]))
            if all(field in record for record in records)
            else None
            for records in epochs
        ]


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """One row per recipe and setting, in the order in which they first come.

    Raises:
        RunError: there are none, or two runs of one seed.
    """
    if not runs:
        raise RunError("A report needs at least one finished run, got none. Train one with `mixwell train`.")
    names = list(dict.fromkeys(name for run in runs for name in run.setting))
    varying = [name for name in names if len({str(run.setting.get(name)) for run in runs}) > 1]
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        group = groups[run.recipe, str(sorted(run.setting.items()))]
        if twin := next((other for other in group if other.seed == run.seed), None):
            raise RunError(f"{twin.folder} and {run.folder} hold the same run twice. Leave one of them out.")
        group.append(run)
    seconds = {key: Estimate.of(_results(group, "seconds_per_epoch")) for key, group in groups.items()}
    rows = []
    for (recipe, setting), group in groups.items():
        own, plain = seconds[recipe, setting], seconds.get(("none", setting))
        rows.append(
            Row(
                recipe=recipe,
                setting={name: group[0].setting.get(name) for name in varying},
                runs=tuple(group),
                accuracy=Estimate.of(_results(group, "accuracy")),
                ece=Estimate.of(_results(group, "ece")),
                nll=Estimate.of(_results(group, "nll")),
                seconds=own,
                relative=None if plain is None else own.mean / plain.mean,
            )
        )
    return rows


def _results(runs: Sequence[Run], name: str) -> list[float]:
    return [run.facts["result"][name] for run in runs]


@dataclass(frozen=True, eq=False)
class Trained:
    """The parts of a run, put together again.

    Attributes:
        data: what it was trained on.
        recipe: bound to `model`.
        model: the network in evaluation mode, with its trained weights.
        predictor: what evaluation uses: the model, or the recipe's own network.
    """

    data: DataSet
    recipe: Recipe
    model: nn.Module
    predictor: nn.Module


def trained(run: Run) -> Trained:
    """Load the network that a run has trained.

    Raises:
        MixwellError: weights or data are missing or damaged.
    """
    config = run.facts["config"]
    data = load(config["data"], root=config["root"], augment=config["augment"], **config["data_options"])
    channels, height, width = data.shape
    model = create_net(
        config["model"], data.num_classes, channels=channels, size=max(height, width), **config["model_options"]
    )
    recipe = create(run.recipe, data.num_classes, seed=run.seed, criterion=config["criterion"], pixels=data.pixels)
    example = next(Loader(data.test, 2, pixels=data.pixels, shuffle=False).epoch(0)).images
    recipe.bind(model, example)
    predictor = recipe.predictor(model)
    predictor.load_state_dict(RunFolder(run.folder).weights("weights.safetensors"))
    return Trained(data, recipe, model.eval(), predictor.eval())
