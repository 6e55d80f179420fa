"""Co-Mixup: choose for every block of every output of a batch which input it shows, so that all outputs differ.

Kim, Choo, Jeong, Song, "Co-Mixup: Saliency Guided Joint Mixup with Supermodular Diversity", ICLR 2021,
arXiv:2102.03065.

As many outputs are made of a part of the batch as it has inputs. Each block of an output shows one input, or two by
halves, so that much saliency is kept, neighbours agree, and no input is shown by too many outputs; the outputs are
chosen in turn, several times over, each given the others. The label follows the shares. Equations: saliency c →
`block_saliency`; compatibility A_c → `compatibility`; objective (5) → `Arrangement.objective`; its modularised term and
the unary costs of one output → `Arrangement.excess`, `Arrangement.choices`; its minimum →
`mixwell.ops.labelling.least_labels`; x̃ → `assemble`.

Paper and code:
- The code applies the threshold's mask to the wrong side of A ρ (`rule="code"`); the paper takes A ρ where it exceeds
  τ. They are far apart only for an ω well above the default.
- The code minimises by α-β swap, which may miss the minimum; ours is exact, save for images without any contrast.
- The ImageNet code takes `part` 16, `niter` 3, `alpha` 1, cross-entropy, and compares peaks among squares that do not
  overlap; ours among all. CIFAR and Tiny-ImageNet tune `beta` in 0.16 to 0.48 and `tau` in 0.81 to 0.86.
- The code draws a random number of blocks, 2 to 16, for `blocks=-1`; the paper has 4.
- The code takes saliency from the training pass over the clean batch; ours is from an evaluation pass.
- The code takes square images. Others are cut into square blocks as `puzzlemix` does.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64, Shaped
from numpy import ndarray
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Need, Scene
from mixwell.core.criteria import criterion_of
from mixwell.core.errors import BatchError, ParameterError, number_in
from mixwell.core.mix import Mix, Partners, layout_of, onto
from mixwell.core.registry import Pieces, method
from mixwell.core.saliency import Source, resized, saliency_of
from mixwell.ops.labelling import least_labels
from mixwell.probe import Anatomy, Want
from mixwell.sample.saliency.puzzlemix import CleanLoss, block_saliency, block_side

__all__ = [
    "Arrangement",
    "Choices",
    "Comix",
    "ComixDraws",
    "Settings",
    "assemble",
    "compatibility",
    "in_parts",
    "mix_of",
    "peak_distances",
    "peaks",
    "shown_sources",
    "told_apart",
]

Penalty = Literal["hard", "soft"]
Rule = Literal["paper", "code"]
Labels = Callable[[Float[ndarray, "p h w l"], Float[ndarray, "p l l"], float], Int64[ndarray, "p h w"]]

_PEAK = 8
"""Side in pixels of the squares among which an image's most salient is looked for."""
_HALVES_GAIN = 5e-4
"""What two inputs by halves cost less than the mean of both; a half of a label is this far from the whole one:"""
_HALF_APART = 0.25
_NEVER = 1e6
"""Cost of what must not be chosen."""
_PAIRS = np.array(((0, 1), (0, 2), (1, 2)))
"""Of the three inputs that an output shows most."""
_SETTLED = 1e-6
"""A part stays as it is once a round changes its objective by a smaller share."""


class Settings(NamedTuple):
    """Of the objective; weights are those of the paper, before they are divided by the number of blocks.

    Attributes:
        beta: weight of smoothness.
        gamma: weight of the penalty on inputs that many outputs show.
        tau: how often an input may be shown without penalty, in images.
        penalty: "hard" counts all that an input is shown once it is too often, "soft" what is too much.
        rule: "paper", or "code" for its hard penalty.
        niter: rounds over all outputs.
        resolve: whether the last round keeps outputs apart that show the same inputs.
    """

    beta: float = 0.32
    gamma: float = 1.0
    tau: float = 0.83
    penalty: Penalty = "hard"
    rule: Rule = "paper"
    niter: int = 4
    resolve: bool = True


