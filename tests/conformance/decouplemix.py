"""Replays DecoupleMix: DM(CE) of the paper and of OpenMixup with its gradients, DM(BCE), and the asymmetric rules."""

import re

import numpy as np
import torch

from mixwell.conformance import Case, close
from mixwell.core.criteria import SoftCrossEntropy
from mixwell.core.targets import Targets
from mixwell.label.objective.decouplemix import Decoupled, DecoupledBinary, decoupled, rescaled

SOURCE = "official code (OpenMixup); phi, dm_terms, paper and semi-supervised losses: independent reference"
INPUTS = ("logits", "y_a", "y_b", "lam", "r_lam", "y_a_swapped", "y_b_swapped")
COMPARE = {"*": close(2e-6, 1e-6)}
SKIPPED = {
    "y_mix": "the mixed label that the official code reads the two classes from; ours takes them by index",
    "loss_official_swapped_order": "documents a bug of the official code, not to be reproduced",
}
OFFICIAL = {  # η, sides, rescaling and exponent of the three official cases
    "both": (0.1, "both", "pow", 1.0),
    "more": (0.01, "more", "pow", 0.5),
    "unw": (0.1, "both", "none", 1.0),
}


def targets_of(case: Case, shares: torch.Tensor) -> Targets:
    rows = len(case["y_a"])
    pool = torch.cat((case.tensor("y_a"), case.tensor("y_b")))
    sources = torch.stack((torch.arange(rows), torch.arange(rows) + rows), 1)
    return Targets(pool, sources, shares.expand(rows, 2))


def replay(case: Case) -> dict[str, np.ndarray]:
    logits, lam = case.tensor("logits"), case.tensor("lam")
    wide = logits.double()
    shares = torch.stack((lam, 1 - lam))
    targets, narrow = targets_of(case, shares), targets_of(case, shares.float())
    classes = targets.classes
    terms = decoupled(wide, classes)
    phi = torch.where(classes[:, :1] == classes[:, 1:], torch.nan, (-terms).exp())
    answers = {
        "phi": phi.numpy(),
        "dm_terms": terms.numpy(),
        "mce_per_sample": Decoupled(0.0).rows(wide, targets).numpy(),
        "loss_paper_eta0p1": Decoupled(0.1)(wide, targets).numpy(),
        "loss_semisup_asym_eta1": Decoupled(1.0, sides="own")(wide, targets).numpy(),
        "loss_mce": SoftCrossEntropy()(logits, narrow).numpy(),
    }
    for name, (eta, sides, rescale, exponent) in OFFICIAL.items():
        criterion = Decoupled(eta, sides, rescale, exponent)
        leaf = logits.clone().requires_grad_()
        loss = criterion(leaf, narrow)
        loss.backward()
        answers[f"loss_official_{name}"] = loss.detach().numpy()
        answers[f"grad_official_{name}"] = leaf.grad.numpy()
        answers[f"eta_{name}"] = criterion.side_weights(shares[None])[0].numpy()
    for name in case.wanted:
        if found := re.fullmatch(r"loss_bce_(t(.+)_xi(.+))", name):
            key, threshold, exponent = found[1], float(found[2]), float(found[3])
            criterion = DecoupledBinary("both", "pow", exponent, threshold)
            answers[f"bce_target_{key}"] = criterion.wanted(narrow, logits.shape[1]).numpy()
            answers[f"loss_bce_{key}"] = criterion(logits, narrow).numpy()
            answers[f"rescaled_{key}"] = rescaled(shares, "pow", exponent, threshold).numpy()
        elif found := re.fullmatch(r"loss_bce_(asym_t(.+))", name):
            criterion = DecoupledBinary("own", "pow", 1.0, float(found[2]))
            answers[f"bce_target_{found[1]}"] = criterion.wanted(narrow, logits.shape[1]).numpy()
            answers[f"loss_bce_{found[1]}"] = criterion(logits, narrow).numpy()
        elif found := re.fullmatch(r"r_pow_t(.+)_xi(.+)", name):
            answers[name] = rescaled(case.tensor("r_lam"), "pow", float(found[2]), float(found[1])).numpy()
    answers["loss_bce_plain"] = DecoupledBinary("both", "none", 1.0, 1.0)(logits, narrow).numpy()
    return answers
