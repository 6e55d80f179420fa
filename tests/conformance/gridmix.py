"""Replays GridMix with its local loss, and GridMixup's holes."""

import numpy as np
import torch
from torch import nn

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.sample.cutting.gridmix import HoleDraws, local_targets

SOURCE = "independent reference; gm_*: official code of GridMixup"
INPUTS = (
    "images",
    "labels",
    "logits_*",
    "perm",
    "cells",
    "gm_lam_raw",
    "gm_nx",
    "gm_hole_aspect",
    "gm_crop_*",
    "gm_cx",
    "gm_cy",
)
COMPARE = {
    "mixed": equal(),
    "local_labels": equal(),
    "gm_mask": equal(),
    "gm_mixed": equal(),
    "lam*": close(1e-12),
    "gm_lam": close(1e-12),
    "target": close(1e-7),
    "*": close(1e-5, rtol=1e-6),
}

HOLES = ("nx", "hole_aspect", "crop_area", "crop_aspect", "cy", "cx")
"""The golden's names of `HoleDraws`."""


class GivenMap(GivenLogits):
    """A network with given logits whose last feature map are the local classifier's logits."""

    def __init__(self, logits: torch.Tensor, local: torch.Tensor, grid: int) -> None:
        super().__init__(logits)
        self.map = local.transpose(1, 2).unflatten(2, (grid, grid))
        self.layer1 = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.layer1(self.map)
        return super().forward(images)


def replay(case: Case) -> dict[str, np.ndarray]:
    images, labels = case.tensor("images"), case.tensor("labels")
    grid, classes = case["cells"].shape[-1], case["logits_global"].shape[1]
    net = GivenMap(case.tensor("logits_global"), case.tensor("logits_local"), grid)
    # A cell is the image's where a uniform is below ½.
    draws = {"pairing": case["perm"], "blend": np.where(case["cells"] == 1, 0.25, 0.75)}

    def turn_of(text: str) -> mixwell.Turn:
        recipe = mixwell.create(text, num_classes=classes).bind(net, images)
        (local,) = recipe.options[0].terms
        with torch.no_grad():
            nn.init.eye_(local.head.weight)
            nn.init.zeros_(local.head.bias)
            return one_turn(recipe, net, images, labels, **draws)

    mean, total = turn_of(f"gridmix(grid={grid})"), turn_of(f"gridmix(grid={grid}, local_weight=1)")
    mix = mixed_by(f"gridmix(grid={grid})", images, labels, **draws)
    cells = local_targets(mix)
    shown = cells.weights.argmax(1, keepdim=True)
    trials = [
        mixed_by(
            "gridmix(variant=gridmixup, per=batch)",
            images,
            labels,
            pairing=case["perm"],
            ratio=case["gm_lam_raw"][[t]],
            blend=HoleDraws(*(case[f"gm_{name}"][[t]] for name in HOLES)),
        )
        for t in range(len(case["gm_lam_raw"]))
    ]
    return {
        "mixed": net.images.numpy(),
        "lam": mix.area.numpy(),
        "lam_cells": cells.weights[:, 0].double().view(len(images), -1).mean(1).numpy(),
        "local_labels": cells.classes.gather(1, shown).view(len(images), -1).numpy(),
        "target": total.targets.dense().numpy(),
        "loss_global": total.parts["criterion"].numpy(),
        "loss_local_sum": total.parts["gridmix"].numpy(),
        "loss_local_mean": mean.parts["gridmix"].numpy(),
        "gm_mask": np.stack([trial.masks[0, 1].to(torch.uint8).numpy() for trial in trials]),
        "gm_lam": np.concatenate([trial.area.numpy() for trial in trials]),
        "gm_mixed": np.stack([trial.images.numpy() for trial in trials]),
    }


def mixed_by(text: str, images: torch.Tensor, labels: torch.Tensor, **draws: object) -> mixwell.Mix:
    """The mix of a recipe under given draws, by slot."""
    (option,) = mixwell.create(text).options
    given = mixwell.Draws({getattr(option, slot): drawn for slot, drawn in draws.items()})
    return option.mix(images, mixwell.Scene(mixwell.Batch(images, labels), given))
