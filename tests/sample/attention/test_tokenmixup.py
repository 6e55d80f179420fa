"""TokenMixup: its functions by hand and by search, then the recipe inside networks whose attention is not flat."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from torch import nn

import mixwell
from mixwell.core.axes import Need, Term
from mixwell.nets.score_net import ScoreNet
from mixwell.sample.attention.tokenmixup import (
    MixedInputs,
    difficulty,
    gains,
    matched,
    most_salient,
    replaced,
    shown,
    survived,
    taken,
)

PIXELS = mixwell.Pixels((0.5,), (0.25,))


def saliency_of(rows=6, patches=9):
    return torch.randn(rows, patches).mul(2).softmax(1)


# Functions


def test_difficulty_is_a_tenth_of_the_cross_entropy():
    logits, ids = torch.randn(5, 7), torch.arange(5)
    expected = F.cross_entropy(logits, ids, reduction="none") / 10
    torch.testing.assert_close(difficulty(logits, mixwell.Targets.of(ids)), expected)
    soft = torch.rand(5, 7).softmax(1)
    for smoothing in (0.0, 0.1):
        expected = F.cross_entropy(logits, soft, reduction="none", label_smoothing=smoothing) / 10
        torch.testing.assert_close(difficulty(logits.double(), mixwell.Targets.of(soft), smoothing), expected)


@pytest.mark.parametrize("rho", [0.0, 0.02, 0.5])
def test_gains_are_the_sums_of_positive_parts(rho):
    s = saliency_of()
    expected = torch.tensor(
        [[sum(max(float(s[j, t]) - float(s[i, t]) - rho, 0) for t in range(9)) for j in range(6)] for i in range(6)]
    )
    found = gains(s, rho)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.double(), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(found.diagonal(), torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_matching_is_the_best_of_all():
    """Easy rows may take any row as partner, hard ones and themselves included, but no row twice."""
    gain, easy = gains(saliency_of(5), 0.01), torch.tensor([True, False, True, True, False])
    partner = matched(gain, easy)
    rows = easy.nonzero()[:, 0].tolist()
    best = max(
        sum(float(gain[i, j]) for i, j in zip(rows, columns, strict=True)) for columns in permutations(range(5), 3)
    )
    assert float(gain[easy, partner[easy]].sum()) == pytest.approx(best)
    assert len(set(partner[easy].tolist())) == 3
    assert partner[~easy].tolist() == [1, 4]


def test_without_easy_rows_everyone_stays_alone():
    assert matched(torch.rand(4, 4).double(), torch.zeros(4, dtype=torch.bool)).tolist() == [0, 1, 2, 3]


def test_gains_of_a_diverged_network_are_no_error():
    gain = gains(saliency_of(3), 0.01)
    gain[1] = torch.nan
    assert sorted(matched(gain, torch.ones(3, dtype=torch.bool)).tolist()) == [0, 1, 2]


S = torch.tensor([[0.1, 0.5, 0.4], [0.6, 0.3, 0.1], [0.3, 0.2, 0.5]])
PARTNER, EASY = torch.tensor([1, 2, 2]), torch.tensor([True, True, False])


def test_by_hand_each_row_compares_the_partner_with_itself():
    assert replaced(S, PARTNER, EASY, 0.15).tolist() == [[True, False, False], [False, False, True], [False] * 3]
    # Row 0 shows 0.6 of the partner beside 0.5 + 0.4 of its own, row 1 0.5 beside 0.6 + 0.3.
    shares = survived(S, PARTNER, replaced(S, PARTNER, EASY, 0.15))
    torch.testing.assert_close(shares, torch.tensor([0.9 / 1.5, 0.9 / 1.4, 1.0]))


def test_by_hand_the_authors_code_compares_all_with_the_first_easy_row():
    """Their gather has one row of indices, so that row 1 is judged by S of row 0."""
    mask = replaced(S, PARTNER, EASY, 0.15, "code")
    assert mask.tolist() == [[True, False, False], [True, False, False], [False] * 3]
    later = replaced(S, torch.tensor([0, 0, 0]), torch.tensor([False, True, True]), 0.15, "code")
    assert later.tolist() == [[False] * 3, [False, True, True], [False, True, True]]


@pytest.mark.parametrize("rule", ["paper", "code"])
def test_nothing_is_replaced_without_easy_rows_or_under_a_large_rho(rule):
    s, everyone = saliency_of(), torch.ones(6, dtype=torch.bool)
    partner = matched(gains(s, 0.0), everyone)
    assert replaced(s, partner, everyone, 0.0, rule).any()
    assert not replaced(s, partner, everyone, 1.0, rule).any()
    assert not replaced(s, partner, ~everyone, 0.0, rule).any()
    assert (survived(s, partner, torch.zeros(6, 9, dtype=torch.bool)) == 1).all()


def test_surviving_saliency_never_falls():
    for _ in range(20):
        s, everyone = saliency_of(), torch.ones(6, dtype=torch.bool)
        partner = torch.randperm(6)
        mask = replaced(s, partner, everyone, 0.01)
        left = torch.where(mask, s[partner], s)
        assert (left.sum(1) >= s.sum(1) - 1e-6).all()
        own = survived(s, partner, mask)
        assert ((own >= 0) & (own <= 1)).all()
        torch.testing.assert_close(own, torch.where(mask, 0, s).sum(1) / left.sum(1))


def test_rows_that_nobody_attends_to_keep_themselves():
    dark = torch.zeros(2, 4)
    mask = replaced(dark, torch.tensor([1, 0]), torch.ones(2, dtype=torch.bool), 0.0)
    assert survived(dark, torch.tensor([1, 0]), mask).tolist() == [1, 1]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_every_place_is_taken_from_the_row_that_is_named(layout, dtype):
    x, source = torch.randn(3, 5, 2, 4).to(dtype).contiguous(memory_format=layout), torch.randint(3, (3, 2, 4))
    found = shown(x.requires_grad_(), source)
    for i, y, z in product(range(3), range(2), range(4)):
        assert torch.equal(found[i, :, y, z], x[source[i, y, z], :, y, z])
    assert found.is_contiguous(memory_format=layout)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    counts = torch.stack([(source == row).sum(0) for row in range(3)])
    assert torch.equal(gradient, counts[:, None].expand_as(x).to(dtype))


def test_memory_takes_the_most_salient_tokens():
    s, tokens = torch.tensor([[0.1, 0.4, 0.2], [0.5, 0.1, 0.3]]), torch.arange(12.0).view(2, 3, 2)
    assert most_salient(s, 2).tolist() == [[1, 2], [0, 2]]
    assert taken(tokens, most_salient(s, 2)).tolist() == [[[2, 3], [4, 5]], [[6, 7], [10, 11]]]
    assert most_salient(s, 80).shape == (2, 3)
    assert taken(tokens, most_salient(s, 0)).shape == (2, 0, 2)


def test_scorenet_pools_patches_by_learned_weights():
    net, patches = ScoreNet(4, 3, class_token=False), torch.randn(2, 5, 4)
    weights = (patches @ net.attention.weight[0] + net.attention.bias).softmax(1)
    torch.testing.assert_close(net(patches, None), net.classifier((weights[:, :, None] * patches).sum(1)))


def test_scorenet_reads_the_class_token():
    net, prefix = ScoreNet(4, 3, class_token=True), torch.randn(2, 2, 4)
    torch.testing.assert_close(net(torch.randn(2, 5, 4), prefix), net.classifier(prefix[:, 0]))
    assert net.attention is None


# Recipes


def peaked(model):
    """Attention that is not flat, as it becomes by training."""
    for name, parameter in model.named_parameters():
        if "qkv.weight" in name:
            parameter.data *= 60
    return model


@pytest.fixture
def net(vit):
    return peaked(vit(depth=4))


@pytest.fixture
def pooled(vit):
    """Without a class token."""
    return peaked(vit(depth=4, class_token=False, global_pool="avg"))


@pytest.fixture(params=["class token", "mean of patches", "registers too"])
def any_net(request, vit):
    options = {
        "class token": {},
        "mean of patches": {"class_token": False, "global_pool": "avg"},
        "registers too": {"reg_tokens": 2},
    }[request.param]
    return peaked(vit(depth=4, **options))


def pictures(rows=6, channels=3, size=(32, 32)):
    """Each has a structure of its own, so that attention differs."""
    return torch.randn(rows, channels, *size) + 3 * torch.randn(rows, channels, 1, 1)


class Observer(Term):
    """Keeps the last step."""

    def value(self, step, targets, criterion):
        return torch.zeros(())

    def observe(self, step):
        self.step = step


def made(text, net, images, classes=7):
    recipe = mixwell.create(text, classes, pixels=PIXELS)
    recipe.bind(net, images)
    for option in recipe.options:
        option.pieces = (*option.pieces, Observer())
    return recipe


def step_of(recipe, net, images, labels=None):
    """(turn, step) of one step, whichever option it took."""
    observers = [option.pieces[-1] for option in recipe.options]
    for observer in observers:
        observer.step = None
    (turn,) = recipe.turns(net, images, torch.arange(len(images)) % 7 if labels is None else labels)
    return turn, next(observer.step for observer in observers if observer.step is not None)


def given_to(net, block, run):
    """The tokens that a block is given while something runs, after every other hook."""
    seen = []
    handle = net.blocks[block].norm1.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    run()
    handle.remove()
    return seen[-1]


def test_defaults_by_variant():
    def pieces(variant):
        (option,) = mixwell.create(f"tokenmixup(variant={variant})", 7).options
        return option

    across, along, both = map(pieces, ("horizontal", "vertical", "both"))
    assert (across.place.block, across.place.paper) == (None, 2)
    assert (across.blend.tau, across.blend.rho, across.terms[0].weight) == (0.2, 0.005, 0.001)
    assert (along.place.into.paper, along.place.kappa) == (2, 80)
    assert (both.place.at.paper, both.place.into.paper, both.place.kappa) == (3, 2, 3)
    for inner in (across.alone.inner, along.blend.inner, both.alone.inner):
        assert inner.weights == [0.5, 0.5]
        assert [type(blend).__name__ for blend in inner.blends] == ["Linear", "Box"]
        assert [policy.ratio.alpha for policy in inner.policies] == [0.8, 1.0]


@pytest.mark.parametrize("block", [1, -1, 3])
def test_every_token_is_that_of_some_row_in_the_same_place(any_net, block):
    images = pictures()
    any_net.eval()
    recipe = made(f"tokenmixup(inputs=none, tau=9, rho=0.001, block={block})", any_net, images)
    before = given_to(any_net, block, lambda: any_net(images))
    after = given_to(any_net, block, lambda: step_of(recipe, any_net, images))
    _, step = step_of(recipe, any_net, images)
    prefix = before.shape[1] - step.mix.images[0, 0].numel()
    assert torch.equal(after[:, :prefix], before[:, :prefix]), "class and register tokens are kept"

    masks = step.mix.masks.flatten(2)
    assert set(masks.unique().tolist()) == {0, 1}, "nothing was mixed, so the test saw nothing"
    source = step.mix.sources.gather(1, masks.argmax(1))
    places = torch.arange(prefix, before.shape[1])
    torch.testing.assert_close(after[:, prefix:], before[source, places])

    grid = step.mix.images.shape[2:]
    numbers = torch.arange(6.0).view(6, 1, 1, 1).expand(-1, 1, *images.shape[2:])
    fine = step.mix.apply(numbers)
    assert torch.equal(fine[:, 0, :: 32 // grid[0], :: 32 // grid[1]], source.view(6, *grid).float())
    assert torch.equal(F.max_pool2d(fine, 8), -F.max_pool2d(-fine, 8)), "each token is whole"


def test_labels_follow_the_attention_that_survives(any_net):
    images = pictures()
    recipe = made("tokenmixup(inputs=none, tau=9, rho=0.001, block=1)", any_net.eval(), images)
    turn, step = step_of(recipe, any_net, images)
    kind = "class_attention" if any_net.has_class_token else "patch_attention"
    want = mixwell.Want(kind, 1)
    if any_net.has_class_token:
        saliency = mixwell.Probe(any_net).run(images, wants=[want])[want]
    else:
        saliency = mixwell.Views(mixwell.Probe(any_net), step.batch, [want])[want]
    owned = step.mix.masks.flatten(2) * saliency[step.mix.sources]
    expected = owned.sum(2) / owned.sum((1, 2))[:, None]
    torch.testing.assert_close(turn.targets.weights, expected)
    torch.testing.assert_close(turn.targets.total, torch.ones(6))
    torch.testing.assert_close(step.mix.area, step.mix.masks.mean((2, 3))[:, 0])
    assert not torch.allclose(turn.targets.weights[:, 0], step.mix.area), "saliency and numbers of tokens agree"


def test_hard_rows_are_left_alone(net):
    images = pictures(8)
    recipe = made("tokenmixup(inputs=none, rho=0.001, block=1, tau=9)", net.eval(), images)
    _, step = step_of(recipe, net, images)
    hard = difficulty(step.mix.scores.detach(), step.mix.inputs).sort().values
    tau = float(hard[3:5].mean())
    recipe.options[0].blend.tau = tau
    before = given_to(net, 1, lambda: net(images))
    turn = None

    def run():
        nonlocal turn, step
        turn, step = step_of(recipe, net, images)

    after = given_to(net, 1, run)
    easy = difficulty(step.mix.scores.detach(), step.mix.inputs) <= tau
    assert easy.sum() == 4
    assert torch.equal(after[~easy], before[~easy])
    assert (turn.targets.weights[~easy] == torch.tensor([1.0, 0.0])).all()
    assert (turn.targets.weights[easy, 1] > 0).any()


@pytest.mark.parametrize("setting", ["tau=0", "tau=9, rho=1"])
def test_without_easy_rows_or_salient_tokens_it_is_plain_training(net, setting):
    images = pictures()
    recipe = made(f"tokenmixup(inputs=none, block=1, {setting})", net.eval(), images)
    turn, _ = step_of(recipe, net, images)
    torch.testing.assert_close(turn.logits, net(images).detach())
    assert torch.equal(turn.targets.dense(), torch.eye(7)[:6])
    torch.testing.assert_close(turn.parts["criterion"], F.cross_entropy(turn.logits, torch.arange(6)))


def test_the_codes_rule_masks_otherwise(net):
    images, labels = pictures(), []
    for rule in ("paper", "code"):
        torch.manual_seed(0)
        recipe = made(f"tokenmixup(inputs=none, tau=9, rho=0.001, block=1, rule={rule})", net.eval(), images)
        labels.append(step_of(recipe, net, images)[0].targets.weights)
    assert not torch.equal(*labels)
    assert torch.equal(labels[0][0], labels[1][0]), "the first easy row is its own reference"


# Mixed inputs


@pytest.mark.parametrize("kind", ["ids", "rows"])
@pytest.mark.parametrize("inputs", ["mixup", "cutmix", "dcutmix(k=3)"])
def test_composed_labels_are_those_of_dense_algebra(net, inputs, kind):
    """y ← own share · y_i + rest · y_π(i), where each y is already that of a mix."""
    images = pictures()
    labels = torch.arange(6) if kind == "ids" else torch.rand(6, 7).softmax(1)
    recipe = made(f"tokenmixup(inputs={inputs}, tau=9, rho=0.001, block=1)", net.eval(), images)
    turn, step = step_of(recipe, net, images, labels)
    mix, given = step.mix, replace(step.mix.inputs, num_classes=7)
    count = given.sources.shape[1]
    assert mix.sources.shape == (6, 2 * count)
    own = turn.targets.weights[:, :count].sum(1, keepdim=True)
    partner = (given.sources[None] == mix.sources[:, None, count:]).all(2).float().argmax(1)
    dense = given.dense()
    torch.testing.assert_close(turn.targets.dense(), own * dense + (1 - own) * dense[partner])
    assert ((own > 0) & (own < 1)).any()
    assert torch.equal(mix.pool, labels)
    if kind == "ids":
        assert not mix.pool.is_floating_point()


def test_what_the_network_sees_is_the_inner_recipes_mix(net):
    images = pictures()
    net.eval()
    recipe = made("tokenmixup(inputs=cutmix, block=2)", net, images)
    seen = []
    handle = net.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    _, step = step_of(recipe, net, images)
    handle.remove()
    (option,) = recipe.options
    mix = option.alone.mix_of(step.scene)
    assert torch.equal(seen[-1], mix.images)
    assert not torch.equal(mix.images, images)
    torch.testing.assert_close(step.mix.inputs.weights, mix.weights)
    torch.testing.assert_close(step.mix.masks.sum(1), torch.ones(6, 4, 4))
    without = made("tokenmixup(inputs=cutmix, block=2, tau=0)", net, images)
    _, step = step_of(without, net, images)
    assert ((step.mix.weights > 0) & (step.mix.weights < 1)).any()
    torch.testing.assert_close(step.mix.masks.mean((2, 3)), step.mix.weights, atol=1e-5, rtol=0)


def test_where_single_images_are_changed_first_they_are_not_mixed(net):
    images = pictures()
    recipe = made("augmix + tokenmixup(tau=9, rho=0.001, block=1)", net.eval(), images)
    (option,) = recipe.options
    assert not isinstance(option.alone, MixedInputs)
    _, step = step_of(recipe, net, images)
    assert step.mix.sources.shape == (6, 2)
    assert torch.equal(step.mix.inputs.weights, torch.ones(6, 1))


def test_where_labels_of_further_rows_are_added_images_are_not_mixed(net):
    recipe = mixwell.create("moex(prob=1) + tokenmixup", 7)
    assert all(option.alone is None for option in recipe.options)


def test_needs_follow_the_inputs():
    def gives(inputs):
        return mixwell.create(f"tokenmixup(inputs={inputs})", 7).options[0].blend.gives

    assert Need.PAIR in gives("none")
    assert Need.PAIR not in gives("cutmix")
    assert {Need.SIMPLEX, Need.MASKS, Need.OWN_ROW} <= gives("'0.5*mixup | 0.5*cutmix'".replace("'", ""))
    assert mixwell.create("tokenmixup(inputs=none) + decouplemix", 7)
    with pytest.raises(mixwell.IncompatibleRecipe, match="decouplemix needs mixes of exactly two sources"):
        mixwell.create("tokenmixup + decouplemix", 7)


# ScoreNet in training


def test_scorenet_learns_from_the_labels_that_came_in(net):
    images = pictures()
    recipe = made("tokenmixup(inputs=mixup, tau=9, rho=0.001, block=1, score_weight=0.5)", net.eval(), images)
    turn, step = step_of(recipe, net, images)
    given = replace(step.mix.inputs, num_classes=7).dense()
    torch.testing.assert_close(turn.parts["tokenmixup"], 0.5 * F.cross_entropy(step.mix.scores.detach(), given))
    turn.loss.backward()
    score = recipe.options[0].blend.score
    assert all(parameter.grad.abs().sum() > 0 for parameter in score.parameters())
    owned = [parameter for group in recipe.parameter_groups(net)[1:] for parameter in group["params"]]
    assert {id(parameter) for parameter in owned} == {id(parameter) for parameter in score.parameters()}


@pytest.mark.parametrize("stopgrad", [False, True])
def test_stopgrad_keeps_scorenets_gradient_from_the_network(any_net, stopgrad):
    images = pictures()
    text = f"tokenmixup(inputs=none, block=1, score_weight=10, stopgrad={str(stopgrad).lower()})"
    recipe = made(text, any_net.eval(), images)
    turn, step = step_of(recipe, any_net, images)
    loss = recipe.options[0].terms[0].value(step, turn.targets, recipe.options[0].criterion)
    loss.backward()
    reached = any(parameter.grad is not None for parameter in any_net.blocks[0].parameters())
    assert reached == (not stopgrad)


class Sure(nn.Module):
    """A ScoreNet that is sure of every image."""

    def forward(self, patches, prefix):
        return 50 * torch.eye(7)[: len(patches)]


@pytest.mark.parametrize(("smoothing", "mixes"), [(0.0, True), (0.3, False)])
def test_difficulty_counts_label_smoothing(net, smoothing, mixes):
    """As in the paper's runs, whose labels are smoothed before ScoreNet sees them."""
    images = pictures()
    recipe = mixwell.create("tokenmixup(inputs=none, rho=0.001, block=1)", 7, label_smoothing=smoothing)
    recipe.bind(net.eval(), images).options[0].blend.score = Sure()
    (turn,) = recipe.turns(net, images, torch.arange(6))
    assert bool((turn.targets.weights[:, 1] > 0).any()) == mixes


