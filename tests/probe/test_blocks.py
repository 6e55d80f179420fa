"""Around transformer blocks: what they are given, their attention on it, tokens that come and go."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
import transformers

import mixwell
from mixwell.probe import Act, Probe, Want
from mixwell.probe.attention import is_positioned

IMAGES = torch.randn(3, 3, 32, 32)


def given_to(module, model, images=IMAGES):
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(images)
    handle.remove()
    return seen[0].detach()


def hugging_face():
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return transformers.ViTForImageClassification(config).eval()


def torchvision_vit():
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5).eval()
    torch.nn.init.normal_(model.heads.head.weight)  # torchvision begins with zeros
    return model


def eva():
    options = {"img_size": 32, "depth": 2, "num_classes": 5, "embed_dim": 64, "num_heads": 2}
    return timm.create_model("vit_small_patch16_rope_224", patch_size=8, **options).eval()


def swin():
    return timm.models.swin_transformer.SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 2), num_classes=5
    ).eval()


def show(model, site):
    want = Want("features", site)
    return Probe(model, IMAGES).run(IMAGES, wants=[want])[want]


def test_what_the_patch_embedding_gives(vit):
    model = vit(reg_tokens=2).eval()
    expected = model.patch_embed(IMAGES).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(show(model, "patches"), expected)
    model = torchvision_vit()
    torch.testing.assert_close(show(model, "patches"), model.conv_proj(IMAGES))
    model = hugging_face()
    projection = next(m for name, m in model.named_modules() if name.endswith("patch_embeddings.projection"))
    torch.testing.assert_close(show(model, "patches"), projection(IMAGES))
    model = swin()
    torch.testing.assert_close(show(model, "patches"), model.patch_embed(IMAGES).permute(0, 3, 1, 2))


def test_tokens_after_the_last_norm(vit, cnn):
    model = vit(reg_tokens=2).eval()
    expected = model.forward_features(IMAGES)[:, 3:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(show(model, "tokens"), expected)
    model = torchvision_vit()
    encoded = given_to(model.encoder.ln, model)
    expected = model.encoder.ln(encoded)[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(show(model, "tokens"), expected)
    model = hugging_face()
    assert Probe(model).anatomy.site("tokens").module.endswith("layernorm")
    model = swin()
    torch.testing.assert_close(show(model, "tokens"), model.forward_features(IMAGES).permute(0, 3, 1, 2))
    model = vit(global_pool="avg", class_token=False, fc_norm=True).eval()
    expected = model.forward_features(IMAGES).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(show(model, "tokens"), expected)
    model = cnn().eval()
    torch.testing.assert_close(show(model, "tokens"), show(model, -1))


def test_patches_of_networks_that_have_none(cnn):
    with pytest.raises(mixwell.SiteError, match="no patch embedding"):
        Probe(cnn()).anatomy.site("patches")
    with pytest.raises(mixwell.ModelError, match="no self-attention"):
        Probe(cnn()).anatomy.site("block:0")


@pytest.mark.parametrize("block", [0, 1, -1])
def test_what_a_block_is_given(vit, block):
    model = vit().eval()
    expected = given_to(model.blocks[block], model)[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(show(model, f"block:{block}"), expected)
    assert Probe(model).anatomy.site(f"block:{block}").name == f"block:{block % 2}"


@pytest.mark.parametrize("build", [torchvision_vit, hugging_face, eva], ids=lambda build: build.__name__)
def test_attention_of_the_block_that_comes_is_that_of_the_pass(build):
    """Known before the block has run, it is what the pass then shows if nothing is changed."""
    model, seen = build(), []
    probe = Probe(model)

    def look(hidden, prefix):
        seen.append(probe.attention_here(hidden, prefix))
        return hidden, prefix

    want = Want("class_attention", 1)
    outputs = probe.run(IMAGES, wants=[want], edits={"block:1": look})
    torch.testing.assert_close(seen[0], outputs[want])
    torch.testing.assert_close(outputs.logits, Probe(model).run(IMAGES).logits)
    assert not seen[0].requires_grad


def test_attention_of_changed_tokens(vit):
    """It is of the tokens that are asked about, not of those that the block would have been given."""
    model, seen = vit().eval(), []
    probe = Probe(model)

    def turn_over(hidden, prefix):
        seen.append(probe.attention_here(hidden.flip(0), prefix.flip(0)))
        return hidden.flip(0), prefix.flip(0)

    want = Want("class_attention", 0)
    outputs = probe.run(IMAGES, wants=[want], edits={"block:0": turn_over})
    torch.testing.assert_close(seen[0], outputs[want])
    torch.testing.assert_close(outputs[want], Probe(model).run(IMAGES.flip(0), wants=[want])[want])


def test_networks_without_a_class_token_ask_their_patches(vit):
    model, seen = vit(class_token=False, global_pool="avg").eval(), []
    probe = Probe(model)

    def look(hidden, prefix):
        seen.append(probe.attention_here(hidden, prefix))
        return hidden, prefix

    want = Want("patch_attention", 1)
    outputs = probe.run(IMAGES, wants=[want], edits={"block:1": look})
    torch.testing.assert_close(seen[0], outputs[want])
    torch.testing.assert_close(seen[0].sum(1), torch.ones(3))


def test_elsewhere_no_block_is_about_to_attend(vit):
    model = vit()
    probe = Probe(model)

    def look(hidden, prefix):
        return probe.attention_here(hidden, prefix), prefix

    with pytest.raises(mixwell.SiteError, match="block:0"):
        probe.run(IMAGES, edits={"blocks.0": look})


@pytest.mark.parametrize("build", [None, torchvision_vit, hugging_face], ids=["timm", "torchvision", "huggingface"])
def test_tokens_that_come_and_go(build, vit):
    """A block that is given more tokens attends to them, and what it makes of them can be dropped again."""
    model = vit().eval() if build is None else build()
    memory = torch.randn(3, 5, 32)
    shapes = []

    def enter(tokens, attend):
        shapes.append(tuple(attend().shape))
        return torch.cat((tokens, memory), 1)

    def leave(tokens):
        shapes.append(tuple(tokens.shape))
        return tokens[:, :-5]

    outputs = Probe(model).run(IMAGES, acts=[Act(1, enter, leave)])
    assert shapes == [(3, 16), (3, 22, 32)]
    plain = Probe(model).run(IMAGES).logits
    assert not torch.allclose(outputs.logits, plain)
    if build is None:
        tokens = given_to(model.blocks[1], model)
        expected = model.blocks[1](torch.cat((tokens, memory), 1))[:, :17]
        torch.testing.assert_close(outputs.logits, model.forward_head(model.norm(expected)))


@pytest.mark.parametrize("kind", ["class_attention", "patch_attention"])
def test_attention_with_more_tokens_is_that_of_the_patches(vit, kind):
    """What is paid to the tokens that were added is missing in the sum, and they are not asked."""
    model, memory = vit().eval(), torch.randn(3, 5, 32)
    act = Act(-1, lambda tokens, attend: torch.cat((tokens, memory), 1), lambda tokens: tokens[:, :-5])
    want = Want(kind, -1)
    seen = Probe(model).run(IMAGES, wants=[want], acts=[act])[want]
    tokens = torch.cat((given_to(model.blocks[1], model), memory), 1)
    attention = model.blocks[1].attn
    q, k, _ = attention.qkv(model.blocks[1].norm1(tokens)).unflatten(2, (3, 2, 16)).permute(2, 0, 3, 1, 4)
    softmax = (q @ k.transpose(2, 3) * attention.scale).softmax(-1).mean(1)
    expected = softmax[:, 0, 1:17] if kind == "class_attention" else softmax[:, 1:17, 1:17].mean(1)
    torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize(
    ("name", "knows"),
    [("vit_small_patch16_224", False), ("vit_small_patch16_rope_224", True), ("beit_base_patch16_224", True)],
)
def test_attention_that_knows_places(name, knows):
    model = timm.create_model(name, img_size=32, depth=2, embed_dim=64, num_heads=2, num_classes=5)
    assert is_positioned(Probe(model).anatomy.attention(0)[1]) == knows


def test_acts_run_after_an_edit_and_leave_nothing(vit):
    model, order = vit(), []

    def edit(hidden, prefix):
        order.append("edit")
        return hidden, prefix

    act = Act(0, lambda tokens, attend: order.append("enter"), lambda tokens: order.append("leave"))
    Probe(model).run(IMAGES, edits={"block:0": edit}, acts=[act])
    assert order == ["edit", "enter", "leave"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_acts_in_compiled_networks(vit):
    model, memory = vit().eval(), torch.randn(3, 5, 32)
    act = Act(1, lambda tokens, attend: torch.cat((tokens, memory), 1), lambda tokens: tokens[:, :-5])
    expected = Probe(model).run(IMAGES, acts=[act]).logits
    probe = Probe(model)
    probe.install([], ["block:0"], [1])
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(probe.run(IMAGES, acts=[act], call=compiled).logits, expected)
        torch.testing.assert_close(probe.run(IMAGES, call=compiled).logits, model(IMAGES))
