"""TokenMixup: within a transformer, show an easy image's block the partner's tokens that are clearly more salient.

Choi, Choi, Kim, "TokenMixup: Efficient Attention-guided Token-level Data Augmentation for Transformers", NeurIPS 2022,
arXiv:2210.07562.

Horizontal (`variant="horizontal"`): before one block, images that a small classifier finds easy meet the partner that
offers most, by one optimal assignment in the batch, and take from it the patch tokens that the block attends to more by
ρ; labels follow the attention that survives. Vertical: one block also attends to the most salient tokens of the same
image in every earlier block; labels stay. Equations: ScoreNet → `mixwell.nets.score_net`; d = CE/10 → `difficulty`;
Σ_t max(S_j - S_i - ρ, 0) → `gains`; π → `matched`; M → `replaced`; y → `survived`; top-κ tokens → `most_salient`,
`taken`.

Images are mixed before by mixup or CutMix, as in the paper (`inputs`), and labels compose; where another method of the
recipe changes single images first, or exchanges their moments and labels, they are not mixed. The assignment is solved
on the CPU and waits for the device once per step. The vertical variant acts beside any policy that mixes images,
`cutmix + tokenmixup(variant='vertical')`, on the batches that the policy mixes. What the block makes of the added
tokens themselves is dropped, so that the rest is what attention with more keys and values gives. `stopgrad` is for both
variants.

Paper and code: the authors' code takes M from the saliency of the first easy image for all (`rule="code"`), and counts
the class token as patch 0 where it gathers remembered tokens, so that each comes from one place before. All its
results were made with both; the paper's rules are the default. Its batch comes out with easy images first, ours in its
order. Its settings, with blocks counted from 0 as (block, τ, ρ, λ_s; memory_block, κ):

- CIFAR-10: horizontal (2, 0.1, 0.003, 0.001), vertical (1, 5), both (2, 0.1, 0.004, 0.001; 3, 3);
- CIFAR-100, our defaults: horizontal (2, 0.2, 0.005, 0.001), vertical (2, 80), both (3, 0.2, 0.005, 0.001; 2, 3);
- ImageNet, ViT-B/16: horizontal (3, 0.1, 0.01, 1) with `stopgrad`, vertical (3, 3), both (the same; 4, 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.random import Generator
from torch import Tensor

from mixwell.core.algebra import Node, parse
from mixwell.core.axes import Blend, Criterion, Need, Place, Scene, SelfBlend, Step, Term
from mixwell.core.errors import ModelError, ParameterError, number_in
from mixwell.core.mix import Mix, Partners, layout_of
from mixwell.core.plain import Input, Shares
from mixwell.core.policy import Inner, InnerDraws
from mixwell.core.registry import Pieces, method
from mixwell.core.saliency import Saliency
from mixwell.core.targets import Targets
from mixwell.nets.score_net import ScoreNet
from mixwell.ops.assignment import assigned
from mixwell.ops.tokens import grid_of
from mixwell.probe import Act, Anatomy, Want, seen_on_example
from mixwell.probe.attention import is_positioned, is_windowed

__all__ = [
    "AtBlock",
    "BlockAttention",
    "InputMix",
    "MixedInputs",
    "ScoreLoss",
    "TokenMemory",
    "TokenMix",
    "TokenReplace",
    "difficulty",
    "gains",
    "matched",
    "most_salient",
    "replaced",
    "shown",
    "survived",
    "taken",
]

Rule = Literal["paper", "code"]
Variant = Literal["horizontal", "vertical", "both"]

INPUTS = "0.5*mixup(alpha=0.8) | 0.5*cutmix"
"""What the paper does to the images first."""


# Horizontal


def difficulty(logits: Float[Tensor, "r c"], targets: Targets, smoothing: float = 0.0) -> Float[Tensor, " r"]:
    """CE / 10 of each row, in fp32."""
    wanted = targets.dense(logits.shape[1], smoothing).float()
    return -(wanted * logits.float().log_softmax(1)).sum(1) / 10


def gains(saliency: Float[Tensor, "r n"], rho: float) -> Float[Tensor, "r r"]:
    """Σ_t max(S_jt - S_it - ρ, 0): what row j offers to row i; in fp64, without a tensor of (R, R, N).

    The positive part is half of the sum of a number and its size.
    """
    wide = saliency.double()
    total = wide.sum(1)
    return (total - total[:, None] - wide.shape[1] * rho + torch.cdist(wide + rho, wide, p=1)) / 2


def matched(gain: Float[Tensor, "r r"], easy: Bool[Tensor, " r"]) -> Int[Tensor, " r"]:
    """The partner of each row: of easy ones those of greatest total gain, no two of them the same; else the row itself.

    One solver call on the CPU, which waits for the device.
    """
    rows = easy.cpu().nonzero()[:, 0]
    offered = gain.cpu()[rows].nan_to_num(0, 0, 0)  # what a diverged network gives shows in the loss
    partner = torch.arange(len(easy))
    partner[rows] = assigned(-offered[None])[0]
    return partner.to(easy.device)


def replaced(
    saliency: Float[Tensor, "r n"],
    partner: Int[Tensor, " r"],
    easy: Bool[Tensor, " r"],
    rho: float,
    rule: Rule = "paper",
) -> Bool[Tensor, "r n"]:
    """Where easy rows take the partner's token: S_π(i) - S_i > ρ; with the code's rule, S of the first easy row."""
    own = saliency if rule == "paper" else saliency.index_select(0, easy.int().argmax(0, keepdim=True))
    return (saliency.index_select(0, partner) - own > rho) & easy[:, None]


def survived(
    saliency: Float[Tensor, "r n"], partner: Int[Tensor, " r"], mask: Bool[Tensor, "r n"]
) -> Float[Tensor, " r"]:
    """a / (a + b): the own row's share of the saliency that each row shows."""
    own = torch.where(mask, 0, saliency).sum(1)
    other = torch.where(mask, saliency.index_select(0, partner), 0).sum(1)
    return torch.where(mask.any(1), own / (own + other), 1)


