"""Replays CAMixup: coefficients of an ensemble's classes, and each member's mixes through a recipe that holds them."""

import numpy as np
import torch

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.label.calibration.camixup import coefficients, gap_sums

SOURCE = "independent reference"
INPUTS = ("x", "y", "alpha", "val_probs", "val_labels", "beta_draws")
COMPARE = {"mixup_coeff": equal(), "acc_minus_conf*": close(1e-7), "x_mix": close(1e-6), "*": close(1e-7)}


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, alpha = case.tensor("x"), case.tensor("y"), float(case["alpha"])
    probabilities, labels = case.tensor("val_probs"), case.tensor("val_labels")
    members, _, classes = probabilities.shape
    sums, counts = gap_sums(probabilities, labels)
    averaged, _ = gap_sums(probabilities.double().mean(0, keepdim=True), labels)
    found = coefficients(sums / counts, alpha)
    answers = {
        "acc_minus_conf": (sums / counts).numpy(),
        "mixup_coeff": found.numpy(),
        "acc_minus_conf_mean_prediction": (averaged / counts)[0].numpy(),
    }
    parts: dict[str, list[torch.Tensor]] = {"mix_weight": [], "x_mix": [], "y_mix": []}
    for e in range(members):
        net = GivenLogits(torch.zeros(len(x), classes))
        recipe = mixwell.create(f"camixup(alpha={alpha})", num_classes=classes).bind(net, x)
        recipe.use_data(held_out=list).before_epoch(net)
        ratio = recipe.options[0].ratio
        ratio.coefficients.copy_(found[e])
        turn = one_turn(recipe, net, x, y, ratio=case["beta_draws"][e])
        parts["mix_weight"].append(turn.targets.weights[:, 0].double())
        parts["x_mix"].append(net.images)
        parts["y_mix"].append(turn.targets.dense().double())
    return {**answers, **{name: torch.stack(part).numpy() for name, part in parts.items()}}
