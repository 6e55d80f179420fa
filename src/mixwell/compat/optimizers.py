"""One optimiser for each group of turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from mixwell.compat.framework import framework
from mixwell.core.recipe import Recipe

__all__ = ["optimizers_of"]


def optimizers_of(
    recipe: Recipe, model: nn.Module, make: Callable[[list[dict[str, Any]]], Optimizer]
) -> dict[str, Optimizer]:
    """The optimisers of a bound recipe's parameter groups, by the turn that each steps.

    Args:
        make: makes that of "main", which moves the network and most of what recipes own, from its parameter groups.
            Players such as AMR's have optimisers of their own, which they describe and timm makes.

    Raises:
        ImportError: a player's optimiser is needed, and timm is not there.
    """
    groups = recipe.parameter_groups(model)
    players = [group for group in groups if "optimizer" in group]
    found = {"main": make([group for group in groups if "optimizer" not in group])}
    for group in players:
        settings = {name: value for name, value in group.items() if name not in ("params", "turn", "optimizer")}
        own = [{"params": group["params"], "turn": group["turn"]}]
        found[group["turn"]] = framework("timm.optim", "train").create_optimizer_v2(own, group["optimizer"], **settings)
    return found