def shown(x: Float[Tensor, "r d h w"], source: Int[Tensor, "r h w"]) -> Float[Tensor, "r d h w"]:
    """At every place the row that `source` names, in x's memory layout; one gather of tokens, forward and backward."""
    rows, channels, height, width = x.shape
    place = torch.arange(height * width, device=x.device).view(height, width)
    tokens = x.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, (source * place.numel() + place).flatten())
    return tokens.view(rows, height, width, channels).permute(0, 3, 1, 2).contiguous(memory_format=layout_of(x))


class AtBlock(Place):
    """Mix what one transformer block is given.

    Args:
        block: its number from 0, or from the end if negative; None for the paper's, or the last if there are fewer.
        paper: the paper's.
    """

    network = True
    tokens = True

    def __init__(self, block: int | None, paper: int) -> None:
        super().__init__()
        self.block = block
        self.paper = paper
        self.number = 0

    def number_in(self, anatomy: Anatomy) -> int:
        """The number of the block in a network.

        Raises:
            ModelError: it does not exist, or attends within windows.
        """
        last = anatomy.block_number(-1)
        number = min(self.paper, last) if self.block is None else anatomy.block_number(self.block)
        if is_windowed(anatomy.attention(number)[1]):
            raise ModelError(
                f"{type(anatomy.net).__name__} attends within windows, and tokens of the whole image are compared. "
                "Take a transformer such as 'vit-s' or timm's 'deit_small_patch16_224'."
            )
        return number

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        self.number = self.number_in(anatomy)

    def site(self, draws: Any) -> str:
        return f"block:{self.number}"

    def sites_used(self) -> tuple[str, ...]:
        return (self.site(None),)


class BlockAttention(Saliency):
    """How salient each patch is to the block whose tokens are mixed, before the mix."""

    network = True

    def patches(self, scene: Scene) -> Float[Tensor, "r n"]:
        """A number per patch; looked at once, where the mix happens."""

        def found() -> Tensor:
            assert scene.inside is not None, "the place of the mix is what a block is given"
            return scene.inside.attention()

        attention: Tensor = scene.once(self, found)
        return attention

    def maps(self, scene: Scene) -> Float[Tensor, "r h w"]:
        attention, (height, width) = self.patches(scene), scene.batch.images.shape[-2:]
        return attention.view(len(attention), *grid_of(attention.shape[1], height / width, "a block"))


