"""What of each source arrives at the class token: labels carried through softmaxes that are written out."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

import mixwell
from mixwell import Probe, Want
from mixwell.ops.tokens import fold

IMAGES = torch.randn(3, 3, 32, 32)
ALIGNED = Want("alignment")


def start_of(shares):
    return lambda prefix, patches: shares


def carried(shares, attentions):
    """Fold by fold with matrices that are written out."""
    for attention in attentions:
        shares = fold(shares, attention)
    return shares


def softmaxes(model, images):
    """The mean over heads of what every block's attention dropout is given, without the fused kernel."""
    seen, handles = [], []
    for block in model.blocks:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_pre_hook(lambda _, args: seen.append(args[0].mean(1))))
    model(images)
    for block, handle in zip(model.blocks, handles, strict=True):
        handle.remove()
        block.attn.fused_attn = True
    return [attention.detach() for attention in seen]


def test_a_fold_is_half_of_what_is_gathered_and_half_of_what_was_there():
    shares, attention = torch.rand(2, 3, 5), torch.rand(2, 5, 5).softmax(-1)
    expected = torch.empty_like(shares)
    for r in range(2):
        for k in range(3):
            for t in range(5):
                expected[r, k, t] = (sum(attention[r, t, s] * shares[r, k, s] for s in range(5)) + shares[r, k, t]) / 2
    torch.testing.assert_close(fold(shares, attention), expected)


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 3}, {"num_heads": 4, "depth": 3}], ids=str)
def test_class_token(vit, options):
    model = vit(**options).eval()
    shares = torch.rand(3, 2, 17 + options.get("reg_tokens", 0))
    seen = Probe(model).run(IMAGES, wants=[ALIGNED], start=start_of(shares))
    torch.testing.assert_close(seen[ALIGNED], carried(shares, softmaxes(model, IMAGES))[:, :, 0])
    torch.testing.assert_close(seen.logits, model(IMAGES), msg="the probe changed the answer")


def test_networks_without_a_class_token_take_the_mean_of_their_patches(vit):
    model = vit(class_token=False, global_pool="avg", reg_tokens=2).eval()
    shares = torch.rand(3, 2, 18)
    seen = Probe(model).run(IMAGES, wants=[ALIGNED], start=start_of(shares))[ALIGNED]
    torch.testing.assert_close(seen, carried(shares, softmaxes(model, IMAGES))[:, :, 2:].mean(2))


def test_torchvision():
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5).eval()
    shares, attentions = torch.rand(3, 2, 17), []

    def look(module, args, kwargs):
        z = args[0]
        attentions.append(module.forward(z, z, z, need_weights=True)[1].detach())

    for layer in model.encoder.layers:
        layer.self_attention.register_forward_pre_hook(look, with_kwargs=True)
    model(IMAGES)
    seen = Probe(model).run(IMAGES, wants=[ALIGNED], start=start_of(shares))[ALIGNED]
    torch.testing.assert_close(seen, carried(shares, attentions[:2])[:, :, 0])


def test_shares_begin_where_the_mix_is_made(vit):
    """Before it there is nothing to carry: blocks in front of a hidden site do not count."""
    model, calls = vit(depth=3).eval(), []
    shares = torch.rand(3, 2, 17)

    def start(prefix, patches):
        calls.append((prefix, patches))
        return shares if len(calls) > 1 else None

    seen = Probe(model).run(IMAGES, wants=[ALIGNED], start=start)[ALIGNED]
    torch.testing.assert_close(seen, carried(shares, softmaxes(model, IMAGES)[1:])[:, :, 0])
    assert calls == [(1, 16)] * 2


def test_a_block_that_is_computed_again_counts_once(vit):
    model = vit().eval()
    shares = torch.rand(3, 2, 17)
    once = Probe(model).run(IMAGES, wants=[ALIGNED], start=start_of(shares))[ALIGNED]
    model.set_grad_checkpointing()
    images = IMAGES.clone().requires_grad_()
    outputs = Probe(model).run(images, wants=[ALIGNED], start=start_of(shares))
    outputs.logits.sum().backward()
    torch.testing.assert_close(outputs[ALIGNED], once)


