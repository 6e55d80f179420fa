"""Hugging Face's Trainer with a recipe, on a small ViT.

python examples/hf_trainer.py [--steps 20] [--recipe "cutmix + transmix"]
"""

import argparse
import tempfile

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from mixwell.compat.transformers import MixwellTrainerMixin
from mixwell.data import load


class MixingTrainer(MixwellTrainerMixin, Trainer):
    """Trainer whose training steps follow the recipe."""


class Clothes(Dataset):
    """Embedded images of Fashion-MNIST, as the Trainer takes them."""

    def __init__(self, split: str) -> None:
        data = load("fashion-mini")
        self.rows, self.pixels = getattr(data, split), data.pixels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        image, label = self.rows[index][:2]
        return {"pixel_values": self.pixels.normalise(image[None] / 255)[0], "labels": int(label)}


parser = argparse.ArgumentParser(description="Train a ViT by Hugging Face's Trainer with a recipe.")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--recipe", default="cutmix + transmix")
options = parser.parse_args()

train = Clothes("train")
channels, size, _ = train[0]["pixel_values"].shape
config = ViTConfig(
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=128,
    image_size=size,
    patch_size=4,
    num_channels=channels,
    num_labels=10,
)
with tempfile.TemporaryDirectory() as folder:
    trainer = MixingTrainer(
        model=ViTForImageClassification(config),
        args=TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=200,
            learning_rate=1e-3,
            logging_steps=5,
            report_to=[],
            use_cpu=True,
        ),
        train_dataset=train,
        eval_dataset=torch.utils.data.Subset(Clothes("test"), range(1000)),
        compute_metrics=lambda seen: {"accuracy": float((seen.predictions.argmax(1) == seen.label_ids).mean())},
        recipe=options.recipe,
    )
    trainer.train()
    print(f"{trainer.recipe}: accuracy {trainer.evaluate()['eval_accuracy']:.2f}")
