"""Replays SmoothMix: circles and squares, one per sample."""

import numpy as np

import mixwell
from mixwell.conformance import Case, GivenLogits, close, one_turn

SOURCE = "independent reference"
INPUTS = ("images", "labels", "logits", "perm", "center_x", "center_y", "sigma_circle", "side_square", "edge_k")
COMPARE = {"*": close(1e-5)}


def replay(case: Case) -> dict[str, np.ndarray]:
    images, labels = case.tensor("images"), case.tensor("labels")
    net = GivenLogits(case.tensor("logits"))
    height, width = images.shape[2:]
    # σ of circles is drawn as the place in its range, from 0.25 to 0.5.
    extents = {"circle": (case["sigma_circle"] - 0.25) / 0.25, "square": case["side_square"]}
    answers = {}
    for variant, extent in extents.items():
        text = f"smoothmix(variant={variant}, edge={float(case['edge_k'])})"
        recipe = mixwell.create(text, num_classes=net.logits.shape[1])
        draws = np.stack((case["center_y"] / height, case["center_x"] / width, extent), 1)
        turn = one_turn(recipe, net, images, labels, pairing=case["perm"], blend=draws)
        keep, lam = recipe.options[0].blend.masks(draws, (height, width), images)
        answers |= {
            f"{variant}_mask": 1 - keep[:, 0].numpy(),
            f"{variant}_mixed": net.images.numpy(),
            f"{variant}_lam": lam.numpy(),
            f"{variant}_target": turn.targets.dense().numpy(),
            f"{variant}_loss": turn.loss.numpy(),
        }
    return answers
