"""Replays Manifold Mixup: the golden's small network, mixed in flight at the input and behind each of its stages."""

import re

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, close, one_turn

SOURCE = "official code"
INPUTS = ("x", "y", "num_classes", "lam", "perm", "conv*_w", "conv*_b", "fc_w", "fc_b")
COMPARE = {"target": close(1e-7), "*": close(2e-6, rtol=1e-5)}


def stage(weight: Tensor, bias: Tensor, stride: int) -> nn.Sequential:
    """A convolution and a ReLU."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride, padding=weight.shape[2] // 2)
    conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
    return nn.Sequential(conv, nn.ReLU())


class Net(nn.Module):
    """The golden's network; only its first stage keeps the resolution.

    Attributes:
        maps: what each stage and the head were last fed.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.depth = sum(bool(re.fullmatch(r"conv\d+_w", name)) for name in case)
        for i in range(1, self.depth + 1):
            self.add_module(
                f"layer{i}", stage(case.tensor(f"conv{i}_w"), case.tensor(f"conv{i}_b"), 1 if i == 1 else 2)
            )
        self.fc = nn.Linear(*reversed(case["fc_w"].shape))
        self.fc.weight, self.fc.bias = nn.Parameter(case.tensor("fc_w")), nn.Parameter(case.tensor("fc_b"))
        self.maps: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.maps = [x]
        for i in range(1, self.depth + 1):
            x = self.get_submodule(f"layer{i}")(x)
            self.maps.append(x)
        return self.fc(x.mean((2, 3)))


@torch.no_grad()
def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, classes = case.tensor("x"), case.tensor("y"), int(case["num_classes"])
    net = Net(case)
    sites = tuple(range(net.depth + 1))
    draws = {"pairing": case["perm"], "ratio": case["lam"].reshape(1).astype(np.float64)}
    answers = {}
    for short, criterion in (("ce", "cross_entropy"), ("bce", "softmax_bce")):
        recipe = mixwell.create(f"manifold_mixup(sites={sites}, criterion={criterion}, per=batch)", num_classes=classes)
        for site in sites:
            turn = one_turn(recipe, net, x, y, place=site, **draws)
            answers[f"mixed{site}"] = net.maps[site].numpy()
            answers[f"logits{site}"] = turn.logits.numpy()
            answers[f"loss_{short}{site}"] = turn.loss.numpy()
            answers["target"] = turn.targets.dense().numpy()
    probe = mixwell.Probe(net)
    wants = {site: mixwell.Want("features", site) for site in sites[1:]}
    clean = probe.run(x, wants=wants.values())
    return answers | {f"h{site}": clean[want].numpy() for site, want in wants.items()}
