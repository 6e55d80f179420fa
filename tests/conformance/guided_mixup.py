"""Replays GuidedMixup: both variants as recipes; the network of "ap" has a loss with the golden's gradients."""

import numpy as np
import torch
from torch import Tensor

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.core.batch import Pixels
from mixwell.ops.saliency import spectral_residual
from mixwell.sample.saliency.guided_mixup import distances, pixel_shares, ratio_map

SOURCE = "official code"
INPUTS = ("images_norm", "labels", "grad_saliency", "big_images_u8", "big_norm_*", "logits", "loss_target_key")
COMPARE = {
    "*/perm": equal(),
    "*sr_*": close(1e-7, rtol=1e-4),
    "*/saliency_norm": close(1e-9, rtol=1e-4),
    "*/distance": close(1e-8, rtol=1e-4),
    "*": close(1e-5, rtol=1e-5),
}


class Planted(GivenLogits):
    """Given logits, whose loss has gradients of the given size with respect to the images, up to a factor per row."""

    def __init__(self, logits: Tensor, size: Tensor) -> None:
        super().__init__(logits)
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        self.images = images.detach()
        if not images.requires_grad:
            return self.logits
        lever = (images * self.size[:, None]).sum((1, 2, 3))
        return self.logits + torch.nn.functional.pad((lever - lever.detach())[:, None], (0, self.logits.shape[1] - 1))


def replay(case: Case) -> dict[str, np.ndarray]:
    images, labels = case.tensor("images_norm"), case.tensor("labels")
    maps = {"sr": spectral_residual(images), "ap": case.tensor("grad_saliency")}
    raw = spectral_residual(images[: case.wanted.get("sr_raw", (0,))[0]], smooth=False)
    pixels = Pixels(tuple(case["big_norm_mean"].tolist()), tuple(case["big_norm_std"].tolist()))
    big = spectral_residual(pixels.normalise(case.tensor("big_images_u8") / 255))
    answers = {"sr_raw": raw, "sr_saliency": maps["sr"], "big_sr_saliency_s2": big[:, ::2, ::2]}
    scored = str(case["loss_target_key"]).partition("/")[0]
    for variant, saliency in maps.items():
        net = Planted(case.tensor("logits"), saliency)
        for criterion, key in (("softmax_bce", "loss_bce_softmax"), ("cross_entropy", "loss_soft_ce")):
            text = f"guided_mixup(variant={variant}, criterion={criterion}, prob=1.0)"
            turn = one_turn(mixwell.create(text, num_classes=net.logits.shape[1]), net, images, labels)
            if variant == scored:
                answers[key] = turn.loss
        perm, shares = turn.targets.sources[:, 1], pixel_shares(saliency)
        found = {
            "saliency_norm": shares,
            "distance": distances(shares),
            "perm": perm,
            "ratio": turn.targets.weights[:, 0],
            "target": turn.targets.dense(),
            "mixed": net.images,
            "mask": ratio_map(shares, shares[perm]),
        }
        answers |= {f"{variant}/{key}": value for key, value in found.items()}
    # The golden holds the first rows of some.
    return {
        key: answers[key][: shape[0]].numpy() if shape else answers[key].numpy() for key, shape in case.wanted.items()
    }
