"""Replays Saliency Grafting: one p per batch, in a network whose last stage gives the golden's features."""

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell import Batch, Draws, Probe, Scene, Step, Views
from mixwell.conformance import Case, close, equal
from mixwell.core.mix import Partners
from mixwell.label.saliency.saliency_grafting import importance, relative, salient_regions, tempered

SOURCE = "independent reference, in fp64"
INPUTS = ("x", "y", "perm", "temperature", "features", "p_bernoulli", "bernoulli")
COMPARE = {
    "salient_binary": equal(),
    "mask": equal(),
    "mask_up": equal(),
    "x_mix": equal(),
    "saliency": close(1e-5, rtol=1e-6),
    "*": close(1e-6, rtol=1e-6),
}


class Net(nn.Module):
    """A network whose only stage gives the golden's features."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features, self.layer1 = features, nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.layer1(self.features[: len(images)]).mean((2, 3))


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, perm = case.tensor("x"), case.tensor("y"), case.tensor("perm")
    net, classes = Net(case.tensor("features")), case.wanted["y_mix"][1]
    recipe = mixwell.create(f"saliency_grafting(temperature={float(case['temperature'])}, per=batch)", classes)
    (option,) = recipe.bind(net, example=x).options
    blend = option.blend
    blend.noise = lambda key, shape, device: 1 - case.tensor("bernoulli")  # p is between the two
    batch = Batch(x, y)
    scene = Scene(batch, Draws(), Views(Probe(net), batch, option.view_wants))
    p = case.tensor("p_bernoulli").reshape(1)
    mix = blend.mix(x, Partners.at(perm[:, None], y), p, 0, scene)
    targets = option.targets(Step(scene, mix, mixwell.Outputs(net(x))))

    saliency = blend.saliency.maps(scene)
    spread = tempered(relative(saliency), blend.temperature)
    pairs = mix.saliency[mix.sources]
    left = importance(pairs, torch.stack((mix.grafts, 1 - mix.grafts), 1))
    answers = {
        "saliency": saliency,
        "saliency_max_normalised": mix.saliency,
        "softmax_map": spread,
        "threshold": spread.mean((1, 2)),
        "salient_binary": salient_regions(spread).float(),
        "mask": mix.grafts,
        "mask_up": mix.masks[:, 0].to(torch.uint8),
        "x_mix": mix.images,
        "importance_i": left[:, 0],
        "importance_j": left[:, 1],
        "lam": targets.weights[:, 0],
        "y_mix": targets.dense(),
    }
    return {name: tensor.numpy() for name, tensor in answers.items()}
