"""A data set of one's own, with the whole training engine: run folder, resumption, evaluation.

python examples/own_dataset.py [--epochs 2] [--out DIR]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch.utils.data import Dataset

from mixwell.data import from_datasets
from mixwell.train import TrainConfig, train


class Shapes(Dataset):
    """Discs, squares and crosses somewhere in noise: float images (3, 32, 32) in [0, 1] and class ids."""

    classes = ("disc", "square", "cross")

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        noise = torch.Generator().manual_seed(self.seed * 1_000_000 + index)
        label = index % 3
        x, y = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="xy")
        u, v = ((axis - torch.randint(9, 23, (), generator=noise)).abs() for axis in (x, y))
        shape = (u.square() + v.square() < 49, torch.maximum(u, v) < 6, (torch.minimum(u, v) < 2) & (u + v < 9))[label]
        image = 0.6 * shape + 0.4 * torch.rand(3, 32, 32, generator=noise)
        return image, label


parser = argparse.ArgumentParser(description="Train on a data set of one's own.")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--out", type=Path, help="folder of the run; a temporary one if not given")
options = parser.parse_args()

data = from_datasets(Shapes(300, seed=0), Shapes(90, seed=1), name="shapes")
print(f"{data.num_classes} classes, normalised by {data.pixels}")
with tempfile.TemporaryDirectory() as scratch:
    config = TrainConfig(recipe="mixup", epochs=options.epochs, batch_size=30, out=options.out or Path(scratch) / "run")
    result = train(config, dataset=data)
    print(f"accuracy {result.accuracy:.1%} after {options.epochs} epochs")
