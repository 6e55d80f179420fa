"""TransMix: half the label follows the box, half follows where the class token looks.

Chen, Sun, Shen, He, Torr, Yuille, Bai, "TransMix: Attend to Mix for Vision Transformers", CVPR 2022, arXiv:2111.09833.

Images are those of CutMix. Each source's label share is the mean of its area and of the share of the class token's
attention, in the last block of the forward pass that is being trained, that falls on the tokens it shows. Equations:
λ_attn = A·↓(M) → `mixwell.ops.tokens.token_shares`; ½ each → `attended`.

Paper and code: the paper's formula shows the attention share alone; its experiments and code take the mean with the
area, and so do we. One batch in five is plain mixup (`switch_prob`); that switch is a suggestion, which a recipe with
another blend leaves out unless it is asked for. The code pairs a batch with its reverse and slices one prefix token of
distilled networks too few; we pair by a random permutation and count all prefix tokens.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from mixwell.core.axes import Label, Need, Per, Step
from mixwell.core.errors import number_in
from mixwell.core.plain import Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.ops.tokens import token_shares
from mixwell.probe import Want
from mixwell.sample.cutting.cutmix import Box

__all__ = ["AttentionShares", "attended"]


def attended(
    areas: Float[Tensor, "r k"], masks: Float[Tensor, "r k h w"], attention: Float[Tensor, "r n"]
) -> Float[Tensor, "r k"]:
    """The mean of each source's area and of its share of the attention, in fp32.

    Args:
        areas: (R, K) label shares by area.
        masks: (R, K, H, W) what each source contributes to each pixel.
        attention: (R, N) softmaxed attention to each patch; need not sum to 1.
    """
    return (areas.float() + token_shares(masks, attention)) / 2


class AttentionShares(Label):
    """Label shares from area and attention, in the forward pass that is being trained."""

    needs = frozenset({Need.MASKS, Need.SIMPLEX})
    network = True

    def __init__(self) -> None:
        super().__init__()
        self.attention = Want("class_attention", -1)

    def wants(self) -> tuple[Want, ...]:
        return (self.attention,)

    def targets(self, step: Step) -> Targets:
        masks = step.mix.masks
        assert masks is not None, "a blend that gives masks made none"
        return step.mix.targets(attended(step.mix.weights, masks, step.outputs[self.attention]))


@method("transmix", section="2.5", paper="2111.09833", venue="CVPR 2022", gate="switch_prob")
def transmix(
    switch_prob: float = 0.8, cutmix_alpha: float = 1.0, mixup_alpha: float = 0.8, per: Per = "sample"
) -> Pieces:
    """Args:
    switch_prob: share of the batches that are cut; the others are plain mixup.
    cutmix_alpha: λ ~ Beta(α, α) of the boxes.
    mixup_alpha: λ ~ Beta(α, α) of the mixup batches.
    per: one λ and box per "sample" or per "batch".
    """
    number_in("mixup_alpha", mixup_alpha, 0, open_low=True)
    return Pieces(
        essential=AttentionShares(),
        suggested=(Box(per), Beta(cutmix_alpha, per=per)),
        prob=switch_prob,
        otherwise=f"mixup(alpha={mixup_alpha!r}, per={per!r})",
    )
