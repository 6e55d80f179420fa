"""Replays PatchUp, hard and soft, behind a module that gives the golden's features as they are."""

import numpy as np
import torch
from torch import nn

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.core.places import ByPlaceDraws
from mixwell.sample.feature.patchup import blocks_around, centre_rate

SOURCE = "official code"
INPUTS = ("x", "y", "num_classes", "lam", "gamma", "block_size", "centres", "perm", "logits", "g_out")
COMPARE = {"holes": equal(), "hard_out": equal(), "*": close(1e-6, rtol=1e-6)}


def replay(case: Case) -> dict[str, np.ndarray]:
    labels, centres = case.tensor("y"), case.tensor("centres") != 0
    gamma, block = float(case["gamma"]), int(case["block_size"])
    rest = GivenLogits(case.tensor("logits"))
    net = nn.Sequential(nn.Identity(), rest)
    draws = {
        "pairing": case["perm"],
        "ratio": ByPlaceDraws(None, case["lam"].reshape(1).astype(np.float64)),
        "blend": ByPlaceDraws(None, 0),
    }
    answers = {
        "gamma_adj": centre_rate(gamma, block, tuple(case["x"].shape[2:])),
        "holes": blocks_around(centres, block).byte().numpy(),
    }
    for variant in ("hard", "soft"):
        recipe = mixwell.create(
            f"patchup(variant={variant}, gamma={gamma}, block={block}, sites=('0',), criterion=softmax_bce, "
            "loss=three_terms, prob=1.0, per=batch)",
            num_classes=int(case["num_classes"]),
        )
        for found, target in (
            (torch.zeros_like(centres), "target_a"),
            (torch.ones_like(centres), "target_b"),
            (centres, "target_reweighted"),
        ):
            features = case.tensor("x").requires_grad_()
            # -1 lies below every rate, 1 below none.
            recipe.options[0].blend.at_hidden.noise = lambda *_, found=found: 1 - 2 * found.float()
            turn = one_turn(recipe, net, features, labels, place=0, **draws)
            answers[f"{variant}_{target}"] = turn.targets.dense().numpy()
        (gradient,) = torch.autograd.grad((rest.images * case.tensor("g_out")).sum(), features)
        answers |= {
            f"{variant}_out": rest.images.detach().numpy(),
            f"{variant}_grad_x": gradient.numpy(),
            f"{variant}_loss": turn.loss.detach().numpy(),
        }
        if variant == "hard":
            answers["unchanged_portion"] = turn.targets.weights[0, 0].numpy()
    return answers
