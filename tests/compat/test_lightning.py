"""Lightning: the mixin with stand-ins for LightningModule and Trainer, and with Lightning where it is installed."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mixwell
from mixwell.compat.lightning import MixwellMixin

CLASSES = 7
PIXELS = mixwell.Pixels((0.5,) * 3, (0.5,) * 3)
needs_lightning = pytest.mark.skipif(
    importlib.util.find_spec("lightning") is None,
    reason="Lightning is not installed here; `make test-lightning` runs this in an environment that has it",
)


class StandIn(nn.Module):
    """What a LightningModule offers the mixin."""

    automatic_optimization = True
    trainer = None

    @property
    def global_step(self):
        return self.trainer.global_step

    @property
    def current_epoch(self):
        return self.trainer.current_epoch

    def optimizers(self):
        return self.trainer.optimizers if len(self.trainer.optimizers) > 1 else self.trainer.optimizers[0]

    def manual_backward(self, loss):
        loss.backward()

    def on_train_start(self):
        self.heard = ["start"]

    def on_train_epoch_start(self):
        self.heard.append("epoch")

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.heard.append("batch")


class Counted:
    """An optimiser whose steps the trainer counts under manual optimisation."""

    def __init__(self, optimizer, trainer):
        self.param_groups, self.zero_grad = optimizer.param_groups, optimizer.zero_grad
        self.optimizer, self.trainer = optimizer, trainer

    def step(self):
        self.optimizer.step()
        self.trainer.global_step += 1


class StandInTrainer:
    """Lightning's order of calls."""

    def __init__(self, max_epochs=1, accumulate_grad_batches=1):
        self.max_epochs, self.accumulate_grad_batches = max_epochs, accumulate_grad_batches
        self.global_step = self.current_epoch = 0

    def fit(self, module, loader):
        module.trainer = self
        self.estimated_stepping_batches = self.max_epochs * len(loader) // self.accumulate_grad_batches
        made = module.configure_optimizers()
        self.optimizers = [Counted(optimizer, self) for optimizer in (made if isinstance(made, list) else [made])]
        module.train()
        module.on_train_start()
        for epoch in range(self.max_epochs):
            self.current_epoch = epoch
            module.on_train_epoch_start()
            for index, batch in enumerate(loader):
                loss = module.training_step(batch, index)
                if module.automatic_optimization:
                    (loss / self.accumulate_grad_batches).backward()
                    if (index + 1) % self.accumulate_grad_batches == 0:
                        self.optimizers[0].step()
                        self.optimizers[0].zero_grad()
                module.on_train_batch_end(loss, batch, index)


@pytest.fixture(params=["stand-in", pytest.param("lightning", marks=needs_lightning)])
def framework(request, tmp_path):
    """The base class of modules, and `fit(module, loader, **options)`."""
    if request.param == "stand-in":
        return StandIn, lambda module, loader, **options: StandInTrainer(**options).fit(module, loader)
    import lightning

    def fit(module, loader, ckpt_path=None, **options):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(
            accelerator="cpu", devices=1, enable_checkpointing=False, default_root_dir=tmp_path, **quiet, **options
        )
        trainer.fit(module, loader, ckpt_path=ckpt_path)
        return trainer

    return lightning.LightningModule, fit


@pytest.fixture
def made(framework):
    """`made(net, recipe, **settings)`: a module that trains `net` by SGD."""

    class Classifier(MixwellMixin, framework[0]):
        def __init__(self, net, recipe, example=None, **settings):
            super().__init__()
            self.net = net
            self.use_recipe(recipe, self.net, example, **settings)
            self.turns, self.moved = [], []

        def training_step(self, batch, batch_idx):
            turn = self.recipe_step(batch)
            self.turns.append(turn)
            return turn.loss

        def configure_optimizers(self):
            return self.recipe_optimizers(lambda groups: torch.optim.SGD(groups, lr=0.1))

    def make(net, recipe, example=None, **settings):
        settings = {} if isinstance(recipe, mixwell.Recipe) else {"num_classes": CLASSES, "pixels": PIXELS, **settings}
        return Classifier(net, recipe, example, **settings)

    return make


