"""Optimisers and learning-rate schedules: timm's, one of each per group of turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from mixwell.core.errors import ParameterError, closest
from mixwell.train.config import TrainConfig

__all__ = ["SCHEDULES", "Stepper", "check_names", "steppers"]

SCHEDULES = ("constant", "cosine", "multistep", "poly", "step", "tanh")


def check_names(config: TrainConfig) -> None:
    """See that optimiser and schedule exist.

    Raises:
        ParameterError: one does not; gives the closest names.
    """
    known = list_optimizers()
    if config.optimizer not in known:
        raise ParameterError(f"optimizer {config.optimizer!r} is not known to timm; {closest(config.optimizer, known)}")
    if config.schedule not in SCHEDULES:
        raise ParameterError(f"schedule {config.schedule!r} is not known; {closest(config.schedule, SCHEDULES)}")


class Stepper:
    """The optimiser of one group of turns, and its schedule.

    Args:
        optimizer: of the parameters.
        parameters: what it steps.
        clip: largest norm of their gradient, or None.
        schedule: of the learning rate, stepped per update; None for a constant rate.
    """

    def __init__(self, optimizer: Any, parameters: Sequence[Tensor], clip: float | None, schedule: Any = None) -> None:
        self.optimizer = optimizer
        self.parameters = list(parameters)
        self.clip = clip
        self._schedule = schedule

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def schedule(self, update: int) -> None:
        """Set the learning rate of optimiser step `update`, which depends on nothing else."""
        if self._schedule is not None:
            self._schedule.step_update(update)

    def step(self, accelerator: Accelerator) -> None:
        """Clip and step."""
        if self.clip is not None:
            accelerator.unscale_gradients(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()

    @contextmanager
    def alone(self, others: Sequence[Stepper]) -> Iterator[None]:
        """Keep a backward pass from the gradients that other groups are gathering."""
        kept = [(parameter, parameter.grad) for other in others for parameter in other.parameters]
        for parameter, _ in kept:
            parameter.grad = None
        yield
        for parameter, grad in kept:
            parameter.grad = grad


def _scheduled(config: TrainConfig, groups: Sequence[Mapping[str, Any]], updates: int) -> Stepper:
    """The optimiser of the config, for parameter groups that have a weight decay each.

    Args:
        updates: optimiser steps per epoch.

    Raises:
        ParameterError: the optimiser cannot be made with these options.
    """
    try:
        optimizer: Any = create_optimizer_v2(
            groups, config.optimizer, lr=config.lr, momentum=config.momentum, **config.optimizer_options
        )
    except (TypeError, ValueError, ImportError) as error:
        raise ParameterError(
            f"optimizer {config.optimizer!r} cannot be made: {error}. Check optimizer_options="
            f"{config.optimizer_options}, or take another."
        ) from error
    # A step at learning rate 0 would be lost, so that warm-up begins one rise above it.
    rise = config.lr / max(1.0, config.warmup_epochs * updates)
    schedule, _ = create_scheduler_v2(
        optimizer,
        config.schedule,
        num_epochs=config.epochs,
        decay_epochs=config.decay_epochs,
        decay_milestones=list(config.decay_milestones),
        decay_rate=config.decay_rate,
        min_lr=config.min_lr,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=rise,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    return Stepper(optimizer, [parameter for group in groups for parameter in group["params"]], config.clip, schedule)


def _of_player(config: TrainConfig, group: Mapping[str, Any]) -> Stepper:
    """The optimiser that a part of the recipe brings, at its own constant rate."""
    settings = {name: value for name, value in group.items() if name not in ("params", "turn", "optimizer")}
    optimizer = create_optimizer_v2([{"params": group["params"]}], group["optimizer"], **settings)
    return Stepper(optimizer, group["params"], config.clip)


def steppers(
    config: TrainConfig, groups: Sequence[Mapping[str, Any]], model: nn.Module, updates: int
) -> dict[str, Stepper]:
    """One `Stepper` for each distinct `turn` of the recipe's parameter groups."""
    declared: Any = getattr(model, "no_weight_decay", set)  # timm's networks name position embeddings and the like
    exempt = set(declared())
    undecayed = {id(parameter) for name, parameter in model.named_parameters() if name in exempt}
    by_turn: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        if "optimizer" in group:
            continue
        light = [p for p in group["params"] if not config.decay_norms and (p.ndim <= 1 or id(p) in undecayed)]
        spared = {id(p) for p in light}
        heavy = [p for p in group["params"] if id(p) not in spared]
        for parameters, decay in ((heavy, config.weight_decay), (light, 0.0)):
            if parameters:
                by_turn.setdefault(group["turn"], []).append({"params": parameters, "weight_decay": decay})
    players = {group["turn"]: _of_player(config, group) for group in groups if "optimizer" in group}
    return {turn: _scheduled(config, parts, updates) for turn, parts in by_turn.items()} | players
