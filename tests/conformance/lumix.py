"""Replays LUMix: labels from the golden's logits, draws and λ_0, whose λ weights the partner's class, and the loss."""

import numpy as np
import torch
from torch import Tensor

from mixwell.conformance import Case, close, equal
from mixwell.core.axes import Draws, Scene, Step
from mixwell.core.batch import Batch
from mixwell.core.criteria import SoftCrossEntropy
from mixwell.core.mix import Mix
from mixwell.core.targets import Targets
from mixwell.label.ratio.lumix import Hinge, UncertainShares, hinge, mixed_classes, presence
from mixwell.probe import Outputs

SOURCE = "independent reference (of the paper's pseudo-code)"
INPUTS = ("logits", "y1", "y2", "lam0_weight_of_y2", "lam_r", "r_s", "r_r")
COMPARE = {"b_binary": equal(), "ce_per_sample": close(1e-6, 1e-6), "loss": close(1e-6, 1e-6), "*": close(1e-6)}


def replay(case: Case) -> dict[str, np.ndarray]:
    rows, classes = case["logits"].shape
    pool = torch.cat((case.tensor("y1"), case.tensor("y2")))
    sources = torch.stack((torch.arange(rows), torch.arange(rows) + rows), 1)
    other = case.tensor("lam0_weight_of_y2")
    mix = Mix(torch.zeros(rows, 1), sources, torch.stack((1 - other, other), 1), pool, lambda x: x)
    logits = case.tensor("logits").requires_grad_()
    noise = 1 - case["lam_r"]
    batch = Batch(mix.images, case.tensor("y1"))

    def labelled(r_s: float, r_r: float) -> Targets:
        label = UncertainShares(r_s, r_r)
        targets = label.targets(Step(Scene(batch, Draws({label: noise})), mix, Outputs(logits)))
        targets.num_classes = classes
        return targets

    targets = labelled(float(case["r_s"]), float(case["r_r"]))
    step, criterion = Step(Scene(batch), mix, Outputs(logits)), SoftCrossEntropy()
    loss: Tensor = criterion(logits, targets) + Hinge().value(step, targets, criterion)
    (gradient,) = torch.autograd.grad(loss, logits)
    seen = presence(logits.log_softmax(1), targets).exp()
    wanted = targets.dense()
    answers = {
        "prob1": seen[:, 0],
        "prob2": seen[:, 1],
        "lam_s": labelled(1.0, 0.0).weights[:, 1],
        "lam": targets.weights[:, 1],
        "y_target": wanted,
        "b_binary": mixed_classes(wanted),
        "ce_per_sample": criterion.rows(logits, targets),
        "hinge_per_sample": hinge(criterion.probabilities(logits), wanted),
        "loss": loss,
        "grad_logits_target_detached": gradient,
    }
    return {name: tensor.detach().numpy() for name, tensor in answers.items()}
