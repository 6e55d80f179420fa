"""Replays Pani MixUp: distances of patches, the nearest of them, and what they make of images and labels."""

import numpy as np
import torch

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.ops.patches import nearest, patches_of
from mixwell.sample.cutting.pani import PatchShares

SOURCE = "independent reference"
INPUTS = ("images", "labels", "logits", "patch", "K", "candidates", "patch_mask", "beta", "split")
COMPARE = {"neighbours": equal(), "dist": close(1e-9, rtol=1e-9), "eta": close(1e-12), "*": close(1e-5)}


def replay(case: Case) -> dict[str, np.ndarray]:
    images, patch, count = case.tensor("images"), int(case["patch"]), int(case["K"])
    candidates = case.tensor("candidates")
    shares = PatchShares(case["patch_mask"] * case["beta"], case["split"])
    net = GivenLogits(case.tensor("logits"))
    text = f"pani(patch={patch}, neighbours={count}, candidates={candidates.shape[1]})"
    recipe = mixwell.create(text, num_classes=net.logits.shape[1])
    turn = one_turn(recipe, net, images, case.tensor("labels"), pairing=case["candidates"], blend=shares)

    own = patches_of(images.double(), (patch, patch)).flatten(3).flatten(1, 2)
    other = own[candidates].flatten(1, 2)
    distances, order = nearest(own, other, other.shape[1])
    answers = {
        "eta": torch.from_numpy(shares.total[..., None] * shares.split),
        "dist": torch.empty_like(distances).scatter_(2, order, distances),
        "neighbours": nearest(own, other, count)[1],
        "mixed": net.images,
        "lam": turn.targets.weights[:, 0].double(),
        "target": turn.targets.dense().double(),
        "loss": turn.loss.double(),
    }
    return {name: tensor.numpy() for name, tensor in answers.items()}
