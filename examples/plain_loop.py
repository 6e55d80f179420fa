"""A recipe in a training loop of one's own.

python examples/plain_loop.py [--steps 20] [--recipe cutmix] [--model resnet18]
"""

import argparse

import torch

import mixwell
from mixwell.data import Loader, load
from mixwell.nets import create_net

parser = argparse.ArgumentParser(description="Train a network with a recipe in a plain loop.")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--recipe", default="cutmix")
parser.add_argument("--model", default="torchvision/resnet18", help="cnn-s, or a name of timm or torchvision")
options = parser.parse_args()

data = load("fashion-mini")
loader = Loader(data.train, batch_size=32, pixels=data.pixels)
model = create_net(options.model, data.num_classes)
recipe = mixwell.create(options.recipe, data.num_classes)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

for step, batch in zip(range(options.steps), loader.epoch(0), strict=False):
    loss = recipe(model, batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.3f}")