# The vertical variant


def attended_with(block, tokens, memory):
    """A pre-norm block of timm, written out, with more keys and values than queries."""
    attention = block.attn
    q = attention.qkv(block.norm1(tokens)).chunk(3, -1)[0]
    _, k, v = attention.qkv(block.norm1(torch.cat((tokens, memory), 1))).chunk(3, -1)
    q, k, v = (part.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
    rates = (q @ k.transpose(2, 3) * attention.scale).softmax(-1)
    tokens = tokens + attention.proj((rates @ v).transpose(1, 2).flatten(2))
    return tokens + block.mlp(block.norm2(tokens)), rates


def saliency_in(net, images, block):
    if net.has_class_token:
        want = mixwell.Want("class_attention", block)
        return mixwell.Probe(net).run(images, wants=[want])[want]
    want = mixwell.Want("patch_attention", block)
    return mixwell.Probe(net).run(images, wants=[want])[want]


@pytest.mark.parametrize("rule", ["paper", "code"])
@pytest.mark.parametrize("kappa", [1, 3, 80])
def test_a_block_attends_to_the_salient_tokens_of_earlier_ones(any_net, kappa, rule):
    net, images = any_net.eval(), pictures()
    text = f"tokenmixup(variant=vertical, inputs=none, memory_block=2, kappa={kappa}, rule={rule})"
    recipe = made(text, net, images)
    inputs = [given_to(net, block, lambda: net(images)) for block in (0, 1, 2)]
    offset = net.num_prefix_tokens if rule == "paper" else 0
    memory = torch.cat([taken(inputs[i], most_salient(saliency_in(net, images, i), kappa) + offset) for i in (0, 1)], 1)
    assert memory.shape[1] == 2 * min(kappa, 16)
    expected, _ = attended_with(net.blocks[2], inputs[2], memory)
    after = given_to(net, 3, lambda: step_of(recipe, net, images))
    assert after.shape == inputs[2].shape
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
    plain = given_to(net, 3, lambda: net(images))
    assert not torch.allclose(plain, expected, atol=1e-3), "the memory changed nothing"


def test_other_pairings_bring_their_own_mix():
    (option,) = mixwell.create("k_mixup + tokenmixup(variant=vertical)", 7).options
    assert type(option.blend).__name__ == "Linear"
    assert type(option.place).__name__ == "TokenMemory"


def test_rules_agree_without_a_class_token(pooled):
    images, losses = pictures(), []
    for rule in ("paper", "code"):
        recipe = made(f"tokenmixup(variant=vertical, inputs=none, kappa=3, rule={rule})", pooled.eval(), images)
        losses.append(step_of(recipe, pooled, images)[0].loss)
    assert torch.equal(*losses)


def test_images_and_labels_are_those_of_the_policy_beside_it(net):
    images, labels = pictures(), torch.arange(6)
    with_memory = mixwell.create("cutmix + tokenmixup(variant=vertical)", 7, seed=3)
    alone = mixwell.create("cutmix", 7, seed=3)
    turns = []
    for recipe in (with_memory, alone):
        seen = []
        handle = net.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].clone()))
        (turn,) = recipe.turns(net.eval(), images, labels)
        handle.remove()
        turns.append((seen[-1], turn))
    assert torch.equal(turns[0][0], turns[1][0])
    assert torch.equal(turns[0][1].targets.dense(), turns[1][1].targets.dense())
    assert not torch.allclose(turns[0][1].logits, turns[1][1].logits)


