"""Style transfer networks: an encoder whose channel moments are a style, and a decoder that makes images of its maps.

Huang, Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization", ICCV 2017,
arXiv:1703.06868. The encoder is VGG-19 up to relu4_1 after a 1×1 convolution that holds the normalisation of its
pixels, with reflected borders; the decoder mirrors it, with nearest upsampling in place of pooling → `vgg_networks`,
whose published weights `load_weights` reads. `style_networks` builds small ones alike, which `train_style` trains as an
auto-encoder: on small images a decoder that was trained on transferred styles too, by the paper's content and style
loss, looked the same and reconstructed worse. Channels are then scaled to a mean activation of 1, as in the normalised
VGG (Gatys, Ecker, Bethge, arXiv:1508.06576), so that distances of styles mean the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mixwell.core.errors import BatchError, MixwellError, ModelError, ParameterError

__all__ = ["StyleEncoder", "load_weights", "style_networks", "train_style", "vgg_networks"]

_RARE = 0.01
"""Channels with a smaller share of their level's mean activation would outweigh all others if they were scaled to 1."""


class StyleEncoder(nn.Module):
    """Images → one map per level, each half as large as the one before.

    Args:
        levels: modules that follow each other; all but the first halve the map, rounding up.
        image_channels: C.
    """

    def __init__(self, levels: Sequence[nn.Module], image_channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.image_channels = image_channels

    def forward(self, images: Float[Tensor, "b ..."]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        """The maps of all levels.

        Raises:
            BatchError: no pixel grids, of other channels, or too small to be reflected at the last level.
        """
        least = 2 ** (len(self.levels) - 1) + 1
        if images.ndim != 4 or images.shape[1] != self.image_channels or min(images.shape[2:]) < least:
            raise BatchError(
                f"The style encoder takes images (B, {self.image_channels}, H, W) with sides of at least {least} "
                f"pixels, got {tuple(images.shape)}. Prepare one on images like those, or give a larger size."
            )
        maps = []
        for level in self.levels:
            images = level(images)
            maps.append(images)
        return tuple(maps)


def _conv(inside: int, outside: int) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, padding=1, padding_mode="reflect")


def _inner(channels: int, count: int) -> list[nn.Module]:
    return [layer for _ in range(count) for layer in (_conv(channels, channels), nn.ReLU())]


def _first(image_channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(_conv(image_channels, width), nn.ReLU())


def style_networks(
    image_channels: int, widths: Sequence[int] = (16, 32), depths: Sequence[int] = (0,)
) -> tuple[StyleEncoder, nn.Sequential]:
    """An encoder, and the decoder that mirrors it: (B, last width, h, w) → (B, C, h·2ⁿ, w·2ⁿ) for n + 1 levels.

    Args:
        image_channels: C.
        widths: channels of each level's map.
        depths: further convolutions before each pooling, of which there is one fewer than levels.

    Raises:
        ParameterError: a number is out of range.
    """
    for name, value in (("image_channels", image_channels), *(("channels", width) for width in widths)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ParameterError(f"{name} must be a whole number ≥ 1, got {value!r}.")
    steps = list(zip(widths[:-1], widths[1:], depths, strict=True))
    levels = [_first(image_channels, widths[0])]
    decoder: list[nn.Module] = []
    for narrow, wide, depth in steps:
        pool = nn.MaxPool2d(2, ceil_mode=True)
        levels.append(nn.Sequential(*_inner(narrow, depth), pool, _conv(narrow, wide), nn.ReLU()))
    for narrow, wide, depth in reversed(steps):
        decoder += [_conv(wide, narrow), nn.ReLU(), nn.Upsample(scale_factor=2), *_inner(narrow, depth)]
    return StyleEncoder(levels, image_channels), nn.Sequential(*decoder, _conv(widths[0], image_channels))


def vgg_networks() -> tuple[StyleEncoder, nn.Sequential]:
    """The encoder and decoder of AdaIN, for RGB images, with fresh weights."""
    encoder, decoder = style_networks(3, (64, 128, 256, 512), (1, 1, 3))
    encoder.levels[0] = nn.Sequential(nn.Conv2d(3, 3, 1), *_first(3, 64))
    return encoder, decoder


def load_weights(net: nn.Module, path: str | Path) -> None:
    """Fill the network with the weights of a file, which are taken in their order whatever they are called.

    A file may hold more than is needed, as that of the whole VGG does.

    Args:
        path: a state dict that torch.save wrote.

    Raises:
        ModelError: the file cannot be read, or holds other weights.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a missing or damaged file may cause
        raise ModelError(f"Expected a file of weights at {str(path)!r}, got {type(error).__name__}: {error}") from error
    own = net.state_dict()
    shapes = [tuple(value.shape) for value in own.values()]
    found = [tuple(getattr(value, "shape", ())) for value in state.values()] if isinstance(state, dict) else []
    if found[: len(shapes)] != shapes:
        wrong = next((i for i, (a, b) in enumerate(zip(shapes, found, strict=False)) if a != b), len(found))
        got = found[wrong] if wrong < len(found) else "no more"
        raise ModelError(
            f"{str(path)!r} holds other weights than the network's {len(shapes)}: expected {shapes[wrong]} as number "
            f"{wrong + 1}, got {got}. Give the files of AdaIN's normalised VGG-19 and of its decoder."
        )
    net.load_state_dict(dict(zip(own, state.values(), strict=False)))


def train_style(
    encoder: StyleEncoder,
    decoder: nn.Module,
    batches: Callable[[], Iterable[Float[Tensor, "b c h w"]]],
    epochs: int,
    lr: float = 3e-3,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Train both in place to reconstruct images, with Adam and a rate that falls from epoch to epoch.

    In the end, the channels of every level's map have a mean of 1 over the images, and less where they are rarely
    active.

    Args:
        batches: called for each epoch's images, and once more, on the networks' device.
        epochs: passes.
        lr: rate of the first epoch.
        progress: called with the number of epochs that are done.

    Raises:
        MixwellError: the loss is not finite.
    """
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=lr)
    progress(0)
    for epoch in range(epochs):
        optimiser.param_groups[0]["lr"] = lr * (1 - epoch / epochs)
        for images in batches():
            optimiser.zero_grad()
            made = decoder(encoder(images)[-1])[..., : images.shape[2], : images.shape[3]]
            loss = F.mse_loss(made, images)
            torch.autograd.backward(loss)
            optimiser.step()
        if not torch.isfinite(loss):
            raise MixwellError(
                f"The style networks' loss is not finite after {epoch + 1} epochs. Check that images are finite and "
                "normalised."
            )
        progress(epoch + 1)
    _normalise(encoder, decoder, batches())


@torch.no_grad()
def _normalise(encoder: StyleEncoder, decoder: nn.Module, batches: Iterable[Float[Tensor, "b c h w"]]) -> None:
    """Scale the channels of each level's map, and scale back what reads them: images are reconstructed as before."""
    per_batch = [[one.mean((0, 2, 3)) for one in encoder(images)] for images in batches]
    stages = [[layer for layer in net.modules() if isinstance(layer, nn.Conv2d)] for net in (*encoder.levels, decoder)]
    for means, makers, readers in zip(zip(*per_batch, strict=True), stages, stages[1:], strict=False):
        mean = torch.stack(means).mean(0)
        mean.clamp_(min=max(_RARE * float(mean.mean()), torch.finfo(mean.dtype).tiny))
        for parameter in makers[-1].parameters():
            parameter.div_(mean.view(-1, *(1,) * (parameter.ndim - 1)))
        readers[0].weight.mul_(mean.view(1, -1, 1, 1))
