"""Token Labeling: every token has a label of its own, and MixToken mixes the tokens of two images.

Jiang, Hou, Yuan, Zhou, Shi, Jin, Wang, Feng, "All Tokens Matter: Token Labeling for Training Better Vision
Transformers", NeurIPS 2021, arXiv:2104.10858.

A strong classifier says of every place of every image what it shows. A second linear classifier, on the output tokens,
learns to say so for each token, beside the class token's loss; at evaluation, half of the largest answer of all tokens
is added to the class token's (`Recipe.predictor`). Images are mixed as CutMix does, but after the patch embedding, so
that each token belongs to one image. Equations: y^i for tokens i → `token_labels`; H(X^cls, y^cls) → `ClassLabels` and
the criterion; β·(1/N)·Σ H(X^i, y^i) → `TokenLoss`. Every token of a mix is labelled by the image that it shows, which
is the same as swapping the outputs back before the loss; where a token shows several images, by their shares.

As a label and loss of another sample policy, such as `cutmix + token_labeling`, images are mixed as that one does, and
any network will do: without tokens, the places of its last stage are classified.

The label maps (`mixwell.nets.label_maps`) are made before training: `recipe.prepare(batches, data)`, which `mixwell
train` and `mixwell prepare` call. By default the classifier is a small CNN, trained on the same images; `teacher` takes
a finished run's network, or one of timm. Rows without an `index` in the prepared data are shown to it in every step,
and maps of one's own come with the batch: `extras={"label_map": ...}`. `maps="none"` gives every token its image's
label.

Paper and code: the code takes the crop's rows for the map's columns (`rule="code"`), and its labels of the classifier's
add ε/C to all of a distribution that already sums to 1, so that they sum to 1 + ε/C (`rule="code"` too); the ε is that
of `label_smoothing`, 0.1 in both. It takes β = 1 where the paper takes 0.5. The class label is the classifier's of the
whole crop; `ground_truth` mixes it with the true one, half and half where the two agree, else 9 to 1, though a comment
in the code says the contrary. One λ and box per batch is `per="batch"`. The published maps hold logits, and take 0 for
all classes that they leave out; ours hold how far logits lie above those of the others, for which 0 then stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixwell.core.artefacts import Workshop
from mixwell.core.axes import Criterion, Label, Need, Per, Scene, Step, Term
from mixwell.core.criteria import BinaryCrossEntropy, PerSource, SoftCrossEntropy
from mixwell.core.errors import ParameterError, SiteError, number_in
from mixwell.core.places import Hidden
from mixwell.core.plain import Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.saliency import resized
from mixwell.core.targets import Targets, summed
from mixwell.nets.label_maps import Annotation, Annotator
from mixwell.nets.pretrained import Pretrained
from mixwell.ops.label_maps import token_scores
from mixwell.probe import Anatomy, Probe, Want, seen_on_example
from mixwell.probe.anatomy import unwrapped
from mixwell.sample.cutting.cutmix import Box

__all__ = [
    "AtPatches",
    "ClassLabels",
    "MachineSmoothing",
    "MachineTargets",
    "SparseLabels",
    "TokenLoss",
    "WithTokens",
    "labels_of",
    "mixed_cross_entropy",
    "token_labels",
    "with_tokens",
]

Rule = Literal["paper", "code"]


@dataclass(eq=False)
class SparseLabels:
    """Label rows in which all classes but a few have one share.

    Attributes:
        more: (..., E) what each named class has beyond the rest; 0 where fewer than E are named.
        classes: (..., E) the named classes, each once.
        rest: (...) what every class has.
    """

    more: Float[Tensor, "*b e"]
    classes: Int[Tensor, "*b e"]
    rest: Float[Tensor, "*b"]

    def dense(self, num_classes: int) -> Float[Tensor, "*b c"]:
        """The rows themselves."""
        rows = self.rest[..., None].repeat(*(1,) * self.rest.ndim, num_classes)
        return rows.scatter_add_(-1, self.classes, self.more)

    def smoothed(self, smoothing: float, num_classes: int, rule: Rule = "paper") -> SparseLabels:
        """(1-ε)·label + ε/C; in the code (1-ε+ε/C)·label + ε/C."""
        floor = smoothing / num_classes
        kept = 1 - smoothing + (floor if rule == "code" else 0)
        return SparseLabels(kept * self.more, self.classes, kept * self.rest + floor)


def token_labels(scores: Float[Tensor, "*b e"], classes: Int[Tensor, "*b e"], num_classes: int) -> SparseLabels:
    """The softmax over all classes of the scores of a few, each named once, and of 0 for all others; fp32."""
    top = scores.amax(-1, keepdim=True).clamp_min(0)
    unnamed = (-top).exp()
    lifted = (scores - top).exp() - unnamed
    total = lifted.sum(-1, keepdim=True) + num_classes * unnamed
    return SparseLabels(lifted / total, classes, (unnamed / total)[..., 0])


def labels_of(labels: Tensor) -> SparseLabels:
    """Class ids (B,) or rows (B, C) as the labels (B, 1, E) of all tokens of their images."""
    if labels.is_floating_point():
        more = labels.float()[:, None]
        return SparseLabels(
            more, torch.arange(more.shape[2], device=more.device).expand_as(more), more.new_zeros(more.shape[:2])
        )
    classes = labels.long()[:, None, None]
    return SparseLabels(
        torch.ones_like(classes, dtype=torch.float32), classes, torch.zeros_like(classes[..., 0], dtype=torch.float32)
    )


def mixed_cross_entropy(
    logits: Float[Tensor, "r n c"],
    labels: SparseLabels,
    sources: Int[Tensor, "r k"],
    shares: Float[Tensor, "r k n"],
) -> Float[Tensor, "r n"]:
    """Cross-entropy of each token with the labels of what it shows, in fp32, without a dense row.

    Args:
        logits: of every token.
        labels: (B, N) of the tokens of whole images, or (B, 1) for all of them.
        sources: (R, K) images that each mix is made of.
        shares: how much of each source a token shows.
    """
    tokens = logits.shape[1]
    more = (labels.more[sources] * shares[..., None]).transpose(1, 2).flatten(2)
    named = labels.classes[sources].expand(-1, -1, tokens, -1).transpose(1, 2).flatten(2)
    rest = (labels.rest[sources] * shares).sum(1)
    with torch.autocast(logits.device.type, enabled=False):
        log_p = logits.float().log_softmax(2)
        return -(more * log_p.gather(2, named)).sum(2) - rest * log_p.sum(2)


def with_tokens(logits: Float[Tensor, "b c"], tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b c"]:
    """What evaluation goes by: the network's logits, and half of each class's largest among the tokens'."""
    return logits + 0.5 * tokens.amax(1)


