"""PixMix: an image is mixed with fractals and with augmented copies of itself, by adding and by multiplying.

Hendrycks, Zou, Mazeika, Tang, Li, Song, Steinhardt, "PixMix: Dreamlike Pictures Comprehensively Improve Safety
Measures", CVPR 2022, arXiv:2112.05135.

In up to k rounds an image, or one augmented copy of it, is mixed with one picture of a set of structurally complex ones
or with a fresh copy of itself; the label stays and is trained with the plain loss. Sums and products have weights that
need not sum to 1 and may be negative, so that structure is taken away as well as added.
Equations: u·a + v·b for u, v in [-1, 1] → `add`; u^a·v^b for u, v in [0, 2] → `multiply`; the rounds → `mixed`; the
weights (a, b), (Beta(β, 1), Beta(1, β)) or (1 + Beta(1, β), -Beta(1, β)) → `PixMixRounds.draw`.

Paper and code agree. Ours differs from the code in three places: geometric operations keep the size of images that are
not square, clean images are not rounded to 8 bits (copies are), and the mixing pictures are square, either fractals of
our own (`mixwell.data.fractals`) or the pictures of a folder, such as the paper's set. As in the code, their side is 36
for images of 32 pixels and 256 for 224, and a crop of an image's size is drawn. ImageNet takes `beta=4, severity=1`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int, UInt8
from numpy.random import Generator
from torch import Tensor

from mixwell.core.artefacts import Workshop
from mixwell.core.axes import Scene, SelfBlend
from mixwell.core.errors import BatchError, number_in
from mixwell.core.mix import onto
from mixwell.core.registry import Pieces, method
from mixwell.data.fractals import fractals, pictures_in
from mixwell.ops.augment import augment, parameters_of, quantised

__all__ = ["PixMixDraws", "PixMixRounds", "add", "mixed", "mixing_pictures", "multiply"]


def add(
    x: Float[Tensor, "b c h w"],
    s: Float[Tensor, "b c h w"],
    a: Float[Tensor, "#b 1 1 1"],
    b: Float[Tensor, "#b 1 1 1"],
) -> Float[Tensor, "b c h w"]:
    """(a·(2x-1) + b·(2s-1) + 1)/2, not clipped.

    Args:
        x, s: (B, C, H, W) pixels in [0, 1].
        a, b: (B, 1, 1, 1) their weights.
    """
    return (x * a).addcmul_(s, b).add_((1 - a - b) / 2)


def multiply(
    x: Float[Tensor, "b c h w"],
    s: Float[Tensor, "b c h w"],
    a: Float[Tensor, "#b 1 1 1"],
    b: Float[Tensor, "#b 1 1 1"],
) -> Float[Tensor, "b c h w"]:
    """(2x)^a·(2s)^b/2, not clipped; 2s is at least 1e-37, as b may be negative.

    Args:
        x, s: (B, C, H, W) pixels in [0, 1], fp32 or fp64.
        a, b: (B, 1, 1, 1) their exponents, a > 0.
    """
    return (2 * x).log_().mul_(a).addcmul_((2 * s).clamp_min_(1e-37).log_(), b).exp_().mul_(0.5)


def mixed(
    start: Float[Tensor, "b c h w"],
    sources: UInt8[Tensor, "m c h w"],
    which: Int[np.ndarray, "b k"],
    multiplied: Bool[np.ndarray, "b k"],
    a: Float32[np.ndarray, "b k"],
    b: Float32[np.ndarray, "b k"],
) -> Float[Tensor, "b c h w"]:
    """Up to k rounds of adding or multiplying, clipped to [0, 1] after each.

    Args:
        start: (B, C, H, W) pixels in [0, 1], fp32 or fp64; not modified.
        sources: (M, C, H, W) what to mix with, on the same device.
        which: (B, k) row of `sources` in each round, -1 where there is none.
        multiplied: (B, k) whether to multiply; else add.
        a, b: (B, k) weight of the image and of the source.
    """
    state = start.clone()
    rules: tuple[Callable[..., Tensor], ...] = (add, multiply)
    for turn in range(which.shape[1]):
        for kind, rule in enumerate(rules):
            rows = np.flatnonzero((which[:, turn] >= 0) & (multiplied[:, turn] == kind))
            if not len(rows):
                continue
            index = onto(rows, state)
            source = sources.index_select(0, onto(which[rows, turn], state)).to(state.dtype).mul_(1 / 255)
            weights = onto(np.stack((a[rows, turn], b[rows, turn])), state).to(state.dtype)[..., None, None, None]
            state.index_copy_(0, index, rule(state.index_select(0, index), source, *weights).clamp_(0, 1))
    return state


@lru_cache(maxsize=4)
def mixing_pictures(
    pictures: str,
    count: int,
    side: int,
    channels: int,
    device: torch.device,
    cache: Path | None = None,
) -> UInt8[Tensor, "n c side side"]:
    """The set to mix with, for images of C channels: grey for one, red, green and blue in turn for other numbers.

    Args:
        pictures: "fractals", or a folder.
        count: fractals to make; of a folder all pictures are taken.
        side: height and width.
        channels: C.
        device: where to keep them.
        cache: where fractals are kept between runs, see `mixwell.data.fractals.fractals`.

    Raises:
        DataError: the folder is missing, holds no picture, or one that cannot be decoded.
    """
    if pictures == "fractals":
        made = fractals(count, _size_made(side), folder=cache)
        found = made if made.shape[-1] == side else torch.cat([_resized(part, side) for part in torch.split(made, 64)])
    else:
        found = pictures_in(Path(pictures).expanduser(), side)
    if channels == 1:
        found = found.float().mean(1, keepdim=True).round_().to(torch.uint8)
    elif channels != 3:
        found = found[:, np.arange(channels) % 3]
    return found.to(device)


def _resized(pictures: UInt8[Tensor, "n c s s"], side: int) -> UInt8[Tensor, "n c side side"]:
    smooth = F.interpolate(pictures.float(), (side, side), mode="bilinear", antialias=True)
    return smooth.round_().to(torch.uint8)


def _side(height: int, width: int) -> int:
    """Of the pictures that crops for images of this size are taken from: 36 for 32, 256 for 224."""
    return 8 * max(height, width) // 7


def _size_made(side: int) -> int:
    """Fractals are made at 64, 128, 256, … pixels and resized, so that few sets are cached."""
    return int(2 ** max(6, (side - 1).bit_length()))


class PixMixDraws(NamedTuple):
    """What is mixed into B images in at most k rounds. Slot 0 is what they start from, slot r the source of round r.

    Attributes:
        rounds: (B,) how many rounds, 0 to k.
        copied: (B, 1 + k) where an augmented copy is taken, in place of the image or of the mixing picture.
        operations: (B, 1 + k) of the copies, positions in `mixwell.ops.augment.OPERATIONS`.
        levels: (B, 1 + k) of the operations, s ~ U(0.1, severity).
        flips: (B, 1 + k) where a parameter's sign is negative.
        picture: (B,) in [0, 1), which mixing picture; one serves all rounds of an image.
        corner: (B, 2) in [0, 1), where it is cropped, down and right.
        multiplied: (B, k) whether a round multiplies.
        a, b: (B, k) weight of the image and of the source, fp32.
    """

    rounds: Int[np.ndarray, " b"]
    copied: Bool[np.ndarray, "b k1"]
    operations: Int[np.ndarray, "b k1"]
    levels: Float[np.ndarray, "b k1"]
    flips: Bool[np.ndarray, "b k1"]
    picture: Float[np.ndarray, " b"]
    corner: Float[np.ndarray, "b 2"]
    multiplied: Bool[np.ndarray, "b k"]
    a: Float32[np.ndarray, "b k"]
    b: Float32[np.ndarray, "b k"]


class PixMixRounds(SelfBlend):
    """One view of each image, mixed with pictures and with augmented copies of itself.

    The pictures are made or read at the first batch, or by `Recipe.prepare`.

    Args:
        k: most rounds, ≥ 1.
        beta: β > 0 of the weights; smaller is more severe.
        severity: upper bound of the operations' levels, in [0.1, 10].
        ops: how many operations of `mixwell.ops.augment.OPERATIONS` to draw from.
        pictures: "fractals", or a folder.
        count: fractals to make.
    """

    def __init__(
        self,
        k: int = 4,
        beta: float = 3.0,
        severity: float = 3.0,
        ops: Literal[9, 13] = 13,
        pictures: str = "fractals",
        count: int = 1000,
    ) -> None:
        super().__init__()
        self.k = int(number_in("k", k, 1, hint="For plain training without mixing use the recipe 'none'."))
        self.beta = number_in("beta", beta, 0, open_low=True)
        self.severity = number_in("severity", severity, 0.1, 10)
        self.ops = ops
        self.pictures = pictures
        self.count = int(number_in("count", count, 1))
        self.cache: Path | None = None

    def prepare(self, workshop: Workshop) -> None:
        self.cache = workshop.folder
        first = next(iter(workshop.batches()), None)
        if first is None or first.images.ndim != 4:
            return
        if self.pictures == "fractals":
            size = _size_made(_side(*first.images.shape[2:]))
            fractals(self.count, size, folder=workshop.folder, progress=workshop.progress)
        else:
            self._pictures_for(first.images)

    def draw(self, rows: int, rng: Generator) -> PixMixDraws:
        slots, rounds = (rows, 1 + self.k), (rows, self.k)
        # 1 - Beta(1, β) is Beta(β, 1), so that the two kinds of weights differ in a sign alone.
        sign = np.where(rng.random(rounds) < 0.5, 1, -1)
        a, b = 1 - sign * rng.beta(1, self.beta, rounds), sign * rng.beta(1, self.beta, rounds)
        return PixMixDraws(
            rng.integers(self.k, size=rows, endpoint=True),
            rng.random(slots) < 0.5,
            rng.integers(self.ops, size=slots),
            rng.uniform(0.1, self.severity, slots),
            rng.random(slots) > 0.5,
            rng.random(rows),
            rng.random((rows, 2)),
            rng.random(rounds) < 0.5,
            np.maximum(a.astype(np.float32), np.finfo(np.float32).tiny),
            b.astype(np.float32),
        )

    def images(self, draws: PixMixDraws, scene: Scene) -> tuple[Float[Tensor, "b c h w"]]:
        """The one view; rows that take neither a copy nor a round are the clean images, bit by bit.

        Raises:
            BatchError: the images have no pixel grid, or their normalisation is not known.
            DataError: the folder of pictures cannot be used.
        """
        batch = scene.batch
        if batch.images.ndim != 4:
            raise BatchError(
                f"pixmix mixes pixel grids: expected images (B, C, H, W), got {tuple(batch.images.shape)}. Take a "
                "recipe such as mixup."
            )
        raw = batch.raw
        assert batch.pixels is not None, "raw pixels are known"
        going = np.arange(self.k) < draws.rounds[:, None]
        copied = draws.copied & np.c_[np.ones(len(batch), bool), going]
        sources, which = self._sources(raw, copied, draws)
        which[:, 1:][~going] = -1

        rows = np.flatnonzero(copied[:, 0] | going[:, 0])
        start = raw.index_select(0, onto(rows, raw)).to(torch.promote_types(raw.dtype, torch.float32)).clamp_(0, 1)
        from_copy = np.flatnonzero(copied[rows, 0])
        copies = sources.index_select(0, onto(which[rows[from_copy], 0], raw))
        start.index_copy_(0, onto(from_copy, raw), copies.to(start.dtype).mul_(1 / 255))
        made = mixed(start, sources, which[rows, 1:], draws.multiplied[rows], draws.a[rows], draws.b[rows])
        view = batch.images.clone()
        view.index_copy_(0, onto(rows, raw), batch.pixels.normalise(made).to(view.dtype))
        return (view,)

    def _sources(
        self, raw: Float[Tensor, "b c h w"], copied: Bool[np.ndarray, "b k1"], draws: PixMixDraws
    ) -> tuple[UInt8[Tensor, "m c h w"], Int[np.ndarray, "b k1"]]:
        """The crops of B mixing pictures and then the augmented copies, and which of them each slot takes."""
        pictures = self._pictures_for(raw)
        height, width = raw.shape[2:]
        chosen = (draws.picture * len(pictures)).astype(np.int64)
        top, left = (draws.corner * (pictures.shape[2] - height + 1, pictures.shape[3] - width + 1)).astype(np.int64).T
        every = pictures.unfold(2, height, 1).unfold(3, width, 1).movedim(1, 3)  # a view: (N, top, left, C, H, W)
        sources = [every[onto(chosen, raw), onto(top.copy(), raw), onto(left.copy(), raw)]]
        which = np.tile(np.arange(len(raw))[:, None], copied.shape[1])
        rows = np.nonzero(copied)[0]
        if len(rows):
            which[copied] = len(raw) + np.arange(len(rows))
            operations, levels, flips = (
                drawn[copied][None, :, None, None] for drawn in (draws.operations, draws.levels, draws.flips)
            )
            parameters = parameters_of(operations, levels, flips, (height, width))
            own = quantised(raw).index_select(0, onto(rows, raw))
            sources.append(augment(own, operations, parameters)[0, :, 0])
        return torch.cat(sources), which

    def _pictures_for(self, images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "n c side side"]:
        channels, height, width = images.shape[1:]
        return mixing_pictures(self.pictures, self.count, _side(height, width), channels, images.device, self.cache)


@method("pixmix", section="1.1", paper="2112.05135", venue="CVPR 2022")
def pixmix(
    k: int = 4,
    beta: float = 3.0,
    severity: float = 3.0,
    ops: Literal[9, 13] = 13,
    pictures: str = "fractals",
    count: int = 1000,
) -> Pieces:
    """Args:
    k: an image is mixed in 0 to k rounds.
    beta: β of the weights, smaller is more severe; the paper takes 3 on CIFAR and 4 on ImageNet.
    severity: upper bound of the operations' levels, in [0.1, 10]; the paper takes 3 on CIFAR and 1 on ImageNet.
    ops: all 13 operations, or 9 without the colour, contrast, brightness and sharpness that ImageNet-C tests.
    pictures: 'fractals' for pictures that are made, or a folder of pictures.
    count: fractals to make; has no effect with a folder.
    """
    return Pieces(essential=PixMixRounds(k, beta, severity, ops, pictures, count))
