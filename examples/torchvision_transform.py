"""A recipe among torchvision's transforms, in a collate_fn as torchvision's documentation has it.

python examples/torchvision_transform.py [--steps 20] [--recipe fmix] [--workers 0]
"""

import argparse

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from mixwell.compat.torchvision import CutMix, MixUp, Mixwell
from mixwell.data import load
from mixwell.nets import create_net


class Clothes(Dataset):
    """Embedded images of Fashion-MNIST as torchvision's own data sets give them."""

    def __init__(self, transform: v2.Transform) -> None:
        self.data = load("fashion-mini")
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data.train)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.data.train[index][:2]
        return self.transform(tv_tensors.Image(image)), int(label)


class Collate:
    """Batches of which one of several transforms mixes each."""

    def __init__(self, mix: v2.Transform) -> None:
        self.mix = mix

    def __call__(self, samples: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = self.mix(*default_collate(samples))
        return images, labels


def main() -> None:
    parser = argparse.ArgumentParser(description="Mix batches by transforms of torchvision.transforms.v2.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--recipe", default="fmix", help="a recipe that needs no network")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(0)
    prepare = v2.Compose(
        [v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.29,) * 3, (0.35,) * 3)]
    )
    dataset = Clothes(prepare)
    classes = dataset.data.num_classes
    mix = v2.RandomChoice(
        [MixUp(num_classes=classes), CutMix(num_classes=classes), Mixwell(options.recipe, num_classes=classes)]
    )
    loader = DataLoader(dataset, batch_size=32, shuffle=True, num_workers=options.workers, collate_fn=Collate(mix))
    model = create_net("cnn-s", classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step, (images, targets) in zip(range(options.steps), loader, strict=False):
        loss = F.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}, {tuple(targets.shape)} targets")


if __name__ == "__main__":  # workers that are spawned import this file
    main()