def in_parts(rows: Float[ndarray, "b *d"], part: int) -> Float[ndarray, "p m *d"]:
    """Consecutive rows in parts of m = `part` or all there are; the last part is filled with zeros."""
    m = min(part, len(rows))
    parts = -(-len(rows) // m)
    filled = np.zeros((parts * m, *rows.shape[1:]))
    filled[: len(rows)] = rows
    return filled.reshape(parts, m, *rows.shape[1:])


def peaks(saliency: Float[Tensor, "b h w"]) -> Int64[Tensor, "b 2"]:
    """Row and column, in pixels, where the most salient square of 8 pixels (or as many as there are) begins."""
    pooled = _window_sums(_window_sums(saliency, 1), 2)
    at = pooled.flatten(1).argmax(1)
    return torch.stack((at // pooled.shape[2], at % pooled.shape[2]), 1)


def _window_sums(maps: Float[Tensor, "b h w"], axis: int) -> Float[Tensor, "b y x"]:
    """Of eight neighbours along an axis, or all where there are fewer; for one channel far faster than pooling."""
    if maps.shape[axis] < _PEAK:
        return maps.sum(axis, keepdim=True)
    for step in (1, 2, 4):
        length = maps.shape[axis] - step
        maps = maps.narrow(axis, 0, length) + maps.narrow(axis, step, length)
    return maps


def peak_distances(found: Float[ndarray, "p m 2"], sizes: Int64[ndarray, " p"]) -> Float[ndarray, "p m m"]:
    """How far apart peaks are, rows and columns added; 0 behind a part's size."""
    real = np.arange(found.shape[1]) < sizes[:, None]
    apart: Float[ndarray, "p m m"] = np.abs(found[:, :, None] - found[:, None]).sum(3)
    return apart * (real[:, :, None] & real[:, None])


def compatibility(
    distances: Float[ndarray, "p m m"], sizes: Int64[ndarray, " p"], omega: float
) -> Float[ndarray, "p m m"]:
    """A = (1-ω)·I + ω·D of each part: D the distances, scaled to the sum m; 0 if all peaks coincide."""
    total = distances.sum((1, 2))
    scale = omega * sizes / np.where(total > 0, total, 1)
    matrix: Float[ndarray, "p m m"] = (1 - omega) * np.eye(distances.shape[1]) + scale[:, None, None] * distances
    return matrix


class Choices(NamedTuple):
    """What the blocks of one output can show, for some parts.

    Attributes:
        costs: (p, h, w, L) of each label: the m inputs, then up to three pairs of them by halves.
        table: (p, L, L) how far labels are apart.
        shares: (p, L, m) of the inputs in each label.
    """

    costs: Float[ndarray, "p h w l"]
    table: Float[ndarray, "p l l"]
    shares: Float[ndarray, "p l m"]


class Arrangement:
    """Which inputs the outputs of several parts of a batch show, from a first guess to the last round.

    Parts do not touch each other, so that each step is one for all; within a part every output depends on all before.

    Args:
        costs: (P, m, h, w) of showing each input at each block, without the prior.
        prior: (P, m) how likely an input is to be shown, and `eta` its weight.
        compatible: (P, m, m) A.
        first: (P, m, h, w) the input that each block of each output shows at first.
        sizes: (P,) inputs and outputs of each part.
        settings: of the objective.

    Attributes:
        costs: (P, h, w, m) with the prior.
        shares: (P, m, h, w, m) of each input in each block of each output; 0, ½ or 1.
        used: (P, m) blocks that each input has in all outputs.
        discouraged: (P, m, m) 1 where an output should leave an input out.
        objectives: (P,) before the first round and after each.
    """

    def __init__(
        self,
        costs: Float[ndarray, "p m h w"],
        prior: Float[ndarray, "p m"],
        eta: float,
        compatible: Float[ndarray, "p m m"],
        first: Int[ndarray, "p m h w"],
        sizes: Int64[ndarray, " p"],
        settings: Settings,
    ) -> None:
        m, self.blocks = costs.shape[1], costs.shape[2] * costs.shape[3]
        self.settings, self.sizes, self.compatible = settings, sizes, compatible
        self.beta, self.gamma = settings.beta / self.blocks, settings.gamma / self.blocks
        self.costs = np.moveaxis(costs - eta / self.blocks * np.log(prior + 1e-8)[..., None, None], 1, 3)
        real = np.arange(m) < sizes[:, None]
        self.lacking = np.where(real, 0, _NEVER)
        self.shares = np.eye(m)[first] * real[:, :, None, None, None]
        self.used = self.shares.sum((1, 2, 3))
        self.discouraged = np.zeros((len(costs), m, m))
        self.objectives = [self.objective()]

    def run(self, label: Labels = least_labels) -> None:
        """All rounds, or until nothing changes.

        The loop over outputs cannot be parallel: each answer changes what the next costs.

        Args:
            label: finds labels (p, h, w) of low energy, given the choices' costs and table, and β.
        """
        going = np.ones(len(self.sizes), bool)
        for turn in range(self.settings.niter):
            for output in range(self.costs.shape[3]):
                parts = np.flatnonzero(going & (output < self.sizes))
                if len(parts):
                    choices = self.choices(parts, output, halves=turn > 0)
                    self.show(parts, output, choices, label(choices.costs, choices.table, self.beta))
            if self.settings.resolve and turn == self.settings.niter - 2:
                self.discouraged = told_apart(self.shares.any((2, 3)))
            before, now = self.objectives[-1], self.objective()
            self.objectives.append(now)
            going &= np.abs(now - before) >= _SETTLED * np.abs(before)
            if not going.any():
                break

    def choices(self, parts: Int64[ndarray, " p"], output: int, halves: bool) -> Choices:
        """What the blocks of one output can show, given all other outputs.

        Args:
            parts: (p,) the parts in question.
            output: its number in the part.
            halves: whether pairs of the three inputs that it shows most can be shown by halves.
        """
        m = self.costs.shape[3]
        counts = self.shares[parts, output].sum((1, 2))
        extra = self.excess(parts, counts) + self.gamma * self.discouraged[parts, output] + self.lacking[parts]
        costs = self.costs[parts] + extra[:, None, None]
        if not halves or m == 1:
            shares, table = (np.broadcast_to(one, (len(parts), m, m)) for one in (np.eye(m), 1 - np.eye(m)))
            return Choices(costs, table, shares)
        pairs = _PAIRS[: m * (m - 1) // 2]
        count = m + len(pairs)
        shares, table = (np.tile(one, (len(parts), 1, 1)) for one in (np.eye(count, m), 1 - np.eye(count)))
        most = np.sort(torch.from_numpy(counts).topk(min(3, m)).indices.numpy())  # equals are ranked as by the code
        rows, label, both = np.arange(len(parts))[:, None, None], np.arange(m, count)[:, None], most[:, pairs]
        shares[rows, label, both] = 0.5
        table[rows, label, both] = table[rows, both, label] = _HALF_APART
        costs = costs @ shares.swapaxes(1, 2)[:, None]
        costs[..., m:] += np.where(counts[rows, both].all(2), -_HALVES_GAIN, _NEVER)[:, None, None]
        return Choices(costs, table, shares)

    def excess(self, parts: Int64[ndarray, " p"], counts: Float[ndarray, "p m"]) -> Float[ndarray, "p m"]:
        """What a block of each input costs because the other outputs show it too often.

        Args:
            parts: (p,) the parts in question.
            counts: (p, m) blocks of the output in question, which do not count.
        """
        matrix, used = self.compatible[parts], (self.used[parts] - counts)[..., None]
        weighted = matrix @ used
        over = weighted - self.settings.tau * self.blocks
        if self.settings.penalty == "soft":
            found = np.maximum(over, 0)
        elif self.settings.rule == "paper":
            found = (over > 0) * weighted
        else:
            found = (matrix * (over > 0).swapaxes(1, 2)) @ used
        penalty: Float[ndarray, "p m"] = 2 * self.gamma * found[..., 0]
        return penalty

    def show(self, parts: Int64[ndarray, " p"], output: int, choices: Choices, labels: Int[ndarray, "p h w"]) -> None:
        """Let the blocks of one output show these labels."""
        old = self.shares[parts, output]
        new = choices.shares[np.arange(len(parts))[:, None, None], labels]
        self.used[parts] += (new - old).sum((1, 2))
        self.shares[parts, output] = new

    def objective(self) -> Float[ndarray, " p"]:
        """Costs of the blocks, smoothness, and how often outputs show the same input (without τ and A)."""
        shares = self.shares
        kept = (self.costs * shares.sum(1)).sum((1, 2, 3))
        steps = sum(
            np.einsum("pihwk,pihwk->p", apart, apart)
            for apart in (shares[:, :, 1:] - shares[:, :, :-1], shares[:, :, :, 1:] - shares[:, :, :, :-1])
        )
        counts = shares.sum((2, 3))
        common = np.square(counts.sum(1)).sum(1) - np.square(counts).sum((1, 2))
        total: Float[ndarray, " p"] = kept + self.beta / 2 * steps + self.gamma * common
        return total


def told_apart(shown: Bool[ndarray, "p m m"]) -> Float[ndarray, "p m m"]:
    """Which inputs outputs should leave out, so that none show the same: the earlier the first, the later the second.

    Args:
        shown: (P, m, m) whether an output shows an input.
    """
    same = (shown[:, :, None] == shown[:, None]).all(3) & (shown.sum(2) > 1)[:, None]
    later = np.triu(same, 1)
    rank = shown.cumsum(2) * shown
    first, second = rank == 1, rank == 2
    out: Float[ndarray, "p m m"] = (later.any(2)[..., None] & first) | (later.any(1)[..., None] & second)
    return out.astype(np.float64)


def shown_sources(
    shares: Float[ndarray, "p m h w m"], rows: int
) -> tuple[Int64[ndarray, "r k"], Float[ndarray, "r k h w"]]:
    """The rows of the batch that each output shows, most shown first, and their share of each block.

    K is the most that any output shows; outputs that show fewer repeat their first with share 0.
    """
    p, m, h, w, _ = shares.shape
    shares = shares.reshape(p * m, h, w, m)[:rows]
    counts = shares.sum((1, 2))
    order = np.argsort(-counts, axis=1, kind="stable")[:, : (counts > 0).sum(1).max()]
    taken = np.take_along_axis(counts, order, 1) > 0
    sources = np.where(taken, order, order[:, :1]) + (np.arange(rows) // m * m)[:, None]
    blocks = np.take_along_axis(shares, order[:, None, None], 3)
    return sources, np.ascontiguousarray(np.moveaxis(blocks, 3, 1))


def assemble(
    x: Float[Tensor, "b c h w"],
    one: Int64[Tensor, "r gh gw"],
    other: Int64[Tensor, "r gh gw"],
    halves: Bool[ndarray, "gh gw"],
) -> Float[Tensor, "r c h w"]:
    """Blocks of images side by side, each the mean of the same block of two images.

    Args:
        x: (B, C, H, W) at any resolution.
        one, other: (R, gh, gw) the rows that each block shows; the same row twice where it shows one.
        halves: places of the grid where they differ in any row.
    """
    mixed = torch.empty((len(one), *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=layout_of(x))
    down, across = (
        [-(-block * size // blocks) for block in range(blocks + 1)]
        for size, blocks in zip(x.shape[2:], one.shape[1:], strict=True)
    )
    shares = ((one != other) / 2).to(x.dtype)[:, None, None]
    # A copy per place of the grid, for all images: several times as fast as `gather` where images are large.
    for i, (top, bottom) in enumerate(pairwise(down)):
        for j, (left, right) in enumerate(pairwise(across)):
            block = x[:, :, top:bottom, left:right]
            shown = block.index_select(0, one[:, i, j])
            if halves[i, j]:
                shown.lerp_(block.index_select(0, other[:, i, j]), shares[..., i, j, None])
            mixed[:, :, top:bottom, left:right] = shown
    return mixed


def mix_of(
    images: Float[Tensor, "b c h w"], shares: Float[ndarray, "p m gh gw m"], pool: Shaped[Tensor, "b ..."]
) -> Mix:
    """The mix whose blocks show these shares of each part's inputs.

    Args:
        images: (B, C, H, W), the inputs of the parts one after the other.
        shares: as in `Arrangement`.
        pool: labels of the images.
    """
    sources, blocks = shown_sources(shares, len(images))
    first, last = (blocks > 0).argmax(1), blocks.shape[1] - 1 - (blocks[:, ::-1] > 0).argmax(1)
    rows = np.arange(len(sources))[:, None, None]
    one, other = onto(sources[rows, first], images), onto(sources[rows, last], images)
    halves = (first != last).any(0)

    def apply(x: Tensor) -> Tensor:
        return assemble(x, one, other, halves)

    def masks(mix: Mix) -> Tensor:
        size = (images.shape[2], images.shape[3])
        return F.interpolate(onto(blocks.astype(np.float32), images), size, mode="nearest")

    weights = onto(blocks.mean((2, 3)).astype(np.float32), images)
    return Mix(apply(images), onto(sources, images), weights, pool, apply, make_masks=masks)


class ComixDraws(NamedTuple):
    """What the arrangement begins with.

    Attributes:
        blocks: number of blocks along an image's shorter side.
        prior: (B,) Gamma(α, 1); divided by their sum over a part they are Dirichlet.
        first: (B, blocks, blocks) in [0, 1): which of the part's inputs each block shows at first. Longer images
            repeat it.
    """

    blocks: int
    prior: Float[ndarray, " b"]
    first: Float[ndarray, "b n n"]


class Comix(Blend):
    """Outputs whose blocks show salient blocks of several inputs of the batch.

    No output belongs to one row: there is no own image, and no λ.

    Args:
        part: inputs that are mixed with each other: consecutive rows; the last part can be smaller.
        blocks: along the shorter side of an image; -1 draws 2, 4, 8 or 16 per batch.
        settings: of the objective.
        eta, alpha: weight of the prior; it is Dirichlet(α) per part.
        omega: how much inputs whose peaks are far apart count as one, in [0, 1].
        saliency: its source.
    """

    gives = frozenset({Need.MASKS, Need.SIMPLEX})
    partners = 0
    takes_lam = False
    hidden = False

    def __init__(
        self,
        part: int = 20,
        blocks: int = 4,
        settings: Settings | None = None,
        eta: float = 0.05,
        alpha: float = 2.0,
        omega: float = 0.001,
        saliency: Source = "gradient",
    ) -> None:
        super().__init__()
        self.part = int(number_in("part", part, 1))
        if blocks != -1 and not 1 <= blocks <= 32:
            raise ParameterError(f"blocks must be in [1, 32], or -1 for 2, 4, 8 or 16 at random, got {blocks}.")
        self.blocks = blocks
        self.settings = settings or Settings()
        for name, high in (("beta", np.inf), ("gamma", np.inf), ("tau", np.inf)):
            number_in(name, getattr(self.settings, name), 0, high)
        number_in("niter", self.settings.niter, 1)
        self.eta = number_in("eta", eta, 0)
        self.alpha = number_in("alpha", alpha, 0, open_low=True)
        self.omega = number_in("omega", omega, 0, 1)
        self.saliency = saliency_of(saliency)
        self.network = self.saliency.network

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        self.saliency.build(anatomy, num_classes)

    def views(self) -> tuple[Want, ...]:
        return self.saliency.views()

    def draw(self, rows: int, rng: Generator) -> ComixDraws:
        blocks = int(2 ** rng.integers(1, 5)) if self.blocks == -1 else self.blocks
        return ComixDraws(blocks, rng.gamma(self.alpha, size=rows), rng.random((rows, blocks, blocks)))

    def mix(
        self, images: Float[Tensor, "b c h w"], partners: Partners, lam: Tensor, draws: ComixDraws, scene: Scene
    ) -> Mix:
        size = (images.shape[2], images.shape[3])
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            saliency = resized(self.saliency.maps(scene), size)
            blocks = block_saliency(saliency, block_side(size, draws.blocks))
            found = torch.cat((blocks.flatten(1), peaks(saliency).float()), 1).cpu().double().numpy()
        if not np.isfinite(found).all():
            raise BatchError(
                "comixup: the saliency of the clean batch is not finite. Check the images, and that the network's loss "
                "on them is finite."
            )
        arrangement = self.arrangement(found[:, :-2].reshape(blocks.shape), found[:, -2:], draws)
        arrangement.run()
        return mix_of(images, arrangement.shares, partners.pool)

    def arrangement(
        self, saliency: Float[ndarray, "b h w"], found: Float[ndarray, "b 2"], draws: ComixDraws
    ) -> Arrangement:
        """What all parts begin with.

        Args:
            saliency: (B, h, w) of blocks, of sum 1 per image.
            found: (B, 2) peaks.
        """
        rows, h, w = saliency.shape
        costs = in_parts(-saliency, self.part)
        m = costs.shape[1]
        sizes = np.minimum(rows - np.arange(len(costs)) * m, m)
        prior = in_parts(draws.prior, self.part)
        prior = prior / np.maximum(prior.sum(1, keepdims=True), np.finfo(np.float64).tiny)
        tall, wide = np.arange(h) % draws.blocks, np.arange(w) % draws.blocks
        first = in_parts(draws.first[:, tall[:, None], wide], self.part) * sizes[:, None, None, None]
        matrix = compatibility(peak_distances(in_parts(found, self.part), sizes), sizes, self.omega)
        return Arrangement(costs, prior, self.eta, matrix, first.astype(np.int64), sizes, self.settings)


@method("comixup", section="1.7", paper="2102.03065", venue="ICLR 2021")
def comixup(
    part: int = 20,
    blocks: int = 4,
    beta: float = 0.32,
    gamma: float = 1.0,
    tau: float = 0.83,
    eta: float = 0.05,
    alpha: float = 2.0,
    omega: float = 0.001,
    niter: int = 4,
    penalty: Penalty = "hard",
    resolve: bool = True,
    rule: Rule = "paper",
    saliency: Source = "gradient",
    clean_lam: float = 1.0,
    criterion: Literal["softmax_bce", "cross_entropy"] = "softmax_bce",
    prob: float = 1.0,
) -> Pieces:
    """Args:
    part: images that are mixed with each other, consecutive rows of the batch; the authors take 16 on ImageNet.
    blocks: along the shorter side of an image; -1 draws 2, 4, 8 or 16 per batch.
    beta: weight of smoothness.
    gamma: weight of the penalty on images that many outputs show.
    tau: how often an image may be shown without penalty.
    eta: weight of the prior.
    alpha: the prior of a part is Dirichlet(α).
    omega: how much images whose most salient squares are far apart count as one, in [0, 1].
    niter: rounds over all outputs; the authors take 3 on ImageNet.
    penalty: "hard" on all that an image is shown once it is too often, "soft" on what is too much.
    resolve: whether the last round keeps outputs apart that show the same images.
    rule: of the hard penalty, the "paper" or the "code".
    saliency: its source.
    clean_lam: weight of the clean batch's loss.
    criterion: "softmax_bce" as on CIFAR, or "cross_entropy" as on ImageNet.
    prob: share of the batches that are mixed.
    """
    settings = Settings(beta, gamma, tau, penalty, rule, niter, resolve)
    comix = Comix(part, blocks, settings, eta, alpha, omega, saliency)
    clean: tuple[CleanLoss, ...] = ()
    if number_in("clean_lam", clean_lam, 0):
        term = CleanLoss(clean_lam)
        term.needs = frozenset({Need.SIMPLEX})  # outputs have more than two sources
        clean = (term,)
    return Pieces((comix, *clean), (criterion_of(criterion),), prob=prob)