@dataclass(eq=False)
class MachineTargets(Targets):
    """Targets whose soft rows are a classifier's, in whole or in part.

    Attributes:
        machine: (R, C) the part that is.
    """

    machine: Float[Tensor, "r c"] | None = None

    def _each(self, change: Callable[[Tensor], Tensor]) -> Targets:
        found = super()._each(change)
        return found if self.machine is None else replace(cast(MachineTargets, found), machine=change(self.machine))


class MachineSmoothing(SoftCrossEntropy):
    """Soft cross-entropy that smooths a classifier's labels as the authors' code does: ε/C of them come on top."""

    def rows(self, logits: Float[Tensor, "r c"], targets: Targets) -> Float[Tensor, " r"]:
        found = super().rows(logits, targets)
        if not isinstance(targets, MachineTargets) or targets.machine is None:
            return found
        more = targets.machine * (self.smoothing / logits.shape[1])
        more = more if self.class_weights is None else more * self.class_weights.to(more.device)
        return found - (more * F.log_softmax(logits.float(), 1)).sum(1)


class AtPatches(Hidden):
    """Mix what the patch embedding gives, before class token and positions are added."""

    tokens = True

    def __init__(self) -> None:
        super().__init__(("patches",))

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        try:
            super().build(anatomy, num_classes)
        except SiteError as error:
            raise SiteError(f"{error} Or let another method mix the images: 'cutmix + token_labeling'.") from error


