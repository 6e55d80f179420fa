"""Replays MixPro: MaskMix with the golden's cells, labelled in a transformer that has the golden's attention."""

from math import isqrt

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, GivenAttention, GivenLogits, close, equal, one_turn
from mixwell.label.attention.mixpro import kept_cells, resemblance
from mixwell.ops.tokens import token_masks, token_shares

SOURCE = "official code (progressive labels transcribed from its training loop)"
INPUTS = (
    *("x", "y", "perm", "lam_raw", "cell_perm", "mask_patch", "model_patch"),
    *("attn_cls_heads", "logits", "num_classes", "smoothing"),
)
COMPARE = {
    "x_mixed": equal(),
    "mask_*": equal(),
    "loss*": close(1e-6, rtol=1e-6),
    "*": close(1e-6),
}


class Net(nn.Module):
    """A transformer with one block, whose class token looks as given, and whose logits are given.

    Attributes:
        images: what it was last fed.
    """

    def __init__(self, class_row: Tensor, logits: Tensor) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 1))
        tokens = class_row.shape[2]
        attention = torch.full((*class_row.shape[:2], tokens, tokens), 1 / tokens)
        attention[:, :, 0] = class_row
        self.blocks = nn.ModuleList([GivenAttention(attention)])
        self.logits = logits.clone().requires_grad_()
        self.images = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        self.blocks[0]()
        return self.logits


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y = case.tensor("x"), case.tensor("y")
    classes, smoothing = int(case["num_classes"]), float(case["smoothing"])
    lam, n = case["lam_raw"].reshape(1), isqrt(case["cell_perm"].shape[1])
    order = case["cell_perm"].argsort(1).reshape(-1, n, n) / n**2
    draws = {"pairing": case["perm"], "ratio": lam, "blend": order}

    def recipe(pal: bool, detach: bool = True, label_smoothing: float = 0.0) -> mixwell.Recipe:
        # A cell that is given as a patch has that many pixels, and those at the border are cut.
        text = f"mixpro(cells={n}, patch={int(case['mask_patch'])}, rule=code, pal={pal}, smoothing={smoothing}, "
        text += f"detach={detach}, prob=1, per=batch, masks=sample)"
        return mixwell.create(text, num_classes=classes, label_smoothing=label_smoothing)

    gradients = {}
    for name, detach in (("grad_logits", False), ("grad_logits_detached", True)):
        net = Net(case.tensor("attn_cls_heads"), case.tensor("logits"))
        turn = one_turn(recipe(True, detach), net, x, y, **draws)
        (gradients[name],) = torch.autograd.grad(turn.loss, net.logits)

    plain = recipe(False, label_smoothing=smoothing)
    by_area = one_turn(plain, GivenLogits(case.tensor("logits")), x, y, **draws)
    (option,) = plain.options
    given = mixwell.Draws({getattr(option, slot): value for slot, value in draws.items()})
    mix = option.mix(x, mixwell.Scene(mixwell.Batch(x, y), given))
    want = mixwell.Want("class_attention", -1)
    attention = mixwell.Probe(net).run(net.images, wants=[want])[want]
    target_area = by_area.targets.dense(smoothing=smoothing)
    patches = (x.shape[2] // int(case["model_patch"])) * (x.shape[3] // int(case["model_patch"]))
    answers = {
        "mask_cells": torch.from_numpy(kept_cells(order, lam).astype(np.uint8)),
        "mask_tokens": token_masks(mix.masks, patches)[:, 0].to(torch.uint8),
        "x_mixed": net.images,
        "lam_area": by_area.targets.weights[:, 0],
        "area_true": mix.masks[:, 0].mean((1, 2)),
        "target_area": target_area,
        "attn_cls": attention,
        "lam_attn": token_shares(mix.masks, attention)[:, 0],
        "cos_sim": resemblance(case.tensor("logits"), target_area),
        "lam_pal": turn.targets.weights[:, 0],
        "loss": turn.loss,
        "loss_maskmix_only": by_area.loss,
        **gradients,
    }
    return {name: tensor.detach().numpy() for name, tensor in answers.items()}
