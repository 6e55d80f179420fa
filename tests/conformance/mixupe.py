"""Replays MixupE: gradients of all versions through the golden's small network, with its partner, λ and mean image.

The value of the loss is that of mixup in every version, and says nothing of them.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, close, one_turn
from mixwell.core.axes import Scene, Step
from mixwell.core.criteria import SoftCrossEntropy
from mixwell.core.mix import Mix
from mixwell.label.objective.mixupe import DirectionalDerivative, keeping_value, mean_lam, slopes
from mixwell.probe import Outputs

SOURCE = "official code; the paper's term: independent reference"
INPUTS = ("x", "y", "lam", "perm", "alpha", "eta", "threshold", "x_mean", "w[12]", "b[12]")
COMPARE = {"x_mix": close(1e-6), "lam_mod_mean": close(1e-12), "*": close(2e-6, 1e-5)}


class Net(nn.Module):
    """The golden's network.

    Attributes:
        seen: what it was fed.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.first = nn.Linear(*case["w1"].shape[::-1])
        self.second = nn.Linear(*case["w2"].shape[::-1])
        weights = (case.tensor("w1"), case.tensor("b1"), case.tensor("w2"), case.tensor("b2"))
        for parameter, value in zip(self.parameters(), weights, strict=True):
            parameter.data = value
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach())
        side = round((self.first.in_features / images.shape[1]) ** 0.5)
        return self.second(torch.tanh(self.first(F.adaptive_avg_pool2d(images, side).flatten(1))))


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, alpha, eta = case.tensor("x"), case.tensor("y"), float(case["alpha"]), float(case["eta"])
    net = Net(case)
    draws = {"pairing": case["perm"], "ratio": case["lam"].reshape(1).astype(np.float64)}
    answers: dict[str, Tensor] = {}
    for variant in ("paper", "v1", "v2", "v3", "v4"):
        limit = f", threshold={float(case['threshold'])}" if variant in ("v1", "v3") else ""
        text = f"mixupe(variant={variant}, alpha={alpha}, eta={eta}, per=batch{limit})"
        recipe = mixwell.create(text, num_classes=len(case["b2"]))
        if variant in ("v1", "v2"):
            recipe.options[0].wrapper.use(case.tensor("x_mean"))
        turn = one_turn(recipe, net, x, y, **draws)
        answers[f"loss_{variant}"] = turn.loss
        (answers[f"grad_w2_{variant}"],) = torch.autograd.grad(turn.loss, net.second.weight)
        answers["mixup_ce"], answers["logits_mix"] = turn.parts["criterion"], turn.logits
    answers["x_mix"] = net.seen[0]

    clean, criterion, labels = net(x), SoftCrossEntropy(), mixwell.Targets.of(y)
    step = Step(Scene(mixwell.Batch(x, y)), Mix.plain(x, y), Outputs(clean), Outputs(clean))
    answers["logits_clean"] = clean
    answers["extra_term_paper"] = DirectionalDerivative(alpha, eta).term(step, criterion)

    plain = one_turn(mixwell.create("mixup(per=batch)", len(case["b2"])), net, x, y, **draws).loss
    detached = (1 - mean_lam(alpha)) * slopes(clean, criterion, labels, detached=True).abs().mean()
    loss = keeping_value(plain, plain + eta * detached)
    (answers["grad_w2_paper_detached_b"],) = torch.autograd.grad(loss, net.second.weight)
    found = {name: tensor.detach().numpy() for name, tensor in answers.items()}
    return {**found, "lam_mod_mean": np.asarray(mean_lam(alpha))}