def _annotation(scene: Scene, maps: Annotator) -> Annotation:
    found: Annotation = scene.once(maps, lambda: maps.of(scene.batch))
    return found


class ClassLabels(Label):
    """What the classifier says of all that is shown of each image, mixed by the label shares.

    Args:
        maps: the classifier's maps; None for the images' own labels.
        ground_truth: mix half of the true label in where the classifier agrees with it, else a tenth.
        rule: "code" takes the crop's rows for the map's columns.
    """

    def __init__(self, maps: Annotator | None, *, ground_truth: bool = False, rule: Rule = "paper") -> None:
        super().__init__()
        self.maps, self.ground_truth, self.rule = maps, ground_truth, rule
        self.breaks = frozenset() if maps is None else frozenset({Need.PAIR})  # a teacher's label is of many classes

    def prepare(self, workshop: Workshop) -> None:
        if self.maps is not None:
            self.maps.prepare(workshop)

    def targets(self, step: Step) -> Targets:
        mix = step.mix
        if self.maps is None:
            return mix.targets()
        found, classes = _annotation(step.scene, self.maps), step.outputs.logits.shape[1]
        scores = token_scores(found.scores, found.classes, found.crops, (1, 1), swapped=self.rule == "code")
        rows = machine = token_labels(*scores, classes).dense(classes)[:, 0]
        if self.ground_truth:
            truth = Targets.of(step.batch.labels, classes).dense()
            share = torch.where(machine.argmax(1) == truth.argmax(1), 0.5, 0.9)[:, None]
            machine = share * machine
            rows = machine + (1 - share) * truth
        soft, part = (summed(x, mix.sources, mix.weights) for x in (rows, machine))
        return MachineTargets(mix.pool, mix.sources, mix.weights, soft=soft, machine=part)


class TokenLoss(Term):
    """β times the mean loss of all output tokens, each with the label of what it shows.

    Owns the tokens' classifier, which exists once it is built.

    Args:
        maps: the classifier's maps; None for the images' own labels.
        beta: β.
        rule: "code" for the authors', see the module.
    """

    needs = frozenset({Need.MASKS, Need.ALIGNED})
    network = True

    def __init__(self, maps: Annotator | None, beta: float = 0.5, *, rule: Rule = "paper") -> None:
        super().__init__()
        self.maps, self.rule = maps, rule
        self.beta = number_in("beta", beta, 0)
        self.outputs = Want("features", "tokens")
        self.head: nn.Linear

    def wants(self) -> tuple[Want, ...]:
        return (self.outputs,)

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        found = seen_on_example(anatomy, "The classifier of tokens", self.wants())
        tokens, classes = found[self.outputs], found.logits.shape[1]
        self.head = nn.Linear(tokens.shape[1], classes, device=tokens.device, dtype=tokens.dtype)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        tokens, mix = step.outputs[self.outputs], step.mix
        logits, size = self.head(tokens.flatten(2).mT), (tokens.shape[2], tokens.shape[3])
        assert mix.masks is not None, "a blend that gives masks made none"
        masks = mix.masks.float()
        shown = resized(masks.flatten(0, 1), size).view(*masks.shape[:2], -1).expand(len(logits), -1, -1)
        labels = self._labels(step, size, logits.shape[2])
        rows = self._losses(logits, labels, mix.sources, shown, criterion).mean(1)
        if mix.valid is None:
            return self.beta * rows.mean()
        return self.beta * torch.where(mix.valid, rows, 0).sum() / mix.valid.sum().clamp_min(1)

    def _labels(self, step: Step, size: tuple[int, int], classes: int) -> SparseLabels:
        """The labels of the tokens of each image of the batch."""
        if self.maps is None:
            return labels_of(step.batch.labels)
        found = _annotation(step.scene, self.maps)
        scores = token_scores(found.scores, found.classes, found.crops, size, swapped=self.rule == "code")
        return token_labels(*scores, classes)

    def _losses(
        self, logits: Tensor, labels: SparseLabels, sources: Tensor, shown: Tensor, criterion: Criterion
    ) -> Float[Tensor, "r n"]:
        """Cross-entropy of every token, or the criterion where that is binary, weighted or the user's own."""
        classes = logits.shape[2]
        if not isinstance(criterion, BinaryCrossEntropy | PerSource) and criterion.class_weights is None:
            rule = self.rule if self.maps is not None else "paper"
            return mixed_cross_entropy(logits, labels.smoothed(criterion.smoothing, classes, rule), sources, shown)
        wanted = torch.einsum("rkn,rknc->rnc", shown, labels.dense(classes).expand(-1, logits.shape[1], -1)[sources])
        return criterion.rows(logits.flatten(0, 1), Targets.of(wanted.flatten(0, 1))).view(logits.shape[:2])

    def predictor(self, model: nn.Module) -> nn.Module:
        """The network with its tokens' classifier."""
        return WithTokens(unwrapped(model), self.head)


