"""SuperMix: search masks under which a teacher recognises every one of the mixed images.

Dabouei, Soleymani, Taherkhani, Nasrabadi, "SuperMix: Supervising the Mixing Data Augmentation", CVPR 2021,
arXiv:2003.05034.

K images are mixed by coarse masks that begin equal. A frozen teacher's prediction for the mix shall become a given
mixture of its predictions for the images, with shares from a Dirichlet distribution, and the masks shall become binary;
smoothed gradients move the masks, by steps of Newton's kind, until the K likeliest classes of the mix are those of the
images. The student learns the teacher's hard prediction for the mix, and the clean batch. Equations: masks →
`masks_of`; soft label and its K classes → `wanted_of`; KL + λ_s·sparsity and the step → `search`, smoothing →
`smoothed`; student's loss γ·(CE + CE) → Puzzle Mix's `CleanLoss`, and `MoreOfMixes`; distillation → `Distillation`.

Image i is mixed with the K - 1 that follow it in the batch. Mixes that do not succeed, and images that the teacher
takes for the same class, which no mask could tell apart, are no `valid` rows: they count nothing in the loss.

The authors make their mixes beforehand and train on the files; in a recipe they are made in every step. That costs one
forward pass of the teacher for the clean batch and one for the first masks, and one forward and one backward pass per
round for the rows that have not succeeded yet, `max_iter` rounds at most. To make mixes beforehand, run `search` over
batches and keep the rows that have not `failed` in the last round.

The teacher is there before training: `recipe.prepare(batches, data)`, which `mixwell train` and `mixwell prepare` call.
By default it is a small CNN, trained on the clean training images; a better one is the folder of a finished run. One of
your own is given with `recipe.options[0].blend.teacher.use(net)`. It must know the recipe's classes.

Paper and code: defaults are those for CIFAR; for ImageNet, masks of 16 × 16 and σ = 2. The code's `tol` is described as
the share of mixes that must succeed, but is the share that may fail, so that with its 70 the search of a batch ends
once 30 % succeeded. `max_unsuccessful_fraction` is by default what the code did when it made the paper's data; 0.3 is
what the description means, and 0 searches for all. With distillation the paper takes gamma=1.8, distill=0.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int
from numpy.random import Generator
from torch import Tensor

from mixwell.core.artefacts import Workshop
from mixwell.core.axes import Blend, Criterion, Label, Need, Scene, Step, Term
from mixwell.core.errors import ModelError, ParameterError, number_in
from mixwell.core.mix import Mix, Partners, onto
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.nets.pretrained import Pretrained
from mixwell.probe import Anatomy
from mixwell.sample.saliency.puzzlemix import CleanLoss

__all__ = [
    "Distillation",
    "MoreOfMixes",
    "Round",
    "SearchedMasks",
    "SearchedMix",
    "TeacherLabel",
    "combined",
    "cyclic",
    "masks_of",
    "search",
    "smoothed",
    "told_apart",
    "wanted_of",
]

_SHORTEST, _LONGEST = 1e-4, 2000.0
"""Bounds of a step, which would be unbounded where a gradient vanishes."""


def cyclic(rows: int, k: int, device: torch.device | None = None) -> Int[Tensor, "b k"]:
    """Each row and the k - 1 that follow it; after the last row comes the first."""
    return (torch.arange(rows, device=device)[:, None] + torch.arange(k, device=device)) % rows


def wanted_of(classes: Int[Tensor, "b k"], shares: Float[Tensor, "b k"], num_classes: int) -> Float[Tensor, "b c"]:
    """q = Σ_k λ_k·onehot(class of image k)."""
    return shares.new_zeros(len(shares), num_classes).scatter_add_(1, classes, shares)


def told_apart(classes: Int[Tensor, "b k"]) -> Bool[Tensor, " b"]:
    """Whether the images of a row are of different classes."""
    ranked = classes.sort(1).values
    return (ranked[:, 1:] != ranked[:, :-1]).all(1)


def masks_of(logits: Float[Tensor, "b k side side"], size: tuple[int, int]) -> Float[Tensor, "b k h w"]:
    """Masks at any resolution: bilinear, then a sigmoid each, then divided by their sum."""
    wide = F.interpolate(logits, size, mode="bilinear")
    # Sigmoids below e^-80 are those of an exponential, whose shares no common shift changes: their sum is never 0.
    lift = (-80 - wide.detach().amax(1, keepdim=True)).clamp_min_(0)
    parts = torch.sigmoid(wide + lift)
    return parts / parts.sum(1, keepdim=True)


def smoothed(gradient: Float[Tensor, "b k side side"], sigma: float) -> Float[Tensor, "b k side side"]:
    """Each map under a separable Gaussian of ⌊5σ⌋ taps, with zeros around; an even filter reaches further ahead."""
    taps = int(5 * sigma)
    place = torch.arange(taps, dtype=gradient.dtype, device=gradient.device)
    weights = torch.exp(-0.5 * ((place - (taps - 1) / 2) * 5 / taps).square())
    weights = weights / weights.sum()
    before, after = (taps - 1) // 2, taps // 2
    maps = F.pad(gradient.flatten(0, 1)[:, None], (before, after, before, after))
    return F.conv2d(F.conv2d(maps, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1)).view_as(gradient)


@dataclass(eq=False)
class Round:
    """One round of the search: a step of the masks of all rows that had not succeeded before.

    Attributes:
        rows: (A,) those rows.
        loss: (A,) KL + λ_s·sparsity before the step.
        gradient, direction: (A, K, side, side) its gradient, and that smoothed.
        step: (A,) how far the masks' logits moved against the direction.
        failed: (A,) whether they have not succeeded now.
        logits: (B, K, side, side) the masks' logits of all rows, now.
        said: (A, C) the teacher's logits for their mixes, now.
    """

    rows: Int[Tensor, " a"]
    loss: Float[Tensor, " a"]
    gradient: Float[Tensor, "a k side side"]
    direction: Float[Tensor, "a k side side"]
    step: Float[Tensor, " a"]
    failed: Bool[Tensor, " a"]
    logits: Float[Tensor, "b k side side"]
    said: Float[Tensor, "a c"]


def search(
    images: Float[Tensor, "b c h w"],
    sources: Int[Tensor, "b k"],
    wanted: Float[Tensor, "b classes"],
    judge: Callable[[Tensor], Tensor],
    rows: Int[Tensor, " a"] | None = None,
    *,
    width: int = 8,
    sigma: float = 1.0,
    lambda_s: float = 25.0,
    max_iter: int = 50,
    tolerated: int = 0,
) -> Iterator[Round]:
    """Improve masks round by round, until the K likeliest classes of a row's mix are the K that it shall have.

    A row's masks rest once it succeeded. A round's first look at the mixes is the last one's second, so that it takes
    one forward and one backward pass, and one host sync.

    Args:
        images: (B, C, H, W), fp32.
        sources: (B, K) rows of the images that are mixed.
        wanted: (B, C) q, which the prediction for the mix shall be.
        judge: images → logits, differentiable in the images.
        rows: (A,) whose masks are searched; all if not given.
        width: places along the masks' sides.
        sigma: σ of the smoothing, in places.
        lambda_s: weight of the masks' distance from binary ones.
        max_iter: rounds at most.
        tolerated: how many of the rows may fail in the end.
    """
    k, size = sources.shape[1], (images.shape[2], images.shape[3])
    rows = torch.arange(len(images), device=images.device) if rows is None else rows
    goal = _likeliest(wanted, k)
    logits = images.new_zeros(len(images), k, width, width)
    images, wanted = images.detach(), wanted.detach()

    @torch.enable_grad()
    def look(logits: Tensor, parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        leaf = logits.requires_grad_()
        masks = masks_of(leaf, size)
        return leaf, masks, judge((masks[:, :, None] * parts).sum(1))

    @torch.enable_grad()
    def lost(leaf: Tensor, masks: Tensor, said: Tensor, left: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        if len(left) < len(leaf):
            masks, said = masks[left], said[left]
        far = F.kl_div(F.log_softmax(said, 1), wanted, reduction="none").sum(1)
        loss = far + lambda_s * (masks * (1 - masks)).mean((1, 2, 3))
        return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0][left]

    left = torch.arange(len(rows), device=rows.device)  # positions in `rows` of those that are still searched
    parts = images[sources[rows]]
    seen = look(logits[rows], parts) if len(rows) > tolerated else None
    for _ in range(max_iter):
        if seen is None or len(left) <= tolerated:
            return
        if len(left) < len(rows):
            rows, parts = rows[left], parts[left]
        loss, gradient = lost(*seen, left, wanted[rows])
        direction = smoothed(gradient, sigma)
        slope = (gradient * direction).sum((1, 2, 3))
        step = (loss / (slope + 1e-10)).clamp(_SHORTEST, _LONGEST)
        seen = look(seen[0].detach()[left] - step.view(-1, 1, 1, 1) * direction, parts)
        failed = (_likeliest(seen[2], k) != goal[rows]).any(1)
        logits = logits.index_copy(0, rows, seen[0].detach())
        yield Round(rows, loss, gradient, direction, step, failed, logits, seen[2].detach())
        left = failed.nonzero()[:, 0]


def _likeliest(logits: Float[Tensor, "b c"], k: int) -> Int[Tensor, "b k"]:
    """The k classes with the largest values, in ascending order of the classes."""
    return logits.detach().topk(k, 1).indices.sort(1).values


def combined(
    images: Float[Tensor, "b c h w"], partners: Partners, masks: Float[Tensor, "b k h w"]
) -> Float[Tensor, "b c h w"]:
    """Σ_k M_k⊙x_k over each image and its partners; the masks take the images' dtype."""
    own, *others = masks.to(images.dtype).unsqueeze(2).unbind(1)
    mixed = images * own
    for which, mask in enumerate(others):
        mixed.addcmul_(partners.of(images, which), mask)
    return mixed


