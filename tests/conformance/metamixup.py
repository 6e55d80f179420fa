"""Replays MetaMixUp on softmax regression: the virtual step, the slope of λ, and the real step on the new mix."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, close, one_turn
from mixwell.label.ratio.metamixup import look_ahead
from mixwell.sample.linear.mixup import linear

SOURCE = "independent reference (finite differences and automatic differentiation agree)"
INPUTS = ("x", "y", "perm", "W", "b", "x_val", "y_val", "lam_init", "lr_inner", "lr_lam")
COMPARE = {"*": close(1e-7, rtol=1e-7)}


class Regression(nn.Module):
    """x·W + b.

    Attributes:
        seen: what it was fed, pass by pass.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x @ self.W + self.b


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, perm, lam = (case.tensor(name) for name in ("x", "y", "perm", "lam_init"))
    kept = mixwell.Batch(case.tensor("x_val"), case.tensor("y_val"))
    net = Regression(case.tensor("W"), case.tensor("b"))
    classes, inner, eta = net.b.numel(), float(case["lr_inner"]), float(case["lr_lam"])

    def loss(lam: Tensor, weights: dict[str, Tensor]) -> Tensor:
        logits = linear(x, x[perm], lam) @ weights["W"] + weights["b"]
        return (lam * F.cross_entropy(logits, y, reduction="none")).mean() + (
            (1 - lam) * F.cross_entropy(logits, y[perm], reduction="none")
        ).mean()

    def held_out_loss(weights: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(kept.images @ weights["W"] + weights["b"], kept.labels)

    ahead = look_ahead(lam, dict(net.named_parameters()), inner, loss, held_out_loss)

    recipe = mixwell.create(f"metamixup(eta={eta!r}, inner_lr={inner!r}, normalise=false)", classes)
    recipe.use_data(held_out=lambda: [kept]).bind(net, x)
    turn = one_turn(recipe, net, x, y, pairing=perm.numpy(), ratio=lam.numpy())
    mixed = net.seen[-1].detach()
    turn.loss.backward()
    torch.optim.SGD(net.parameters(), lr=inner).step()
    answers = {
        "loss_train_init": ahead.loss,
        "grad_W_init": ahead.gradients["W"],
        "grad_b_init": ahead.gradients["b"],
        "W_lookahead": ahead.ahead["W"],
        "b_lookahead": ahead.ahead["b"],
        "loss_val": ahead.held_out_loss,
        "grad_lam": ahead.slope,
        "lam_new": turn.targets.weights[:, 0].double(),
        "x_mix_new": mixed,
        "y_mix_new": turn.targets.dense().double(),
        "loss_train_new": turn.loss.detach(),
        "W_final": net.W.detach(),
        "b_final": net.b.detach(),
    }
    return {name: tensor.numpy() for name, tensor in answers.items()}
