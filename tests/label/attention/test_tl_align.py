"""TL-Align's boxes of patches, and the labels that reach the class token."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
import torchvision

import mixwell
from mixwell.core.rng import Streams
from mixwell.label.attention.tl_align import PatchBox, token_boxes
from mixwell.ops.boxes import boxes_of
from mixwell.ops.tokens import fold

ROWS = 6


def attention_of(rows=3, tokens=7):
    return torch.randn(rows, tokens, tokens).softmax(-1)


def shares_of(rows=3, tokens=7):
    own = torch.rand(rows, 1, tokens)
    return torch.cat((own, 1 - own), 1)


def mix_of(text, images, net=None, **draws):
    recipe = mixwell.create(text, 7)
    (option,) = (recipe if net is None else recipe.bind(net, images)).options
    given = {**option.draw(len(images), Streams(0), 0).of, **{getattr(option, slot): d for slot, d in draws.items()}}
    return option.mix(images, mixwell.Scene(mixwell.Batch(images, torch.arange(len(images))), mixwell.Draws(given)))


def looking(net):
    """The network with attention far from uniform."""
    with torch.no_grad():
        for block in net.blocks:
            block.attn.qkv.weight.mul_(50)
    return net.eval()


def attentions_in(net, images):
    """The mean over heads of each block's attention, from a copy of the network that multiplies it out itself."""
    net, seen = copy.deepcopy(net).eval(), []
    for block in net.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda _, args: seen.append(args[0].mean(1)))
    with torch.no_grad():
        net(images)
    return seen


def labels_by_the_paper(attentions, masks, weights, sources, classes, prefix):
    """Dense labels of all tokens, one image, block and token after the other; of the first token at the end."""
    one_hot, found = torch.eye(classes), []
    for row, (own, partner) in enumerate(sources.tolist()):
        whole = weights[row, 0] * one_hot[own] + weights[row, 1] * one_hot[partner]
        inside = masks[row, 1].flatten()
        tokens = [whole] * prefix + [one_hot[partner] if pasted else one_hot[own] for pasted in inside]
        for attention in attentions:
            tokens = [
                (sum(share * label for share, label in zip(looks, tokens, strict=True)) + token) / 2
                for looks, token in zip(attention[row], tokens, strict=True)
            ]
        found.append(tokens[0])
    return torch.stack(found)


# Boxes


@pytest.mark.parametrize("grid", [(4, 4), (14, 14), (3, 5), (9, 16)], ids=str)
def test_boxes_are_those_of_the_papers_algorithm(grid):
    rng = np.random.default_rng(0)
    lam, centres = rng.random(200), rng.random((200, 2))
    boxes = token_boxes(lam, centres, grid, (grid[0] * 16, grid[1] * 16))
    for row in range(200):
        for axis, tokens in enumerate(grid):
            half, centre = int(tokens * np.sqrt(1 - lam[row])) // 2, int(centres[row, axis] * tokens)
            low, high = np.clip(centre - half, 0, tokens), np.clip(centre + half, 0, tokens)
            assert boxes[row, 2 * axis : 2 * axis + 2].tolist() == [16 * low, 16 * high]


@pytest.mark.parametrize("size", [(35, 50), (18, 21), (4, 5)], ids=str)
def test_a_box_begins_and_ends_where_tokens_do(size):
    """Also where a grid of 4 × 5 does not divide the image: a token is the source's that shows its first pixel."""
    rng = np.random.default_rng(1)
    lam, centres = rng.random(50), rng.random((50, 2))
    boxes, tokens = token_boxes(lam, centres, (4, 5), size), boxes_of(lam, centres, (4, 5))
    for axis, (side, count) in enumerate(zip(size, (4, 5), strict=True)):
        first = np.arange(count) * side // count
        for box, token in zip(boxes[:, 2 * axis : 2 * axis + 2], tokens[:, 2 * axis : 2 * axis + 2], strict=True):
            inside = (first >= box[0]) & (first < box[1])
            assert np.flatnonzero(inside).tolist() == list(range(*token))


@pytest.mark.parametrize(("size", "patch"), [((32, 32), 8), ((24, 40), 8), ((30, 36), 6)], ids=str)
def test_every_patch_shows_one_image_and_the_label_counts_patches(size, patch):
    rows = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, *size)
    mix = mix_of(f"tl_align(patch={patch})", rows)
    patches = mix.images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    assert (patches == patches[:, :, :, :1, :, :1]).all()
    own = (mix.images == rows).float().mean((1, 2, 3))
    other = mix.sources[:, 1] != torch.arange(8)
    torch.testing.assert_close(mix.weights[other, 0], own[other])
    torch.testing.assert_close(mix.weights[:, 0], mix.masks[:, 0].mean((1, 2)))