@dataclass(eq=False)
class SearchedMix(Mix):
    """A mix by masks that were searched.

    Attributes:
        shares: (R, K) drawn λ, which the teacher's prediction shall have.
        said: (R, C) teacher's logits for each mix; of rows that were not searched, for the image.
        said_clean: (R, C) teacher's logits for the image.
    """

    shares: Float[Tensor, "r k"] | None = None
    said: Float[Tensor, "r c"] | None = None
    said_clean: Float[Tensor, "r c"] | None = None


class SearchedMasks(Blend):
    """Mix each image with those that follow it, by masks under which a frozen teacher recognises them all.

    Args:
        teacher: the classifier that supervises the masks.
        k: images in a mix, the own one included.
        alpha: λ ~ Dirichlet(α, …, α).
        lambda_s, sigma, width, max_iter: see `search`.
        max_unsuccessful_fraction: share of the rows that may fail, of those that are searched.
    """

    partners = 0
    takes_lam = False
    hidden = False

    def __init__(
        self,
        teacher: Pretrained,
        k: int = 2,
        alpha: float = 3.0,
        lambda_s: float = 25.0,
        sigma: float = 1.0,
        width: int = 8,
        max_iter: int = 50,
        max_unsuccessful_fraction: float = 0.7,
    ) -> None:
        super().__init__()
        for name, value, least in (("k", k, 2), ("width", width, 1), ("max_iter", max_iter, 1)):
            if value < least:
                raise ParameterError(f"{name} must be a whole number ≥ {least}, got {value!r}.")
        self.gives = frozenset({Need.MASKS, Need.SIMPLEX, Need.OWN_ROW, *({Need.PAIR} if k == 2 else ())})
        self.teacher = teacher
        self.k = k
        self.alpha = number_in("alpha", alpha, 0, open_low=True)
        self.lambda_s = number_in("lambda_s", lambda_s, 0)
        self.sigma = number_in("sigma", sigma, 0.2, hint="The filter has ⌊5σ⌋ taps.")
        self.width, self.max_iter = width, max_iter
        self.max_unsuccessful_fraction = number_in(
            "max_unsuccessful_fraction", max_unsuccessful_fraction, 0, 1, open_high=True
        )
        self.num_classes: int | None = None

    def prepare(self, workshop: Workshop) -> None:
        self.teacher.prepare(workshop)

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        self.num_classes = num_classes

    def draw(self, rows: int, rng: Generator) -> Float32[np.ndarray, "b k"]:
        """λ, rows that sum to 1; the image's own first."""
        return rng.dirichlet(np.full(self.k, self.alpha), rows).astype(np.float32)

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: Float32[np.ndarray, "b k"],
        scene: Scene,
    ) -> Mix:
        partners = Partners(cyclic(len(images), self.k, images.device), partners.pool)
        shares = onto(draws, images)
        with torch.autocast(images.device.type, enabled=False):
            logits, said, said_clean, valid = self._searched(images, partners, shares, scene)
        masks = masks_of(logits, (images.shape[2], images.shape[3]))
        weights = masks.mean((2, 3))

        def apply(x: Tensor) -> Tensor:
            return combined(x, partners, masks_of(logits, (x.shape[2], x.shape[3])))

        return SearchedMix(
            combined(images, partners, masks),
            partners.sources,
            weights,
            partners.pool,
            apply,
            lam=torch.from_numpy(draws[:, 0]),
            area=weights[:, 0],
            make_masks=lambda mix: masks,
            valid=valid,
            shares=shares,
            said=said,
            said_clean=said_clean,
        )

    def _searched(
        self, images: Tensor, partners: Partners, shares: Float[Tensor, "b k"], scene: Scene
    ) -> tuple[Float[Tensor, "b k side side"], Float[Tensor, "b c"], Float[Tensor, "b c"], Bool[Tensor, " b"]]:
        """The masks' logits, what the teacher says of mixes and images, and which rows succeeded."""
        wide = images.detach().float().contiguous()

        def judge(mixes: Tensor) -> Tensor:
            return self.teacher.logits(mixes, scene.batch.pixels)

        with torch.no_grad():
            said_clean = judge(wide)
        self._check(said_clean.shape[1])
        classes = said_clean.argmax(1)[partners.sources]
        rows = told_apart(classes).nonzero()[:, 0]
        logits = wide.new_zeros(len(wide), self.k, self.width, self.width)
        said, valid = said_clean.clone(), torch.zeros(len(wide), dtype=torch.bool, device=wide.device)
        for found in search(
            wide,
            partners.sources,
            wanted_of(classes, shares, said.shape[1]),
            judge,
            rows,
            width=self.width,
            sigma=self.sigma,
            lambda_s=self.lambda_s,
            max_iter=self.max_iter,
            # A share of 4/6 of 6 rows are 4 of them, however the product is rounded.
            tolerated=int(self.max_unsuccessful_fraction * len(rows) + 1e-6),
        ):
            logits = found.logits
            said[found.rows], valid[found.rows] = found.said, ~found.failed
        return logits, said, said_clean, valid

    def _check(self, classes: int) -> None:
        if self.num_classes not in (None, classes):
            raise ModelError(
                f"supermix's teacher tells {classes} classes, but the recipe was made for {self.num_classes}. Give the "
                "folder of a run on this data as teacher, or none for a small network trained on it."
            )
        if classes < self.k:
            raise ParameterError(f"k must be at most the teacher's {classes} classes, got {self.k}.")


