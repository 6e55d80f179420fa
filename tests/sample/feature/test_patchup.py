"""PatchUp's blocks, labels and loss, and where paper and code differ."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import mixwell
from mixwell.core.axes import Scene
from mixwell.core.mix import Partners
from mixwell.core.places import ByPlaceDraws
from mixwell.ops.noise import uniform_noise
from mixwell.sample.feature.patchup import Blocks, blocks_around, centre_rate

H = torch.randn(6, 5, 24, 40)
PERM = np.array([3, 0, 1, 2, 5, 4])
IMAGES, LABELS = torch.randn(6, 3, 32, 32), torch.arange(6)


def mixed(blend, lam=(0.3,), hidden=H, key=5):
    """What a blend makes of a map whose rows are labelled by their numbers."""
    labels = torch.arange(len(hidden))
    partners = Partners.at(torch.from_numpy(PERM)[:, None], labels)
    return blend.mix(
        hidden, partners, torch.tensor(lam, dtype=torch.float64), key, Scene(mixwell.Batch(hidden, labels))
    )


def holes_of(blend, hidden=H):
    """Where the batch's blocks are, seen by mixing zeros and ones."""
    marked = torch.arange(len(hidden), dtype=torch.float32)[:, None, None, None].expand_as(hidden)
    return mixed(blend, (0.0,), marked).images != marked


def one_turn(text, model, seed=0):
    (turn,) = mixwell.create(text, 6, seed=seed).turns(model, IMAGES, LABELS)
    return turn


