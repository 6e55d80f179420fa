"""The plain answers: the input, a random permutation, Beta(α, α), and the blend's own shares."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Label, Need, Pairing, Per, Place, Ratio, Scene, Step, per_of
from mixwell.core.errors import number_in
from mixwell.core.mix import Partners, onto
from mixwell.core.targets import Targets

__all__ = ["Beta", "Input", "Permutation", "Shares", "Uniform"]


class Input(Place):
    """Mix the images themselves."""

    hidden = False

    def site(self, draws: None) -> None:
        return None


class Permutation(Pairing):
    """Mix the batch with uniformly random permutations of itself; a row may meet itself.

    Args:
        count: partners of each row, from one permutation each.
    """

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.count = count

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B,), or (P, B) for P > 1 partners."""
        if self.count == 1:
            return rng.permutation(rows)
        return rng.permuted(np.tile(np.arange(rows), (self.count, 1)), axis=1)

    def partners(self, draws: np.ndarray, scene: Scene) -> Partners:
        sources = _own_rows(draws.shape[-1], self.count).copy()
        sources[1:] = draws
        return Partners(onto(sources.T, scene.batch.images), scene.batch.labels)  # each partner's column in one piece


@lru_cache(maxsize=16)
def _own_rows(rows: int, count: int) -> Int64[np.ndarray, "k r"]:
    """Each row as its own partner."""
    return np.repeat(np.arange(rows)[None], 1 + count, 0)


class Beta(Ratio):
    """λ ~ Beta(α, β), one per pair or one per batch.

    Args:
        alpha, beta: parameters > 0; β = α if not given.
        per: "sample" or "batch".
    """

    def __init__(self, alpha: float, beta: float | None = None, per: Per = "sample") -> None:
        super().__init__()
        hint = "For plain training without mixing use the recipe 'none'."
        self.alpha = number_in("alpha", alpha, 0, open_low=True, hint=hint)
        self.beta = self.alpha if beta is None else number_in("beta", beta, 0, open_low=True, hint=hint)
        self.per = per_of(per)

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        count = 1 if self.per == "batch" else rows
        if self.alpha == self.beta == 1:
            return rng.random(count)  # the same distribution, drawn several times as fast
        return rng.beta(self.alpha, self.beta, count)

    def lam(self, draws: np.ndarray, scene: Scene) -> Float[Tensor, " #r"]:
        return torch.from_numpy(draws)


class Uniform(Ratio):
    """λ ~ U(low, high), one per pair or one per batch.

    Args:
        low, high: in [0, 1].
        per: "sample" or "batch".
    """

    def __init__(self, low: float, high: float, per: Per = "sample") -> None:
        super().__init__()
        self.low = number_in("low", low, 0, 1)
        self.high = number_in("high", high, self.low, 1)
        self.per = per_of(per)

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        return rng.uniform(self.low, self.high, 1 if self.per == "batch" else rows)

    def lam(self, draws: np.ndarray, scene: Scene) -> Float[Tensor, " #r"]:
        return torch.from_numpy(draws)


class Shares(Label):
    """The label shares that the blend realised."""

    def targets(self, step: Step) -> Targets:
        return step.mix.targets()


OF_A_PAIR = frozenset({Need.PAIR, Need.SIMPLEX, Need.OWN_ROW})
"""What every blend of two images whose λ weights the image's own row gives."""
