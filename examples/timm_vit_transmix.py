"""TransMix on a timm ViT: labels follow the attention of the pass that is being trained.

python examples/timm_vit_transmix.py [--steps 10]
"""

import argparse

import timm
import torch

import mixwell
from mixwell.data import Loader, load

parser = argparse.ArgumentParser(description="Train a timm ViT with CutMix and TransMix.")
parser.add_argument("--steps", type=int, default=10)
options = parser.parse_args()

data = load("fashion-mini")
loader = Loader(data.train, batch_size=32, pixels=data.pixels)
model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, depth=4, num_classes=data.num_classes)
recipe = mixwell.create("cutmix + transmix", data.num_classes)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)

for step, batch in zip(range(options.steps), loader.epoch(0), strict=False):
    (turn,) = recipe.turns(model, batch)
    optimizer.zero_grad()
    turn.loss.backward()
    optimizer.step()
    own = turn.targets.weights[:, 0].mean()
    print(f"step {step}: loss {turn.loss.item():.3f}, mean share of the images' own labels {own:.2f}")

resnet = timm.create_model("resnet18", num_classes=data.num_classes)
try:
    recipe.bind(resnet)
except mixwell.IncompatibleRecipe as error:
    print(f"A ResNet has no attention, so it is refused: {error}")