@pytest.mark.parametrize("block", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("size", [(24, 40), (9, 12)], ids=str)
def test_blocks_are_what_is_near_a_centre(size, block):
    centres = torch.rand(4, *size) < 0.02
    centres[0, 0, 0] = centres[0, -1, -1] = True
    expected = torch.zeros(4, *size, dtype=torch.bool)
    half = block // 2
    for c, i, j in centres.nonzero().tolist():
        expected[c, max(0, i - half) : i + half + 1, max(0, j - half) : j + half + 1] = True
    assert torch.equal(blocks_around(centres, block), expected)
    assert not blocks_around(torch.zeros_like(centres), block).any()


def test_the_rate_of_centres():
    assert centre_rate(0.75, 7, (16, 16)) == pytest.approx(0.75 * 256 / (49 * 100))
    assert centre_rate(0.5, 1, (9, 4)) == 0.5
    assert centre_rate(0.9, 7, (7, 7)) == 0.9
    assert centre_rate(1.0, 3, (3, 40)) == pytest.approx(40 / (3 * 38))
    assert centre_rate(0.0, 7, (16, 16)) == 0


def test_the_rate_follows_the_map_unlike_the_authors_cached_one():
    """Theirs is that of the first map, and for a map that is not square that of a square of its width."""
    assert centre_rate(0.5, 7, (32, 32)) != centre_rate(0.5, 7, (16, 16))
    assert centre_rate(0.5, 7, (24, 40)) == pytest.approx(0.5 * 24 * 40 / (49 * 18 * 34))


@pytest.mark.parametrize(
    ("gamma", "side", "changed"), [(0.75, 32, 0.64), (0.5, 32, 0.49), (0.25, 32, 0.28), (0.75, 16, 0.77)]
)
def test_how_much_of_a_map_changes(gamma, side, changed):
    rate = centre_rate(gamma, 7, (side, side))
    holes = blocks_around(uniform_noise(3, (2000, side, side), torch.device("cpu")) < rate, 7)
    assert holes.float().mean().item() == pytest.approx(changed, abs=0.015)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_hard_swaps_the_same_blocks_in_every_row_and_others_in_every_channel(layout):
    hidden, blend = H.contiguous(memory_format=layout), Blocks("hard", 0.5, 5)
    mix, holes = mixed(blend, hidden=hidden), holes_of(blend)
    assert torch.equal(holes, holes[:1].expand_as(holes))
    assert len(holes[0].unique(dim=0)) == 5
    assert torch.equal(mix.images, torch.where(holes, H[PERM], H))
    assert torch.equal(mix.sources, torch.from_numpy(np.stack((np.arange(6), PERM), 1)))
    unchanged = 1 - holes[0].double().mean()
    torch.testing.assert_close(mix.weights, torch.stack((unchanged, 1 - unchanged)).float().expand(6, 2))


@pytest.mark.parametrize("lam", [(0.3,), (0.0, 0.2, 0.5, 0.7, 0.9, 1.0)], ids=["batch", "sample"])
def test_soft_averages_inside_the_blocks(lam):
    blend = Blocks("soft", 0.75, 5)
    mix, holes = mixed(blend, lam), holes_of(blend)
    shares = torch.tensor(lam).expand(6)
    averaged = shares[:, None, None, None] * H + (1 - shares[:, None, None, None]) * H[PERM]
    torch.testing.assert_close(mix.images, torch.where(holes, averaged, H))
    assert torch.equal(mix.images[~holes], H[~holes])
    unchanged = 1 - holes[0].float().mean()
    own = unchanged + (1 - unchanged) * shares
    torch.testing.assert_close(mix.weights, torch.stack((own, 1 - own), 1))


def test_soft_lies_between_hard_and_the_map_itself():
    hard, one, other = (
        mixed(blend, lam) for blend, lam in ((Blocks(), (0.3,)), (Blocks("soft"), (0.0,)), (Blocks("soft"), (1.0,)))
    )
    assert torch.equal(one.images, hard.images)
    assert torch.equal(one.weights, hard.weights)
    assert torch.equal(other.images, H)
    assert torch.equal(other.weights, torch.tensor([[1.0, 0.0]]).expand(6, 2))


def test_no_centre_and_nothing_but_centres():
    for noise, images, shares in ((1.0, H, (1.0, 0.0)), (0.0, H[PERM], (0.0, 1.0))):
        blend = Blocks()
        blend.noise = lambda key, shape, device, noise=noise: torch.full(shape, noise)
        mix = mixed(blend)
        assert torch.equal(mix.images, images)
        assert torch.equal(mix.weights, torch.tensor([shares]).expand(6, 2))


@pytest.mark.parametrize(("size", "block"), [((6, 12), 5), ((4, 4), 3), ((2, 9), 1), ((1, 1), 1)], ids=str)
def test_blocks_shrink_to_fit_into_small_maps(size, block):
    """One centre in the middle shows how large they are; at 1×1, embeddings, features are swapped as a whole."""
    blend, hidden = Blocks("hard", 0.5, 7), torch.randn(6, 3, *size)
    middle = torch.ones(3, *size)
    middle[:, size[0] // 2, size[1] // 2] = 0
    blend.noise = lambda *_: middle
    holes = holes_of(blend, hidden)
    assert torch.equal(holes[0], blocks_around(middle == 0, block))
    assert torch.equal(mixed(blend, hidden=hidden).images, torch.where(holes, hidden[PERM], hidden))


def test_tensors_of_other_channels_and_sizes_get_the_mean_share():
    mix, own = mixed(Blocks()), torch.eye(6)[:, :, None, None].expand(6, 6, 24, 40)
    shown = mix.apply(own)
    torch.testing.assert_close(shown.sum(1), torch.ones(6, 24, 40))
    torch.testing.assert_close(shown[0, 0], 1 - holes_of(Blocks())[0].float().mean(0))
    small = mix.apply(own[:, :, ::4, ::4])
    torch.testing.assert_close(small.mean((2, 3))[0, 0], mix.weights[0, 0])


@pytest.mark.parametrize("block", [0, 4, -3])
def test_blocks_have_an_odd_side(block):
    with pytest.raises(mixwell.ParameterError, match=f"block must be an odd number of positions, .* got {block}"):
        mixwell.create(f"patchup(block={block})")


def test_what_the_variants_take_as_default():
    hard, soft = mixwell.create("patchup"), mixwell.create("patchup(variant=soft)")
    assert hard.weights == pytest.approx([0.7, 0.3])
    assert soft.weights == [1.0]
    blends = [recipe.options[0].blend.at_hidden for recipe in (hard, soft)]
    assert [(blend.gamma, blend.block, blend.takes_lam) for blend in blends] == [(0.5, 7, False), (0.75, 7, True)]
    assert mixwell.create("patchup(gamma=0.25, prob=1.0)").options[0].blend.at_hidden.gamma == 0.25
    assert soft.options[0].ratio.at_hidden.alpha == 2


def test_the_papers_sites(cnn):
    assert mixwell.create("patchup", 6).bind(cnn(6), IMAGES).sites == {"stem", "layer1"}


def test_site_0_is_cutmix_bit_for_bit(cnn):
    model = cnn(6).eval()
    for variant in ("hard", "soft"):
        turn, cut = one_turn(f"patchup(variant={variant}, sites=(0,), prob=1.0)", model), one_turn("cutmix", model)
        assert torch.equal(turn.logits, cut.logits)
        assert torch.equal(turn.targets.weights, cut.targets.weights)
        assert torch.equal(turn.loss, cut.loss)


@pytest.mark.parametrize("site", [0, 1])
@pytest.mark.parametrize("criterion", ["cross_entropy", "softmax_bce"])
def test_the_papers_three_terms_are_twice_the_loss_of_the_mixed_label(cnn, criterion, site):
    model = cnn(6).eval()
    text = f"patchup(sites=({site},), prob=1.0, criterion={criterion}"
    turn, once = one_turn(f"{text}, loss=three_terms)", model), one_turn(f"{text})", model)

    def loss(target):
        if criterion == "cross_entropy":
            return F.cross_entropy(turn.logits, target, reduction="none")
        return F.binary_cross_entropy(turn.logits.softmax(1), target, reduction="none").mean(1)

    own, other = (F.one_hot(turn.targets.classes[:, k], 6).float() for k in (0, 1))
    share = turn.targets.weights[:, 0]
    summed = loss(own) * share + loss(other) * (1 - share) + loss(turn.targets.dense())
    torch.testing.assert_close(turn.loss, summed.mean())
    torch.testing.assert_close(turn.loss, 2 * once.loss)


def test_one_lambda_per_batch_as_in_the_code():
    for per, count in (("batch", 1), ("sample", 6)):
        (option,) = mixwell.create(f"patchup(variant=soft, per={per})").options
        drawn = option.ratio.draw(6, np.random.default_rng(0))
        assert drawn.input.shape == drawn.hidden.shape == (count,)
        assert len(option.blend.draw(6, np.random.default_rng(0)).input) == count


def test_tokens_are_positions_and_the_class_token_gets_the_shares(vit):
    model = vit(6).eval()
    recipe = mixwell.create("patchup(sites=('blocks.0',), prob=1.0)", 6).bind(model, IMAGES)
    (option,) = recipe.options
    seen = []
    model.blocks[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    clean = model(IMAGES) is not None and seen.pop()
    draws = {option.place: 0, option.pairing: PERM, option.ratio: None, option.blend: ByPlaceDraws(None, 7)}
    draws[option.ratio] = option.ratio.draw(6, np.random.default_rng(0))
    (turn,) = recipe.turns(model, IMAGES, LABELS, draws=mixwell.Draws(draws))
    holes = seen[0][:, 1:] != clean[:, 1:]
    assert torch.equal(seen[0][:, 1:], torch.where(holes, clean[PERM, 1:], clean[:, 1:]))
    torch.testing.assert_close(turn.targets.weights[:, 1], holes.float().mean((1, 2)))
    own, other = turn.targets.weights[0]
    torch.testing.assert_close(seen[0][:, 0], own * clean[:, 0] + other * clean[PERM, 0])


def small_resnet():
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=6)


NETWORKS = {
    "cnn": lambda cnn, vit: cnn(6),
    "vit": lambda cnn, vit: vit(6),
    "torchvision": lambda cnn, vit: small_resnet(),
    "timm": lambda cnn, vit: timm.create_model("test_convnext", num_classes=6),
}


@pytest.mark.parametrize("variant", ["hard", "soft"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_at_every_site(name, variant, cnn, vit):
    model = NETWORKS[name](cnn, vit)
    recipe = mixwell.create(f"patchup(variant={variant}, prob=1.0)", 6).bind(model, IMAGES)
    (option,) = recipe.options
    for number in range(3):
        option.place.draw = lambda rows, rng, number=number: number
        with torch.autocast("cpu", torch.bfloat16, enabled=name in ("cnn", "vit")):
            loss = recipe(model, IMAGES, LABELS)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        nn.Module.zero_grad(model)
