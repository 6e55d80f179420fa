"""Puzzle Mix: cut both images into blocks, keep the salient blocks of each, and move them where they are kept.

Kim, Choo, Song, "Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup", ICML 2020, arXiv:2009.06962.

A graph cut gives every block of a pair a share m of the image, out of L levels, so that salient blocks of both survive
and neighbours of like colours agree; λ only enters as a prior. Then each image's blocks are transported so that its
salient ones lie where the mask shows them. The label follows the mean of m. Equations: saliency → `pixel_saliency`,
`block_saliency`; unary and pairwise terms → `block_costs`; prior p(z) and the objective's unary part → `label_costs`;
its minimum → `mixwell.ops.graphcut.best_labels`; transport Π → `mixwell.ops.transport.block_plan`; h(x) → `assemble`.

Paper and code:
- The code cuts by α-β swap, which for L ≥ 3 is up to a few percent above the minimum; ours is the exact minimum.
- Paper and code transport by the same heuristic (`transport="iterative"`); "exact" solves the assignment.
- The CIFAR code minimises binary cross-entropy of softmax probabilities (`criterion="softmax_bce"`), the ImageNet code
  cross-entropy; neighbours' colours are averaged over `neigh_size` 4 and 2 pixels. CIFAR moves blocks of `t_size` 4
  pixels, the other sets those of the mask (-1).
- The code takes square images whose side the number of blocks divides. We take blocks of the nearest side that divides
  both sides of the image, and smaller `neigh_size` and `t_size` where they do not divide the block.
- With `clean_lam` the code takes saliency from the training pass over the clean batch; ours is from an evaluation pass.
"""

from __future__ import annotations

from dataclasses import replace
from math import comb, gcd
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy import ndarray
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Criterion, Need, Per, Scene, Step, Term
from mixwell.core.criteria import SoftCrossEntropy, SoftmaxBinaryCrossEntropy, criterion_of
from mixwell.core.errors import BatchError, ParameterError, number_in
from mixwell.core.mix import Mix, Partners
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.ops.assignment import assigned
from mixwell.ops.graphcut import best_labels
from mixwell.ops.transport import block_plan, move_blocks, transport_costs
from mixwell.probe import Views, Want

__all__ = [
    "BlockCosts",
    "CleanLoss",
    "Puzzle",
    "PuzzleDraws",
    "assemble",
    "block_costs",
    "block_saliency",
    "block_side",
    "colour_side",
    "label_costs",
    "moving_side",
    "pixel_saliency",
    "shown_of",
    "transport_plan",
]

Transport = Literal["iterative", "exact", "none"]

_MOST_BLOCKS = 32 * 32
"""A transport between more places would need gigabytes."""


class BlockCosts(NamedTuple):
    """The energy of a block mask without its prior, per pair.

    Attributes:
        own: (B, h, w) cost of showing the image.
        other: (B, h, w) cost of showing its partner.
        down, right: (B, h-1, w) and (B, h, w-1) what neighbours gain by agreeing, beside β.
    """

    own: Float[Tensor, "b h w"]
    other: Float[Tensor, "b h w"]
    down: Float[Tensor, "b down w"]
    right: Float[Tensor, "b h right"]


