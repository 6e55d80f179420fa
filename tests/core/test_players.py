"""Pieces that are trained beside the network, look at held-out images, learn by epochs, or try another λ."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mixwell
from mixwell.core.axes import Label, Piece, Ratio
from mixwell.core.splits import Splits, summed_over_processes
from mixwell.core.turns import Player

IMAGES, LABELS = torch.randn(6, 3, 16, 16), torch.arange(6)


class Critic(Label):
    """A label with two players: one learns in every step, the other in every second."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.joint = (nn.Parameter(torch.ones(())) for _ in range(3))
        self.seen = []

    def players(self):
        return {
            "critic/first": Player((self.first,), "adam", {"lr": 0.5, "betas": (0.0, 0.9)}),
            "critic/second": Player((self.second,), "sgd", {"lr": 0.25}),
        }

    def lessons(self, scene):
        self.seen.append(self.first.item())
        yield mixwell.Turn(self.first * self.second, "critic/first", last=False)
        self.seen.append(self.first.item())
        if scene.clock.step % 2 == 0:
            yield mixwell.Turn(self.second * self.first, "critic/second", last=False)

    def targets(self, step):
        return step.mix.targets(step.mix.weights + 0 * self.joint)


def with_label(label, text="mixup"):
    recipe = mixwell.create(text, 6)
    (option,) = recipe.options
    option.label = label
    option.pieces, option.names[label] = (*option.pieces, label), "label"
    return recipe


def test_each_turn_is_stepped_before_the_next_is_made(cnn):
    label, model = Critic(), cnn(6)
    recipe = with_label(label).bind(model, IMAGES)
    groups = recipe.parameter_groups(model)
    assert [group["turn"] for group in groups] == ["main", "main", "critic/first", "critic/second"]
    assert groups[1]["params"] == [label.joint]
    assert groups[2]["optimizer"], groups[2]["lr"] == ("adam", 0.5)
    for step in range(2):
        order = []
        for turn in recipe.turns(model, IMAGES, LABELS):
            order.append((turn.group, turn.last))
            parameters = [p for group in groups if group["turn"] == turn.group for p in group["params"]]
            for p, gradient in zip(parameters, torch.autograd.grad(turn.loss, parameters), strict=True):
                p.data -= 0.5 * gradient
        second = [("critic/second", False)] if step == 0 else []
        assert order == [("critic/first", False), *second, ("main", True)]
    assert label.seen[:2] == [1.0, 0.5]  # the second lesson sees what the first one's step has made


def test_a_loop_of_one_loss_is_told_to_use_turns(cnn):
    recipe = with_label(Critic()).bind(cnn(6), IMAGES)
    with pytest.raises(mixwell.MixwellError, match=r"3 losses. Use `for turn in recipe.turns"):
        recipe(cnn(6) if recipe._probe is None else recipe._probe.net, IMAGES, LABELS)


class HeldOut(Label):
    held_out = True

    def __init__(self):
        super().__init__()
        self.seen = []

    def targets(self, step):
        self.seen.append(step.scene.held_out.labels.tolist())
        return step.mix.targets()


def held_out_batches():
    return [mixwell.Batch(torch.randn(2, 3, 16, 16), torch.tensor([i, i])) for i in range(3)]


def test_every_step_has_its_own_held_out_batch(cnn):
    label, model = HeldOut(), cnn(6)
    recipe = with_label(label).bind(model, IMAGES)
    assert recipe.holds_out
    assert not mixwell.create("mixup", 6).holds_out
    with pytest.raises(mixwell.MixwellError, match=r"held-out images.*use_data\(held_out="):
        recipe(model, IMAGES, LABELS)
    recipe.use_data(held_out=held_out_batches)
    for step in (0, 1, 2, 3, 4, 1, 5, 5):
        recipe(model, IMAGES, LABELS, clock=mixwell.Clock(step))
    assert [rows[0] for rows in label.seen] == [0, 1, 2, 0, 1, 1, 2, 2]


def test_a_step_in_which_nobody_asks_reads_no_held_out_batch(cnn):
    class Idle(Label):
        held_out = True

        def targets(self, step):
            return step.mix.targets()

    model = cnn(6)
    with_label(Idle()).bind(model, IMAGES)(model, IMAGES, LABELS)  # without any at hand


def test_an_empty_held_out_split():
    with pytest.raises(mixwell.MixwellError, match="no batch"):
        Splits(held_out_batches=list).at(0)