class TeacherLabel(Label):
    """What the teacher takes each mix for, as one class; or the images' own labels, by the drawn shares.

    Args:
        label: "teacher" or "dirichlet".
    """

    def __init__(self, label: Literal["teacher", "dirichlet"] = "teacher") -> None:
        super().__init__()
        self.label = label

    def targets(self, step: Step) -> Targets:
        mix = step.mix
        assert isinstance(mix, SearchedMix), "the label comes with the blend"
        if self.label == "dirichlet":
            return mix.targets(mix.shares)
        assert mix.said is not None, "a searched mix was judged"
        return replace(mix.targets(), soft=F.one_hot(mix.said.argmax(1), mix.said.shape[1]).float())


class MoreOfMixes(Term):
    """The mixed rows' loss once more, weighted, so that all of it counts 1 + weight.

    Args:
        weight: ≥ -1.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        loss: Tensor = criterion(step.outputs.logits, targets, step.mix.valid)
        return self.weight * loss


class Distillation(Term):
    """T²·KL(teacher ‖ student) on the clean batch, of predictions at temperature T (Hinton, Vinyals, Dean).

    Args:
        weight: of the term.
        temperature: T.
    """

    clean = True

    def __init__(self, weight: float, temperature: float) -> None:
        super().__init__()
        self.weight = number_in("distill", weight, 0)
        self.temperature = number_in("temperature", temperature, 0, open_low=True)

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        assert step.clean is not None, "a piece that asks for a clean pass has one"
        assert isinstance(step.mix, SearchedMix), "the term comes with the blend"
        assert step.mix.said_clean is not None, "a searched mix was judged"
        student = F.log_softmax(step.clean.logits.float() / self.temperature, 1)
        teacher = F.softmax(step.mix.said_clean / self.temperature, 1)
        return self.weight * self.temperature**2 * F.kl_div(student, teacher, reduction="batchmean")


@method("supermix", section="1.7", paper="2003.05034", venue="CVPR 2021")
def supermix(
    k: int = 2,
    alpha: float = 3.0,
    lambda_s: float = 25.0,
    sigma: float = 1.0,
    width: int = 8,
    max_iter: int = 50,
    max_unsuccessful_fraction: float = 0.7,
    label: Literal["teacher", "dirichlet"] = "teacher",
    gamma: float = 2.0,
    distill: float = 0.0,
    temperature: float = 4.0,
    teacher: str | None = None,
    teacher_size: int | None = None,
    teacher_epochs: int = 5,
    prob: float = 1.0,
) -> Pieces:
    """Args:
    k: K, images in a mix, the own one included; the paper's best results take 3.
    alpha: λ ~ Dirichlet(α, …, α), the shares of the images' classes in the teacher's prediction for the mix.
    lambda_s: weight of the masks' distance from binary ones.
    sigma: σ of the gradient's smoothing, in places of a mask; the paper takes 1 on CIFAR, 2 on ImageNet.
    width: places along a mask's sides; the paper takes 8 on CIFAR, 16 on ImageNet.
    max_iter: rounds of the search at most.
    max_unsuccessful_fraction: share of a batch's mixes that may fail; the search ends once no more do.
    label: the class that the "teacher" takes the mix for, or the images' own labels by λ ("dirichlet").
    gamma: γ, weight of the losses of the mixes and of the clean batch; the paper takes 1.8 beside distillation.
    distill: weight of distilling the teacher's predictions for the clean batch; the paper takes 0 or 0.2.
    temperature: T of the distillation.
    teacher: None for a small CNN trained beforehand, the folder of a finished run, or a name of timm whose classes are
        the recipe's.
    teacher_size: pixels of both sides at which the teacher sees images; None for the network's own.
    teacher_epochs: passes of the small CNN's training over the training images.
    prob: share of the batches that are mixed.
    """
    found = Pretrained(teacher, owner="supermix", size=teacher_size, epochs=teacher_epochs)
    blend = SearchedMasks(found, k, alpha, lambda_s, sigma, width, max_iter, max_unsuccessful_fraction)
    gamma = number_in("gamma", gamma, 0)
    clean = CleanLoss(gamma)
    clean.needs = frozenset()  # it does so beside mixes of any number of images
    terms = (clean, MoreOfMixes(gamma - 1)) if gamma != 1 else (clean,)
    if number_in("distill", distill, 0):
        terms = (*terms, Distillation(distill, temperature))
    return Pieces(essential=(blend, TeacherLabel(label), *terms), prob=prob)