def test_evaluation_sees_nothing_of_it(net):
    images = pictures()
    net.eval()
    before = net(images)
    for variant in ("horizontal", "vertical", "both"):
        step_of(made(f"tokenmixup(variant={variant})", net, images), net, images)
        assert torch.equal(net(images), before)


@pytest.mark.parametrize("stopgrad", [False, True])
def test_gradients_flow_through_the_memory_unless_stopped(net, stopgrad):
    images = pictures()
    text = f"tokenmixup(variant=vertical, inputs=none, memory_block=1, kappa=2, stopgrad={str(stopgrad).lower()})"
    recipe = made(text, net.eval(), images)
    met = []

    def keep(_, args):
        args[0].retain_grad()
        met.append(args[0])

    handle = net.blocks[1].norm1.register_forward_pre_hook(keep)
    turn, _ = step_of(recipe, net, images)
    handle.remove()
    (memory,) = [tokens for tokens in met if tokens.shape[1] == 19]
    turn.loss.backward()
    assert memory.grad[:, 17:].abs().sum() > 0
    found = [parameter.grad.clone() for parameter in net.patch_embed.parameters()]
    for parameter in net.parameters():
        parameter.grad = None
    other = made(text.replace(str(stopgrad).lower(), str(not stopgrad).lower()), net, images)
    step_of(other, net, images)[0].loss.backward()
    assert not torch.allclose(found[0], next(iter(net.patch_embed.parameters())).grad)


