"""Replays TransformMix with the golden's teacher and what its module would have said: maps, warps, masks, mix, loss."""

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, GivenLogits, close, one_turn
from mixwell.nets.transform_mixer import mask_of
from mixwell.ops.affine import warped
from mixwell.sample.saliency.transformmix import LearnedTransform

SOURCE = "independent reference"
INPUTS = (
    "images_u8",
    "labels",
    "perm",
    "lam",
    "teacher_feature",
    "teacher_fc_*",
    "theta",
    "mask_logit",
    "tau",
    "teacher_logits_mix",
)
COMPARE = {"*cam*": close(2e-6), "img_mix": close(1e-5), "loss*": close(1e-6), "*": close(1e-12)}


class Given(nn.Module):
    """Gives the same map whatever it is fed."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        return self.features


class GivenTeacher(nn.Module):
    """A classifier whose only stage gives the golden's features."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        weight, bias = (nn.Parameter(case.tensor(f"teacher_fc_{name}").float()) for name in ("weight", "bias"))
        self.layer1 = Given(case.tensor("teacher_feature").float())
        self.fc = nn.Linear(weight.shape[1], len(weight))
        self.fc.weight, self.fc.bias = weight, bias

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.layer1(images).mean((2, 3)))


def replay(case: Case) -> dict[str, np.ndarray]:
    images, labels, perm = case.tensor("images_u8").float() / 255, case.tensor("labels"), case.tensor("perm")
    theta, logits, tau = case.tensor("theta"), case.tensor("mask_logit"), float(case["tau"])
    model = GivenLogits(case.tensor("teacher_logits_mix"))

    recipe = mixwell.create(f"transformmix(tau={tau!r})", num_classes=model.logits.shape[1])
    blend: LearnedTransform = recipe.options[0].blend
    blend.teacher.use(GivenTeacher(case))
    blend.use(lambda maps, partner, lam: (theta, logits))
    cam = blend.seen(images, labels, None)[:, 0]
    turn = one_turn(recipe, model, images, labels, pairing=case["perm"], ratio=case["lam"])

    wide, maps = case.tensor("images_u8").double() / 255, cam.double()[:, None]
    moved = {"a": warped(wide, theta[:, 0]), "b": warped(wide[perm], theta[:, 1])}
    moved_maps = {"a": warped(maps, theta[:, 0]), "b": warped(maps[perm], theta[:, 1])}
    out = {
        "cam": cam,
        "mask": mask_of(logits, (images.shape[2], images.shape[3]), tau)[:, 0],
        "img_mix": model.images,
        "loss": turn.loss,
        "loss_per_sample": recipe.options[0].criterion.rows(model.logits, turn.targets),
    }
    for side in "ab":
        out[f"warp_{side}_first"] = moved[side][: case.wanted[f"warp_{side}_first"][0]]
        out[f"warped_cam_{side}"] = moved_maps[side][:, 0]
    return {name: torch.as_tensor(value).numpy() for name, value in out.items()}
