"""Replays GradSalMix: the golden's small network, its gradients, and mixes at the input and behind its stages."""

import re
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, close, equal, one_turn
from mixwell.ops.boxes import boxes_at
from mixwell.sample.saliency.gradsalmix import gradient_saliency, salient_centres

SOURCE = "independent reference"
INPUTS = ("x", "y", "num_classes", "perm", "lam", "top_fraction", "conv*_w", "conv*_b", "fc_w", "fc_b", "s?_u")
COMPARE = {
    "s?_centre": equal(),
    "s?_box": equal(),
    "s?_out": close(1e-6, rtol=1e-6),
    "s?_saliency": close(1e-6, rtol=1e-5),
    "*": close(1e-5),
}

LOSSES = {"norm": "normalised", "raw": "raw", "area": "area"}


def stage(weight: Tensor, bias: Tensor, stride: int) -> nn.Sequential:
    """A convolution and a ReLU."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride, padding=weight.shape[2] // 2)
    conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
    return nn.Sequential(conv, nn.ReLU())


class Net(nn.Module):
    """The golden's network, whose first stage keeps the resolution.

    Attributes:
        maps: what each stage and the head were last fed.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.depth = sum(bool(re.fullmatch(r"conv\d+_w", name)) for name in case)
        for i in range(1, self.depth + 1):
            weight, bias = case.tensor(f"conv{i}_w"), case.tensor(f"conv{i}_b")
            self.add_module(f"layer{i}", stage(weight, bias, 1 if i == 1 else 2))
        self.fc = nn.Linear(*reversed(case["fc_w"].shape))
        self.fc.weight, self.fc.bias = nn.Parameter(case.tensor("fc_w")), nn.Parameter(case.tensor("fc_b"))
        self.maps: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for i in range(1, self.depth + 1):
            x = self.get_submodule(f"layer{i}")(x)
            maps.append(x)
        self.maps = maps  # at the end, since the mix looks at the clean batch meanwhile
        return self.fc(x.mean((2, 3)))


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, perm = case.tensor("x").double(), case.tensor("y"), case.tensor("perm")
    lam, top = case["lam"].reshape(-1).astype(np.float64), float(case["top_fraction"])
    net = Net(case).double()
    views = mixwell.Views(mixwell.Probe(net), mixwell.Batch(x, y), loss=partial(F.cross_entropy, reduction="sum"))
    sites = tuple(int(name[1:-2]) for name in case if re.fullmatch(r"s\d+_u", name))
    listed = ", ".join(f"{site}" for site in sites)
    answers = {}
    for i, site in enumerate(sites):
        points = case[f"s{site}_u"].astype(np.float64)
        saliency = gradient_saliency(views.gradient(site or "input"))
        centres = salient_centres(saliency[perm], torch.from_numpy(points), top)
        boxes = boxes_at(centres, np.sqrt(1 - lam), tuple(saliency.shape[1:]))
        answers |= {f"s{site}_saliency": saliency, f"s{site}_centre": centres, f"s{site}_box": boxes}
        for short, weights in LOSSES.items():
            text = f"gradsalmix(sites=({listed},), weights={weights}, top_fraction={top}, per=batch, prob=1.0)"
            recipe = mixwell.create(text, int(case["num_classes"]))
            turn = one_turn(recipe, net, x, y, place=i, pairing=case["perm"], ratio=lam, blend=points)
            answers[f"s{site}_w_{short}"] = turn.targets.weights[:, 0]
            answers[f"s{site}_loss_{short}"] = turn.loss.detach()
        answers |= {f"s{site}_out": net.maps[site].detach(), f"s{site}_logits": turn.logits}
    return {name: array.numpy() for name, array in answers.items() if name in case.wanted}
