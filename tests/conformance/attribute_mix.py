"""Replays Attribute Mix with a small given miner, in fp64."""

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, close, equal
from mixwell.core.rng import Streams
from mixwell.nets.attribute_head import multi_hot

SOURCE = "independent reference"
INPUTS = ("images", "labels", "perm", "k_draw", "K", "tau", "pool", "W1", "b1", "W2")
COMPARE = {
    "masks": equal(),
    "multi_hot": equal(),
    "mixed": close(1e-7),
    "raw_maps": close(1e-6),  # the golden keeps its images in fp32
    "saliency": close(1e-6),
    "target": close(1e-7),
    "*": close(1e-7),
}


class Miner(nn.Module):
    """The golden's encoder, with a classifier of its own."""

    def __init__(self, weight: Tensor, bias: Tensor, pool: int, classes: int) -> None:
        super().__init__()
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
        self.layer1 = nn.Sequential(nn.AvgPool2d(pool), conv, nn.ReLU())
        self.fc = nn.Linear(weight.shape[0], classes)
        self.double()
        with torch.no_grad():
            conv.weight.copy_(weight[:, :, None, None])
            conv.bias.copy_(bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.layer1(images).mean((2, 3)))


def replay(case: Case) -> dict[str, np.ndarray]:
    images, labels = case.tensor("images").double(), case.tensor("labels")
    attributes, weight = int(case["K"]), case.tensor("W2")
    classes = len(weight) // attributes
    net = Miner(case.tensor("W1"), case.tensor("b1"), int(case["pool"]), classes)
    text = f"attribute_mix(attributes={attributes}, threshold={float(case['tau'])}, prob=1)"
    recipe = mixwell.create(text, classes).bind(net, images)
    (option,) = recipe.options
    with torch.no_grad():
        option.blend.head.maps.weight.copy_(weight)
        nn.init.zeros_(option.blend.head.maps.bias)

    batch = mixwell.Batch(images, labels)
    draws = option.draw(len(images), Streams(0), 0)
    draws.of.update({option.pairing: case["perm"], option.blend: case["k_draw"]})
    scene = mixwell.Scene(batch, draws, mixwell.Views(mixwell.Probe(net), batch, option.view_wants))
    mix = option.mix(images, scene)
    targets = option.targets(mixwell.Step(scene, mix, mixwell.Outputs(torch.zeros(len(images), classes))))

    everyone, to_the_end = torch.arange(len(images)), np.full(len(images), attributes - 1)
    rounds = list(option.blend.mine(everyone, to_the_end, scene))
    saliency = torch.stack([found.saliency for found in rounds], 1)
    own = mixwell.Targets.of(labels, classes).dense()
    return {
        "raw_maps": torch.stack([found.maps for found in rounds], 1).numpy(),
        "saliency": saliency[: case.wanted["saliency"][0]].numpy(),
        "masks": torch.stack([found.masks for found in rounds], 1).to(torch.uint8).numpy(),
        "mixed": mix.images.numpy(),
        "lam": mix.weights[:, 0].double().numpy(),
        "target": targets.dense().double().numpy(),
        "multi_hot": multi_hot(own, attributes).to(torch.uint8).numpy(),
    }
