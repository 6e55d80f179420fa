"""How often a mix looks like something that it is not: manifold intrusion.

Guo, Mao, Zhang, "MixUp as Locally Linear Out-Of-Manifold Regularization", AAAI 2019, arXiv:1809.02499, name it; the
measure is that of GenLabel (Sohn et al., 2022, arXiv:2201.02354): the nearest training image of a mix belongs to none
of the classes that are mixed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mixwell.core.axes import Piece, Scene, Step
from mixwell.core.clock import Clock
from mixwell.core.mix import Mix
from mixwell.core.policy import picked
from mixwell.core.recipe import Recipe
from mixwell.core.rng import Streams, key_of
from mixwell.data import Loader
from mixwell.data.split import unaugmented
from mixwell.evaluate.metrics import classes_of
from mixwell.evaluate.rehearse import bound_recipe, splits_of
from mixwell.evaluate.subject import Progress, Subject, fraction, silent
from mixwell.probe import Outputs, Probe
from mixwell.probe.capture import logits_of
from mixwell.probe.trace import untouched
from mixwell.train import TrainConfig

__all__ = ["BINS", "Mixed", "intrusion_rates", "learns_to_mix", "mixes_of", "nearest_labels", "rates"]

BINS = 10

_BATCH = 500
"""Training images per matrix product."""
_TRIES = 10
"""How many batches are looked at for each that shall be mixed."""
_EQUAL = 1e-6
"""Shares of other images below this make no mix."""


@dataclass(frozen=True, eq=False)
class Mixed:
    """Rows that show at least two images.

    Attributes:
        images: (M, C, H, W), normalised.
        lam: (M,) label share of the image's own row.
        classes: (M, K) whether a class has a share in the label.
    """

    images: Float[Tensor, "m c h w"]
    lam: Float[Tensor, " m"]
    classes: Bool[Tensor, "m k"]

    @classmethod
    def of(cls, mix: Mix, num_classes: int) -> Mixed:
        """Those of a mix; rows that only show themselves are left out."""
        own = (mix.weights * (mix.sources == mix.sources[:, :1])).sum(1)
        targets = mix.targets()
        targets.num_classes = num_classes
        rows = (own < 1 - _EQUAL) & (mix.weights > _EQUAL).any(1)
        classes = targets.dense(num_classes) > _EQUAL
        return cls(mix.images[rows].detach().cpu(), own[rows].detach().cpu(), classes[rows].cpu())


def mixes_of(recipe: Recipe, subject: Subject, config: TrainConfig, *, count: int, seed: int) -> list[Mixed]:
    """What the recipe makes of `count` training images, batch by batch as at the end of the training.

    Batches that are mixed inside the network, or not at all, are passed over, and so are mixes of another size.

    Args:
        recipe: bound to the run's network, which it may look at.
        subject: the network and its data; images are taken without augmentation.
        config: of the run.
        count: images that are mixed, in whole batches.
        seed: of the choice of images and of the mixing.
    """
    trained, streams = subject.trained, Streams(seed)
    data, model = trained.data, trained.model
    loader = Loader(unaugmented(data.train), config.batch_size, pixels=data.pixels, seed=seed)
    splits = splits_of(config, data, trained.held_out, subject.device)
    wanted, total = math.ceil(count / config.batch_size), config.epochs * len(loader)
    batches = chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count())
    probe: Probe | None = None
    found = []
    with untouched(recipe, training=True), untouched(model):
        torch.manual_seed(key_of(seed, "intrusion") >> 1)
        recipe.before_epoch(model, Clock(total, total, config.epochs - 1, config.lr))
        for step, loaded in enumerate(islice(batches, _TRIES * wanted)):
            batch = loaded.to(subject.device, channels_last=subject.channels_last)
            probe = probe or Probe(model, batch.images)
            option: Any = recipe.policies[picked(recipe.weights, streams.at("switch", step).random())]
            clock = Clock(total + step, total, config.epochs - 1, config.lr)
            scene = option.scene(probe, batch, option.draw(len(batch), streams, step), clock, splits)
            if option.blend is None or scene.site is not None:
                continue
            mix: Mix = option.mix(option.views(scene)[0], scene)
            _let_observe(option, scene, mix, model)
            wanted -= 1
            if mix.images.shape[1:] == batch.images.shape[1:]:
                found.append(Mixed.of(mix, data.num_classes))
            if not wanted:
                break
    return found


def _let_observe(option: Any, scene: Scene, mix: Mix, model: nn.Module) -> None:
    """Show the finished step to the pieces that remember it."""
    watching = [piece for piece in option.pieces if type(piece).observe is not Piece.observe]
    if watching:
        with torch.no_grad():
            step = Step(scene, mix, Outputs(logits_of(model(mix.images))))
        for piece in watching:
            piece.observe(step)


def learns_to_mix(recipe: Recipe) -> bool:
    """Whether networks that the recipe trains itself choose or make its mixes. Known once it is bound."""
    pieces = [piece for option in recipe.policies for piece in option.mixing]
    return any(parameter.requires_grad for piece in pieces for parameter in piece.parameters())


def nearest_labels(
    points: Float[Tensor, "m ..."], batches: Iterable[tuple[Float[Tensor, "b ..."], Int[Tensor, " b"]]]
) -> Int[Tensor, " m"]:
    """The label of each point's nearest neighbour in Euclidean distance, the first of those that are equally near.

    Computed in fp32, a matrix product per batch.

    Args:
        points: (M, ...).
        batches: the neighbours, with their class ids.
    """
    flat = points.flatten(1).float()
    centre = flat.mean(0)  # distances are differences of squares, which are smaller about the centre
    flat = flat - centre
    best = torch.full((len(flat),), torch.inf)
    labels = torch.zeros(len(flat), dtype=torch.int64)
    for images, ids in batches:
        others = images.flatten(1).float() - centre
        distance, place = torch.addmm(others.square().sum(1), flat, others.T, alpha=-2).min(1)
        nearer = distance < best
        best, labels = torch.where(nearer, distance, best), torch.where(nearer, ids[place], labels)
    return labels


def rates(lam: Float[np.ndarray, " m"], intruded: Bool[np.ndarray, " m"], bins: int = BINS) -> dict[str, Any]:
    """The share of mixes that intrude, over all and by the share of the image's own label.

    Returns:
        "rate", and "by_lam": for each bin of equal width over [0, 1] its "low", "high", "count" and "rate" (None where
        it is empty).
    """
    place = np.clip((lam * bins).astype(np.int64), 0, bins - 1)
    counts, found = (np.bincount(place, weights=weights, minlength=bins) for weights in (None, intruded))
    by_lam = [
        {"low": number / bins, "high": (number + 1) / bins, "count": int(n), "rate": float(k / n) if n else None}
        for number, (n, k) in enumerate(zip(counts, found, strict=True))
    ]
    return {"rate": float(intruded.mean()), "by_lam": by_lam}


def intrusion_rates(
    subject: Subject,
    config: TrainConfig,
    *,
    mixes: int = 2000,
    neighbours: int = 50_000,
    bins: int = BINS,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any] | None:
    """The share of the recipe's mixes whose nearest training image, by the distance of normalised pixels, is of no
    class of their label; None if the recipe mixes no two images at the input, or to images of another size.

    Args:
        subject: the trained network and its data.
        config: of the run.
        mixes: images that are mixed, in whole batches.
        neighbours: training images that are looked at, at most; of more, so many with every class in proportion.
        bins: of equal width, over the share of the image's own label.
        seed: of the mixes and of the choice of neighbours.
        progress: called with the training images looked at and to look at.
    """
    trained = subject.trained
    if all(option.blend is None for option in trained.recipe.policies):
        return None
    trained.model.to(subject.device)
    recipe = bound_recipe(config, trained.data, trained.held_out, trained.model, device=subject.device)
    if recipe.owns:
        recipe.load_state_dict(trained.recipe.state_dict())
    found = mixes_of(recipe, subject, config, count=mixes, seed=seed)
    if not sum(len(each.lam) for each in found):
        return None
    images, lam, classes = (torch.cat([getattr(each, name) for each in found]) for name in ("images", "lam", "classes"))
    part = fraction(unaugmented(trained.data.train), neighbours, seed)
    loader = Loader(part, _BATCH, pixels=trained.data.pixels, shuffle=False)

    def looked_at() -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(loader.epoch(0), 1):
            yield batch.images, classes_of(batch.labels)
            progress(number, len(loader))

    labels = nearest_labels(images, looked_at())
    return rates(lam.double().numpy(), ~classes.gather(1, labels[:, None])[:, 0].numpy(), bins)
