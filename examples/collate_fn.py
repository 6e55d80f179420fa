"""Mixing in the workers of a DataLoader: the training loop only sees mixed images and their targets.

python examples/collate_fn.py [--steps 20] [--workers 2]
"""

import argparse

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import mixwell
from mixwell.data import Loader, load
from mixwell.nets import create_net


def main() -> None:
    parser = argparse.ArgumentParser(description="Mix batches in the workers of a DataLoader.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    data = load("fashion-mini")
    everything = next(iter(Loader(data.train, batch_size=6_000, pixels=data.pixels).epoch(0)))
    recipe = mixwell.create("0.5*mixup | 0.5*cutmix", data.num_classes)
    loader = DataLoader(
        TensorDataset(everything.images, everything.labels),
        batch_size=32,
        shuffle=True,
        num_workers=options.workers,
        collate_fn=recipe.mix_batch,
        generator=torch.Generator().manual_seed(0),  # the same seed, the same mixes
    )
    model = create_net("cnn-s", data.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    for step, (images, targets) in zip(range(options.steps), loader, strict=False):
        logits = model(images)
        loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}, label-weighted accuracy {targets.accuracy(logits):.2f}")


if __name__ == "__main__":  # workers that are spawned import this file
    main()