class MixedInputs(SelfBlend):
    """Mix the images by a recipe, before their tokens meet others.

    Args:
        recipe: what mixes them.
    """

    mixes = True

    def __init__(self, recipe: Node) -> None:
        super().__init__()
        self.inner = Inner(recipe, "tokenmixup")

    def draw(self, rows: int, rng: Generator) -> InnerDraws:
        return self.inner.draw(rows, rng)

    def images(self, draws: InnerDraws, scene: Scene) -> tuple[Float[Tensor, "r ..."], ...]:
        return (self.mix_of(scene).images,)

    def mix_of(self, scene: Scene) -> Mix:
        """What the rows are made of; the images themselves in a recipe that has no use for this piece."""

        def found() -> Mix:
            images, drawn = scene.batch.images, scene.draws.of.get(self)
            return Mix.plain(images, scene.batch.labels) if drawn is None else self.inner.mix(images, drawn, scene)

        mix: Mix = scene.once(self, found)
        return mix


@dataclass(eq=False)
class TokenMix(Mix):
    """A mix of tokens.

    Attributes:
        inputs: the labels of the rows before.
        scores: (R, C) logits of ScoreNet, with a graph.
    """

    inputs: Targets | None = None
    scores: Float[Tensor, "r c"] | None = None

    def share(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "r ..."]:
        """Class and register tokens are kept."""
        return x