def test_patches_are_the_networks(vit):
    """Known once the recipe is bound; the same as if they had been given."""
    images = torch.randn(ROWS, 3, 24, 40)
    found = mix_of("tl_align", images, vit(size=(24, 40)))
    assert torch.equal(found.images, mix_of("tl_align(patch=8)", images).images)
    assert not torch.equal(found.images, mix_of("tl_align(patch=4)", images).images)


NETWORKS = {
    "registers": lambda: timm.models.VisionTransformer(
        32, 8, num_classes=7, embed_dim=32, depth=2, num_heads=2, reg_tokens=3
    ),
    "no class token": lambda: timm.models.VisionTransformer(
        32, 8, num_classes=7, embed_dim=32, depth=2, num_heads=2, class_token=False, global_pool="avg"
    ),
    "torchvision": lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=7),
    "swin": lambda: timm.models.SwinTransformer(
        32, 4, num_classes=7, embed_dim=16, depths=(2, 2), num_heads=(2, 2), window_size=4
    ),
}
PATCHES = {"swin": 4}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_trains_transformers_of_any_make(name):
    net, images = NETWORKS[name](), torch.randn(ROWS, 3, 32, 32)
    recipe = mixwell.create("tl_align", 7).bind(net, images)
    assert recipe.options[0].blend.grid_in((32, 32)) == (32 // PATCHES.get(name, 8),) * 2
    (turn,) = recipe.turns(net, images, torch.arange(ROWS))
    turn.loss.backward()
    torch.testing.assert_close(turn.targets.weights.sum(1), torch.ones(ROWS))
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_without_a_network_boxes_are_cutmixs():
    images = torch.randn(ROWS, 3, 24, 40)
    assert torch.equal(mix_of("tl_align", images).images, mix_of("cutmix", images).images)


def test_the_grid_follows_the_images_size(vit):
    box = PatchBox()
    net = vit(size=(32, 48), dynamic_img_size=True)
    box.build(mixwell.Probe(net, torch.randn(2, 3, 32, 48)).anatomy, 7)
    assert box.grid_in((32, 48)) == (4, 6)
    assert box.grid_in((64, 24)) == (8, 3)
    assert box.grid_in((2, 2)) == (1, 1)
    assert PatchBox(patch=16).grid_in((40, 8)) == (2, 1)


def test_a_patch_of_nothing_is_refused():
    with pytest.raises(mixwell.ParameterError, match="patch must be a whole number of pixels"):
        mixwell.create("tl_align(patch=0)")


# Labels


def test_rows_of_shares_sum_to_one_and_stay_shares():
    shares = shares_of()
    for _ in range(12):
        shares = fold(shares, attention_of())
        assert (shares >= 0).all()
        torch.testing.assert_close(shares.sum(1), torch.ones(3, 7))


def test_tokens_that_see_themselves_alone_keep_their_labels():
    shares = shares_of()
    assert torch.equal(fold(shares, torch.eye(7).expand(3, -1, -1)), shares)


def test_uniform_attention_takes_half_of_the_mean():
    shares = shares_of()
    expected = (shares + shares.mean(2, keepdim=True)) / 2
    torch.testing.assert_close(fold(shares, torch.full((3, 7, 7), 1 / 7)), expected)


def test_it_is_linear_in_the_shares():
    one, other, attention = shares_of(), shares_of(), attention_of()
    together = fold(2 * one - 3 * other, attention)
    torch.testing.assert_close(together, 2 * fold(one, attention) - 3 * fold(other, attention))


def test_from_the_last_block_to_the_first_it_is_the_same():
    """Only the class token's label is needed, so its row may be pushed back through the blocks instead."""
    blocks, shares = [attention_of() for _ in range(5)], shares_of()
    row = torch.eye(7)[:1].expand(3, 1, -1)
    for attention in reversed(blocks):
        row = (row @ attention + row) / 2
    folded = shares
    for attention in blocks:
        folded = fold(folded, attention)
    torch.testing.assert_close(folded[:, :, 0], (row @ shares.transpose(1, 2))[:, 0])


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((32, 32), {}),
        ((24, 40), {"depth": 4, "num_heads": 4}),
        ((32, 32), {"reg_tokens": 2}),
        ((32, 32), {"qk_norm": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("host", ["tl_align", "fmix + tl_align", "cutmix + tl_align"])
def test_shares_give_the_labels_of_the_paper(host, size, options, vit):
    """One column per source against one per class, in a network that multiplies its attention out."""
    net, images, labels = looking(vit(size=size, **options)), torch.randn(ROWS, 3, *size), torch.arange(ROWS)
    recipe = mixwell.create(host, 7, seed=2).bind(net, images)
    option = recipe.options[0]
    draws = option.draw(ROWS, Streams(2), 0)
    mix = option.mix(images, mixwell.Scene(mixwell.Batch(images, labels), draws))
    (turn,) = recipe.turns(net, images, labels, draws=draws)
    corners = mix.masks[:, :, ::8, ::8] > 0.5  # of each token its first pixel
    expected = labels_by_the_paper(
        attentions_in(net, mix.images), corners, mix.weights, mix.sources, 7, net.num_prefix_tokens
    )
    torch.testing.assert_close(turn.targets.dense(), expected, rtol=1e-5, atol=1e-5)
    assert not turn.targets.weights.requires_grad
    assert (turn.targets.weights - mix.weights).abs().amax() > 0.02, "labels are those of the area"


def test_behind_the_last_block_labels_are_those_of_the_mix(vit):
    """There nothing is left to be carried; in front of a block labels start where the mix is made."""
    net, images = looking(vit(depth=4)), torch.randn(ROWS, 3, 32, 32)
    found = {}
    for site in (1, -1):
        recipe = mixwell.create(f"manifold_mixup(sites=({site},)) + tl_align", 7).bind(net, images)
        option = recipe.options[0]
        draws = option.draw(ROWS, Streams(1), 0)
        (turn,) = recipe.turns(net, images, torch.arange(ROWS), draws=draws)
        mix = option.mix(images, mixwell.Scene(mixwell.Batch(images, torch.arange(ROWS)), draws))
        found[site] = (turn.targets.weights - mix.weights).abs().amax()
    assert found[-1] == 0
    assert found[1] > 0.02


def test_whole_images_keep_their_labels(vit):
    """λ = 1 gives an empty box, which is not drawn again."""
    net, images = vit().eval(), torch.randn(ROWS, 3, 32, 32)
    recipe = mixwell.create("tl_align", 7).bind(net, images)
    option = recipe.options[0]
    draws = option.draw(ROWS, Streams(0), 0)
    draws.of[option.ratio][:] = 1
    (turn,) = recipe.turns(net, images, torch.arange(ROWS), draws=draws)
    torch.testing.assert_close(turn.targets.weights, torch.tensor([[1.0, 0.0]]).expand(ROWS, -1))
    torch.testing.assert_close(turn.logits, net(images).detach())


def test_images_are_those_of_the_blend(vit):
    """The same seed cuts the same boxes; only the labels differ."""
    net, images, labels = vit().eval(), torch.randn(ROWS, 3, 32, 32), torch.arange(ROWS)
    (cut,) = mixwell.create("cutmix", 7, seed=3).turns(net, images, labels)
    (aligned,) = mixwell.create("cutmix + tl_align", 7, seed=3).turns(net, images, labels)
    assert torch.equal(cut.logits, aligned.logits)
    assert torch.equal(cut.targets.sources, aligned.targets.sources)
    assert not torch.allclose(cut.targets.weights, aligned.targets.weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_shares_do_not_drift_under_autocast(dtype, vit):
    net, images = looking(vit(depth=12)), torch.randn(ROWS, 3, 32, 32)
    with torch.autocast("cpu", dtype):
        (turn,) = mixwell.create("tl_align", 7).bind(net, images).turns(net, images, torch.arange(ROWS))
    torch.testing.assert_close(turn.targets.weights.sum(1), torch.ones(ROWS), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "text", ["puzzlemix + tl_align", "resizemix + tl_align", "k_mixup(k=4) + tl_align + decouplemix"]
)
def test_it_acts_with_others(text, vit):
    net, images = vit(), torch.randn(ROWS, 3, 32, 32)
    recipe = mixwell.create(text, 7, pixels=mixwell.Pixels((0.5,), (0.25,))).bind(net, images)
    for _ in range(3):
        (turn,) = recipe.turns(net, images, torch.arange(ROWS))
        turn.loss.backward()
        assert torch.isfinite(turn.loss)
        torch.testing.assert_close(turn.targets.total, torch.ones(ROWS))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mixup + tl_align", "tl_align needs masks that say which pixels each source shows"),
        ("transmix + tl_align", "both decide the label"),
    ],
)
def test_what_cannot_act_is_refused(text, reason):
    with pytest.raises(mixwell.IncompatibleRecipe, match=reason):
        mixwell.create(text, 7)


def test_networks_without_attention_are_refused(cnn):
    for text in ("tl_align", "cutmix + tl_align"):
        with pytest.raises(mixwell.IncompatibleRecipe, match=r"no self-attention"):
            mixwell.create(text, 7).bind(cnn(), torch.randn(2, 3, 32, 32))
