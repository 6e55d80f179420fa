"""Segmentation: the recipe mixes images, and `mixed.apply` mixes their maps of classes in the same way.

python examples/segmentation.py [--steps 200] [--recipe cutmix]
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import mixwell

parser = argparse.ArgumentParser(description="Train a network that labels pixels.")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--recipe", default="cutmix", help="a recipe that needs no network")
options = parser.parse_args()

torch.manual_seed(0)
digits = load_digits()
images = F.interpolate(torch.from_numpy(digits.images).float()[:, None] / 16, scale_factor=2, mode="bilinear")
digit = torch.from_numpy(digits.target).long()
maps = torch.where(
    images[:, 0] > 0.4, digit[:, None, None] + 1, 0
)  # 0 is the ground, 1 to 10 the strokes of each digit
images, test_images, maps, test_maps = images[:1500], images[1500:], maps[:1500], maps[1500:]


def block(inside: int, outside: int, dilation: int) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, 3, padding=dilation, dilation=dilation)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU())


model = nn.Sequential(block(1, 32, 1), block(32, 32, 2), block(32, 32, 4), block(32, 32, 4), nn.Conv2d(32, 11, 1))
recipe = mixwell.create(options.recipe, 10)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for _ in range(options.steps):
    rows = torch.randint(len(images), (64,))
    mixed = recipe.mixed(images[rows], digit[rows])
    if options.recipe.startswith("cutmix"):
        wanted = mixed.apply(maps[rows])  # pixels are copied, so class ids stay class ids
    else:
        wanted = mixed.apply(F.one_hot(maps[rows], 11).movedim(-1, 1).float())  # shares of classes
    loss = F.cross_entropy(model(mixed.images), wanted)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

model.eval()
with torch.no_grad():
    guess = model(test_images).argmax(1)
strokes = test_maps > 0
print(f"{recipe}: {(guess == test_maps)[strokes].float().mean():.1%} of the strokes' pixels are labelled rightly")
