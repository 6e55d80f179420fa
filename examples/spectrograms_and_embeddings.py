"""Spectrograms, and embeddings of a network that stays as it is: mixed as any other tensor.

python examples/spectrograms_and_embeddings.py [--steps 100] [--recipe mixup]
"""

import argparse

import torch
from torch import Tensor, nn

import mixwell
from mixwell.data import Loader, load


def spectrograms() -> tuple[Tensor, Tensor]:
    """900 sounds of a quarter of a second, tones that rise, fall or stay, in noise: log-spectrograms (1, 65, 33)."""
    labels = torch.arange(900) % 3
    time = torch.linspace(0, 0.25, 2048)
    start = 400 + 400 * torch.rand(900, 1)
    slope = torch.tensor([1600.0, -1600.0, 0.0])[labels][:, None]
    sound = torch.sin(2 * torch.pi * (start * time + slope * time.square() / 2)) + torch.randn(900, 2048)
    power = torch.stft(sound, 128, 64, window=torch.hann_window(128), return_complex=True).abs().square()
    return (power + 1e-3).log()[:, None], labels


def embeddings() -> tuple[Tensor, Tensor]:
    """2,000 images of fashion-mini as the 96 leading principal components of their pixels."""
    data = load("fashion-mini")
    batch = next(Loader(data.train, 2000, pixels=data.pixels).epoch(0))
    pixels = batch.images[:, 0].flatten(1)
    scores, scale, _ = torch.pca_lowrank(pixels, 96)
    return scores * scale, batch.labels


parser = argparse.ArgumentParser(description="Train on spectrograms and on embeddings.")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--recipe", help="one recipe in place of those below")
options = parser.parse_args()

torch.manual_seed(0)
tasks = {
    # Time and frequency are a pixel grid, so that methods which cut boxes or patches act too.
    "spectrograms": (spectrograms(), 3, ["mixup", "cutmix", "fmix"]),
    "embeddings": (embeddings(), 10, ["mixup", "k_mixup(k=8)", "local_mixup(decay=0.1)"]),
}
for name, ((rows, labels), classes, texts) in tasks.items():
    rows = (rows - rows.mean(0)) / rows.std(0)
    trained = len(rows) * 2 // 3
    for text in [options.recipe] if options.recipe else ["none", *texts]:
        if rows.ndim == 4:
            convolutions = (nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 5, stride=2), nn.ReLU())
            model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, classes))
        else:
            model = nn.Sequential(nn.Linear(rows.shape[1], 128), nn.ReLU(), nn.Linear(128, classes))
        recipe = mixwell.create(text, classes)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(options.steps):
            batch = torch.randint(trained, (64,))
            loss = recipe(model, rows[batch], labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (model(rows[trained:]).argmax(1) == labels[trained:]).float().mean()
        print(f"{name}: {recipe} accuracy {accuracy:.1%}")
