"""Replays AlignMixup: transport plans at several feature scales, mixes of both directions, and their gradients."""

import re

import numpy as np
import torch
from torch import nn

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.core.places import ByPlaceDraws
from mixwell.ops.sinkhorn import sinkhorn, squared_distances

SOURCE = "official code"
INPUTS = ("y", "num_classes", "lam", "perm", "logits", "g_out", "*_x")
COMPARE = {  # a plan's entries are only as exact as fp32 costs divided by ε = 0.1
    "*_iters": equal(),
    "loss": close(1e-6),
    "soft_*": close(1e-5, 1e-5),
    "hard_*": close(1e-3, 1e-3),
    "*": close(5e-5, 1e-5),
}


class Net(nn.Module):
    """A network whose only stage hands on what it is given; `map` is what it then goes on with."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layer1 = nn.Identity()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.map = self.layer1(x)
        return self.fc(self.map.mean((2, 3)))


def replay(case: Case) -> dict[str, np.ndarray]:
    labels, classes, perm = case.tensor("y"), int(case["num_classes"]), torch.from_numpy(case["perm"])
    pair = {"pairing": case["perm"], "ratio": case["lam"].reshape(1).astype(np.float64)}
    recipe, answers = mixwell.create("alignmixup(sites=(1,), per=batch)", classes), {}
    for scale in sorted(match[1] for name in case if (match := re.fullmatch(r"(.+)_x", name))):
        x = case.tensor(f"{scale}_x")
        net = Net(x.shape[1], classes)
        cost = squared_distances(x.flatten(2), x[perm].flatten(2))
        plan, iterations = sinkhorn(cost)
        answers |= {f"{scale}_C": cost.numpy(), f"{scale}_P": plan.numpy(), f"{scale}_iters": iterations.numpy()}
        for direction in (0, 1):
            images = x.clone().requires_grad_()
            one_turn(recipe, net, images, labels, place=0, blend=ByPlaceDraws(None, direction == 1), **pair)
            (gradient,) = torch.autograd.grad(net.map, images, case.tensor("g_out"))
            answers[f"{scale}_out{direction}"] = net.map.detach().numpy()
            answers[f"{scale}_grad{direction}"] = gradient.numpy()
    recipe = mixwell.create("alignmixup(sites=(0,), per=batch)", classes)
    turn = one_turn(
        recipe, GivenLogits(case.tensor("logits")), x, labels, place=0, blend=ByPlaceDraws(None, False), **pair
    )
    return answers | {"loss": turn.loss.numpy()}
