"""The class token's attention, as the network itself would show it if its softmax were written out."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mixwell
from mixwell import Batch, Probe, Views, Want
from mixwell.probe.attention import attention_rows

IMAGES = torch.randn(3, 3, 32, 32)
LAST = Want("class_attention", -1)


def explicit(q, k, scale, prefix):
    """mean over heads of softmax(q·kᵀ·scale)[class row, patch columns]."""
    return (q @ k.transpose(-2, -1) * scale).softmax(-1)[:, :, 0, prefix:].mean(1)


def input_of(module, model, images):
    """What a module receives in a pass."""
    seen = []
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((*args, *kwargs.values())[0]), with_kwargs=True
    )
    model(images)
    handle.remove()
    return seen[0].detach()


def timm_attention(model, block, images, prefix):
    attention = model.blocks[block].attn
    z = input_of(attention, model, images)
    shape = (*z.shape[:2], 3, attention.num_heads, -1)
    q, k, _ = attention.qkv(z).view(shape).permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm(q), attention.k_norm(k)
    return explicit(q, k, q.shape[-1] ** -0.5, prefix)


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ({}, 1),
        ({"qk_norm": True}, 1),
        ({"qkv_bias": False}, 1),
        ({"reg_tokens": 4}, 5),
        ({"num_heads": 4, "patch_size": 4}, 1),
        ({"size": (24, 40)}, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("block", [0, -1])
@pytest.mark.parametrize("training", [True, False])
def test_timm_vit(vit, options, prefix, block, training):
    model = vit(**options).train(training)
    images = torch.randn(3, 3, *(options.get("size", (32, 32))))
    fused = [layer.attn.fused_attn for layer in model.blocks]
    assert all(fused)
    want = Want("class_attention", block)
    outputs = Probe(model).run(images, wants=[want])
    torch.testing.assert_close(outputs[want], timm_attention(model, block, images, prefix).detach())
    assert not outputs[want].requires_grad
    assert [layer.attn.fused_attn for layer in model.blocks] == fused
    torch.testing.assert_close(outputs.logits, model(images), msg="the probe changed the answer")


def test_against_timms_own_softmax(vit):
    """With the fused kernel off, timm's attention dropout receives the softmax itself."""
    model = vit().eval()
    model.blocks[-1].attn.fused_attn = False
    softmax = input_of(model.blocks[-1].attn.attn_drop, model, IMAGES)
    torch.testing.assert_close(Probe(model).run(IMAGES, wants=[LAST])[LAST], softmax[:, :, 0, 1:].mean(1))


def test_distilled_deit():
    model = timm.models.deit.VisionTransformerDistilled(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5
    ).eval()
    seen = Probe(model).run(IMAGES, wants=[LAST])
    assert seen[LAST].shape == (3, 16)
    torch.testing.assert_close(seen[LAST], timm_attention(model, -1, IMAGES, 2).detach())


def test_torchvision_vit():
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5)
    model.heads.head.weight.data.normal_()
    for training in (True, False):
        model.train(training)
        attention = model.encoder.layers[-1].self_attention
        z = input_of(attention, model, IMAGES)
        _, weights = attention(z, z, z, need_weights=True, average_attn_weights=False)
        expected = weights[:, :, 0, 1:].mean(1).detach()
        torch.testing.assert_close(Probe(model).run(IMAGES, wants=[LAST])[LAST], expected)
    torch.testing.assert_close(Views(Probe(model), Batch(IMAGES, torch.arange(3))).class_attention(), expected)


def test_hugging_face_vit():
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    config.num_labels = 5
    model = transformers.ViTForImageClassification(config).eval()
    model.set_attn_implementation("eager")
    weights = model(IMAGES, output_attentions=True).attentions[-1]
    expected = weights[:, :, 0, 1:].mean(1).detach()
    for kind in ("eager", "sdpa"):
        model.set_attn_implementation(kind)
        outputs = Probe(model).run(IMAGES, wants=[LAST])
        torch.testing.assert_close(outputs[LAST], expected)
        assert outputs.logits.shape == (3, 5)
    assert torch.isfinite(mixwell.create("transmix", 5)(model.train(), IMAGES, torch.arange(3)))


