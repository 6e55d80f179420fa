"""Replays DiffuseMix: the seam, both halves, the fractal over them, and which pictures count as nothing."""

import numpy as np
import torch
from torch import Tensor

from mixwell.conformance import Case, close, equal
from mixwell.data.edits import nearly_constant
from mixwell.sample.generative.diffusemix import blended, hybrid, ramp

SOURCE = "official code"
INPUTS = ("original_u8", "generated_u8", "fractal_u8")
COMPARE = {"is_black_*": equal(), "*": close(1)}

SEAM = 20
"""Pixels, whatever the size, in the authors' code."""


def bytes_of(pixels: Tensor) -> np.ndarray:
    """As the authors' code writes them: cut to 8 bits, channels last."""
    return (pixels * 255).to(torch.uint8).movedim(1, -1).numpy()


def replay(case: Case) -> dict[str, np.ndarray]:
    original, generated, fractal = (
        case.tensor(f"{name}_u8").movedim(-1, 1).double() / 255 for name in ("original", "generated", "fractal")
    )
    count, _, height, width = original.shape
    out: dict[str, np.ndarray] = {}
    for name, side, vertical in (("horizontal", width, False), ("vertical", height, True)):
        halves = hybrid(original, generated, np.full(count, vertical), np.zeros(count, bool), SEAM / side)
        out[f"hybrid_{name}"] = bytes_of(halves)
        out[f"blended_{name}"] = bytes_of(blended(halves, fractal))
        line = (ramp(side, SEAM) * 255).astype(np.uint8)
        out[f"ramp255_{name}"] = np.broadcast_to(line[:, None] if vertical else line, (height, width))
    first = case.tensor("original_u8")[:1].movedim(-1, 1)
    for name, picture in (("black", 0 * first), ("white", 0 * first + 255), ("normal", first)):
        out[f"is_black_official_{name}"] = nearly_constant(picture, "code")[0].numpy()
    return out
