"""Replays Catch-up Mix behind a module that gives the golden's features as they are."""

import numpy as np
from torch import nn

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.core.places import ByPlaceDraws
from mixwell.sample.feature.catchup_mix import filter_norms, own_filters, relative_influence, weakest

SOURCE = "independent reference"
INPUTS = ("h", "y", "num_classes", "perm", "lam", "logits")
COMPARE = {"norms": close(0, rtol=3e-6), "rfi": close(1e-6), "loss": close(1e-6, rtol=1e-6), "*": equal()}


def replay(case: Case) -> dict[str, np.ndarray]:
    hidden, lam = case.tensor("h"), case["lam"].reshape(1).astype(np.float64)
    rest = GivenLogits(case.tensor("logits"))
    net = nn.Sequential(nn.Identity(), rest)
    recipe = mixwell.create("catchup_mix(sites=('0',), per=batch)", num_classes=int(case["num_classes"]))
    draws = {"pairing": case["perm"], "ratio": ByPlaceDraws(None, lam), "blend": ByPlaceDraws(None, None)}
    turn = one_turn(recipe, net, hidden, case.tensor("y"), place=0, **draws)

    norms = filter_norms(hidden)
    relative, count = relative_influence(norms, case.tensor("perm")), own_filters(lam, hidden.shape[1])
    return {
        "norms": norms.numpy(),
        "rfi": relative.numpy(),
        "n_source": count[0],
        "mask": weakest(relative, count).byte().numpy(),
        "out": rest.images.numpy(),
        "loss": turn.loss.numpy(),
    }
