"""Recipes in the hands of a user: the three ways in, binding, ownership, and plain loops on other people's networks."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mixwell
from mixwell import Batch, Clock, Draws, Targets, Trainee
from mixwell.core import registry
from mixwell.core.axes import Term
from mixwell.core.registry import Pieces
from mixwell.sample.linear.mixup import Linear

IMAGES, LABELS = torch.randn(6, 3, 32, 32), torch.arange(6)


class Rotation(Term):
    """A term with a linear layer of its own; built when the recipe is bound."""

    def build(self, anatomy, num_classes):
        self.linear = nn.Linear(num_classes, 2)

    def value(self, step, targets, criterion):
        return F.cross_entropy(self.linear(step.outputs.logits), torch.zeros(len(targets), dtype=torch.long))


@pytest.fixture
def owner(monkeypatch):
    """A method that owns parameters, for this test only."""
    monkeypatch.setattr(registry, "_METHODS", {slug: registry.method_of(slug) for slug in mixwell.methods()})

    @mixwell.method("owner", section="2.1", paper="0000.00000", venue="test 2000")
    def build() -> Pieces:
        return Pieces(Rotation(), (Linear(),))


def test_the_test_only_method_is_gone_afterwards():
    assert "owner" not in mixwell.methods()


# Plain loops


def train(model, recipe, steps=3):
    """The ten lines of the README."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    losses = []
    for _ in range(steps):
        loss = recipe(model, IMAGES, LABELS)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("text", ["cutmix", "manifold_mixup + cutmix"])
def test_a_torchvision_resnet_in_a_plain_loop(text):
    model = torchvision.models.resnet18(num_classes=6)
    before = copy.deepcopy(model.state_dict())
    losses = train(model, mixwell.create(text, 6), steps=2)
    assert all(loss == loss for loss in losses)
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("text", ["transmix", "cutmix + transmix", "manifold_mixup"])
def test_a_timm_vit_in_a_plain_loop(text):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=6)
    assert all(loss == loss for loss in train(model, mixwell.create(text, 6)))


