"""Rows of a table and one-dimensional signals: methods that need no pixel grid mix any tensor (B, ...).

python examples/tabular_and_signals.py [--steps 100] [--recipe "bc(variant='bc+')"]
"""

import argparse

import torch
from sklearn.datasets import load_wine
from torch import Tensor, nn

import mixwell


def wine() -> tuple[Tensor, Tensor]:
    """178 wines of three cultivars: 13 standardised measurements each, in random order."""
    values, labels = (torch.from_numpy(array) for array in load_wine(return_X_y=True))
    order = torch.randperm(len(labels))
    return ((values - values.mean(0)) / values.std(0)).float()[order], labels[order]


def chimes() -> tuple[Tensor, Tensor]:
    """600 tones (1, 64) in noise, of three pitches, each of its own phase and loudness."""
    labels = torch.arange(600) % 3
    phase, loudness = torch.rand(2, 600, 1, 1)
    time = torch.linspace(0, 1, 64)
    tones = torch.sin(2 * torch.pi * (time * (4 + 3 * labels)[:, None, None] + phase)) * (0.2 + loudness)
    return tones + 0.3 * torch.randn(tones.shape), labels


parser = argparse.ArgumentParser(description="Train on tables and signals with methods that need no pixel grid.")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--recipe", help="one recipe in place of the four")
options = parser.parse_args()

torch.manual_seed(0)
tasks = {
    "wine": (wine(), lambda: nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 3))),
    "chimes": (
        chimes(),
        lambda: nn.Sequential(
            nn.Conv1d(1, 16, 9, padding=4),
            nn.ReLU(),
            nn.Conv1d(16, 16, 9, padding=4),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
    ),
}
for name, ((rows, labels), build) in tasks.items():
    trained = len(rows) * 2 // 3
    for text in [options.recipe] if options.recipe else ["mixup", "k_mixup(k=8)", "bc", "local_mixup(decay=0.1)"]:
        model, recipe = build(), mixwell.create(text, 3)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(options.steps):
            batch = torch.randint(trained, (32,))
            loss = recipe(model, rows[batch], labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            guess = model(recipe.eval_images(rows[trained:])).argmax(1)
        accuracy = (guess == labels[trained:]).float().mean()
        print(f"{name}: {recipe} accuracy {accuracy:.1%}")