def test_labels_by_attention_see_the_patches_alone(net):
    """The block with memory shows its class row over the patches, not renormalised."""
    images = pictures()
    recipe = made(
        "cutmix + transmix(switch_prob=1) + tokenmixup(variant=vertical, memory_block=3, kappa=5)", net, images
    )
    _, step = step_of(recipe, net.eval(), images)
    seen = step.outputs[mixwell.Want("class_attention", -1)]
    assert seen.shape == (6, 16)
    mixed = step.mix.images
    inputs = [given_to(net, block, lambda: net(mixed)) for block in range(4)]
    memory = torch.cat([taken(inputs[i], most_salient(saliency_in(net, mixed, i), 5) + 1) for i in range(3)], 1)
    _, rates = attended_with(net.blocks[3], inputs[3], memory)
    torch.testing.assert_close(seen, rates[:, :, 0, 1:17].mean(1), rtol=1e-4, atol=1e-6)


def test_both_at_one_block_remember_by_the_attention_before_the_mix(net):
    """The tokens are those after the mix, chosen by what their place attended to before it."""
    images = pictures()
    text = "tokenmixup(variant=both, inputs=none, tau=9, rho=0.001, block=1, memory_block=2, kappa=3)"
    recipe = made(text, net.eval(), images)
    before = saliency_in(net, images, 1)
    seen = given_to(net, 2, lambda: step_of(recipe, net, images))
    mixed = given_to(net, 1, lambda: step_of(recipe, net, images))
    first = taken(given_to(net, 0, lambda: net(images)), most_salient(saliency_in(net, images, 0), 3) + 1)
    second = taken(mixed, most_salient(before, 3) + 1)
    assert not torch.equal(mixed, given_to(net, 1, lambda: net(images)))
    torch.testing.assert_close(seen[:, 17:], torch.cat((first, second), 1))


