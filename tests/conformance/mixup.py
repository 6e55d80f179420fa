"""Replays mixup: one λ and permutation per batch, and one λ per sample."""

import numpy as np

import mixwell
from mixwell.conformance import Case, GivenLogits, close, one_turn

SOURCE = "official code; mixed_elem: independent reference"
INPUTS = ("x", "y", "num_classes", "lam", "index", "logits", "lam_elem")
COMPARE = {"target": close(1e-7), "*": close(1e-6, rtol=1e-6)}


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, classes = case.tensor("x"), case.tensor("y"), int(case["num_classes"])
    net = GivenLogits(case.tensor("logits"))
    recipe = mixwell.create("mixup(per=batch)", num_classes=classes)
    turn = one_turn(recipe, net, x, y, pairing=case["index"], ratio=case["lam"].reshape(1).astype(np.float64))
    answers = {"mixed": net.images.numpy(), "target": turn.targets.dense().numpy(), "loss": turn.loss.numpy()}
    if "lam_elem" in case:
        recipe = mixwell.create("mixup(per=sample)", num_classes=classes)
        one_turn(recipe, net, x, y, pairing=case["index"], ratio=case["lam_elem"].astype(np.float64))
        answers["mixed_elem"] = net.images.numpy()
    return answers
