"""Replays AutoMix (barycenter): the U-Net with formula weights, distances, and the loss of one step of the recipe."""

import re

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.core.turns import Turn
from mixwell.nets.barycenter_unet import BarycenterUNet, split_channels
from mixwell.sample.generative.automix_barycenter import UNetDraws, distances

SOURCE = "official code"
INPUTS = (
    *("images_u8", "mean", "std", "labels_onehot", "indices", "lam", "logits"),
    *("clean_features", "clean_perm", "unet_out_q64", "unet_param_order", "unet_perm_level*"),
)
SKIPPED = {
    "unet_num_params": "counts gates on the way up that the official network never uses; ours does not have them, and "
    "all other parameters are compared through unet_out_formula_weights"
}
COMPARE = {
    "clean_*": equal(),
    "unet_out_formula_weights": close(2e-4),
    "x_mix_check_first": close(1e-5),
    "*": close(1e-5),
}


class GivenImages(nn.Module):
    """A U-Net that returns given images."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images

    def forward(self, images: Tensor, *args: object) -> Tensor:
        return self.images


def parameter(net: BarycenterUNet, name: str) -> Tensor | None:
    """Ours by the official name; None for the gates that the official network does not use."""
    kind = name.rpartition(".")[2]
    part = re.match(
        r"(inc|outc|[a-z]+(\d))\.(?:maxpool_conv\.1\.|conv\.(?=[ds]))?(double_conv|se\.fc|up|conv)\.?(\d?)", name
    )
    assert part is not None, name
    block, level, layer = part[1].rstrip("0123456789"), int(part[2] or 1) - 1, int(part[4] or 0)
    if block == "outc":
        return getattr(net.out[layer], kind)
    if part[3] == "se.fc":
        if block not in ("inc", "down"):
            return None
        gate = net.downs[level + (block == "down")][1]
        return (gate.excite if layer else gate.squeeze).weight
    if block == "up":
        level = len(net.ups) - 1 - level
        return getattr(net.ups[level] if part[3] == "up" else net.joins[level][layer], kind)
    convs = net.merges[level] if block == "merge" else net.downs[level + (block == "down")][0]
    return getattr(convs[layer], kind)


def by_formula(order: np.ndarray) -> BarycenterUNet:
    """The network with the golden's weights: cosines of each parameter's number and of the place in it."""
    shapes = [(name, tuple(map(int, shape.split("x")))) for name, shape in (line.split(":") for line in order)]
    known = dict(shapes)
    net = BarycenterUNet(known["inc.double_conv.0.weight"][1], known["inc.double_conv.0.weight"][0])
    for number, (name, shape) in enumerate(shapes):
        found = parameter(net, name)
        if found is None:
            continue
        assert tuple(found.shape) == shape, f"{name}: {tuple(found.shape)}, not {shape}"
        wave = torch.cos(0.7390851 * torch.arange(found.numel(), dtype=torch.float64) + 1.3 * number).view(shape)
        if len(shape) > 1:
            wave = wave * 1.5 / np.sqrt(found[0].numel())
        else:
            wave = 1 + 0.2 * wave if name.endswith("weight") else 0.1 * wave
        found.data = wave.float()
    return net


class Run:
    """The recipe with given answers of U-Net and classifier."""

    def __init__(self, case: Case) -> None:
        mean, std = (tuple(case[name].tolist()) for name in ("mean", "std"))
        self.pixels = mixwell.Pixels(mean, std)
        self.images = self.pixels.normalise(case.tensor("images_u8").float() / 255)
        self.half = len(case["indices"])
        self.labels, self.lam = case.tensor("labels_onehot"), case["lam"].reshape(1).astype(np.float64)
        self.pairing = np.concatenate((case["indices"], np.arange(self.half, len(self.images))))
        self.net = GivenLogits(case.tensor("logits"))
        self.rendered = case.tensor("unet_out_q64").float() / 64

    def turn(self, **options: object) -> Turn:
        given = ", ".join(f"{name}={value}" for name, value in {"rule": "code", "per": "batch", **options}.items())
        recipe = mixwell.create(f"automix_barycenter({given})", self.labels.shape[1], pixels=self.pixels)
        recipe.bind(self.net, self.images)
        recipe.options[0].blend.unet = GivenImages(self.rendered)
        draws = {"pairing": self.pairing, "ratio": self.lam, "blend": UNetDraws(())}
        return one_turn(recipe, self.net, self.images, self.labels, **draws)


def replay(case: Case) -> dict[str, np.ndarray]:
    run = Run(case)
    first = run.turn(rec_weight=1.5)
    made, own = run.net.images[: run.half], run.images[: run.half]
    other = own[torch.from_numpy(case["indices"])]
    share = torch.from_numpy(run.lam)
    answers = {
        "x_mix_check_first": made[:1],
        "norm1_a": distances(own, made, "norm1"),
        "norm1_b": distances(other, made, "norm1"),
        "norm2_a": distances(own, made, "norm2"),
        "kl_a": distances(own, made, "kl"),
        "kl_b": distances(other, made, "kl"),
        "js_a": distances(own, made, "js"),
        "targets": first.targets.dense(),
        "cls_loss": first.parts["criterion"],
        "total_loss": first.loss.detach(),
    }
    for kind in (1, 2, 3):
        answers[f"rec_type{kind}"] = run.turn(rec_weight=1, recon_type=kind).parts["automix_barycenter"]

    partner, features = torch.from_numpy(case["indices"]), case.tensor("clean_features")
    places = case.tensor("clean_perm")[None]
    answers["clean_a"], answers["clean_b"] = split_channels(features, partner, places, share)
    ones = torch.ones_like(features[:1])
    answers["clean_mask"] = split_channels(ones, partner.new_zeros(1), places, share)[0][0, :, 0, 0]
    levels = sorted(name for name in case if name.startswith("unet_perm_level"))
    with torch.no_grad():
        unet = by_formula(case["unet_param_order"])
        answers["unet_out_formula_weights"] = unet(own, partner, [case.tensor(name)[None] for name in levels], share)
    return {name: tensor.numpy() for name, tensor in answers.items()}
