"""Token Labeling: sparse labels of tokens, the loss of every token, mixing after the patch embedding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mixwell
from mixwell.conformance import one_turn
from mixwell.core.axes import Scene, Step
from mixwell.core.criteria import SoftCrossEntropy
from mixwell.core.mix import Partners
from mixwell.data import load
from mixwell.label.attention.token_labeling import (
    MachineSmoothing,
    MachineTargets,
    SparseLabels,
    WithTokens,
    labels_of,
    mixed_cross_entropy,
    token_labels,
    with_tokens,
)
from mixwell.nets.label_maps import Annotator
from mixwell.ops.label_maps import merged, token_scores
from mixwell.probe import Outputs
from mixwell.sample.cutting.cutmix import paste
from mixwell.train import TrainConfig, train

ROWS, CLASSES = 6, 7


def some_labels(rows: int = ROWS, tokens: int = 16, named: int = 4, classes: int = CLASSES, scale: float = 3.0):
    scores, chosen = merged(scale * torch.randn(rows, tokens, named), torch.randint(classes, (rows, tokens, named)))
    return token_labels(scores, chosen, classes)


def own_maps(rows: int = ROWS, classes: int = CLASSES, size: int = 8) -> Tensor:
    """(B, 2, 3, h, w) label maps as a batch may bring them."""
    chosen = torch.rand(rows, classes, size, size).argsort(1)[:, :3]
    return torch.stack((4 * torch.rand(rows, 3, size, size), chosen.float()), 1)


def batch_of(rows: int = ROWS, **extras: Tensor) -> mixwell.Batch:
    return mixwell.Batch(
        torch.randn(rows, 3, 32, 32), torch.arange(rows) % CLASSES, extras={"label_map": own_maps(rows), **extras}
    )


def bound(text: str, model: nn.Module, **options) -> mixwell.Recipe:
    return mixwell.create(text, CLASSES, **options).bind(model, torch.randn(2, 3, 32, 32))


# Labels of tokens


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_labels_are_a_softmax_over_all_classes(scale):
    scores, chosen = merged(scale * torch.randn(5, 3, 4), torch.randint(9, (5, 3, 4)))
    dense = torch.zeros(5, 3, 9).scatter_add_(2, chosen, scores)
    found = token_labels(scores, chosen, 9).dense(9)
    torch.testing.assert_close(found, dense.softmax(2))
    assert torch.isfinite(found).all()


def test_smoothed_labels_sum_to_1_and_in_the_code_to_more():
    labels = some_labels()
    dense = labels.dense(CLASSES)
    torch.testing.assert_close(labels.smoothed(0.1, CLASSES).dense(CLASSES), 0.9 * dense + 0.1 / CLASSES)
    torch.testing.assert_close(
        labels.smoothed(0.1, CLASSES, "code").dense(CLASSES).sum(2), torch.full((ROWS, 16), 1 + 0.1 / CLASSES)
    )
    assert (labels.smoothed(0.1, CLASSES).dense(CLASSES) > 0).all()


@pytest.mark.parametrize("kind", ["ids", "int32", "rows"])
def test_an_images_own_label_is_that_of_all_its_tokens(kind):
    ids = torch.arange(ROWS)
    labels = {"ids": ids, "int32": ids.int(), "rows": torch.rand(ROWS, CLASSES)}[kind]
    expected = labels if kind == "rows" else F.one_hot(ids, CLASSES).float()
    torch.testing.assert_close(labels_of(labels).dense(CLASSES), expected[:, None])


@pytest.mark.parametrize("tokens", [16, 1])
def test_the_loss_of_tokens_is_cross_entropy_with_dense_labels(tokens):
    logits = torch.randn(5, 16, CLASSES, requires_grad=True)
    labels, sources = some_labels(tokens=tokens).smoothed(0.1, CLASSES, "code"), torch.randint(ROWS, (5, 3))
    shares = torch.rand(5, 3, 16).softmax(1)
    found = mixed_cross_entropy(logits, labels, sources, shares)
    dense = torch.einsum("rkn,rknc->rnc", shares, labels.dense(CLASSES)[sources].expand(-1, -1, 16, -1))
    expected = -(dense * logits.log_softmax(2)).sum(2)
    torch.testing.assert_close(found, expected)
    weights = torch.rand(5, 16)
    one, other = (torch.autograd.grad((x * weights).sum(), logits, retain_graph=True)[0] for x in (found, expected))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (1, 3, 2, 4), (0, 4, 0, 4), (0, 1, 2, 3)])
def test_labelling_what_a_token_shows_is_swapping_the_outputs_back(box):
    """The official code mixes back the outputs; the loss is the same to the last pair of token and label."""
    outputs, labels = torch.randn(ROWS, 16, CLASSES), some_labels()
    partners = Partners.at(torch.arange(ROWS).flip(0)[:, None], torch.arange(ROWS))
    boxes = np.array([box])
    back = paste(outputs.mT.reshape(ROWS, CLASSES, 4, 4), partners, boxes).flatten(2).mT
    expected = F.cross_entropy(back.flatten(0, 1), labels.dense(CLASSES).flatten(0, 1))
    inside = torch.zeros(4, 4)
    inside[box[0] : box[1], box[2] : box[3]] = 1
    shares = torch.stack((1 - inside, inside)).flatten(1).expand(ROWS, -1, -1)
    found = mixed_cross_entropy(outputs, labels, partners.sources, shares)
    torch.testing.assert_close(found.mean(), expected)


# The recipe


def turn_of(recipe: mixwell.Recipe, model: nn.Module, batch: mixwell.Batch, lam: float, box_at=(0.5, 0.5), **draws):
    given = {
        "pairing": np.arange(len(batch))[::-1].copy(),
        "ratio": np.full(1, lam),
        "blend": np.array([box_at]),
        **draws,
    }
    return one_turn(recipe, model, batch, **given)


def test_tokens_are_mixed_between_patch_embedding_and_positions(vit):
    model, batch = vit().eval(), batch_of()
    recipe = bound("token_labeling(per=batch)", model)
    turn = turn_of(recipe, model, batch, 0.5, place=0)
    patches = model.patch_embed(batch.images).mT.reshape(ROWS, -1, 4, 4)
    mixed = patches.clone()
    mixed[:, :, 1:3, 1:3] = patches.flip(0)[:, :, 1:3, 1:3]
    tokens = model.norm(model.blocks(model._pos_embed(mixed.flatten(2).mT)))
    torch.testing.assert_close(turn.logits, model.head(tokens[:, 0]))
    torch.testing.assert_close(turn.targets.weights, torch.tensor([[0.75, 0.25]]).expand(ROWS, 2))
    maps = batch.extras["label_map"]
    labels = token_labels(*token_scores(maps[:, 0], maps[:, 1].long(), None, (4, 4)), CLASSES).dense(CLASSES)
    shown = labels.mT.reshape(ROWS, CLASSES, 4, 4)
    swapped = shown.clone()
    swapped[:, :, 1:3, 1:3] = shown.flip(0)[:, :, 1:3, 1:3]
    head = recipe.options[0].terms[0].head
    dense = F.cross_entropy(head(tokens[:, 1:]).flatten(0, 1), swapped.flatten(2).mT.flatten(0, 1))
    torch.testing.assert_close(turn.parts["token_labeling"], 0.5 * dense)
    torch.testing.assert_close(turn.loss, turn.parts["criterion"] + 0.5 * dense)


def test_the_class_label_is_the_teachers_of_all_that_is_shown_mixed_by_area(vit):
    model, batch = vit().eval(), batch_of()
    recipe = bound("token_labeling(per=batch)", model)
    turns = {lam: turn_of(recipe, model, batch, lam, place=0) for lam in (1.0, 0.5)}
    maps = batch.extras["label_map"]
    machine = token_labels(*token_scores(maps[:, 0], maps[:, 1].long(), None, (1, 1)), CLASSES).dense(CLASSES)[:, 0]
    torch.testing.assert_close(turns[1.0].targets.dense(), machine)
    torch.testing.assert_close(turns[0.5].targets.dense(), 0.75 * machine + 0.25 * machine.flip(0))
    assert torch.equal(turns[0.5].targets.pool, batch.labels)
    for turn in turns.values():
        torch.testing.assert_close(turn.parts["criterion"], F.cross_entropy(turn.logits, turn.targets.dense()))


def test_an_empty_box_is_plain_token_labelling_and_beta_0_the_class_loss_alone(vit):
    model, batch = vit().eval(), batch_of()
    turn = turn_of(bound("token_labeling(per=batch, beta=0.0)", model), model, batch, 1.0, place=0)
    torch.testing.assert_close(turn.logits, model(batch.images))
    assert turn.parts["token_labeling"] == 0
    torch.testing.assert_close(turn.loss, turn.parts["criterion"])
    one, half = (
        turn_of(bound(f"token_labeling(per=batch, beta={beta})", model), model, batch, 1.0, place=0)
        for beta in (1.0, 0.5)
    )
    torch.testing.assert_close(one.parts["token_labeling"], 2 * half.parts["token_labeling"])


def test_of_a_constant_map_all_tokens_have_the_class_label(vit):
    scores, chosen = torch.rand(ROWS, 3, 1, 1), torch.rand(ROWS, CLASSES, 1, 1).argsort(1)[:, :3]
    size = (ROWS, 3, 8, 8)
    tokens = token_labels(*token_scores(scores.expand(size), chosen.expand(size), None, (4, 4)), CLASSES)
    whole = token_labels(*token_scores(scores.expand(size), chosen.expand(size), None, (1, 1)), CLASSES)
    torch.testing.assert_close(tokens.dense(CLASSES), whole.dense(CLASSES).expand(-1, 16, -1))


def test_with_ground_truth_the_teacher_counts_half_where_it_is_right_else_9_in_10(vit):
    model = vit().eval()
    maps = torch.zeros(2, 2, 1, 4, 4)
    maps[:, 0], maps[0, 1], maps[1, 1] = 3.0, 4, 2
    batch = mixwell.Batch(torch.randn(2, 3, 32, 32), torch.tensor([4, 5]), extras={"label_map": maps})
    turn = turn_of(bound("token_labeling(per=batch, ground_truth=true)", model), model, batch, 1.0, place=0)
    e, wanted = np.exp(3.0), turn.targets.dense()
    torch.testing.assert_close(wanted[0, 4], torch.tensor(0.5 * e / (e + 6) + 0.5).float())
    torch.testing.assert_close(wanted[1, 5], torch.tensor(0.9 / (e + 6) + 0.1).float())
    torch.testing.assert_close(wanted[1, 2], torch.tensor(0.9 * e / (e + 6)).float())


def test_without_maps_every_token_has_its_images_label(cnn):
    model = cnn().eval()
    batch = mixwell.Batch(torch.randn(ROWS, 3, 32, 32), torch.arange(ROWS))
    recipe = bound("cutmix(per=batch) + token_labeling(maps=none)", model, label_smoothing=0.1)
    assert not [module for module in recipe.modules() if isinstance(module, Annotator)]
    turn = turn_of(recipe, model, batch, 1.0)
    head = recipe.options[0].terms[0].head
    places = head(model.layer3(model.layer2(model.layer1(batch.images))).flatten(2).mT)
    count = places.shape[1]
    expected = F.cross_entropy(places.flatten(0, 1), batch.labels.repeat_interleave(count), label_smoothing=0.1)
    torch.testing.assert_close(turn.parts["token_labeling"], 0.5 * expected)
    torch.testing.assert_close(
        turn.loss, 0.5 * expected + F.cross_entropy(turn.logits, batch.labels, label_smoothing=0.1)
    )


def test_places_that_show_two_images_have_both_labels_by_area(cnn):
    """A box of pixels that cuts through places of the last stage."""
    model, batch = cnn().eval(), batch_of()
    recipe = bound("cutmix(per=batch) + token_labeling", model)
    turn = turn_of(recipe, model, batch, 0.2, box_at=(0.3, 0.4))
    term = recipe.options[0].terms[0]
    masks = torch.zeros(32, 32)
    top, left, half = int(0.3 * 32), int(0.4 * 32), int(32 * np.sqrt(0.8) / 2)
    masks[max(top - half, 0) : top + half, max(left - half, 0) : left + half] = 1
    mixed = torch.where(masks.bool(), batch.images.flip(0), batch.images)
    places = term.head(model.layer3(model.layer2(model.layer1(mixed))).flatten(2).mT)
    inside = F.avg_pool2d(masks[None], 4).flatten()
    assert ((inside > 0) & (inside < 1)).any()
    maps = batch.extras["label_map"]
    dense = token_labels(*token_scores(maps[:, 0], maps[:, 1].long(), None, (8, 8)), CLASSES).dense(CLASSES)
    wanted = (1 - inside)[:, None] * dense + inside[:, None] * dense.flip(0)
    expected = F.cross_entropy(places.flatten(0, 1), wanted.flatten(0, 1))
    torch.testing.assert_close(turn.parts["token_labeling"], 0.5 * expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_other_criteria_judge_tokens_too(cnn, smoothing):
    model, batch = cnn().eval(), batch_of()

    def part(**options):
        return turn_of(bound("cutmix(per=batch) + token_labeling", model, **options), model, batch, 0.4).parts[
            "token_labeling"
        ]

    plain = part(label_smoothing=smoothing)
    # Equal weights of classes change nothing, but take the dense way.
    torch.testing.assert_close(part(label_smoothing=smoothing, class_weights=[1.0] * CLASSES), plain)
    if not smoothing:
        torch.testing.assert_close(part(criterion=nn.CrossEntropyLoss(reduction="none")), plain)
    assert torch.isfinite(part(criterion="bce", label_smoothing=smoothing))
    assert not torch.allclose(part(criterion="bce"), plain)


def test_the_codes_smoothing_adds_a_little_of_the_teachers_label():
    logits, machine = torch.randn(ROWS, CLASSES), torch.rand(ROWS, CLASSES).softmax(1)
    rows, ones = torch.arange(ROWS)[:, None], torch.ones(ROWS, 1)
    targets = MachineTargets(torch.arange(ROWS), rows, ones, CLASSES, soft=machine, machine=machine)
    plain, code = SoftCrossEntropy(), MachineSmoothing()
    torch.testing.assert_close(code(logits, targets), plain(logits, targets))
    plain.smoothing = code.smoothing = 0.1
    floor = 0.1 / CLASSES
    expected = F.cross_entropy(logits, machine * (0.9 + floor) + floor)
    torch.testing.assert_close(code(logits, targets), expected)
    assert not torch.allclose(plain(logits, targets), expected)
    own = mixwell.Targets.of(torch.arange(ROWS), CLASSES)
    torch.testing.assert_close(code(logits, own), plain(logits, own))
    assert torch.equal(targets.to("cpu").machine, machine)


def test_rows_that_do_not_count_have_no_loss(cnn):
    model, batch = cnn(), batch_of()
    recipe = bound("cutmix + token_labeling", model)
    (term,) = recipe.options[0].terms
    outputs = {term.outputs: torch.randn(ROWS, 16, 4, 4)}
    masks = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(ROWS, 2, 4, 4)
    partners = Partners.at(torch.arange(ROWS).flip(0)[:, None], batch.labels)

    def value(valid: Tensor | None) -> Tensor:
        mix = mixwell.Mix.of_pair(
            batch.images, partners, torch.ones(1), lambda x: x, make_masks=lambda mix: masks, valid=valid
        )
        step = Step(Scene(batch), mix, Outputs(torch.zeros(ROWS, CLASSES), outputs))
        return term.value(step, mix.targets(), SoftCrossEntropy())

    every = value(torch.ones(ROWS, dtype=torch.bool))
    torch.testing.assert_close(every, value(None))
    outputs[term.outputs][3:] = 50
    some = value(torch.arange(ROWS) < 3)
    assert not torch.allclose(value(None), every)
    outputs[term.outputs][3:] = -50
    torch.testing.assert_close(value(torch.arange(ROWS) < 3), some)
    assert value(torch.zeros(ROWS, dtype=torch.bool)) == 0


# Evaluation and training


@pytest.mark.parametrize("text", ["token_labeling", "cutmix + token_labeling"])
def test_evaluation_also_asks_the_tokens(vit, cnn, text):
    for model in (vit(), cnn()) if "cutmix" in text else (vit(),):
        images = torch.randn(4, 3, 32, 32)
        recipe = bound(text, model)
        predictor = recipe.predictor(model).eval()
        assert isinstance(predictor, WithTokens)
        tokens = torch.randn(4, 9, CLASSES)
        assert torch.equal(with_tokens(torch.zeros(4, CLASSES), tokens), 0.5 * tokens.max(1).values)
        head = recipe.options[0].terms[0].head
        plain = model(images)
        assert not torch.equal(predictor(images), plain)
        with torch.no_grad():
            head.weight.zero_()
            head.bias.copy_(torch.arange(CLASSES))
        torch.testing.assert_close(predictor(images), plain + 0.5 * torch.arange(CLASSES))
        other = bound(text, model).predictor(model)
        other.load_state_dict(predictor.state_dict())
        assert torch.equal(other.eval()(images), predictor(images))
        assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("augment", [None, "rrc-flip"])
def test_it_trains_from_the_command_lines_config(tmp_path, monkeypatch, augment):
    """With maps of a teacher that was trained before, found by index, and a network that is taken up again."""
    monkeypatch.setenv("MIXWELL_CACHE", str(tmp_path / "cache"))
    data = load("digits", size=16, channels=1, augment=augment)
    config = TrainConfig(
        recipe="token_labeling(teacher_epochs=2)",
        data="digits",
        data_options={"size": 16, "channels": 1},
        augment=augment,
        model="vit-s",
        optimizer="adamw",
        lr=3e-3,
        batch_size=200,
        epochs=2,
        threads=1,
        out=tmp_path / "run",
    )
    result = train(config, progress=False)
    parts = [record["parts"]["token_labeling"] for record in result.history]
    assert parts[1] < parts[0]
    (made,) = (tmp_path / "cache").glob("label-maps-*")
    assert torch.load(made, weights_only=True)["scores"].shape[0] == len(data.train)
    again = train(config, progress=False)
    assert again.history == result.history


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mixup + token_labeling", "token_labeling needs masks"),
        ("resizemix + token_labeling", "needs mixes whose pixels keep their places, which resizemix does not give"),
        ("transmix + token_labeling", "both decide the label"),
        (
            "cutmix + token_labeling + decouplemix",
            "decouplemix needs mixes of exactly two sources, which the labels of",
        ),
    ],
)
def test_what_cannot_act_is_refused(text, reason):
    with pytest.raises(mixwell.IncompatibleRecipe, match=reason):
        mixwell.create(text)


def test_criteria_of_pairs_judge_the_class_and_tokens_have_cross_entropy(cnn):
    model, batch = cnn().eval(), batch_of()
    turn, plain = (
        turn_of(bound(f"cutmix(per=batch) + token_labeling(maps=none){more}", model), model, batch, 0.4)
        for more in (" + decouplemix", "")
    )
    assert turn.parts["criterion"] > plain.parts["criterion"]
    assert turn.parts["token_labeling"] == plain.parts["token_labeling"]


def test_a_network_without_patches_is_told_what_would_work(cnn):
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"no patch embedding.*'cutmix \+ token_labeling'"):
        bound("token_labeling", cnn())
    assert bound("cutmix + token_labeling", cnn()).options[0].place.site(None) is None


@pytest.mark.parametrize(
    "options", ["beta=-1", "alpha=0", "teacher_epochs=0", "maps=none, ground_truth=true", "rule='x'"]
)
def test_parameters_out_of_range_are_refused(options):
    with pytest.raises(mixwell.ParameterError, match=options.rpartition(",")[2].partition("=")[0].strip()):
        mixwell.create(f"token_labeling({options})")


def test_sparse_labels_take_little_room():
    labels = some_labels(classes=1000)
    assert isinstance(labels, SparseLabels)
    assert sum(tensor.numel() for tensor in (labels.more, labels.classes, labels.rest)) == ROWS * 16 * 9