class PlainTransformer(nn.Module):
    """torch's own encoder behind a class token."""

    def __init__(self, *, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.cls_token = nn.Parameter(torch.randn(1, 1, 16))
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first, dropout=0.0), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.cat((self.cls_token.expand(len(x), 1, 16), self.patches(x).flatten(2).transpose(1, 2)), 1)
        if self.batch_first:
            return self.head(self.encoder(x)[:, 0])
        return self.head(self.encoder(x.transpose(0, 1))[0])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_torchs_own_encoder(batch_first, training):
    """Also in evaluation mode without gradients, where torch would take a fast path past the attention module."""
    model = PlainTransformer(batch_first=batch_first).train(training)
    attention = model.encoder.layers[-1].self_attn
    z = input_of(attention, model, IMAGES)
    _, weights = attention(z, z, z, need_weights=True, average_attn_weights=False)
    expected = weights[:, :, 0, 1:].mean(1).detach()
    torch.testing.assert_close(Probe(model).run(IMAGES, wants=[LAST])[LAST], expected)
    torch.testing.assert_close(Views(Probe(model), Batch(IMAGES, torch.arange(3))).class_attention(), expected)


SMALL = {"img_size": 32, "depth": 2, "num_classes": 5}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("xcit_nano_12_p8_224", {**SMALL, "embed_dim": 32, "num_heads": 2}),
        ("cait_xxs24_224", {**SMALL, "embed_dim": 32, "num_heads": 2, "patch_size": 8, "depth_token_only": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_attention_of_another_form_is_refused_rather_than_misread(name, options):
    """Talking heads, channel attention, late class tokens: q·kᵀ is not what they look at."""
    model = timm.create_model(name, **options)
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"transmix: .*vit_small_patch16_224"):
        mixwell.create("cutmix + transmix", 5)(model, IMAGES, torch.arange(3))


@pytest.mark.parametrize(
    ("name", "prefix", "options"),
    [
        ("vit_small_patch16_dinov3", 5, {**SMALL, "embed_dim": 64, "num_heads": 2}),
        ("vit_small_patch16_rope_224", 1, {**SMALL, "embed_dim": 64, "num_heads": 2}),
        ("eva02_tiny_patch14_224", 1, {**SMALL, "embed_dim": 32, "num_heads": 2, "patch_size": 8}),
        ("beit_base_patch16_224", 1, {**SMALL, "embed_dim": 32, "num_heads": 2, "patch_size": 8}),
        ("beitv2_base_patch16_224", 1, {**SMALL, "embed_dim": 32, "num_heads": 2, "patch_size": 8}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_places_in_the_product(name, prefix, options):
    """Rotary positions and biases by relative position, against the softmax that timm writes out without its kernel."""
    model = timm.create_model(name, **options).eval()
    for module in model.modules():
        for table in ("relative_position_bias_table", "q_bias"):
            if isinstance(value := getattr(module, table, None), nn.Parameter):
                nn.init.normal_(value)
    wants = [Want("class_attention", 0), Want("patch_attention", -1)]
    seen = Probe(model).run(IMAGES, wants=wants)
    for block in model.blocks:
        block.attn.fused_attn = False
    first, last = (input_of(model.blocks[i].attn.attn_drop, model, IMAGES) for i in (0, -1))
    torch.testing.assert_close(seen[wants[0]], first[:, :, 0, prefix:].mean(1))
    torch.testing.assert_close(seen[wants[1]], last[:, :, prefix:, prefix:].mean((1, 2)))
    assert torch.isfinite(mixwell.create("transmix", 5)(model.train(), IMAGES, torch.arange(3)))


def test_attention_that_patches_receive(vit):
    model = vit(reg_tokens=2, class_token=False, global_pool="avg").eval()
    want = Want("patch_attention", 0)
    seen = Probe(model).run(IMAGES, wants=[want])[want]
    model.blocks[0].attn.fused_attn = False
    softmax = input_of(model.blocks[0].attn.attn_drop, model, IMAGES)
    torch.testing.assert_close(seen, softmax[:, :, 2:, 2:].mean((1, 2)))
    torch.testing.assert_close(Views(Probe(model), Batch(IMAGES, torch.arange(3))).patch_attention(0), seen)


def test_windows_show_no_image_as_a_whole():
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, num_classes=5, window_size=4)
    with pytest.raises(mixwell.ModelError, match="attends within windows"):
        Probe(model, IMAGES).check(Want("patch_attention", -1))


def test_cross_attention_is_not_taken_for_self_attention():
    class Decoder(PlainTransformer):
        def __init__(self):
            super().__init__(batch_first=True)
            self.encoder = nn.ModuleList([nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)])

        def forward(self, x):
            patches = self.patches(x).flatten(2).transpose(1, 2)
            return self.head(self.encoder[0](self.cls_token.expand(len(x), 1, 16), patches)[:, 0])

    with pytest.raises(mixwell.MixwellError):
        Probe(Decoder()).run(IMAGES, wants=[LAST])


def test_blocks_that_do_not_exist(vit):
    with pytest.raises(mixwell.ModelError, match="Block 2 does not exist: VisionTransformer has 2 blocks"):
        Probe(vit()).run(IMAGES, wants=[Want("class_attention", 2)])


def test_attention_is_summed_in_fp32(vit):
    model = vit()
    with torch.autocast("cpu", torch.bfloat16):
        seen = Probe(model).run(IMAGES, wants=[LAST])[LAST]
        rows = attention_rows(torch.randn(1, 2, 3, 4).half() * 100, torch.randn(1, 2, 3, 4).half() * 100, 1.0)
    assert seen.dtype == rows.dtype == torch.float32
    torch.testing.assert_close(rows.sum(-1), torch.ones(1, 2, 3))
    torch.testing.assert_close(seen, timm_attention(model, -1, IMAGES, 1).detach(), rtol=0.05, atol=0.01)


def flops(act):
    with FlopCounterMode(display=False) as counter:
        act()
    return counter.get_total_flops()


def test_reading_attention_costs_no_more_than_3_percent():
    """A network of DeiT-S's width, heads and tokens, but two of its twelve blocks: the true share is smaller still."""
    model = timm.models.VisionTransformer(
        img_size=224, patch_size=16, embed_dim=384, depth=2, num_heads=6, num_classes=10
    )
    images, labels = torch.randn(1, 3, 224, 224), torch.arange(1)
    plain, attended = (mixwell.create(text, 10) for text in ("cutmix", "cutmix + transmix"))
    without = flops(lambda: plain(model, images, labels).backward())
    reading = flops(lambda: attended(model, images, labels).backward())
    assert without < reading <= 1.03 * without


def test_no_further_pass_is_run(vit):
    model, passes = vit(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    mixwell.create("cutmix + transmix", 7)(model, IMAGES, torch.arange(3))
    assert len(passes) == 1


def test_labels_come_from_the_pass_that_is_trained(vit):
    """With dropout in the blocks before, another pass would look elsewhere."""
    model = vit(proj_drop_rate=0.5).train()
    recipe = mixwell.create("cutmix + transmix", 7)
    seen = []

    def note(module, args):
        seen.append(args[0].detach())

    model.blocks[-1].attn.register_forward_pre_hook(note)
    (turn,) = recipe.turns(model, IMAGES, torch.arange(3))
    attention = model.blocks[-1].attn
    q, k, _ = attention.qkv(seen[0]).view(3, 17, 3, 2, 16).permute(2, 0, 3, 1, 4)
    looked = explicit(q, k, 0.25, 1).detach()
    mix = mixwell.create("cutmix", 7).options[0]
    draws = mix.draw(3, mixwell.create("cutmix", 7)._streams, 0)
    cut = mix.mix(IMAGES, mixwell.Scene(Batch(IMAGES, torch.arange(3)), draws))
    owned = F.interpolate(cut.masks, size=(4, 4), mode="nearest").flatten(2)
    share = (owned * looked[:, None]).sum(2) / looked.sum(1, keepdim=True)
    torch.testing.assert_close(turn.targets.weights, (cut.weights + share) / 2)