class WithTokens(nn.Module):
    """A network that also asks its tokens, see `with_tokens`.

    Args:
        net: images → logits.
        head: classifier of its output tokens, or of the places of its last stage.
    """

    def __init__(self, net: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.net, self.head = net, head
        self._probe: Probe | None = None

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Logits of clean images."""
        if self._probe is None:
            self._probe = Probe(self.net, images)
        want = Want("features", "tokens")
        outputs = self._probe.run(images, wants=[want])
        return with_tokens(outputs.logits, self.head(outputs[want].flatten(2).mT))


@method("token_labeling", section="2.5", paper="2104.10858", venue="NeurIPS 2021")
def token_labeling(
    beta: float = 0.5,
    alpha: float = 1.0,
    maps: Literal["teacher", "none"] = "teacher",
    ground_truth: bool = False,
    rule: Rule = "paper",
    teacher: str | None = None,
    teacher_size: int | None = None,
    teacher_epochs: int = 5,
    per: Per = "sample",
) -> Pieces:
    """Args:
    beta: β, weight of the tokens' loss; 1 in the code.
    alpha: λ ~ Beta(α, α), the share of the tokens outside the box before clipping.
    maps: labels of tokens come from a "teacher"'s maps; with "none" every token has its image's own label.
    ground_truth: whether the class label is a mean of the teacher's and the true one.
    rule: the "paper"'s crops and smoothing, or those of the authors' "code".
    teacher: the classifier that makes the maps: None for a small CNN trained beforehand, the folder of a finished run,
        or a name of timm with as many classes (the paper's is "dm_nfnet_f6.dm_in1k").
    teacher_size: pixels of both sides at which the teacher sees images; None for the network's own.
    teacher_epochs: passes of the small CNN's training over the training images.
    per: one λ and box per "sample" or per "batch".
    """
    found = Pretrained(teacher, owner="token_labeling", size=teacher_size, epochs=teacher_epochs)
    made = None if maps == "none" else Annotator(found, "token_labeling")
    if made is None and ground_truth:
        raise ParameterError(
            "token_labeling: ground_truth=true mixes a teacher's label with the true one, but with maps='none' there "
            "is no teacher. Leave one of them out."
        )
    criterion = (MachineSmoothing(),) if rule == "code" else ()
    return Pieces(
        essential=(ClassLabels(made, ground_truth=ground_truth, rule=rule), TokenLoss(made, beta, rule=rule)),
        suggested=(AtPatches(), Box(per), Beta(alpha, per=per), *criterion),
    )