class TokenReplace(Blend):
    """Take the partner's tokens where they are clearly more salient, in rows that are easy; label by what survives.

    Pairs the rows itself. Owns ScoreNet, which exists once it is built.

    Args:
        at: the place, for whose tokens ScoreNet is built.
        inputs: what mixed the images before.
        tau: rows of a difficulty up to τ ≥ 0 are easy.
        rho: by how much ρ ≥ 0 the partner's token must be more salient.
        stopgrad: keep ScoreNet's gradient from the network.
        rule: see `replaced`.
    """

    partners = 0
    takes_lam = False
    shows_shares = False
    network = True

    def __init__(
        self,
        at: AtBlock,
        inputs: MixedInputs,
        tau: float = 0.2,
        rho: float = 0.005,
        stopgrad: bool = False,
        rule: Rule = "paper",
    ) -> None:
        super().__init__()
        self.at = at
        self.inputs = inputs
        self.saliency = BlockAttention()
        self.tau = number_in("tau", tau, 0)
        self.rho = number_in("rho", rho, 0)
        self.stopgrad = stopgrad
        self.rule = rule
        self.score: ScoreNet
        plain = inputs.inner.plain
        self.gives = frozenset({Need.MASKS} | ({Need.PAIR} if plain else set())) | (
            inputs.inner.gives & {Need.SIMPLEX, Need.OWN_ROW}
        )

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        want = Want("features", f"block:{self.at.number_in(anatomy)}")
        seen = seen_on_example(anatomy, "ScoreNet", [want])
        given = seen[want]
        self.score = ScoreNet(given.shape[1], num_classes or seen.logits.shape[-1], anatomy.class_token)
        self.score.to(given.device, given.dtype)

    def mix(
        self,
        images: Float[Tensor, "r d h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: Any,
        scene: Scene,
    ) -> Mix:
        assert scene.inside is not None, "the place of the mix is what a block is given"
        tokens, prefix = images.flatten(2).transpose(1, 2), scene.inside.prefix
        if self.stopgrad:
            tokens, prefix = tokens.detach(), None if prefix is None else prefix.detach()
        scores, given = self.score(tokens, prefix), self.inputs.mix_of(scene)

        saliency = self.saliency.patches(scene)
        smoothing = scene.loss.smoothing if isinstance(scene.loss, Criterion) else 0.0
        easy = difficulty(scores.detach(), given.targets(), smoothing) <= self.tau
        partner = matched(gains(saliency, self.rho), easy)
        mask = replaced(saliency, partner, easy, self.rho, self.rule)
        grid = (images.shape[2], images.shape[3])
        source = torch.where(mask, partner[:, None], torch.arange(len(images), device=mask.device)[:, None])
        source = source.view(len(images), *grid)

        def apply(x: Tensor) -> Tensor:
            if x.shape[2:] == grid:
                return shown(x, source)
            return shown(x, F.interpolate(source[:, None].float(), x.shape[2:], mode="nearest")[:, 0].long())

        def masks(mix: Mix) -> Tensor:
            before = given.weights[:, :, None, None] if given.masks is None else given.masks.float()
            before = F.adaptive_avg_pool2d(before, grid).expand(*given.weights.shape, *grid)
            other = mask.view(len(images), 1, *grid).float()
            return torch.cat((before * (1 - other), before[partner] * other), 1)

        own = survived(saliency, partner, mask)[:, None]
        return TokenMix(
            apply(images),
            torch.cat((given.sources, given.sources[partner]), 1),
            torch.cat((given.weights * own, given.weights[partner] * (1 - own)), 1),
            given.pool,
            apply,
            area=1 - mask.float().mean(1),
            make_masks=masks,
            valid=None if given.valid is None else given.valid & given.valid[partner],
            inputs=given.targets(),
            scores=scores,
        )


class ScoreLoss(Term):
    """What ScoreNet minimises: the criterion on the images as they came in.

    Args:
        weight: λ_s > 0.
    """

    needs = frozenset({Need.MASKS})
    network = True

    def __init__(self, weight: float = 0.001) -> None:
        super().__init__()
        self.weight = number_in("score_weight", weight, 0, open_low=True)

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        mix = step.mix
        assert isinstance(mix, TokenMix), "tokens were mixed by the blend of the same method"
        assert mix.inputs is not None, "it keeps what came in"
        assert mix.scores is not None, "and what ScoreNet says of it"
        loss: Tensor = criterion(mix.scores, replace(mix.inputs, num_classes=targets.num_classes))
        return self.weight * loss


# Vertical


def most_salient(saliency: Float[Tensor, "r n"], kappa: int) -> Int[Tensor, "r k"]:
    """The κ patches of greatest saliency, greatest first; all if there are no more."""
    return saliency.topk(min(kappa, saliency.shape[1]), 1).indices


def taken(tokens: Float[Tensor, "r m d"], index: Int[Tensor, "r k"]) -> Float[Tensor, "r k d"]:
    """Some tokens of each row."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


class TokenMemory(Place):
    """Let one block attend to the most salient tokens of every earlier block.

    Args:
        at: where the mix happens.
        block: number of the block from 0, or from the end if negative; None for the paper's 2, or the last if there
            are fewer.
        kappa: κ ≥ 1, tokens of each earlier block.
        stopgrad: keep their gradient from the earlier blocks.
        rule: whether patches are counted from the first patch ("paper") or from the class token ("code").
        saliency: of the block whose tokens are mixed, if any is; its tokens are chosen by what it attended to before.
    """

    network = True
    tokens = True

    def __init__(
        self,
        at: Place,
        block: int | None = None,
        kappa: int = 80,
        stopgrad: bool = False,
        rule: Rule = "paper",
        saliency: BlockAttention | None = None,
    ) -> None:
        super().__init__()
        if kappa < 1:
            raise ParameterError(f"kappa must be a whole number ≥ 1, got {kappa}.")
        if block == 0:
            raise ParameterError("memory_block must have blocks before it, whose tokens it is shown; got 0, the first.")
        self.at = at
        self.hidden = at.hidden
        self.into = AtBlock(block, 2)
        self.kappa = kappa
        self.stopgrad = stopgrad
        self.rule = rule
        self.saliency = saliency
        self.prefix = 0

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        """Find the blocks.

        Raises:
            ModelError: the network has no such block, or none before it, or it takes no more tokens.
        """
        self.at.build(anatomy, num_classes)
        self.into.build(anatomy, num_classes)
        name = type(anatomy.net).__name__
        if self.into.number == 0:
            raise ModelError(f"Block 0 of {name} has none before it, whose tokens it could be shown. Take a later one.")
        if is_positioned(anatomy.attention(self.into.number)[1]):
            raise ModelError(
                f"Attention of {name} knows the place of every token, so that it cannot be shown more of them. Take a "
                "transformer that adds positions to the tokens, such as 'vit-s' or timm's 'vit_small_patch16_224'."
            )
        self.prefix = anatomy.prefix

    def site(self, draws: Any) -> str | None:
        return self.at.site(None)

    def sites_used(self) -> tuple[str, ...]:
        return self.at.sites_used()

    def blocks_used(self) -> tuple[int, ...]:
        return tuple(range(self.into.number + 1))

    def acts(self, draws: Any, scene: Scene) -> Sequence[Act]:
        kept: dict[int, Tensor] = {}

        def remember(block: int) -> Callable[[Tensor, Callable[[], Tensor]], None]:
            def enter(tokens: Tensor, attend: Callable[[], Tensor]) -> None:
                if self.saliency is not None and self.site(None) == f"block:{block}":
                    first = self.saliency.patches(scene)
                    saliency = first.repeat(len(tokens) // len(first), 1)  # of several views
                else:
                    saliency = attend()
                index = most_salient(saliency, self.kappa) + (self.prefix if self.rule == "paper" else 0)
                found = taken(tokens, index)
                kept[block] = found.detach() if self.stopgrad else found

            return enter

        def show(tokens: Tensor, attend: Callable[[], Tensor]) -> Tensor:
            return torch.cat((tokens, *kept.values()), 1)

        def drop(tokens: Tensor) -> Tensor:
            return tokens[:, : tokens.shape[1] - sum(found.shape[1] for found in kept.values())]

        return (*(Act(block, remember(block)) for block in range(self.into.number)), Act(self.into.number, show, drop))


class InputMix(Blend):
    """Mix images as a recipe says.

    Args:
        recipe: what mixes them, or none.
    """

    partners = 0
    takes_lam = False
    hidden = False

    def __init__(self, recipe: Node) -> None:
        super().__init__()
        self.inner = Inner(recipe, "tokenmixup")
        blends = [blend for blend in self.inner.blends if blend is not None]
        some_plain = {Need.PAIR, Need.MASKS} if len(blends) < len(self.inner.blends) else set()
        self.gives = self.inner.gives - {Need.DIFFERENTIABLE} - some_plain
        self.grid = any(blend.grid for blend in blends)
        self.aligned = all(blend.aligned for blend in blends)

    def draw(self, rows: int, rng: Generator) -> InnerDraws:
        return self.inner.draw(rows, rng)

    def mix(
        self,
        images: Float[Tensor, "b ..."],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: InnerDraws,
        scene: Scene,
    ) -> Mix:
        return self.inner.mix(images, draws, scene)


@method("tokenmixup", section="1.8", paper="2210.07562", venue="NeurIPS 2022")
def tokenmixup(
    variant: Variant = "horizontal",
    inputs: Node | None = None,
    block: int | None = None,
    tau: float | None = None,
    rho: float | None = None,
    score_weight: float | None = None,
    memory_block: int | None = None,
    kappa: int | None = None,
    stopgrad: bool = False,
    rule: Rule = "paper",
) -> Pieces:
    """Args:
    variant: "horizontal" mixes tokens of two images, "vertical" shows a block tokens of earlier ones, or "both".
    inputs: a recipe that mixes the images first; "0.5*mixup(alpha=0.8) | 0.5*cutmix" if not given.
    block: the block before which tokens are mixed, from 0, or from the end if negative; 2, or 3 with "both", or the
        last of fewer, if not given.
    tau: images whose CE / 10 by ScoreNet is up to τ are mixed; 0.2 if not given.
    rho: ρ, by how much more attention a partner's token must get, which on average is 1 / number of patches; 0.005 if
        not given.
    score_weight: λ_s, weight of ScoreNet's loss; 0.001 if not given.
    memory_block: the block that is shown more tokens; 2, or the last of fewer, if not given.
    kappa: κ, tokens of each earlier block; 80, or 3 with "both", if not given.
    stopgrad: keep ScoreNet's gradient from the network, and that of remembered tokens from earlier blocks.
    rule: masks and tokens as the "paper" says, or as the authors' "code" takes them.
    """
    recipe = parse(INPUTS) if inputs is None else inputs
    across: dict[str, object] = {"block": block, "tau": tau, "rho": rho, "score_weight": score_weight}
    along: dict[str, object] = {"memory_block": memory_block, "kappa": kappa}
    idle = {"horizontal": along, "vertical": across, "both": dict[str, object]()}[variant]
    if given := [name for name, value in idle.items() if value is not None]:
        raise ParameterError(
            f"tokenmixup: variant={variant!r} has no {', '.join(given)}. Take 'both', or leave it out."
        )
    if variant == "vertical":
        memory = TokenMemory(Input(), memory_block, 80 if kappa is None else kappa, stopgrad, rule)
        return Pieces(memory, suggested=InputMix(recipe))
    mixed, at = MixedInputs(recipe), AtBlock(block, 2 if variant == "horizontal" else 3)
    blend = TokenReplace(at, mixed, 0.2 if tau is None else tau, 0.005 if rho is None else rho, stopgrad, rule)
    score = ScoreLoss(0.001 if score_weight is None else score_weight)
    place: Place = at
    if variant == "both":
        place = TokenMemory(at, memory_block, 3 if kappa is None else kappa, stopgrad, rule, blend.saliency)
    return Pieces((place, blend, Shares(), score), suggested=() if mixed.inner.plain else mixed)