def pixel_saliency(gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
    """Root mean square over channels of the loss's gradient, in fp32."""
    return gradient.float().square().mean(1).sqrt()


def block_saliency(saliency: Float[Tensor, "b h w"], side: int) -> Float[Tensor, "b gh gw"]:
    """Each block's share of the image's saliency, > 0; without any saliency all blocks have the same."""
    # A block of saliency 0 would gain nothing by staying in its own place, which could then remain empty.
    blocks = F.avg_pool2d(saliency[:, None], side)[:, 0].clamp_min(1e-30)
    return blocks / blocks.sum((1, 2), keepdim=True)


def block_side(size: tuple[int, int], blocks: int) -> int:
    """Side in pixels of square blocks that fill the image, about `blocks` along its shorter side.

    The common divisor of both sides that is nearest, by ratio, to the shorter side / blocks; the larger of two.

    Raises:
        BatchError: even the best division has far too many blocks.
    """
    h, w = size
    wanted = min(size) / blocks
    divisors = [side for side in range(gcd(h, w), 0, -1) if gcd(h, w) % side == 0]
    side = min(divisors, key=lambda side: max(side / wanted, wanted / side))
    if h * w // side**2 > _MOST_BLOCKS:
        raise BatchError(
            f"Images are cut into equal square blocks: expected about {blocks} along the shorter side, but an "
            f"image of {h}×{w} only divides into squares of {', '.join(map(str, divisors))} pixels. "
            "Resize or crop the images to sides that are multiples of 16."
        )
    return side


def moving_side(size: tuple[int, int], side: int, t_size: int) -> int:
    """Side in pixels of the blocks that move, which divides that of the mask's blocks.

    The smallest divisor that is at least `t_size` (-1: `side` itself) and makes no more than 16 · 16 blocks, if there
    is one.
    """
    least = max(side if t_size == -1 else min(t_size, side), (size[0] * size[1]) ** 0.5 / 16)
    return min((part for part in range(1, side + 1) if side % part == 0 and part >= least), default=side)


def colour_side(side: int, neigh_size: int) -> int:
    """Side in pixels of the squares whose colours are compared: the largest divisor of `side` up to `neigh_size`."""
    return max(part for part in range(1, min(side, neigh_size) + 1) if side % part == 0)


def block_costs(
    saliency: tuple[Float[Tensor, "b h w"], Float[Tensor, "b h w"]],
    colours: tuple[Float[Tensor, "b c ch cw"], Float[Tensor, "b c ch cw"]],
    weight: float,
) -> BlockCosts:
    """What each block of a pair costs, from the saliency that it hides and the edges in colour that it makes.

    Args:
        saliency: (B, h, w) block saliency of the image and of its partner.
        colours: (B, C, h·k, w·k) pixels in [0, 1] of the image and of its partner, k along the side of a block.
        weight: β·γ at this number of blocks.
    """
    own, other = saliency[1].clone(), saliency[0].clone()
    k = colours[0].shape[2] // own.shape[1]
    agreed = []
    for own_cost, other_cost, (image, partner) in (
        (own, other, colours),
        (own.mT, other.mT, (colours[0].mT, colours[1].mT)),
    ):
        both, upper, lower, neither = (
            weight * _edge(above, below, k)
            for above, below in ((image, image), (image, partner), (partner, image), (partner, partner))
        )
        own_cost[:, :-1] += (upper + both) / 2
        other_cost[:, :-1] += (lower + neither) / 2
        own_cost[:, 1:] += (lower + both) / 2
        other_cost[:, 1:] += (upper + neither) / 2
        agreed.append((upper + lower - both - neither) / 2)
    return BlockCosts(own, other, agreed[0], agreed[1].mT)


def _edge(above: Float[Tensor, "b c ch cw"], below: Float[Tensor, "b c ch cw"], k: int) -> Float[Tensor, "b down w"]:
    """Mean difference between the last row of one image's blocks and the first row of the blocks below, of another."""
    apart = (above[:, :, k - 1 : -1 : k] - below[:, :, k::k]).abs().mean(1)
    return torch.unflatten(apart, 2, (apart.shape[2] // k, k)).mean(3)


def label_costs(
    own: Float[ndarray, "b h w"], other: Float[ndarray, "b h w"], lam: Float[ndarray, " #b"], eta: float, labels: int
) -> Float[ndarray, "b h w l"]:
    """Cost of each label l = 0 … L-1 at each block, where the image's share is m = 1 - l/(L-1); in fp64.

    The prior of l is binomial: C(L-1, l) λ^(L-1-l) (1-λ)^l.
    """
    level = np.arange(labels)
    m = 1 - level / (labels - 1)
    lam = lam.astype(np.float64)[:, None]
    ways = np.array([comb(labels - 1, times) for times in range(labels)])
    chance = ways * lam ** (labels - 1 - level) * (1 - lam) ** level
    prior = -np.log(chance + 1e-8) * eta / (own.shape[1] * own.shape[2])
    costs: Float[ndarray, "b h w l"] = own[..., None] * m + other[..., None] * (1 - m) + prior[:, None, None]
    return costs


def transport_plan(
    saliency: Float[Tensor, "b h w"], shown: Float[Tensor, "b h w"], eps: float, transport: Transport = "iterative"
) -> Int[Tensor, "b h w"]:
    """Which block of an image goes to each place (-1: none), so that salient blocks lie where the image is shown.

    Args:
        saliency: (B, h, w) block saliency, on the CPU.
        shown: (B, h, w) the image's share at each place; any share > 0 counts alike.
        eps: cost of moving a block along the image's side.
        transport: "iterative" as the authors do, with as many rounds as blocks along the side; "exact" assignment,
            one solver call per image (about 1 ms for 16 × 16 blocks).
    """
    if transport == "exact":
        return assigned(transport_costs(saliency, shown > 0, eps)).argsort(1).view(shown.shape)
    return block_plan(saliency, shown > 0, eps, max(shown.shape[1:])).view(shown.shape)


def assemble(
    own: Float[Tensor, "b c h w"],
    other: Float[Tensor, "b c h w"],
    m: Float[Tensor, "b gh gw"],
    plans: tuple[Int[Tensor, "b th tw"], Int[Tensor, "b th tw"]] | None = None,
) -> Float[Tensor, "b c h w"]:
    """m·own + (1-m)·other, after the blocks of both were moved as planned.

    Args:
        own, other: (B, C, H, W) at any resolution.
        m: (B, gh, gw) the own image's share of each block.
        plans: the source block of each place, of both images; None where nothing moves.
    """
    shares = F.interpolate(m[:, None], own.shape[2:], mode="nearest").to(own.device, own.dtype, non_blocking=True)
    if plans is not None:
        own, other = move_blocks(own, plans[0]), move_blocks(other, plans[1])
    return torch.lerp(other, own, shares)


def shown_of(shares: Float[Tensor, "b h w"], plan: Int[Tensor, "b th tw"]) -> Float[Tensor, "b h w"]:
    """How much of each pixel of an image is shown, wherever its block was moved to.

    Args:
        shares: (B, H, W) of the image, after its blocks were moved.
        plan: the source block of each place.
    """
    with torch.enable_grad():
        pixels = torch.ones_like(shares[:, None]).requires_grad_()
        (found,) = torch.autograd.grad(move_blocks(pixels, plan).clone(), pixels, shares[:, None])
    return found[:, 0].clamp(max=1)


class PuzzleDraws(NamedTuple):
    """What Puzzle Mix draws for a batch.

    Attributes:
        choice: position of the number of blocks among those that may be drawn.
        noisy: whether the images, and whether their partners, get adversarial noise.
        key: seed of the noise's random start.
        strength: factor on the noise, in [0, 1).
    """

    choice: int
    noisy: tuple[bool, bool] = (False, False)
    key: int = 0
    strength: float = 0.0


class Puzzle(Blend):
    """Blocks of two images, chosen by graph cut and moved by transport, by the saliency of each.

    The masks say which image is shown at a pixel; after transport it may show a block from elsewhere in that image.

    Args:
        labels: number L of levels of a block's share, 2 to 4.
        beta, gamma: weights of label smoothness and, relative to it, of data smoothness.
        eta: weight of the prior.
        neigh_size: pixels along the squares over which colours are averaged before they are compared.
        block_nums: numbers of blocks along the side, one of which is drawn per batch.
        transport: "iterative", "exact" or "none".
        t_eps: cost of moving a block along the image's side.
        t_size: side of the blocks that move, in pixels, as far as there are no more than 16 × 16; -1 moves those of
            the mask.
        adv_p, adv_eps: probability of adversarial noise for the images of a batch, and for their partners; its size in
            steps of 1/255.
    """

    gives = OF_A_PAIR | {Need.MASKS}
    network = True
    hidden = False

    def __init__(
        self,
        labels: Literal[2, 3, 4] = 3,
        beta: float = 1.2,
        gamma: float = 0.5,
        eta: float = 0.2,
        neigh_size: int = 4,
        block_nums: tuple[int, ...] = (2, 4, 8, 16),
        transport: Transport = "iterative",
        t_eps: float = 0.8,
        t_size: int = 4,
        adv_p: float = 0.0,
        adv_eps: float = 10.0,
    ) -> None:
        super().__init__()
        self.labels = labels
        self.beta = number_in("beta", beta, 0)
        self.gamma = number_in("gamma", gamma, 0, 1, hint="Above 1, neighbours could gain by disagreeing.")
        self.eta = number_in("eta", eta, 0)
        self.neigh_size = int(number_in("neigh_size", neigh_size, 1))
        if not block_nums or not all(1 <= blocks <= 32 for blocks in block_nums):
            raise ParameterError(f"block_nums must be whole numbers in [1, 32], at least one, got {block_nums}.")
        self.block_nums = block_nums
        self.transport: Transport = transport
        self.aligned = transport == "none"
        self.t_eps = number_in("t_eps", t_eps, 0, open_low=True, hint="To leave blocks in place take transport='none'.")
        if t_size != -1 and t_size < 1:
            raise ParameterError(f"t_size must be ≥ 1, or -1 for the blocks of the mask, got {t_size}.")
        self.t_size = t_size
        self.adv_p = number_in("adv_p", adv_p, 0, 1)
        self.adv_eps = number_in("adv_eps", adv_eps, 0) / 255

    def views(self) -> tuple[Want, ...]:
        return (Want("gradient", "input"),)

    def draw(self, rows: int, rng: Generator) -> PuzzleDraws:
        own, other, strength = rng.random(3).tolist()
        noisy = own < self.adv_p, other < self.adv_p
        return PuzzleDraws(int(rng.integers(len(self.block_nums))), noisy, int(rng.integers(2**63)), strength)

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: PuzzleDraws,
        scene: Scene,
    ) -> Mix:
        assert scene.views is not None, "a piece that needs a network mixes only where there is one"
        size = (images.shape[2], images.shape[3])
        side = block_side(size, self.block_nums[draws.choice])
        noise = None
        if any(draws.noisy):
            noise, gradient = self._noise(scene, scene.views, draws)
        else:
            gradient = scene.views.gradient()
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            m, plans = self._solve(pixel_saliency(gradient), partners, lam, side, scene)

        def apply(x: Tensor) -> Tensor:
            return assemble(x, partners.of(x), m, plans)

        def masks(mix: Mix) -> Tensor:
            shares = F.interpolate(m[:, None], size, mode="nearest").to(images.device)
            return torch.cat((shares, 1 - shares), 1)

        def origins(mix: Mix) -> Tensor:
            shown = masks(mix)
            if plans is None:
                return shown
            return torch.stack([shown_of(shown[:, k], plan) for k, plan in enumerate(plans)], 1)

        if noise is None:
            mixed = apply(images)
        else:
            own = _noised(images, noise, scene) if draws.noisy[0] else images
            other = _noised(images, noise, scene) if draws.noisy[1] else images
            mixed = assemble(own, partners.of(other), m, plans)
        own_share = m.mean((1, 2))
        return Mix.of_pair(
            mixed, partners, own_share, apply, lam=lam, area=own_share, make_masks=masks, make_origins=origins
        )

    def _solve(
        self, saliency: Float[Tensor, "b h w"], partners: Partners, lam: Float[Tensor, " #b"], side: int, scene: Scene
    ) -> tuple[Float[Tensor, "b gh gw"], tuple[Int[Tensor, "b th tw"], Int[Tensor, "b th tw"]] | None]:
        """The image's share of each block, and the plans of both images' transport, on the CPU."""
        own = block_saliency(saliency, side)
        weight = self.beta / (16 * (own.shape[1] * own.shape[2]) ** 0.5)
        colours = F.avg_pool2d(scene.batch.raw.float(), colour_side(side, self.neigh_size))
        costs = block_costs((own, partners.of(own)), (colours, partners.of(colours)), weight * self.gamma)
        moving = block_saliency(saliency, moving_side((saliency.shape[1], saliency.shape[2]), side, self.t_size))
        on_host = _to_host(*costs, moving, partners.of(moving))
        if not torch.isfinite(on_host[0]).all():
            raise BatchError(
                "puzzlemix: the gradient of the clean batch's loss with respect to its images is not finite. "
                "Check the images, and that the network's loss on them is finite."
            )
        c_own, c_other, down, right = (tensor.double().numpy() for tensor in on_host[:4])
        unary = label_costs(c_own, c_other, lam.detach().cpu().numpy(), self.eta, self.labels)
        # Colours outside [0, 1] could make neighbours gain by disagreeing, which no cut can express.
        label = best_labels(unary, np.maximum(down + weight, 0), np.maximum(right + weight, 0))
        m = torch.from_numpy(1 - label / (self.labels - 1)).float()
        if self.transport == "none":
            return m, None
        shown = F.interpolate(m[:, None], moving.shape[1:], mode="nearest")[:, 0]
        own_plan, other_plan = (
            transport_plan(amount, share, self.t_eps, self.transport)
            for amount, share in zip(on_host[4:], (shown, 1 - shown), strict=True)
        )
        return m, (own_plan, other_plan)

    def _noise(
        self, scene: Scene, views: Views, draws: PuzzleDraws
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """One signed-gradient step from a random start, in pixels; and the gradient at that start."""
        raw, pixels = scene.batch.raw, scene.batch.pixels
        assert pixels is not None, "a batch with raw pixels knows its normalisation"
        generator = torch.Generator(raw.device).manual_seed(draws.key)
        start = torch.empty_like(raw).uniform_(-self.adv_eps, self.adv_eps, generator=generator)
        started = (raw + start).clamp(0, 1)
        batch = replace(scene.batch, images=pixels.normalise(started))
        gradient = Views(views.probe, batch, self.views(), views.loss).gradient()
        step = (self.adv_eps + 2 / 255) * gradient.sign()
        noise = (started - raw + step).clamp(-self.adv_eps, self.adv_eps)
        return draws.strength * noise, gradient


def _to_host(*tensors: Float[Tensor, "b ..."]) -> list[Float[Tensor, "b ..."]]:
    """The tensors on the CPU, in one transfer."""
    flat = torch.cat([tensor.flatten(1) for tensor in tensors], 1).cpu()
    parts = torch.split(flat, [tensor[0].numel() for tensor in tensors], 1)
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _noised(images: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], scene: Scene) -> Tensor:
    """Normalised images with noise in their pixels, which stay in [0, 1]."""
    pixels = scene.batch.pixels
    assert pixels is not None, "noise is made of raw pixels"
    return pixels.normalise((pixels.raw(images) + noise).clamp(0, 1))


class CleanLoss(Term):
    """The weighted loss of the clean batch, on batches that are mixed.

    Beside binary cross-entropy of softmax probabilities it is 2/C · cross-entropy, as in the authors' code, which is
    of the same size; beside any other criterion, that criterion.

    Args:
        weight: of the loss.
    """

    needs = frozenset({Need.PAIR})
    clean = True

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        assert step.clean is not None, "a piece that needs a clean pass has one"
        logits, labels = step.clean.logits, Targets.of(step.batch.labels, targets.num_classes)
        weight = self.weight
        if isinstance(criterion, SoftmaxBinaryCrossEntropy):
            smoothing, criterion = criterion.smoothing, SoftCrossEntropy()
            criterion.smoothing = smoothing
            weight *= 2 / logits.shape[1]
        loss: Tensor = criterion(logits, labels)
        return weight * loss


@method("puzzlemix", section="1.7", paper="2009.06962", venue="ICML 2020")
def puzzlemix(
    alpha: float = 1.0,
    labels: Literal[2, 3, 4] = 3,
    beta: float = 1.2,
    gamma: float = 0.5,
    eta: float = 0.2,
    neigh_size: int = 4,
    block_nums: tuple[int, ...] = (2, 4, 8, 16),
    transport: Transport = "iterative",
    t_eps: float = 0.8,
    t_size: int = 4,
    adv_p: float = 0.0,
    adv_eps: float = 10.0,
    clean_lam: float = 0.0,
    criterion: Literal["softmax_bce", "cross_entropy"] = "softmax_bce",
    prob: float = 1.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    alpha: λ ~ Beta(α, α), the prior of a block's share.
    labels: number of levels of a block's share.
    beta: weight of label smoothness.
    gamma: weight of data smoothness, relative to beta, in [0, 1].
    eta: weight of the prior.
    neigh_size: pixels over which colours are averaged; the authors take 4 on CIFAR and Tiny-ImageNet, 2 on ImageNet.
    block_nums: numbers of blocks along the side, one of which is drawn per batch.
    transport: "iterative" as in the paper, "exact" assignment, or "none".
    t_eps: cost of moving a block along the image's side.
    t_size: side in pixels of the blocks that move, 16 × 16 of them at most; the authors take 4 on CIFAR, elsewhere -1,
        the blocks of the mask.
    adv_p: probability of adversarial noise on the images, and on their partners; the authors' results take 0.1 on
        CIFAR and 0.15 on Tiny-ImageNet where they use noise.
    adv_eps: size of that noise, in steps of 1/255.
    clean_lam: weight of the clean batch's loss; the authors take 0 on CIFAR, 1 on Tiny-ImageNet.
    criterion: "softmax_bce" as on CIFAR, or "cross_entropy" as on ImageNet.
    prob: share of the batches that are mixed.
    per: one λ per "sample" or per "batch".
    """
    puzzle = Puzzle(labels, beta, gamma, eta, neigh_size, block_nums, transport, t_eps, t_size, adv_p, adv_eps)
    clean = (CleanLoss(clean_lam),) if number_in("clean_lam", clean_lam, 0) else ()
    return Pieces((puzzle, *clean), (Beta(alpha, per=per), criterion_of(criterion)), prob=prob)
