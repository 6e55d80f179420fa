"""One training step of a recipe, seen from beside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixwell.core.artefacts import Progress
from mixwell.core.axes import Piece, Scene, Step
from mixwell.core.batch import Batch, Pixels
from mixwell.core.clock import Clock
from mixwell.core.errors import BatchError, ModelError
from mixwell.core.recipe import Recipe, create
from mixwell.core.rng import key_of
from mixwell.core.saliency import Saliency
from mixwell.core.targets import Targets
from mixwell.nets import create_net
from mixwell.ops.tokens import grid_of
from mixwell.probe import Probe, Want
from mixwell.probe.trace import untouched

__all__ = ["Shown", "act", "fitted_net", "needs_network"]

_STEPS = 40
"""Steps that a small network is fitted to the pictures; it then tells them apart."""
_RENDERING = 400
"""Steps that networks which render images are trained on the pictures."""


@dataclass(frozen=True, eq=False)
class Shown:
    """What a recipe made of one batch.

    Attributes:
        recipe: its text.
        images: (R, C, H, W) pixels in [0, 1], one tensor per view of the batch; (R, D, h, w) hidden maps where `site`
            is not None. No more rows than the batch.
        shares: (R, N) what the labels say, by class.
        masks: (R, K, H, W) what each source contributes to each pixel; None for blends without masks, and where they
            are constant.
        classes: (R, K) the class of each source.
        site: the hidden site of the mix, or None for the input.
        clean: (B, D, h, w) maps of the images themselves at `site` and at those of `moments`.
        moments: (R, D, h, w) maps with other moments, by site.
        saliency: (B, h, w) ≥ 0, where the recipe found the images salient; None where it does not look.
        attention: (R, h, w) ≥ 0, what of the mixed images the labels follow; None where they follow none of it.
    """

    recipe: str
    images: tuple[Float[Tensor, "r c h w"], ...]
    shares: Float[Tensor, "r n"]
    masks: Float[Tensor, "r k h w"] | None = None
    classes: Int[Tensor, "r k"] | None = None
    site: str | None = None
    clean: Mapping[str, Float[Tensor, "b d h w"]] = field(default_factory=dict)
    moments: Mapping[str, Float[Tensor, "r d h w"]] = field(default_factory=dict)
    saliency: Float[Tensor, "b h w"] | None = None
    attention: Float[Tensor, "r h w"] | None = None


class _Watcher(Piece):
    """A piece that answers nothing and keeps the finished step."""

    step: Step | None = None

    def observe(self, step: Step) -> None:
        self.step = step


def needs_network(recipe: Recipe) -> bool:
    """Whether a picture of the recipe depends on a network's answers."""
    pieces: list[Piece] = [piece for option in recipe.options for piece in cast(Any, option).pieces]
    return any(piece.network or piece.wants() or piece.views() for piece in pieces)


def fitted_net(
    recipe: Recipe, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], num_classes: int
) -> nn.Module:
    """A small network fitted to the normalised pictures and their mirror images: `vit-s` where a recipe needs
    tokens, else `cnn-s`; one linear layer if the recipe asks for nothing.
    """
    channels = images.shape[1]
    if not needs_network(recipe):
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    name = "vit-s" if recipe.needs_tokens else "cnn-s"
    net = create_net(name, num_classes, channels=channels, size=images.shape[2])
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for step in range(_STEPS):
        optimiser.zero_grad()
        loss = F.cross_entropy(net(images.flip(3) if step % 2 else images), labels)
        torch.autograd.backward(loss)
        optimiser.step()
    return net


def act(
    recipe: str,
    images: Float[Tensor, "b c h w"],
    labels: Int[Tensor, " b"],
    *,
    num_classes: int,
    seed: int = 0,
    model: nn.Module | None = None,
    progress: Progress | None = None,
) -> Shown:
    """Run one training step and keep what came of it.

    Equal seeds draw equal partners and ratios for recipes that draw them alike. A recipe that switches shows what it
    chose in its step 0.

    Args:
        images: (B, C, H, W) pixels in [0, 1].
        labels: (B,) class ids.
        num_classes: N.
        seed: of the recipe's draws, and of the network's weights.
        model: the network that recipes may look through, for images normalised to [-1, 1]; it is left as it was. A
            small one, fitted to the images, if not given. Recipes with parameters of their own train them on the
            images first.
        progress: called with (what is made or trained before that step, steps done, steps in all).

    Raises:
        BatchError: the images are not floating pixels in [0, 1].
        IncompatibleRecipe: the recipe cannot act, or not on this network.
    """
    if not images.is_floating_point() or images.ndim != 4 or images.amin() < 0 or images.amax() > 1:
        raise BatchError(
            f"The gallery shows floating images (B, C, H, W) with pixels in [0, 1], got {images.dtype} "
            f"{tuple(images.shape)}. Undo the normalisation first."
        )
    pixels = Pixels((0.5,) * images.shape[1], (0.5,) * images.shape[1])
    made = create(recipe, num_classes, seed=seed, pixels=pixels)
    batch = Batch(pixels.normalise(images), labels, pixels)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = fitted_net(made, batch.images, labels, num_classes) if model is None else copy.deepcopy(model)
        made.prepare(
            lambda: [batch],
            f"pictures {key_of(images.numpy(force=True).tobytes())}",
            progress=progress,
            rows=len(batch),
        )
        kept = replace(batch, images=-batch.images)  # negatives, as the network was not fitted to these
        made.use_data(train=lambda: [batch], held_out=lambda: [kept]).bind(net, batch.images)
        made.before_epoch(net, Clock(1, epoch=1))
        if made.owns:
            _train(made, net, batch, progress)
        return _shown(made, net, batch, num_classes)


