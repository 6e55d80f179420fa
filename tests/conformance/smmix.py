"""Replays SMMix: one side per batch, in a transformer with the golden's attention, logits and output tokens."""

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, GivenAttention, close, equal, one_turn
from mixwell.core.targets import summed
from mixwell.ops.tokens import grid_of, token_masks
from mixwell.ops.windows import window_sums
from mixwell.sample.attention.smmix import peak_windows, regional_means, regional_targets

SOURCE = "official code"
INPUTS = (
    "x",
    "y",
    "num_classes",
    "smoothing",
    "attn_full",
    "logits_unmixed",
    "rect",
    "side",
    "out",
    "out_target",
    "out_source",
    "tokens",
)
COMPARE = {
    "m??_yx": equal(),
    "x_mixed": equal(),
    "*_mask": equal(),
    "lam": close(1e-12),
    "loss*": close(1e-6, rtol=1e-6),
    "*": close(1e-6, rtol=1e-6),
}


class GivenNorm(nn.Identity):
    """The norm after the last block."""


class Net(nn.Module):
    """A transformer with one block, whose attention and output tokens are given.

    It has a token more than the golden's in front, which takes up what half the golden's attention leaves of 1. Its
    patches are attended to half as much, which moves no window, and rows in half precision that sum to a little more
    than 1 do no harm.

    Args:
        attention: (B, heads, N, N), the class token first.
        clean, trained: logits in evaluation, and in training.
        tokens: (B, C, h, w) output tokens of the patches.

    Attributes:
        images: what it was last trained on.
    """

    num_prefix_tokens = 2

    def __init__(self, attention: Tensor, clean: Tensor, trained: Tensor, tokens: Tensor) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 1))
        half = nn.functional.pad(attention.float() / 2, (1, 0, 1, 0))
        half[..., 0] = 1 - half.sum(-1)
        self.blocks = nn.ModuleList([GivenAttention(half)])
        self.norm = GivenNorm()
        self.clean, self.trained = clean, trained
        self.tokens = nn.functional.pad(tokens.flatten(2).transpose(1, 2), (0, 0, 2, 0))
        self.images = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.images = images
        self.blocks[0]()
        self.norm(self.tokens[: len(images)])
        return (self.trained if self.training else self.clean)[: len(images)]


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y = case.tensor("x"), case.tensor("y")
    classes, smoothing = int(case["num_classes"]), float(case["smoothing"])
    attention, clean, trained = (case.tensor(name) for name in ("attn_full", "logits_unmixed", "out"))
    grid = grid_of(attention.shape[-1] - 1, x.shape[2] / x.shape[3], "attn_full")
    low, high = int(case["side"] * 0.25), int(case["side"] * 0.75)
    side = case["rect"].reshape(1)
    # A side is drawn in [0, 1); the middle of the golden's falls on it again.
    draws = {"pairing": np.arange(len(x))[::-1].copy(), "blend": (side - low + 0.5) / (high - low + 1)}
    recipe = mixwell.create("smmix(switch_prob=1, per=batch)", num_classes=classes, label_smoothing=smoothing)
    option = recipe.options[0]

    def net_with(tokens: Tensor) -> Net:
        return Net(attention, clean, trained, tokens)

    net, batch = net_with(torch.zeros(len(x), classes, *grid)), mixwell.Batch(x, y)
    views = mixwell.Views(mixwell.Probe(net), batch, option.view_wants)
    given = mixwell.Draws({getattr(option, slot): value for slot, value in draws.items()})
    mix = option.mix(x, mixwell.Scene(batch, given, views))
    masks = token_masks(mix.masks, grid[0] * grid[1])

    # Output tokens that are the golden's logits of their region, under a classifier that gives them back.
    regions = torch.stack((case.tensor("out_target"), case.tensor("out_source")), 1)
    net = net_with(torch.einsum("rkhw,rkc->rchw", masks, regions))
    recipe.bind(net, x)
    with torch.no_grad():
        nn.init.eye_(option.terms[0].head.weight)
        nn.init.zeros_(option.terms[0].head.bias)
        turn = one_turn(recipe, net, x, y, **draws)

    maps = 2 * views[mixwell.Want("patch_attention", -1)]
    maps = maps.unflatten(1, grid)
    sides = torch.from_numpy(side)
    sums = window_sums(maps, torch.stack((sides, sides), 1))
    pooled = regional_means(case.tensor("tokens")[:, 1:].transpose(1, 2).unflatten(2, grid), mix.masks)
    labels = regional_targets(mix).dense(classes, smoothing).unflatten(0, (len(x), 2))
    answers = {
        "attn": maps.flatten(1),
        "region_score": sums[sums.isfinite()].view(len(x), -1).float(),
        "min_yx": peak_windows(-maps, sides),
        "max_yx": peak_windows(maps, sides),
        "x_mixed": net.images,
        "target_mask": masks[:, 0].flatten(1) == 1,
        "source_mask": masks[:, 1].flatten(1) == 1,
        "lam": mix.area[0],
        "target": turn.targets.dense(smoothing=smoothing),
        "target_y": labels[:, 0],
        "source_y": labels[:, 1],
        "pred_mixed": summed(clean, mix.sources, mix.weights),
        "pooled_target": pooled[:, 0],
        "pooled_source": pooled[:, 1],
        "loss_cls": turn.parts["criterion"],
        "loss_fine": turn.parts["smmix/RegionalLoss"],
        "loss_con": turn.parts["smmix/Consistency"],
        "loss": turn.loss,
    }
    return {name: tensor.numpy() for name, tensor in answers.items()}
