"""Hugging Face: a mixin for `transformers.Trainer` that trains image classifiers with a recipe.

class MixingTrainer(MixwellTrainerMixin, Trainer): ...

trainer = MixingTrainer(model=model, args=args, train_dataset=dataset, recipe="cutmix + transmix")
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixwell.compat.framework import framework
from mixwell.core.clock import Clock
from mixwell.core.errors import BatchError, IncompatibleRecipe, OwnershipError, ParameterError, RunError
from mixwell.core.recipe import Recipe, create

__all__ = ["STATE", "MixwellTrainerMixin"]

STATE = "mixwell_recipe.pt"
"""The file of a checkpoint that holds the recipe's state."""

if TYPE_CHECKING:

    class _Trainer:
        """What the mixin uses of a Trainer."""

        model: Any
        args: Any
        state: Any
        optimizer: Any
        label_names: list[str]
        compute_loss_func: Any
        loss_is_scaled_for_ga: bool | None
        model_accepts_loss_kwargs: bool

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def add_callback(self, callback: Any) -> None: ...
        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any: ...
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any: ...
        def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None: ...

else:
    _Trainer = object


class MixwellTrainerMixin(_Trainer):
    """Training steps of a Trainer run a recipe; evaluation stays as it is.

    What the recipe owns joins the optimiser, and its state is in every checkpoint, from which training resumes.
    Gradient clipping (`max_grad_norm`) is the network's alone.

    Args:
        recipe: its text, or a recipe; of one loss per step.
        num_classes: C, for a recipe's text; the model's `config.num_labels` if not given.
        example: some images, needed where the network's stages are found by a pass.
        args, kwargs: the Trainer's own. Its `label_smoothing_factor` is the recipe's label smoothing, too.

    Raises:
        ParameterError: settings that contradict each other.
        IncompatibleRecipe: the model lacks what the recipe needs, or the Trainer cannot run it.
    """

    recipe: Recipe

    def __init__(
        self,
        *args: Any,
        recipe: str | Recipe,
        num_classes: int | None = None,
        example: Float[Tensor, "b ..."] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is not None:
            raise ParameterError(
                "compute_loss_func would not be used beside a recipe. Give the loss to "
                "mixwell.create(..., criterion=...)."
            )
        smoothing = float(self.args.label_smoothing_factor)
        if isinstance(recipe, Recipe):
            if num_classes is not None or smoothing:
                raise ParameterError(
                    "num_classes and label_smoothing_factor go with a recipe's text. This recipe is made: say them to "
                    "mixwell.create."
                )
            self.recipe = recipe
        else:
            classes = getattr(self.model.config, "num_labels", None) if num_classes is None else num_classes
            self.recipe = create(recipe, classes, seed=int(self.args.seed), label_smoothing=smoothing)
        self.recipe.bind(self.model, None if example is None else example.to(self.args.device)).to(self.args.device)
        self._refuse()
        self.loss_is_scaled_for_ga = False  # a step's loss is the mean of its own batch
        if not hasattr(type(self), "loss_is_scaled_for_ga"):  # Trainers before it look at this
            self.model_accepts_loss_kwargs = False
        self.add_callback(_callback(self))

    def _refuse(self) -> None:
        if self.recipe.players:
            raise IncompatibleRecipe(
                f"A step of {self.recipe!s} has several losses, each with an optimiser of its own, and the Trainer "
                "runs one. Use recipe.turns in your own loop, as examples/accelerate_loop.py does."
            )
        if self.args.n_gpu > 1:
            raise IncompatibleRecipe(
                f"{self.args.n_gpu} GPUs in one process are copies of the network that a recipe cannot look into. "
                "Launch one process for each (torchrun, or accelerate launch), or show one GPU "
                "(CUDA_VISIBLE_DEVICES=0)."
            )
        if self.args.world_size > 1 and self.recipe.owns:
            raise IncompatibleRecipe(
                f"{self.recipe!s} owns parameters, whose gradients the Trainer does not exchange between processes. "
                "Use mixwell.Trainee in your own loop, as examples/accelerate_loop.py does, or train in one process."
            )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The recipe's loss in training, the Trainer's in evaluation."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        images, labels = getattr(self.model, "main_input_name", "pixel_values"), (*self.label_names, "labels")[0]
        if set(inputs) != {images, labels}:
            raise BatchError(
                f"Expected batches of {images!r} and {labels!r} alone, got {', '.join(map(repr, inputs))}. Let the "
                "data collator leave out the rest."
            )
        (turn,) = self.recipe.turns(model, inputs[images], inputs[labels], clock=self._clock())
        return (turn.loss, {"loss": turn.loss, "logits": turn.logits}) if return_outputs else turn.loss

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's optimiser, and in it what the recipe owns."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer(*args, **kwargs)
        held = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        own = [p for p in self.recipe.parameters() if p.requires_grad and id(p) not in held]
        if own and given:
            raise OwnershipError(
                f"The optimiser that was given to the Trainer does not hold the {len(own)} parameters that "
                f"{self.recipe!s} owns. Make it of recipe.parameter_groups(model), or let the Trainer make it."
            )
        if own:
            self.optimizer.add_param_group({"params": own, "weight_decay": self.args.weight_decay})
        return optimizer

    def _clock(self, step: int | None = None) -> Clock:
        steps, held = int(self.state.max_steps), self.args.gradient_accumulation_steps
        lr = None if self.optimizer is None else float(self.optimizer.param_groups[0]["lr"])
        return Clock(
            self.recipe.steps if step is None else step,
            steps * held if steps > 0 else None,
            int(self.state.epoch or 0),
            lr,
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        self._load_renamed(Path(resume_from_checkpoint))
        path = Path(resume_from_checkpoint) / STATE
        if path.is_file():
            self.recipe.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        elif self.recipe.owns:
            raise RunError(
                f"{resume_from_checkpoint} has no {STATE}, so what {self.recipe!s} owns cannot be restored. Resume a "
                "checkpoint that was written with this recipe, or start anew."
            )
        else:
            warnings.warn(f"{resume_from_checkpoint} has no {STATE}: the recipe's draws begin anew.", stacklevel=2)

    def _load_renamed(self, folder: Path) -> None:
        """Load weights that were saved under other names than the model's.

        Trainers of transformers 5 save ViTs under their old names, and leave these out when they resume
        (huggingface/transformers#43701).
        """
        weights = folder / "model.safetensors"
        if not (weights.is_file() and hasattr(self.model, "from_pretrained")):
            return
        with framework("safetensors", "hf").safe_open(weights, "pt") as file:
            renamed = not set(file.keys()) <= set(self.model.state_dict())
        if renamed:
            self.model.load_state_dict(type(self.model).from_pretrained(folder).state_dict())


def _callback(trainer: MixwellTrainerMixin) -> Any:
    """What the recipe is told of a Trainer's progress."""

    class Callback(framework("transformers", "hf").TrainerCallback):  # type: ignore[misc]
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            trainer.recipe.before_epoch(trainer.model, trainer._clock())

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            trainer.recipe.after_step(trainer.model, trainer._clock(trainer.recipe.steps - 1))
            trainer.recipe.zero_grad()  # the Trainer clears the network's gradients alone

        def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if args.should_save:
                folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                torch.save(trainer.recipe.state_dict(), folder / STATE)

    return Callback()