def _train(recipe: Recipe, net: nn.Module, batch: Batch, progress: Progress | None) -> None:
    """Train what the recipe owns, so that its picture is not that of random weights."""
    # In another order, so that a recipe which remembers its last batch shows other pictures.
    others = Batch(batch.images.roll(1, 0), batch.labels.roll(1), batch.pixels)
    groups: dict[str, list[dict[str, Any]]] = {}
    for group in recipe.parameter_groups(net):
        groups.setdefault(group["turn"], []).append({"params": group["params"]})
    optimisers = {turn: torch.optim.AdamW(parts, lr=2e-3) for turn, parts in groups.items()}
    renders = any(policy.blend is not None and not policy.blend.exact for policy in recipe.policies)
    steps = _RENDERING if renders else _STEPS
    for step in range(1, steps + 1):
        clock = Clock(step, total=steps + 1)
        for turn in recipe.turns(net, others, clock=clock):
            optimisers[turn.group].zero_grad()
            torch.autograd.backward(turn.loss)
            optimisers[turn.group].step()
        recipe.after_step(net, clock)
        if progress is not None:
            progress("training", step, steps)


def _shown(recipe: Recipe, net: nn.Module, batch: Batch, num_classes: int) -> Shown:
    watchers = [(cast(Any, option), _Watcher()) for option in recipe.options]
    for option, watcher in watchers:
        option.pieces = (*option.pieces, watcher)
    turns = list(recipe.turns(net, batch, clock=_clock_of(recipe, len(batch))))
    ((option, step),) = [(option, watcher.step) for option, watcher in watchers if watcher.step is not None]
    mix, site = step.mix, step.scene.site
    further = () if site is not None else option.views(step.scene)[1:]
    images = tuple(part.detach() for part in (mix.images, *map(mix.apply, further)))
    if site is None and batch.pixels is not None:
        images = tuple(batch.pixels.raw(part).clamp(0, 1) for part in images)
    targets, masks = turns[-1].targets, mix.masks
    assert targets is not None, "a step ends with the turn of its labels"
    rows = slice(len(batch))
    images, shares = tuple(part[rows] for part in images), targets.dense(num_classes).detach()[rows]
    sites = dict.fromkeys([*([] if site is None else [site]), *step.moments])
    wants = {name: Want("features", name) for name in sites}
    probe = Probe(net, batch.images)
    with untouched(net), torch.no_grad():
        seen = probe.run(batch.images, wants=wants.values())
    inside = Shown(
        str(recipe),
        images,
        shares,
        site=site,
        clean={name: seen[want] for name, want in wants.items()},
        moments={name: found[rows] for name, found in step.moments.items()},
        saliency=_saliency(option, step.scene),
        attention=_attention(option, step, targets, rows, probe),
    )
    if masks is None or masks.shape[-1] == masks.shape[-2] == 1:
        return inside
    masks = masks.detach().expand(len(mix.images), -1, -1, -1)[rows]
    ids = mix.pool.argmax(1) if mix.pool.is_floating_point() else mix.pool  # the likeliest class of soft labels
    return replace(inside, masks=masks, classes=ids[mix.sources][rows])


def _attention(option: Any, step: Step, targets: Targets, rows: slice, probe: Probe) -> Tensor | None:
    """The label's own map; else attention that a piece asked for in the pass over the mix; else, where labels are
    carried through all blocks, the last class attention to the finished mix.
    """
    found: Tensor | None = option.label.looked_at(step, targets)
    height, width = step.batch.images.shape[-2:]
    looks = [seen for want, seen in step.outputs.seen.items() if want.kind in ("class_attention", "patch_attention")]
    carried = any(want.kind == "alignment" for want in option.label.wants())
    if found is None and not looks and carried and step.scene.site is None:
        looks = _class_attention(probe, step.mix.images)
    if found is None and looks:
        found = looks[0].view(len(looks[0]), *grid_of(looks[0].shape[1], height / width, "the mix"))
    return None if found is None else found.detach()[rows]


def _class_attention(probe: Probe, images: Tensor) -> list[Tensor]:
    """What the class token attends to in the last block, in a pass of its own; nothing if there is no such token."""
    want = Want("class_attention")
    try:
        probe.check(want)
    except ModelError:
        return []
    with untouched(probe.net), torch.no_grad():
        return [probe.run(images, wants=[want])[want]]


def _saliency(option: Any, scene: Scene) -> Tensor | None:
    """The blend's own maps, or those of the first source among the pieces; else the size of a gradient that one of
    them asked for.
    """
    if option.blend is not None and (own := option.blend.looked_at(scene)) is not None:
        found: Tensor = own
        return found
    for part in option.modules():
        if isinstance(part, Saliency):
            return part.maps(scene)
    wants = () if scene.views is None else sorted(scene.views.wants, key=str)
    gradients = [scene.views[want] for want in wants if want.kind == "gradient" and scene.views is not None]
    return gradients[0].float().abs().sum(1) if gradients else None


def _clock_of(recipe: Recipe, rows: int) -> Clock:
    """The first of a few steps in which it changes moments, for recipes that do so on some batches; else step 0."""
    for step in range(_STEPS):
        option = cast(Any, recipe._option(Clock(step)))
        if option.statistics is not None:
            draws = option.draw(rows, recipe._streams, step)
            if option.statistics.sites(draws.of.get(option.statistics)):
                return Clock(step)
    return Clock(0)