class ByEpoch(Label):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.clocks = []

    def before_epoch(self, net, data, clock):
        self.clocks.append(clock.epoch)
        rows = torch.tensor(float(sum(len(batch) for batch in data.train())))
        self.count = summed_over_processes(rows)

    def targets(self, step):
        return step.mix.targets()


def test_what_is_learnt_before_each_epoch(cnn):
    label, model = ByEpoch(), cnn(6)
    recipe = with_label(label).bind(model, IMAGES)
    with pytest.raises(mixwell.MixwellError, match=r"recipe.before_epoch\(model\)"):
        recipe(model, IMAGES, LABELS)
    with pytest.raises(mixwell.MixwellError, match=r"use_data\(train="):
        recipe.before_epoch(model)
    recipe.use_data(train=held_out_batches).before_epoch(model, mixwell.Clock(epoch=3))
    assert label.count == 6
    assert label.clocks == [0, 3]
    recipe(model, IMAGES, LABELS)
    resumed = with_label(ByEpoch()).bind(model, IMAGES)
    resumed.load_state_dict(recipe.state_dict())
    resumed(model, IMAGES, LABELS)  # its checkpoint lies within an epoch


class Trying(Ratio):
    """Tries λ = 0.25 with a gradient, then takes what was drawn."""

    network = True

    def draw(self, rows, rng):
        return rng.random(rows)

    def lam(self, draws, scene):
        lam = torch.full((len(draws),), 0.25, requires_grad=True)
        logits, targets = scene.attempt(lam, scene.views.probe.net)
        self.loss = scene.loss(logits, targets)
        (self.slope,) = torch.autograd.grad(self.loss, lam)
        self.tried = targets.weights.detach()
        return torch.from_numpy(draws)


@pytest.mark.parametrize("text", ["mixup", "manifold_mixup(sites=(1,))"])
def test_another_lam_is_tried_before_the_step(cnn, text):
    model = cnn(6).eval().double()
    images = IMAGES.double()
    recipe = mixwell.create(text, 6, seed=1).bind(model, images)
    (option,) = recipe.options
    ratio = Trying()
    option.ratio = ratio
    option.pieces, option.names[ratio] = (*option.pieces, ratio), "ratio"
    others = [drawing for drawing in option.drawing if not drawing[1].endswith("ratio")]
    option.drawing = (*others, (ratio, "0/ratio"))
    (turn,) = recipe.turns(model, images, LABELS)
    torch.testing.assert_close(ratio.tried, torch.tensor([[0.25, 0.75]]).expand(6, 2))
    assert not torch.allclose(turn.targets.weights, ratio.tried)

    def loss_at(value, row):
        lam = torch.full((6,), 0.25, dtype=torch.float64)
        lam[row] += value
        found = []

        class Fixed(Ratio):
            def lam(self, draws, scene):
                logits, targets = scene.attempt(lam, scene.views.probe.net)
                targets.weights = torch.stack((lam, 1 - lam), 1)  # in double precision
                found.append(scene.loss(logits, targets))
                return lam

        option.ratio = Fixed()
        draws = mixwell.Draws({**option.draw(6, recipe._streams, 0).of, option.ratio: None})
        list(recipe.turns(model, images, LABELS, draws=draws))
        return found[0].item()

    for row in (0, 3):
        slope = (loss_at(1e-3, row) - loss_at(-1e-3, row)) / 2e-3
        assert slope == pytest.approx(ratio.slope[row].item(), rel=2e-2, abs=1e-4)


def test_two_players_of_one_name_are_refused(cnn):
    recipe = mixwell.create("0.5*amr | 0.5*amr(mixer=fm)", 6, pixels=mixwell.Pixels((0.5,), (0.5,)))
    with pytest.raises(mixwell.IncompatibleRecipe, match="'amr/autoencoder' twice"):
        recipe.bind(cnn(6), IMAGES)


def test_plain_pieces_have_none_of_it():
    piece = Piece()
    assert piece.players() == {}
    assert list(piece.lessons(mixwell.Scene(mixwell.Batch(IMAGES, LABELS)))) == []


def test_a_network_that_was_moved_since_it_was_bound_is_known_before_the_epoch(cnn):
    model = cnn(6)
    recipe = mixwell.create("mixup", 6).bind(model, IMAGES)
    recipe.use_data(held_out=lambda: [mixwell.Batch(IMAGES, LABELS)])
    recipe.before_epoch(model.to("meta"))
    assert next(recipe._progress.data.held_out()).images.device.type == "meta"
