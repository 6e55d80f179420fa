"""Replays StyleMix, StyleCutMix and StyleCutMix-Auto with a small encoder and decoder: transfers, mixes, losses."""

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, GivenLogits, close, one_turn
from mixwell.core.mix import Partners
from mixwell.core.turns import Turn
from mixwell.ops.moments import adain
from mixwell.sample.style.stylemix import (
    BoxDraws,
    MapDraws,
    StyleTransfer,
    mixed_maps,
    strength,
    style_distances,
    style_vectors,
    styles_of,
)

SOURCE = "official code"
INPUTS = (
    *("x", "y", "num_classes", "perm", "logits", "r", "enc*", "dec1_*", "dec2_*"),
    *("mix_rc", "mix_rs", "mix_t", "cut_box", "cut_lam_draw", "cut_rs", "cut_gamma", "delta"),
)
COMPARE = {"*": close(1e-6, rtol=1e-6)}


def conv(case: Case, name: str) -> nn.Conv2d:
    weight = case.tensor(f"{name}_w")
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, padding_mode="reflect")
    layer.load_state_dict({"weight": weight, "bias": case.tensor(f"{name}_b")})
    return layer.requires_grad_(False)


def networks(case: Case) -> tuple[nn.Module, nn.Module]:
    pool, up = nn.MaxPool2d(2, ceil_mode=True), nn.Upsample(scale_factor=2)
    encoder = nn.Sequential(conv(case, "enc1"), nn.ReLU(), pool, conv(case, "enc2"), nn.ReLU())
    return encoder, nn.Sequential(conv(case, "dec1"), nn.ReLU(), up, conv(case, "dec2"))


def centre_of(box: np.ndarray, lam: float, size: tuple[int, ...]) -> np.ndarray:
    """The drawn centre of a box that was clipped at the border, in the middle of its pixel."""
    centre = []
    for low, high, side in zip(box[:2], box[2:], size, strict=True):
        half = int(side * np.sqrt(lam)) // 2
        middle = low + half if low else high - half
        centre.append((middle + 0.5) / side)
    return np.array([centre])


class Step:
    """One step of a variant under given draws.

    Attributes:
        images: the mixed images.
        loss: of the given logits.
        own: label share of each row itself.
    """

    def __init__(self, case: Case, parameters: str, r: float, lam: float, blend: object) -> None:
        x, labels = case.tensor("x"), case.tensor("y")
        net = GivenLogits(case.tensor("logits"))
        text = f"stylemix({parameters}, r={r}, prob=1, per=batch)"
        recipe = mixwell.create(text, int(case["num_classes"]))
        recipe.options[0].blend.use(*networks(case))
        recipe.prepare(lambda: [mixwell.Batch(x, labels)], "golden")
        turn: Turn = one_turn(recipe, net, x, labels, pairing=case["perm"], ratio=np.array([lam]), blend=blend)
        assert net.images is not None, "the network was run"
        self.images, self.loss, self.own = net.images.numpy(), turn.loss.numpy(), turn.targets.weights[:, 0].numpy()


def replay(case: Case) -> dict[str, np.ndarray]:
    x, labels, r = case.tensor("x"), case.tensor("y"), float(case["r"])
    transfer = StyleTransfer()
    transfer.use(*networks(case))
    features = transfer.maps(x)[-1]
    partners = Partners.at(case.tensor("perm")[:, None], labels)
    other = partners.of(features)
    styled: tuple[Tensor, Tensor] = adain(features, other), adain(other, features)

    content, style, both = (case.tensor(name).view(1) for name in ("mix_rc", "mix_rs", "mix_t"))
    least, most = (content + style - 1).clamp_min(0), torch.minimum(content, style)
    draws = MapDraws(style.numpy(), ((both - least) / (most - least)).numpy())
    mix = Step(case, "stylemix", r, float(content), draws)

    lam, box_style, gamma = (float(case[name]) for name in ("cut_lam_draw", "cut_rs", "cut_gamma"))
    centres = centre_of(case["cut_box"], lam, tuple(x.shape[2:]))
    drawn = BoxDraws(np.array([box_style]), np.array([gamma]), centres)
    cut, content_only, style_only = (Step(case, "stylecutmix", w, lam, drawn) for w in (r, 1.0, 0.0))

    delta = float(case["delta"])
    by_class = BoxDraws(np.array([box_style]), None, centres)
    auto, auto_style = (Step(case, f"auto, delta={delta}", w, lam, by_class) for w in (r, 0.0))
    vectors = style_vectors([(styles_of([features]), labels)], int(case["num_classes"]))
    distances = style_distances(vectors)
    return {
        "feat": features.numpy(),
        "adain_c1_s2": styled[0].numpy(),
        "adain_c2_s1": styled[1].numpy(),
        "decoded_c1_s2": transfer.image(styled[0], x).numpy(),
        "decoded_c2_s1": transfer.image(styled[1], x).numpy(),
        "mix_feat": mixed_maps(features, other, content, style, both).numpy(),
        "mix_img": mix.images,
        "mix_loss": mix.loss,
        "cut_lam": np.asarray(content_only.own[0], np.float64),
        "cut_lam_s": np.asarray(style_only.own[0], np.float64),
        "cut_img": cut.images,
        "cut_loss": cut.loss,
        "style_vectors": vectors.float().numpy(),
        "style_distance": distances.numpy(),
        "auto_gamma": strength(distances, labels, labels[partners.column()], delta).numpy(),
        "auto_lam_s": auto_style.own,
        "auto_img": auto.images,
        "auto_loss": auto.loss,
    }
