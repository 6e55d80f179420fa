"""Lightning: a mixin for LightningModules, which imports nothing of Lightning itself.

    class Classifier(MixwellMixin, LightningModule):
        def __init__(self, net, images):
            super().__init__()
            self.net = net
            self.use_recipe("cutmix + transmix", net, images, num_classes=10)

        def training_step(self, batch, batch_idx):
            return self.recipe_step(batch).loss

        def configure_optimizers(self):
            return self.recipe_optimizers(lambda groups: torch.optim.SGD(groups, lr=0.1))

The recipe is a submodule, so that what it owns is moved, wrapped, saved and restored with the module.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.optim import Optimizer

from mixwell.compat.optimizers import optimizers_of
from mixwell.core.batch import Batch
from mixwell.core.clock import Clock
from mixwell.core.errors import BatchError, MixwellError, OwnershipError, ParameterError
from mixwell.core.recipe import Recipe, create
from mixwell.core.turns import Turn

__all__ = ["MixwellMixin"]

if TYPE_CHECKING:

    class _Module(nn.Module):
        """What the mixin uses of a LightningModule."""

        automatic_optimization: bool
        global_step: int
        current_epoch: int
        trainer: Any

        def optimizers(self) -> Any: ...
        def manual_backward(self, loss: Tensor) -> None: ...
        def on_train_start(self) -> None: ...
        def on_train_epoch_start(self) -> None: ...
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None: ...

else:
    _Module = object


class MixwellMixin(_Module):
    """Recipes in a LightningModule; to be named before it among the bases.

    Automatic optimisation serves recipes of one loss per step, which are all but those with players (AMR). For these
    `use_recipe` sets `automatic_optimization` to False, and `recipe_step` runs backward and steps every optimiser;
    schedules of learning rates are then for you to step, as always in Lightning's manual optimisation.
    """

    recipe: Recipe
    _stepped: int = 0
    _total: int | None = None

    def use_recipe(
        self,
        recipe: str | Recipe,
        net: nn.Module,
        example: Float[Tensor, "b ..."] | None = None,
        *,
        num_classes: int | None = None,
        **settings: Any,
    ) -> Recipe:
        """Bind a recipe to the network; in `__init__`, after `super().__init__()`.

        Args:
            recipe: its text, or a recipe.
            net: the network, a submodule that maps images to logits.
            example: some images, needed where the network's stages are found by a pass.
            num_classes: C, for a recipe's text.
            settings: further ones of `mixwell.create`, for a recipe's text.

        Raises:
            ParameterError: the network is the LightningModule itself, or a recipe came with settings.
            IncompatibleRecipe: the network lacks what the recipe needs.
        """
        if net is self:
            raise ParameterError(
                "use_recipe: give the network that maps images to logits, such as self.net, not the LightningModule."
            )
        if isinstance(recipe, Recipe) and (num_classes is not None or settings):
            raise ParameterError(
                "use_recipe: num_classes and other settings go with a recipe's text; this one is made."
            )
        made = recipe if isinstance(recipe, Recipe) else create(recipe, num_classes, **settings)
        self.recipe = made.bind(net, example)
        self.__dict__["_net"] = net  # not a second submodule
        if made.players:
            self.automatic_optimization = False
        return made

    @property
    def _bound(self) -> tuple[Recipe, nn.Module]:
        net: nn.Module | None = self.__dict__.get("_net")
        if net is None:
            raise MixwellError("Call self.use_recipe(recipe, self.net, ...) in __init__, after super().__init__().")
        return self.recipe, net

    def recipe_step(self, batch: Batch | tuple[Float[Tensor, "b ..."], Shaped[Tensor, "b ..."]]) -> Turn:
        """One step on (images, labels) or a `Batch`; in `training_step`, whose return value is the turn's loss.

        Under manual optimisation each of the step's turns is run backward and stepped, and the last is returned.

        Raises:
            MixwellError: the step has several losses, and optimisation is automatic.
        """
        recipe, net = self._bound
        if self.automatic_optimization and recipe.players:
            raise MixwellError(
                f"A step of {recipe!s} has several losses, each with an optimiser of its own. Leave "
                "self.automatic_optimization = False, as use_recipe set it."
            )
        if not isinstance(batch, Batch):
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise BatchError(f"recipe_step takes (images, labels) or a Batch, got {type(batch).__name__}.")
            batch = Batch(*batch)
        turns = recipe.turns(net, batch, clock=self._clock())
        if self.automatic_optimization:
            (turn,) = turns
            return turn
        optimizers = self._optimizers()
        for turn in turns:
            optimizer = optimizers.get(turn.group)
            if optimizer is None:
                raise OwnershipError(
                    f"No optimiser steps the turn {turn.group!r} of {recipe!s}, only {', '.join(optimizers)}. "
                    "Return self.recipe_optimizers(...) from configure_optimizers."
                )
            optimizer.zero_grad()
            self.manual_backward(turn.loss)
            optimizer.step()
        return turn

    def recipe_optimizers(self, make: Callable[[list[dict[str, Any]]], Optimizer]) -> list[Optimizer]:
        """The optimisers, for `configure_optimizers`: yours, and those that the recipe's players bring.

        Args:
            make: makes yours from parameter groups: the network's, and what the recipe owns.
        """
        return list(optimizers_of(*self._bound, make).values())

    def predict(self, images: Float[Tensor, "b ..."]) -> Any:
        """What to evaluate: the recipe's predictor on images as it expects them; for `validation_step`."""
        recipe, net = self._bound
        return recipe.predictor(net)(recipe.eval_images(images))

    # Lightning's hooks

    def on_train_start(self) -> None:
        super().on_train_start()
        batches = self.trainer.estimated_stepping_batches * self.trainer.accumulate_grad_batches
        self._total = int(batches) if math.isfinite(batches) and batches > 0 else None
        self._stepped = self.global_step

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        recipe, net = self._bound
        recipe.before_epoch(net, self._clock())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.global_step != self._stepped:  # not while gradients are gathered over batches
            self._stepped = self.global_step
            recipe, net = self._bound
            recipe.after_step(net, self._clock(recipe.steps - 1))

    def _optimizers(self) -> dict[str, Any]:
        """The optimisers by the turn that each steps."""
        found = self.optimizers()
        each = found if isinstance(found, list) else [found]
        return {optimizer.param_groups[0].get("turn", "main"): optimizer for optimizer in each}

    def _clock(self, step: int | None = None) -> Clock:
        main = self._optimizers().get("main")
        lr = None if main is None else float(main.param_groups[0]["lr"])
        return Clock(self.recipe.steps if step is None else step, self._total, self.current_epoch, lr)