# Any batch, size and network


def test_inputs_of_another_shape(vit):
    """Stacks are as tall as two images, and so is their grid of tokens."""
    net, images = peaked(vit(depth=4, dynamic_img_size=True)).eval(), pictures()
    recipe = made("tokenmixup(inputs=stackmix, tau=9, rho=0.001)", net, images)
    turn, step = step_of(recipe, net, images)
    assert step.mix.masks.shape == (6, 4, 8, 4)
    torch.testing.assert_close(turn.targets.total, torch.ones(6))


def test_autocast_leaves_the_gains_alone():
    s = saliency_of()
    with torch.autocast("cpu", torch.bfloat16):
        found = gains(s, 0.01)
    assert torch.equal(found, gains(s, 0.01))


@pytest.mark.parametrize("variant", ["horizontal", "vertical", "both"])
@pytest.mark.parametrize(
    ("rows", "channels", "size", "dtype"),
    [
        (1, 3, (32, 32), torch.float32),
        (2, 1, (24, 40), torch.float64),
        (7, 4, (40, 24), torch.bfloat16),
        (7, 3, (32, 32), torch.float32),
    ],
    ids=str,
)
def test_any_batch_trains(vit, variant, rows, channels, size, dtype):
    net = peaked(vit(7, channels, size, depth=4)).to(dtype)
    images = pictures(rows, channels, size).to(dtype).contiguous(memory_format=torch.channels_last)
    kept = images.clone()
    recipe = made(f"tokenmixup(variant={variant})", net.train(), images)
    optimiser = torch.optim.SGD([{"params": group["params"]} for group in recipe.parameter_groups(net)], lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        turn, step = step_of(recipe, net, images)
        turn.loss.backward()
        optimiser.step()
        recipe.after_step(net)
        assert torch.isfinite(turn.loss)
        assert step.mix.images.dtype == dtype
        torch.testing.assert_close(turn.targets.total, torch.ones(rows))
    assert torch.equal(images, kept)
    assert all(parameter.grad is not None for parameter in net.parameters())


def hugging_face():
    settings = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    settings.num_labels = 7
    return transformers.ViTForImageClassification(settings)


FAMILIES = {
    "torchvision": lambda: torchvision.models.VisionTransformer(32, 8, 4, 2, 32, 64, num_classes=7),
    "Hugging Face": hugging_face,
    "distilled": lambda: timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, depth=4, embed_dim=32, num_heads=2, num_classes=7
    ),
}


