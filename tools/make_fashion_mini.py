"""Choose and pack the embedded set fashion-mini from the full Fashion-MNIST.

    python tools/make_fashion_mini.py FOLDER [OUTPUT]

FOLDER holds the four idx files (Debian's package dataset-fashion-mnist puts them in /usr/share/datasets/fashion-mnist).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import mixwell.data
from mixwell.data.idx import read_split
from mixwell.data.split import stratified

SEED = 2017  # the year of Fashion-MNIST
COUNTS = {"train": 6_000, "test": 2_000}
OUTPUT = Path(mixwell.data.__file__).parent / "fashion_mini" / "fashion_mini.npz"


def choose(folder: Path) -> dict[str, np.ndarray]:
    """Images (N, 28, 28), labels (N,) and rows in the full set (N,) of both splits, every class equally often."""
    arrays = {}
    for split, count in COUNTS.items():
        images, labels = read_split(folder, split)
        _, rows = stratified(labels, count, SEED)
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[rows], labels[rows]
        arrays[f"{split}_rows"] = rows.astype(np.uint16)
    return arrays


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Choose and pack fashion-mini.")
    parser.add_argument("folder", type=Path, help="folder with the idx files of Fashion-MNIST")
    parser.add_argument("output", type=Path, nargs="?", default=OUTPUT)
    arguments = parser.parse_args()
    np.savez_compressed(arguments.output, **choose(arguments.folder))
    print(f"{arguments.output}: {arguments.output.stat().st_size:,} bytes")
