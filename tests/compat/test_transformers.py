"""Hugging Face's Trainer with a recipe: training is the recipe's, evaluation the Trainer's, and checkpoints resume."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import mixwell
from mixwell.compat.transformers import STATE, MixwellTrainerMixin

CLASSES, SIZE = 5, 16


class MixingTrainer(MixwellTrainerMixin, Trainer):
    pass


class Images(Dataset):
    """32 images as the Trainer wants them."""

    def __init__(self, **extra):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(32, 1, SIZE, SIZE, generator=generator)
        self.extra = extra

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": index % CLASSES, **self.extra}


def vit():
    """A tiny ViT without dropout, the same each time."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=SIZE,
        patch_size=4,
        num_channels=1,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTForImageClassification(config)


@pytest.fixture
def made(tmp_path):
    """`made(recipe, trainer options, **arguments)`: a trainer of four steps of 16 images in two epochs."""

    def make(recipe, options=None, *, kind=MixingTrainer, out="out", **arguments):
        settings = {
            "output_dir": str(tmp_path / out),
            "per_device_train_batch_size": 16,
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 3,
            "max_grad_norm": 0.0,
            **arguments,
        }
        options = {"model": vit(), "train_dataset": Images(), "eval_dataset": Images(), **(options or {})}
        given = {} if recipe is None else {"recipe": recipe}
        return kind(args=TrainingArguments(**settings), **given, **options)

    return make


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_recipe_none_trains_as_the_trainer_does(made):
    ours, theirs = made("none"), made(None, kind=Trainer)
    for trainer in (ours, theirs):
        trainer.train()
    for name, value in weights(ours).items():
        torch.testing.assert_close(value, weights(theirs)[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("recipe", ["cutmix + transmix", "manifold_mixup"])
def test_training_follows_the_recipe(made, recipe):
    """Step by step as in a plain loop with the same optimiser."""
    trainer = made(recipe, lr_scheduler_type="constant", optim="sgd", learning_rate=0.1)
    batches = []
    turns = trainer.recipe.turns

    def spy(model, images, labels, **rest):
        batches.append((images.clone(), labels.clone()))
        return turns(model, images, labels, **rest)

    trainer.recipe.turns = spy
    trainer.train()
    assert len(batches) == 4
    model = vit()
    alone = mixwell.create(recipe, CLASSES, seed=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for images, labels in batches:
        optimizer.zero_grad()
        alone(model.train(), images, labels).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights(trainer)[name], value, atol=1e-6, rtol=1e-5)


def test_evaluation_is_the_trainers(made):
    ours, theirs = made("cutmix + transmix"), made(None, kind=Trainer)
    assert ours.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], abs=1e-7)
    assert ours.recipe.steps == 0


def test_gathered_gradients_are_those_of_the_whole_batch(made):
    """Two halves of a batch, each with the mean of its own rows."""
    for_all = [
        made("none", per_device_train_batch_size=16 // parts, gradient_accumulation_steps=parts) for parts in (1, 2)
    ]
    for trainer in for_all:
        trainer.train()
    whole, parts = map(weights, for_all)
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[name], atol=1e-4, rtol=1e-3)
    assert [trainer.recipe.steps for trainer in for_all] == [4, 8]


def test_what_the_recipe_owns_is_trained(made):
    trainer = made("adamixup")
    own = [p for p in trainer.recipe.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in own]
    norms = []
    after = trainer.recipe.after_step

    def spy(*args):
        norms.append(sum(float(p.grad.norm()) for p in own))
        return after(*args)

    trainer.recipe.after_step = spy
    trainer.train()
    assert all(not torch.equal(p, old) for p, old in zip(own, before, strict=True))
    held = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert {id(p) for p in own} <= set(held)
    assert all(p.grad is None for p in own), "the next step's gradients start from none"
    assert max(norms) < 3 * min(norms) + 1


@pytest.mark.parametrize("recipe", ["cutmix + transmix", "adamixup"])
def test_a_resumed_training_ends_as_an_unbroken_one(made, recipe):
    pixels = mixwell.Pixels((0.5,), (0.5,))

    def options():
        return {"recipe": mixwell.create(recipe, CLASSES, seed=1, pixels=pixels), "example": Images().images[:2]}

    whole = made(None, options(), save_strategy="epoch")
    whole.train()
    resumed = made(None, options(), save_strategy="epoch")
    half = resumed.args.output_dir + "/checkpoint-2"
    resumed.train(resume_from_checkpoint=half)
    assert resumed.recipe.steps == 4
    assert equal(weights(whole), weights(resumed))
    assert equal(whole.recipe.state_dict(), resumed.recipe.state_dict())


def test_checkpoints_without_a_recipe(made):
    plain = made(None, kind=Trainer, save_strategy="epoch")
    plain.train()
    half = plain.args.output_dir + "/checkpoint-2"
    trainer = made("cutmix")
    with pytest.warns(UserWarning, match="draws begin anew"):
        trainer.train(resume_from_checkpoint=half)
    assert trainer.recipe.steps == 2
    with pytest.raises(mixwell.RunError, match=f"has no {STATE}, so what adamixup owns"):
        made("adamixup").train(resume_from_checkpoint=half)
    shutil.rmtree(plain.args.output_dir)


def test_label_smoothing_is_the_trainers(made):
    trainer = made("none", label_smoothing_factor=0.1)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    loss = trainer.compute_loss(trainer.model.train(), dict(batch))
    logits = trainer.model(batch["pixel_values"]).logits
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, batch["labels"], label_smoothing=0.1))
    loss, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    torch.testing.assert_close(outputs["logits"], logits.detach())


def test_what_the_trainer_cannot_run_is_refused(made):
    with pytest.raises(mixwell.IncompatibleRecipe, match="several losses, each with an optimiser"):
        made(
            None,
            {
                "recipe": mixwell.create("amr", CLASSES, pixels=mixwell.Pixels((0.5,), (0.5,))),
                "example": Images().images[:2],
            },
        )
    with pytest.raises(mixwell.ParameterError, match="compute_loss_func would not be used"):
        made("cutmix", {"compute_loss_func": lambda *args, **rest: None})
    with pytest.raises(mixwell.ParameterError, match="go with a recipe's text"):
        made(mixwell.create("cutmix", CLASSES), label_smoothing_factor=0.1)
    with pytest.raises(mixwell.BatchError, match="alone, got"):
        made("cutmix", {"train_dataset": Images(position_ids=0)}, remove_unused_columns=False).train()
    model = vit()
    given = (torch.optim.SGD(model.parameters(), lr=0.1), None)
    with pytest.raises(mixwell.OwnershipError, match="Make it of recipe"):
        made("adamixup", {"model": model, "optimizers": given}).train()
    with pytest.raises(mixwell.ModelError, match="5 outputs, but the recipe was made for 7"):
        made("cutmix", {"num_classes": 7}).train()