@pytest.mark.parametrize("variant", ["horizontal", "vertical", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_of_other_families(family, variant):
    model, images = FAMILIES[family](), pictures()
    setting = "" if variant == "vertical" else ", tau=9, rho=0.00001"
    recipe = made(f"tokenmixup(variant={variant}, inputs=none{setting})", model.train(), images)
    turn, step = step_of(recipe, model, images)
    turn.loss.backward()
    assert torch.isfinite(turn.loss)
    if variant != "vertical":
        assert (step.mix.weights[:, 1] > 0).any()
    model.eval()
    assert torch.isfinite(step_of(recipe, model, images)[0].loss)


def test_shallow_networks_take_their_last_block(vit):
    recipe = made("tokenmixup(variant=both)", vit(depth=2), pictures())
    (option,) = recipe.options
    assert (option.place.at.number, option.place.into.number) == (1, 1)
    assert recipe.sites == {"block:1"}
    assert option.place.blocks_used() == (0, 1)


def test_a_compiled_network_trains_as_the_plain_one(vit):
    """Blocks that are given more tokens, traced with the hooks in place."""
    losses = []
    for compiled in (False, True):
        net = peaked(vit(depth=4)).eval()
        recipe = mixwell.create("tokenmixup(variant=both)", 7, seed=1).bind(net, torch.zeros(2, 3, 32, 32))
        if compiled:
            recipe.install_hooks(net)
        model = torch.compile(net, backend="eager") if compiled else net
        torch.manual_seed(5)
        images = pictures()
        losses.append(torch.stack([recipe(model, images, torch.arange(6)).detach() for _ in range(3)]))
    torch.testing.assert_close(*losses)


# What cannot act


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tokenmixup(kappa=3)", "variant='horizontal' has no kappa"),
        ("tokenmixup(variant=vertical, tau=0.1, rho=0.1)", "variant='vertical' has no tau, rho"),
        ("tokenmixup(variant=vertical, memory_block=0)", "must have blocks before it"),
        ("tokenmixup(variant=vertical, kappa=0)", "kappa must be a whole number ≥ 1"),
        ("tokenmixup(tau=-1)", "tau must"),
        ("tokenmixup(rho=-0.1)", "rho must"),
        ("tokenmixup(score_weight=0)", "score_weight must"),
    ],
)
def test_settings_that_cannot_act(text, says):
    with pytest.raises(mixwell.ParameterError, match=says):
        mixwell.create(text, 7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cutmix + tokenmixup", "cutmix and tokenmixup both decide the blend"),
        ("cutmix + transmix + tokenmixup", "both decide"),
        ("manifold_mixup + tokenmixup(variant=vertical)", "both decide the place"),
        ("tokenmixup(inputs=manifold_mixup)", "Give tokenmixup a recipe such as cutmix"),
    ],
)
def test_recipes_that_cannot_act(text, says):
    with pytest.raises(mixwell.IncompatibleRecipe, match=says):
        mixwell.create(text, 7)