def test_mixing_learns():
    """Repeated steps on one batch: the clean loss falls far below chance, which is log 6 = 1.8."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))
    images, recipe = IMAGES[:, :, :8, :8], mixwell.create("mixup(alpha=0.2)", 6)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        recipe(model, images, LABELS).backward()
        optimiser.step()
    assert F.cross_entropy(model(images), LABELS).item() < 0.8


@pytest.mark.parametrize("text", ["transmix", "cutmix + transmix"])
def test_attention_labels_are_refused_on_a_resnet(text):
    with pytest.raises(
        mixwell.IncompatibleRecipe, match=r"transmix: ResNet has no self-attention.*vit_small.*torchvision"
    ):
        mixwell.create(text, 6)(torchvision.models.resnet18(num_classes=6), IMAGES, LABELS)


def test_attention_labels_need_a_class_token(vit):
    with pytest.raises(mixwell.IncompatibleRecipe, match="transmix: VisionTransformer has no class token"):
        mixwell.create("transmix", 7).bind(vit(class_token=False, global_pool="avg"))


def test_stages_that_a_pass_must_find_are_found_in_a_plain_loop():
    """The batch at hand is an example, so nobody has to call bind."""
    model = torchvision.models.mobilenet_v3_small(num_classes=6)
    assert torch.isfinite(mixwell.create("manifold_mixup(sites=(1, 2))", 6)(model, IMAGES, LABELS))


def test_sites_that_do_not_exist_are_refused_with_those_that_do(cnn):
    with pytest.raises(
        mixwell.IncompatibleRecipe, match=r"manifold_mixup: Stage 9 does not exist.*layer1, layer2, layer3"
    ):
        mixwell.create("manifold_mixup(sites=(9,))", 7).bind(cnn())
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"Site 'layer_2' does not exist.*'layer2'"):
        mixwell.create("manifold_mixup(sites=(layer_2,))", 7).bind(cnn())


# The three ways in


def test_all_ways_draw_the_same_mix():
    images, targets = mixwell.create("cutmix", 6, seed=7).mix_batch(IMAGES, LABELS)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 6))
    expected = F.cross_entropy(net(images), targets)
    torch.testing.assert_close(mixwell.create("cutmix", 6, seed=7)(net, IMAGES, LABELS), expected)
    torch.testing.assert_close(mixwell.create("cutmix", 6, seed=7)(net, Batch(IMAGES, LABELS)), expected)
    (turn,) = mixwell.create("cutmix", 6, seed=7).turns(net, IMAGES, LABELS)
    torch.testing.assert_close(turn.loss, expected)
    torch.testing.assert_close(turn.logits, net(images))
    assert not turn.logits.requires_grad
    assert turn.last
    assert turn.group == "main"
    torch.testing.assert_close(Trainee(net, mixwell.create("cutmix", 6, seed=7))(Batch(IMAGES, LABELS)).loss, expected)


def test_a_step_of_trainee_ends():
    trainee = Trainee(nn.Sequential(nn.Flatten(), nn.Linear(3072, 6)), mixwell.create("cutmix", 6))
    assert trainee(Batch(IMAGES, LABELS)).last
    with pytest.raises(mixwell.MixwellError, match="no further turn"):
        trainee(None)


def test_given_draws_are_used():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 6))
    recipe = mixwell.create("mixup", 6)
    option = recipe.options[0]
    own = torch.ones(6, dtype=torch.float64).numpy()
    draws = Draws({option.pairing: torch.arange(6).roll(1).numpy(), option.ratio: own})
    (turn,) = recipe.turns(net, IMAGES, LABELS, draws=draws)
    torch.testing.assert_close(turn.loss, F.cross_entropy(net(IMAGES), LABELS))


def test_a_clock_names_the_step():
    recipe = mixwell.create("cutmix", 6, seed=1)
    steps = [recipe.mix_batch(IMAGES, LABELS)[0] for _ in range(3)]
    again = [recipe.mix_batch(IMAGES, LABELS, clock=Clock(step))[0] for step in (2, 0, 1)]
    for step, images in zip((2, 0, 1), again, strict=True):
        assert torch.equal(images, steps[step])
    assert recipe.steps == 2, "counting goes on after the step that was named"


def test_mix_batch_is_a_collate_fn():
    data = TensorDataset(IMAGES, LABELS)
    recipe = mixwell.create("mixup", 6)
    (got,) = DataLoader(data, batch_size=6, collate_fn=recipe.mix_batch)
    images, targets = got
    assert isinstance(targets, Targets)
    expected = mixwell.create("mixup", 6).mix_batch(IMAGES, LABELS)
    assert torch.equal(images, expected[0])
    assert torch.equal(targets.dense(), expected[1].dense())


@pytest.mark.parametrize(
    ("text", "who"),
    [("manifold_mixup", "manifold_mixup"), ("transmix", "transmix"), ("cutmix + decouplemix", "decouplemix")],
)
def test_mix_batch_is_refused_where_it_could_not_do_its_part(text, who):
    with pytest.raises(
        mixwell.IncompatibleRecipe, match=rf"{who} act.* inside the network or in the loss.*Use recipe\(model"
    ):
        mixwell.create(text, 6).mix_batch(IMAGES, LABELS)


@pytest.mark.parametrize(
    "options",
    [{"label_smoothing": 0.1}, {"class_weights": [1.0, 2.0, 1.0, 1.0, 1.0, 1.0]}, {"criterion": "bce"}],
    ids=str,
)
def test_mix_batch_does_not_drop_what_was_said_about_the_loss(options):
    """Targets carry no smoothing, class weights or criterion: training on them would silently be something else."""
    with pytest.raises(mixwell.IncompatibleRecipe, match=next(iter(options))):
        mixwell.create("mixup", 6, **options).mix_batch(IMAGES, LABELS)


# Owned parameters


@pytest.mark.usefixtures("owner")
def test_a_recipe_that_owns_parameters_must_be_bound(cnn):
    recipe, model = mixwell.create("owner", 7), cnn()
    recipe.bind(model, IMAGES)
    assert recipe.owns
    with pytest.raises(
        mixwell.OwnershipError, match=r"owner owns parameters. Call recipe.bind\(model, example=images\)"
    ):
        recipe(cnn(), IMAGES, LABELS)


@pytest.mark.usefixtures("owner")
@pytest.mark.parametrize("adopted", [True, False])
def test_owned_parameters_that_never_move_are_an_error(adopted):
    recipe, model = mixwell.create("owner", 7), nn.Sequential(nn.Flatten(), nn.Linear(48, 7))
    recipe.bind(model, IMAGES[:, :, :4, :4])
    groups = recipe.parameter_groups(model)
    assert [len(group["params"]) for group in groups] == [len(list(model.parameters())), 2]
    assert {group["turn"] for group in groups} == {"main"}
    optimiser = torch.optim.SGD(groups if adopted else model.parameters(), lr=0.01)

    def steps(count):
        for _ in range(count):
            optimiser.zero_grad()
            recipe.zero_grad()
            loss = recipe(model, IMAGES[:, :, :4, :4], LABELS)
            loss.backward()
            optimiser.step()
            recipe.after_step(model)

    if adopted:
        steps(60)
        return
    with pytest.raises(mixwell.OwnershipError, match=r"'options.0.terms.0.linear.weight' got gradients .* never moved"):
        steps(60)


@pytest.mark.usefixtures("owner")
def test_parts_of_the_loss_have_names(cnn):
    recipe, model = mixwell.create("owner", 7), cnn()
    recipe.bind(model, IMAGES)
    (turn,) = recipe.turns(model, IMAGES, LABELS)
    assert set(turn.parts) == {"criterion", "owner"}
    torch.testing.assert_close(sum(turn.parts.values()), turn.loss.detach())
    assert not any(part.requires_grad for part in turn.parts.values())


# State


def test_state_goes_on_where_it_stopped():
    recipe = mixwell.create("cutmix", 6, seed=3)
    for _ in range(5):
        expected = recipe.mix_batch(IMAGES, LABELS)[0]
    resumed = mixwell.create("cutmix", 6, seed=3)
    resumed.load_state_dict({**recipe.state_dict(), "_extra_state": torch.tensor(4)})
    assert torch.equal(resumed.mix_batch(IMAGES, LABELS)[0], expected)
    assert recipe.state_dict()["_extra_state"].item() == 5


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda recipe: pickle.loads(pickle.dumps(recipe))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("seed", [0, 9])
def test_copies_of_a_recipe_draw_the_same(clone, seed):
    recipe = mixwell.create("0.5*mixup | 0.5*cutmix", 6, seed=seed)
    assert torch.equal(clone(recipe).mix_batch(IMAGES, LABELS)[0], recipe.mix_batch(IMAGES, LABELS)[0])


def test_a_recipe_prints_as_its_text():
    recipe = mixwell.create("transmix + cutmix(alpha=0.5)", 6, seed=2)
    assert str(recipe) == "transmix + cutmix(alpha=0.5)"
    assert "transmix + cutmix(alpha=0.5), num_classes=6, seed=2" in repr(recipe)
    assert str(mixwell.create(recipe, 6)) == str(recipe)


def test_wrappers_of_a_network_are_looked_through(cnn):
    recipe, model = mixwell.create("manifold_mixup", 7), cnn()
    recipe.bind(model, IMAGES)
    assert torch.isfinite(recipe(nn.DataParallel(model), IMAGES, LABELS))
    compiled = torch.compile(model, backend="eager")
    assert torch.isfinite(recipe(compiled, IMAGES, LABELS))


@pytest.mark.parametrize("text", ["transmix(switch_prob=1.0)", "manifold_mixup(sites=(1,))"])
def test_compiled_networks_keep_their_hooks(text, cnn, vit):
    """Traced with the hooks in place, the compiled network gives the loss of the plain one."""
    make = vit if "transmix" in text else cnn
    plain = mixwell.create(text, 7, seed=1)
    expected = [plain(make().eval(), IMAGES, LABELS) for _ in range(2)]
    model, recipe = make().eval(), mixwell.create(text, 7, seed=1)
    recipe.bind(model, IMAGES)
    recipe.install_hooks(model)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close([recipe(compiled, IMAGES, LABELS) for _ in range(2)], expected)


def test_class_weights_go_where_the_logits_are():
    """The recipe is not a part of the model, and nobody moves it."""
    recipe = mixwell.create("mixup", 6, class_weights=[1.0] * 6)
    targets = Targets.of(LABELS, 6).to("meta")
    criterion = recipe.options[0].criterion
    assert criterion(torch.zeros(6, 6, device="meta"), targets).device.type == "meta"
