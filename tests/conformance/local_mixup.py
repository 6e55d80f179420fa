"""Replays Local Mixup: the weights of each graph, the losses under them, and the probabilities of near partners."""

import numpy as np
import torch

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.core.criteria import SoftCrossEntropy
from mixwell.sample.linear.local_mixup import (
    Exponential,
    Nearest,
    Threshold,
    distances,
    pair_distances,
    partner_shares,
)

SOURCE = "official code; *_knn, partner_prob: independent reference"
INPUTS = ("x", "y", "num_classes", "lam", "index", "logits", "alpha_exp", "eps", "knn_k")
COMPARE = {
    "w_threshold": equal(),
    "w_knn": equal(),
    "dist": close(1e-5, rtol=1e-6),
    "pairwise_dist": close(1e-5),
    "*": close(2e-6, rtol=2e-6),
}


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y = case.tensor("x"), case.tensor("y")
    decay, epsilon, k = float(case["alpha_exp"]), float(case["eps"]), int(case["knn_k"])
    partners = mixwell.Partners.at(case.tensor("index")[:, None], y)
    apart = distances(x.double())
    answers = {
        "dist": pair_distances(x, partners),
        "w_exp_sig0005": Exponential(0.0005)(x, partners),
        "w_exp": Exponential(decay)(x, partners),
        "w_threshold": Threshold(epsilon)(x, partners),
        "w_knn": Nearest(k)(x, partners).double(),
        "pairwise_dist": apart,
        "partner_prob": partner_shares(apart, decay),
    }
    net = GivenLogits(case.tensor("logits"))
    for name, graph in {
        "exp": f"decay={decay}",
        "threshold": f"graph=threshold, epsilon={epsilon}",
        "knn": f"graph=knn, k={k}",
        "threshold_spiral": f"graph=threshold, epsilon={epsilon}, rule=notebook",
    }.items():
        recipe = mixwell.create(f"local_mixup({graph}, per=batch)", int(case["num_classes"]))
        turn = one_turn(recipe, net, x, y, pairing=case["index"], ratio=case["lam"].reshape(1).astype(np.float64))
        answers[f"loss_{name}"] = turn.loss
    answers["mixed"] = net.images
    answers["loss_per_sample"] = SoftCrossEntropy().rows(net.logits, turn.targets)
    return {name: torch.as_tensor(answer).numpy() for name, answer in answers.items()}