def swin(size=32, window=4, **options):
    torch.manual_seed(0)
    settings = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), "patch_size": 2, "num_classes": 5, **options}
    return timm.models.swin_transformer.SwinTransformer(img_size=size, window_size=window, **settings).eval()


@pytest.mark.parametrize(("size", "window"), [(32, 4), (32, 8), (24, 5), ((16, 24), 4)], ids=str)
def test_swin_carries_within_windows_and_merges_patches(size, window):
    """Labels as channels of tokens: values replaced by label columns, through the network's own windows."""
    model = swin(size, window)
    height, width = size if isinstance(size, tuple) else (size, size)
    images = torch.randn(3, 3, height, width)
    blocks = [block for stage in model.layers for block in stage.blocks]
    assert any(any(block.shift_size) for block in blocks)
    shares = torch.rand(3, 2, height // 2 * (width // 2)).softmax(1)
    seen = Probe(model).run(images, wants=[ALIGNED], start=start_of(shares))[ALIGNED]
    torch.testing.assert_close(seen.sum(1), torch.ones(3))

    # The same network, whose attentions pass on label columns in place of their values.
    labels = shares.view(3, 2, height // 2, width // 2).permute(0, 2, 3, 1)
    labels = torch.cat((labels, torch.ones(*labels.shape[:3], 1)), 3)  # how much comes from real tokens
    for block in blocks:
        softmax = []
        block.attn.fused_attn = False
        handle = block.attn.attn_drop.register_forward_pre_hook(lambda _, args, s=softmax: s.append(args[0].mean(1)))
        model(images)
        handle.remove()
        if labels.shape[1] != block.input_resolution[0]:
            labels = (labels[:, ::2, ::2] + labels[:, 1::2, ::2] + labels[:, ::2, 1::2] + labels[:, 1::2, 1::2]) / 4
        attend, block.attn.forward = block.attn.forward, lambda x, mask=None, s=softmax: s[0] @ x
        gathered = block._attn(labels)
        block.attn.forward = attend
        labels = (labels + gathered / gathered[..., -1:]) / 2
    torch.testing.assert_close(seen, labels[..., :2].mean((1, 2)).detach())


def test_a_recipe_hands_in_what_each_token_shows(vit):
    """Patches start with what their top-left pixel shows, tokens before them with the label shares."""

    class Arrived(mixwell.core.axes.Label):
        network = True

        def wants(self):
            return (ALIGNED,)

        def targets(self, step):
            return step.mix.targets(step.outputs[ALIGNED])

    model = vit(depth=3).eval()
    recipe = mixwell.create("cutmix", 7, seed=2)
    option = recipe.options[0]
    label = Arrived()
    option.label, option.pieces = label, (*option.pieces, label)
    option.names[label] = "label"
    (turn,) = recipe.turns(model, IMAGES, torch.arange(3))
    mix = option.mix(IMAGES, mixwell.Scene(mixwell.Batch(IMAGES, torch.arange(3)), option.draw(3, recipe._streams, 0)))
    tokens = mix.masks[:, :, ::8, ::8].flatten(2)
    shares = torch.cat((mix.weights[:, :, None], tokens), 2)
    expected = carried(shares, softmaxes(model, mix.images))[:, :, 0]
    torch.testing.assert_close(turn.targets.weights, expected)
    assert not torch.allclose(turn.targets.weights, mix.weights)


def test_compiled_networks(vit):
    model, shares = vit().eval(), torch.rand(3, 2, 17)
    expected = Probe(model).run(IMAGES, wants=[ALIGNED], start=start_of(shares))
    probe = Probe(model)
    probe.install([ALIGNED], [])
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        seen = probe.run(IMAGES, wants=[ALIGNED], start=start_of(shares), call=compiled)
        torch.testing.assert_close(seen[ALIGNED], expected[ALIGNED])
        torch.testing.assert_close(seen.logits, expected.logits)


def test_networks_without_attention_are_refused(cnn):
    with pytest.raises(mixwell.ModelError, match="no self-attention"):
        Probe(cnn()).check(ALIGNED)
    assert isinstance(cnn(), nn.Module)
