"""Replays Attentive CutMix with a teacher that gives the golden's features: heat maps, cells, masks, mixes, losses."""

import re

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.core.axes import Scene
from mixwell.core.mix import Mix, Partners
from mixwell.sample.saliency.attentive_cutmix import heat_map

SOURCE = "independent reference, with a third party's selection and paste"
INPUTS = ("images_norm", "features", "labels", "perm", "grid", "logits")
COMPARE = {
    "*/grid_mask": equal(),
    "*/mask_full": equal(),
    "*/mixed": equal(),
    "*/lam_*": close(1e-7),
    "*/loss_*": close(1e-6),
    "*/heatmap": close(1e-6),
}


class GivenMap(nn.Module):
    """Gives the same map whatever it is fed."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        return self.features


class GivenTeacher(nn.Module):
    """A classifier whose only stage gives the golden's features."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.layer1 = GivenMap(features)
        self.fc = nn.Linear(features.shape[1], 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.layer1(images).mean((2, 3)))


def replay(case: Case) -> dict[str, np.ndarray]:
    images, labels, features = case.tensor("images_norm"), case.tensor("labels"), case.tensor("features")
    grid, classes = int(case["grid"]), case["logits"].shape[1]
    scene = Scene(mixwell.Batch(images, labels))

    def recipe_of(reduce: str, k: str, label: str = "area") -> mixwell.Recipe:
        recipe = mixwell.create(f"attentive_cutmix(top_k={k}, grid={grid}, reduce={reduce}, label={label})", classes)
        recipe.options[0].blend.teacher.use(GivenTeacher(features))
        return recipe

    def mix_of(reduce: str, k: str, label: str = "area") -> Mix:
        partners = Partners.at(case.tensor("perm")[:, None], labels)
        no_lam = torch.full((1,), torch.nan)
        return recipe_of(reduce, k, label).options[0].blend.mix(images, partners, no_lam, None, scene)

    out: dict[str, np.ndarray] = {}
    for name in case.wanted:
        if name.endswith("/heatmap"):
            out[name] = heat_map(features, name.removesuffix("/heatmap")).numpy()
            continue
        reduce, k, what = re.fullmatch(r"(\w+)/k(\d+)/(\w+)", name).groups()
        if what.startswith("loss_"):
            model = GivenLogits(case.tensor("logits"))
            recipe = recipe_of(reduce, k, what.removeprefix("loss_"))
            out[name] = one_turn(recipe, model, images, labels, pairing=case["perm"]).loss.double().numpy()
        elif what == "lam_nominal":
            out[name] = mix_of(reduce, k, "nominal").weights[0, 0].double().numpy()
        else:
            mix = mix_of(reduce, k)
            found = {
                "grid_mask": recipe_of(reduce, k).options[0].blend.cells(scene).byte(),
                "mask_full": mix.masks[:, :1].byte(),
                "lam_area": mix.weights[:, 0],
                "mixed": mix.images,
            }
            out[name] = found[what].numpy()
    return out
