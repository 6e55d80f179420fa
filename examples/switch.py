"""Several recipes in turn: one is drawn for every batch.

python examples/switch.py [--steps 20]
"""

import argparse

import torch

import mixwell
from mixwell.data import Loader, load
from mixwell.nets import create_net

parser = argparse.ArgumentParser(description="Train with a switch between recipes.")
parser.add_argument("--steps", type=int, default=20)
options = parser.parse_args()

data = load("fashion-mini")
loader = Loader(data.train, batch_size=32, pixels=data.pixels)
model = create_net("cnn-s", data.num_classes)
# Two in five batches are mixed linearly, two are cut, one is left as it is.
recipe = mixwell.create("0.4*mixup(alpha=0.8) | 0.4*(k_mixup + cutmix) | 0.2*none", data.num_classes)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
print(f"{recipe}: {len(recipe.options)} options with weights {recipe.weights}")

for step, batch in zip(range(options.steps), loader.epoch(0), strict=False):
    (turn,) = recipe.turns(model, batch)
    optimizer.zero_grad()
    turn.loss.backward()
    optimizer.step()
    print(f"step {step}: loss {turn.loss.item():.3f}, images per label {turn.targets.sources.shape[1]}")
