"""Passes through a network that leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["behave_like", "untouched"]


@contextmanager
def untouched(net: nn.Module, *, training: bool | None = False) -> Iterator[None]:
    """Run passes in evaluation mode, in training mode, or (None) in the modes that modules have; afterwards modes,
    buffers, gradients and random states are as before.

    Gradients with respect to inputs are taken with `torch.autograd.grad`, which does not touch the parameters' `.grad`.
    """
    modes = [(module, module.training) for module in net.modules()]
    buffers = [] if training is False else [(buffer, buffer.clone()) for buffer in net.buffers()]
    devices = sorted({parameter.device.index for parameter in net.parameters() if parameter.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices):
            if training is not None:
                net.train(training)
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def behave_like(copy: nn.Module, original: nn.Module) -> None:
    """Put each module of a copy into the mode of its original: an evaluation may have come between, layers may be
    frozen.
    """
    for module, own in zip(copy.modules(), original.modules(), strict=True):
        if module.training != own.training:
            module.training = own.training