@pytest.mark.parametrize("variant", ["horizontal", "vertical", "both"])
def test_networks_without_blocks_are_refused(cnn, variant):
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"tokenmixup: SmallCNN has no self-attention.*vit-s"):
        mixwell.create(f"tokenmixup(variant={variant})", 7).bind(cnn(), torch.zeros(2, 3, 32, 32))


def test_windows_are_refused():
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, num_classes=7, window_size=4, depths=(2, 2))
    for variant in ("horizontal", "vertical"):
        with pytest.raises(mixwell.IncompatibleRecipe, match=r"tokenmixup: SwinTransformer attends within windows"):
            mixwell.create(f"tokenmixup(variant={variant})", 7).bind(swin, torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize("name", ["vit_small_patch16_rope_224", "beit_base_patch16_224"])
def test_blocks_that_know_places_take_other_tokens_but_no_more_of_them(name):
    model = timm.create_model(name, img_size=32, depth=4, embed_dim=64, num_heads=2, patch_size=8, num_classes=7)
    images = pictures()
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"tokenmixup: Attention of .* knows the place of every token"):
        mixwell.create("tokenmixup(variant=vertical)", 7).bind(model, images)
    assert torch.isfinite(step_of(made("tokenmixup(tau=9)", model, images), model, images)[0].loss)


def test_missing_blocks_are_named(net):
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"tokenmixup: Block 9 does not exist: .* has 4 blocks"):
        mixwell.create("tokenmixup(block=9)", 7).bind(net, torch.zeros(2, 3, 32, 32))
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"tokenmixup: Block 0 of .* has none before it"):
        mixwell.create("tokenmixup(variant=vertical, memory_block=-4)", 7).bind(net, torch.zeros(2, 3, 32, 32))
