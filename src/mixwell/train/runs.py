"""Finished runs, as their folders tell them, and the networks that they trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from mixwell.core.errors import RunError
from mixwell.core.recipe import Recipe, create
from mixwell.data import DataSet, Loader, with_label_noise
from mixwell.train.config import TrainConfig
from mixwell.train.folder import RunFolder
from mixwell.train.named import data_of, net_of
from mixwell.train.split import split

__all__ = ["Run", "Trained", "trained"]


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
        evaluation: all of evaluation.json; None where the run was not evaluated.
    """

    folder: Path
    recipe: str
    seed: int
    setting: Mapping[str, Any]
    facts: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    evaluation: Mapping[str, Any] | None = None

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
            raise RunError(f"The run in {path} is unfinished. Finish it with the command that began it.")
        setting = {name: value for name, value in facts["identity"].items() if name not in ("recipe", "seed")}
        history, evaluation = tuple(folder.history()), folder.evaluation()
        return cls(path, facts["identity"]["recipe"], facts["seed"], setting, facts, history, evaluation)


@dataclass(frozen=True, eq=False)
class Trained:
    """The parts of a run, put together again.

    Attributes:
        data: what it was trained on, without held-out images.
        recipe: bound to `model`, with what it has trained itself.
        model: the network in evaluation mode, with its trained weights.
        predictor: what evaluation uses: the model, or the recipe's own network.
        held_out: training images that were kept from training, or None.
    """

    data: DataSet
    recipe: Recipe
    model: nn.Module
    predictor: nn.Module
    held_out: Dataset[Any] | None = None


def trained(run: Run, *, ema: bool = False) -> Trained:
    """Load the network that a run has trained.

    Args:
        run: a finished run of a named data set and network.
        ema: the averaged weights in place of the last ones.

    Raises:
        RunError: weights are missing or damaged, or the run's network or data cannot be made again.
        MixwellError: the data is missing or damaged.
    """
    config, folder = run.facts["config"], RunFolder(run.folder)
    if given := [name for name in ("data", "model") if run.facts["identity"].get(name) != config[name]]:
        raise RunError(
            f"The run in {run.folder} was trained with a {' and a '.join(given)} given from Python, which mixwell "
            "cannot make again. Load its weights.safetensors into a network of your own, or give the same to "
            "`mixwell.train.train` together with the config, which puts the weights into it."
        )
    file = "ema.safetensors" if ema else "weights.safetensors"
    if ema and file not in run.facts["files"]:
        raise RunError(f"The run in {run.folder} keeps no averaged weights. Train with ema=0.999, or so, to have some.")
    named = TrainConfig(**config)
    data = data_of(named)
    data = with_label_noise(data, config.get("label_noise", 0.0), run.seed)
    model = net_of(named, data)
    recipe = create(run.recipe, data.num_classes, seed=run.seed, criterion=config["criterion"], pixels=data.pixels)
    data, kept = split(data, recipe, config.get("held_out"), run.seed)
    example = next(Loader(data.test, 2, pixels=data.pixels, shuffle=False).epoch(0)).images
    recipe.bind(model, example)
    predictor = recipe.predictor(model)
    try:
        predictor.load_state_dict(folder.weights(file))
    except RuntimeError as error:
        raise RunError(
            f"{run.folder / file} does not fit {config['model']} for {data.num_classes} classes of images "
            f"{data.shape}: {error} Restore the data that it was trained on."
        ) from error
    if "recipe.safetensors" in run.facts["files"]:
        recipe.load_state_dict(folder.weights("recipe.safetensors"))
    return Trained(data, recipe, model.eval(), predictor.eval(), kept)