@pytest.fixture
def loader():
    """Four batches of six images, always the same."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(24, 3, 32, 32, generator=generator), torch.arange(24) % CLASSES
    return DataLoader(TensorDataset(images, labels), 6)


def in_a_plain_loop(model, text, loader, epochs, accumulate=1):
    recipe = mixwell.create(text, CLASSES, pixels=PIXELS).bind(model, next(iter(loader))[0])
    optimizer = torch.optim.SGD(recipe.parameter_groups(model), lr=0.1)
    for epoch in range(epochs):
        recipe.before_epoch(model, mixwell.Clock(recipe.steps, 4 * epochs, epoch, 0.1))
        for index, (images, labels) in enumerate(loader):
            clock = mixwell.Clock(recipe.steps, 4 * epochs, epoch, 0.1)
            (recipe(model, images, labels, clock=clock) / accumulate).backward()
            if (index + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                recipe.after_step(model, clock)
    return recipe


@pytest.mark.parametrize(
    ("text", "accumulate"),
    [("cutmix + transmix", 1), ("cutmix + transmix", 2), ("adamixup", 1), ("automix", 2), ("recursive_mix", 1)],
)
def test_it_trains_as_a_plain_loop_does(framework, made, loader, vit, text, accumulate):
    """Also what the recipe owns, averages, and its clock, with gradients gathered over batches."""
    module = made(vit(CLASSES), text, next(iter(loader))[0])
    framework[1](module, loader, max_epochs=2, accumulate_grad_batches=accumulate)
    model = vit(CLASSES)
    recipe = in_a_plain_loop(model.train(), text, loader, 2, accumulate)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(module.net.state_dict()[name], value, atol=1e-6, rtol=1e-5)
    for name, value in recipe.state_dict().items():
        torch.testing.assert_close(module.recipe.state_dict()[name], value, atol=1e-6, rtol=1e-5)
    assert module.recipe.steps == 8
    assert isinstance(module.turns[0].targets, mixwell.Targets)


def test_hooks_of_other_bases_are_called(made, loader, cnn):
    module = made(cnn(CLASSES), "mixup")
    if isinstance(module, StandIn):
        StandInTrainer().fit(module, loader)
        assert module.heard == ["start", "epoch", *["batch"] * 4]


def test_what_is_learnt_by_epoch(framework, made, loader, cnn):
    module = made(cnn(CLASSES), "camixup")
    asked = []

    def held_out():
        asked.append(module.current_epoch)
        return [mixwell.Batch(*next(iter(loader)))]

    module.recipe.use_data(held_out=held_out)
    framework[1](module, loader, max_epochs=3)
    assert sorted(set(asked)) == [0, 1, 2]


def test_players_have_optimisers_of_their_own(framework, made, loader, cnn):
    module = made(cnn(CLASSES), "amr(update_g_every=2)", next(iter(loader))[0])
    assert not module.automatic_optimization
    players = {turn: player.parameters for turn, player in module.recipe.players.items()}
    before = {turn: [p.detach().clone() for p in parameters] for turn, parameters in players.items()}
    net = [p.detach().clone() for p in module.net.parameters()]
    framework[1](module, loader, max_epochs=1)
    assert len(players) == 2
    for turn, parameters in players.items():
        assert any(not torch.equal(p, old) for p, old in zip(parameters, before[turn], strict=True)), turn
    assert any(not torch.equal(p, old) for p, old in zip(module.net.parameters(), net, strict=True))
    rates = [optimizer.param_groups[0]["lr"] for optimizer in module.trainer.optimizers]
    assert rates == [0.1, 1e-4, 1e-4]
    assert module.recipe.steps == 4


def test_the_recipe_is_saved_with_the_module(framework, made, loader, vit):
    example = next(iter(loader))[0]
    module = made(vit(CLASSES), "adamixup", example)
    framework[1](module, loader, max_epochs=1)
    other = made(vit(CLASSES), "adamixup", example)
    other.load_state_dict(module.state_dict())
    assert other.recipe.steps == 4
    for name, value in module.recipe.state_dict().items():
        assert torch.equal(other.recipe.state_dict()[name], value)
    assert sum(name.startswith("net.") for name in module.state_dict()) == len(module.net.state_dict())
    assert not any("_net" in name for name in module.state_dict())


def test_evaluation_asks_the_predictor(made, loader, cnn):
    module = made(cnn(CLASSES), "stackmix").eval()
    images = next(iter(loader))[0]
    wanted = module.net(torch.cat((images, images), 2)), module.net(torch.cat((images, images), 3))
    assert any(torch.allclose(module.predict(images), logits, atol=1e-5) for logits in wanted)
    averaged = made(cnn(CLASSES), "automix", images).eval()
    assert averaged.recipe.predictor(averaged.net) is not averaged.net
    assert torch.equal(averaged.predict(images), averaged.recipe.predictor(averaged.net)(images))


def test_mistakes_are_named(framework, made, loader, cnn):
    images, labels = next(iter(loader))
    module = made(cnn(CLASSES), "mixup")
    with pytest.raises(mixwell.ParameterError, match="not the LightningModule"):
        module.use_recipe("mixup", module)
    with pytest.raises(mixwell.ParameterError, match="go with a recipe's text"):
        module.use_recipe(mixwell.create("mixup", CLASSES), module.net, num_classes=CLASSES)
    with pytest.raises(mixwell.IncompatibleRecipe, match="transmix"):
        module.use_recipe("cutmix + transmix", module.net, images)
    with pytest.raises(mixwell.BatchError, match=r"takes \(images, labels\) or a Batch, got dict"):
        module.recipe_step({"images": images, "labels": labels})
    players = made(cnn(CLASSES), "amr", images)
    players.automatic_optimization = True
    with pytest.raises((mixwell.MixwellError, RuntimeError), match=r"several losses|multiple optimizers"):
        framework[1](players, loader, max_epochs=1)
    players = made(cnn(CLASSES), "amr", images)
    players.configure_optimizers = lambda: torch.optim.SGD(players.net.parameters(), lr=0.1)
    with pytest.raises(mixwell.OwnershipError, match="No optimiser steps the turn 'amr/"):
        framework[1](players, loader, max_epochs=1)

    class Forgotten(MixwellMixin, framework[0]):
        pass

    with pytest.raises(mixwell.MixwellError, match=r"Call self\.use_recipe"):
        Forgotten().predict(images)


@needs_lightning
@pytest.mark.parametrize("framework", ["lightning"], indirect=True)
@pytest.mark.parametrize("text", ["cutmix + transmix", "adamixup", "amr"])
def test_a_resumed_training_ends_as_an_unbroken_one(framework, made, loader, vit, tmp_path, text):
    example = next(iter(loader))[0]
    whole, half, resumed = (made(vit(CLASSES), text, example) for _ in range(3))
    framework[1](whole, loader, max_epochs=2)
    trainer = framework[1](half, loader, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    framework[1](resumed, loader, ckpt_path=tmp_path / "half.ckpt", max_epochs=2)
    assert resumed.recipe.steps == 8
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, atol=1e-6, rtol=1e-5)
