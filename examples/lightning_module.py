"""Lightning, where it is installed: a module with a recipe.

python examples/lightning_module.py [--steps 20] [--recipe "cutmix + transmix"]
"""

import argparse

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from mixwell.compat.lightning import MixwellMixin
from mixwell.data import Loader, load
from mixwell.nets import create_net


class Classifier(MixwellMixin, lightning.LightningModule):
    """A network that is trained with a recipe."""

    def __init__(self, recipe: str, model: str, classes: int, example: torch.Tensor) -> None:
        super().__init__()
        self.net = create_net(model, classes)
        self.use_recipe(recipe, self.net, example, num_classes=classes)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        turn = self.recipe_step(batch)
        self.log("mixed_accuracy", turn.targets.accuracy(turn.logits), prog_bar=True)
        return turn.loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.predict(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return self.recipe_optimizers(lambda groups: torch.optim.AdamW(groups, lr=1e-3))


parser = argparse.ArgumentParser(description="Train a LightningModule with a recipe.")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--recipe", default="cutmix + transmix")
parser.add_argument("--model", default="vit-s")
options = parser.parse_args()

data = load("fashion-mini")
train, test = (next(Loader(split, batch_size=1000, pixels=data.pixels).epoch(0)) for split in (data.train, data.test))
module = Classifier(options.recipe, options.model, data.num_classes, train.images[:2])
trainer = lightning.Trainer(
    max_steps=options.steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
)
trainer.fit(
    module,
    DataLoader(TensorDataset(train.images, train.labels), batch_size=32, shuffle=True),
    DataLoader(TensorDataset(test.images, test.labels), batch_size=250),
)
(found,) = trainer.validate(module, DataLoader(TensorDataset(test.images, test.labels), batch_size=250), verbose=False)
print(f"{module.recipe}: accuracy {found['accuracy']:.2f}")
