"""Random numbers of single images: Philox-4x32-10 in tensor operations, keyed by image, corruption and severity.

Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. The counter of a block of four words
is (block, stream, image index), so an image's numbers depend on neither the batch that it comes in nor the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from mixwell.core.rng import key_of

__all__ = ["Draws", "philox"]

_WORD = 2**32 - 1
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def philox(counter: Sequence[Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words of 32 bits for each counter of four words; all int64, broadcast against each other.

    Products of two words overflow int64 into its sign, which shifting and masking undo.
    """
    a, b, c, d = counter
    low, high = key & _WORD, key >> 32
    for _ in range(_ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = ((second >> 32) & _WORD) ^ b ^ low, second & _WORD
        c, d = ((first >> 32) & _WORD) ^ d ^ high, first & _WORD
        low, high = (low + _WEYL[0]) & _WORD, (high + _WEYL[1]) & _WORD
    return a, b, c, d


class Draws:
    """The random numbers of one corruption at one severity, for a batch of images.

    Args:
        seed: any text or number; part of the key like `parts`.
        parts: what else sets these numbers apart.
        index: (B,) each image's index in its set, ≥ 0.
    """

    def __init__(self, seed: object, *parts: object, index: Int64[Tensor, " b"]) -> None:
        self._key = key_of(seed, *parts)
        self._index = index

    def words(self, stream: str, count: int) -> Int64[Tensor, "b count"]:
        """Random words in [0, 2**32)."""
        device = self._index.device
        block = torch.arange(-(-count // 4), device=device)
        index = self._index[:, None]
        piece = torch.full((1, 1), key_of(stream) & _WORD, dtype=torch.int64, device=device)
        words = philox((block[None], piece, index & _WORD, index >> 32), self._key)
        return torch.stack(words, 1).flatten(1)[:, :count]

    def uniform(self, stream: str, *shape: int) -> Float32[Tensor, "b ..."]:
        """Uniform in [0, 1), multiples of 2⁻²⁴."""
        words = self.words(stream, math.prod(shape)) >> 8
        return (words.float() * 2.0**-24).view(-1, *shape)

    def normal(self, stream: str, *shape: int) -> Float32[Tensor, "b ..."]:
        """Standard normal, by Box and Muller's transform."""
        count = math.prod(shape)
        half = (count + 1) // 2
        radii, angles = self.words(stream, 2 * half).view(-1, 2, half).unbind(1)
        radius = (radii.float() + 0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = angles.float() * (2 * math.pi * 2.0**-32)
        both = torch.cat((radius * angle.cos(), radius * angle.sin()), 1)
        return both[:, :count].reshape(-1, *shape)
