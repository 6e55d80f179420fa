"""What is searched: recipes that were asked for, or those that a network can be trained with as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from mixwell.core.errors import MixwellError, ParameterError
from mixwell.core.recipe import create
from mixwell.core.registry import methods
from mixwell.data import DataSet
from mixwell.search.ranges import Template, template
from mixwell.train import TrainConfig, check
from mixwell.train.prepare import needs_preparing

__all__ = ["REFERENCE", "asked", "usual"]

REFERENCE = "none"
"""What every search compares with: plain training."""

_FIRST = (
    "mixup",
    "cutmix",
    "mixup | cutmix",
    "manifold_mixup",
    "cutmix + transmix",
    "resizemix",
    "fmix",
    "puzzlemix",
    "saliencymix",
    "k_mixup + cutmix",
    "augmix + cutmix",
    "cutmix + snapmix",
)
"""The best known methods and sums, which small budgets try first; the order says nothing of how good they are."""


def usual(config: TrainConfig, data: DataSet, network: Callable[[], nn.Module] | None = None) -> list[Template]:
    """Every method that trains on this network in a recipe of its own, and some well-known sums.

    Methods that need a network or images of their own before training (teachers, fractals, diffusion) are left out:
    what they need would take longer than the epochs that are compared. Ask for them by name.

    Args:
        config: of the trainings, whatever its recipe.
        data: what they train on.
        network: makes a network in place of the config's.
    """
    found = []
    for text in dict.fromkeys((*_FIRST, *methods())):
        try:
            if not needs_preparing(create(text, data.num_classes)):
                _check(text, config, data, network)
                found.append(template(text))
        except MixwellError:  # another network's method, or one that mixes nothing by itself
            continue
    return found


def asked(
    texts: Sequence[str], config: TrainConfig, data: DataSet, network: Callable[[], nn.Module] | None = None
) -> list[Template]:
    """The recipes that are asked for, each tried at every end of its ranges. The reference is left out.

    Raises:
        ParameterError: recipes cannot be read or trained; names all of these with their reasons.
    """
    found: dict[str, Template] = {}
    problems = []
    for text in texts:
        try:
            made = template(text)
            for corner in made.corners:
                _check(corner, config, data, network)
        except MixwellError as error:
            problems.append(f"{text}: {error}")
            continue
        if made.text != REFERENCE:
            found.setdefault(made.text, made)
    if problems:
        raise ParameterError("These recipes cannot be searched:" + "".join(f"\n  - {each}" for each in problems))
    return list(found.values())


def _check(text: str, config: TrainConfig, data: DataSet, network: Callable[[], nn.Module] | None) -> None:
    check(replace(config, recipe=text), dataset=data, model=None if network is None else network())
