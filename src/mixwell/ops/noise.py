"""Large noise that is expanded on the device from a key that was drawn on the host."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["normal_noise", "uniform_noise"]


def normal_noise(key: int, shape: tuple[int, ...], device: torch.device) -> Float[Tensor, "..."]:
    """Standard normal fp32 numbers that depend on the key alone, as drawn on the device."""
    return torch.randn(shape, generator=_keyed(key, device), dtype=torch.float32, device=device)


def uniform_noise(key: int, shape: tuple[int, ...], device: torch.device) -> Float[Tensor, "..."]:
    """Uniform fp32 numbers in [0, 1) that depend on the key alone, as drawn on the device."""
    return torch.rand(shape, generator=_keyed(key, device), dtype=torch.float32, device=device)


def _keyed(key: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(key)
