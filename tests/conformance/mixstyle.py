"""Replays MixStyle: the official module at a network's only site, with its draws of both modes."""

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, close, one_turn
from mixwell.ops.moments import moments
from mixwell.sample.style.mixstyle import StyleDraws, across_halves

SOURCE = "official code"
INPUTS = ("x", "g_out", "alpha", "eps", "*_lam", "random_perm", "cross_sub1", "cross_sub2")
COMPARE = {"*_perm": close(0), "*": close(2e-6, rtol=1e-6)}


class Net(nn.Module):
    """A site, and logits behind it.

    Attributes:
        seen: the site's map as the network went on with it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.site = nn.Identity()
        self.seen = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.site(x)
        return self.seen.mean((2, 3))


def replay(case: Case) -> dict[str, np.ndarray]:
    x, eps, net = case.tensor("x"), float(case["eps"]), Net()
    mean, std = moments(x, (2, 3), eps)
    perms = {"random": case["random_perm"], "crossdomain": across_halves(case["cross_sub1"], case["cross_sub2"])}
    answers = {
        "mu": mean.flatten(1).numpy(),
        "sig": std.flatten(1).numpy(),
        "crossdomain_perm": perms["crossdomain"],
    }
    for mode, perm in perms.items():
        text = f"mixstyle(alpha={float(case['alpha'])!r}, sites=(site,), mode={mode}, eps={eps!r})"
        draws = StyleDraws(np.array([True]), case[f"{mode}_lam"][None], perm[None])
        images = x.clone().requires_grad_()
        one_turn(mixwell.create(text), net, images, torch.zeros(len(x), dtype=torch.int64), statistics=draws)
        (net.seen * case.tensor("g_out")).sum().backward()
        answers[f"{mode}_out"] = net.seen.detach().numpy()
        answers[f"{mode}_grad_x"] = images.grad.numpy()
    return answers
