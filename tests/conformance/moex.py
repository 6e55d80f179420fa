"""Replays MoEx: each norm at a network's only site, and the labels alone and beside CutMix."""

import re
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, close, one_turn
from mixwell.sample.style.moex import ExchangeDraws

SOURCE = "official code"
INPUTS = ("x", "x_relu", "y", "num_classes", "perm", "lam", "logits", "g_out", "cutmix_lam")
COMPARE = {
    "out_pono_fp16": close(2e-3),
    "out_*_positive_only": close(1e-4),
    "out_gpono*": close(5e-5),  # two channels of a group may be all but equal, which amplifies rounding
    "loss*": close(2e-6),
    "*": close(1e-5),
}


class Net(nn.Module):
    """A site, and given logits behind it.

    Attributes:
        seen: the site's map as the network went on with it.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.site = nn.Identity()
        self.logits = logits
        self.seen = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.site(x)
        return self.logits


def box_covering(share: float) -> tuple[tuple[int, int], float, tuple[float, float]]:
    """Images, λ and a centre with which CutMix's clipped box covers the given share, up to a millionth.

    The images are narrow strips: 2m rows, of which the box of sides 1/m covers two, or one if the border clips it.
    """
    m = int(share**-0.5)
    rows = 2 if share * m * m >= 0.5 else 1
    covered = Fraction(share * 2 * m / rows).limit_denominator(2000)
    half = covered.denominator
    size = (2 * m, 2 * m * half)
    columns = covered.numerator * 2 * m
    centre = ((rows - 0.5) / size[0], (columns - half + 0.5) / size[1])
    return size, 1 - m**-2 - 1e-9, centre


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, perm, lam = case.tensor("x"), case.tensor("y"), case["perm"], float(case["lam"])
    classes = int(case["num_classes"])
    net = Net(case.tensor("logits"))
    draws = ExchangeDraws(True, perm)

    def exchanged(images, **options):
        given = "".join(f", {name}={value}" for name, value in options.items())
        recipe = mixwell.create(f"moex(site=site, lam={lam!r}{given})", num_classes=classes)
        return one_turn(recipe, net, images, y, statistics=draws)

    answers = {"loss": exchanged(x).loss.numpy()}
    for name in case.wanted:
        if found := re.fullmatch(r"out_(pono|in|ln|gn|gpono)(?:_d(\d+)|(\d+))?(_positive_only|_fp16)?", name):
            norm, size, count, suffix = found.groups()
            groups = {"channels_per_group": size} if size else {"groups": count} if count else {}
            images = x.half() if suffix == "_fp16" else case.tensor("x_relu") if suffix else x
            exchanged(images, norm=norm, positive_only=suffix == "_positive_only", **groups)
            answers[name] = net.seen.numpy()
        elif found := re.fullmatch(r"grad_x_(pono|in|ln)", name):
            images = x.clone().requires_grad_()
            exchanged(images, norm=found[1])
            (gradient,) = torch.autograd.grad((net.seen * case.tensor("g_out")).sum(), images)
            answers[name] = gradient.numpy()

    size, drawn, centre = box_covering(1 - float(case["cutmix_lam"]))
    recipe = mixwell.create(f"cutmix(per=batch) + moex(site=site, lam={lam!r}, norm=in)", num_classes=classes)
    strips = torch.zeros(len(x), 1, *size)
    # MoEx takes the mix's partners; its own, which would be wrong here, are the rows themselves.
    own = ExchangeDraws(True, np.arange(len(x)))
    given = {"pairing": perm, "ratio": np.array([drawn]), "blend": np.array([centre])}
    answers["loss_cutmix_moex"] = one_turn(recipe, net, strips, y, statistics=own, **given).loss.numpy()
    return answers
