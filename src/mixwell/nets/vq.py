"""VQ-VAE: a discrete auto-encoder, which knows an image only through indices into a codebook.

van den Oord, Vinyals, Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017, arXiv:1711.00937. The
encoder shrinks an image to a map of vectors z(x), each vector is replaced by its nearest code e, and the decoder makes
an image of the codes. Training minimises ‖x - x̂‖² + ‖sg(z) - e‖² + β‖z - sg(e)‖² (eq. 3), and gradients pass the
replacement straight through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mixwell.core.errors import BatchError, MixwellError, ParameterError

__all__ = ["VQAutoEncoder", "VQLoss", "train_vq", "vq_autoencoder"]

_PATIENCE = 50
"""Steps after which a code that no vector was near to is placed anew."""


class VQLoss(NamedTuple):
    """What training minimises.

    Attributes:
        total: ‖x - x̂‖² + ‖sg(z) - e‖² + β‖z - sg(e)‖².
        reconstruction, codebook: its first two parts, means over elements in fp32; the third is β times the second.
        indices: (B, h, w) of the codes.
    """

    total: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""]
    codebook: Float[Tensor, ""]
    indices: Int[Tensor, "b h w"]


class VQAutoEncoder(nn.Module):
    """Images → their reconstruction from the nearest codes.

    Args:
        encoder: (B, C, H, W) pixels → (B, D, H/stride, W/stride), for sides that are multiples of the stride.
        decoder: (B, D, h, w) → (B, C, h·stride, w·stride).
        codebook: (N, D) codes.
        stride: pixels per vector, along each side.
        image_channels: C.

    Attributes:
        codebook: the codes, as a parameter.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        codebook: Float[Tensor, "n d"],
        stride: int,
        image_channels: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.codebook = nn.Parameter(codebook.clone())
        self.stride = stride
        self.image_channels = image_channels

    def encode(self, images: Float[Tensor, "b c height width"]) -> Float[Tensor, "b d h w"]:
        """z(x). Sides that are no multiples of the stride are filled up by reflection, on the right and below.

        Raises:
            BatchError: no pixel grids, or of other channels.
        """
        if images.ndim != 4 or images.shape[1] != self.image_channels:
            raise BatchError(
                f"The auto-encoder takes images (B, {self.image_channels}, H, W), got {tuple(images.shape)}. Prepare "
                "one on images like those."
            )
        z: Tensor = self.encoder(_reflected(images, self.stride))
        return z

    def nearest(self, z: Float[Tensor, "b d h w"]) -> Int[Tensor, "b h w"]:
        """The index of the code nearest to each vector, the lowest of equally near ones. Computed in fp32."""
        codes = self.codebook.detach().float()
        with torch.autocast(z.device.type, enabled=False):
            vectors = z.detach().float().movedim(1, -1).reshape(-1, codes.shape[1])
            # ‖z - e‖² without ‖z‖², which all codes share.
            distances = torch.addmm(codes.square().sum(1), vectors, codes.T, alpha=-2)
        return distances.argmin(1).view(z.shape[0], *z.shape[2:])

    def vectors(self, indices: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """The codes of these indices."""
        return F.embedding(indices, self.codebook).movedim(-1, 1)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The reconstruction of images of any size."""
        return self.decode(self.vectors(self.nearest(self.encode(images))), images)

    def loss(self, images: Float[Tensor, "b c h w"], beta: float = 0.25) -> VQLoss:
        """What training minimises.

        Args:
            images: pixels.
            beta: weight of the commitment ‖z - sg(e)‖².
        """
        z = self.encode(images)
        indices = self.nearest(z)
        codes = self.vectors(indices)
        decoded = self.decode(z + (codes - z).detach(), images)
        reconstruction = F.mse_loss(decoded.float(), images.float())
        codebook = F.mse_loss(codes.float(), z.detach().float())
        commitment = F.mse_loss(z.float(), codes.detach().float())
        total = reconstruction + codebook + beta * commitment
        return VQLoss(total, reconstruction.detach(), codebook.detach(), indices)

    def decode(
        self, codes: Float[Tensor, "b d h w"], images: Float[Tensor, "b c height width"]
    ) -> Float[Tensor, "b c height width"]:
        """What the decoder makes of codes, cut to the size of the images that they are of."""
        made: Tensor = self.decoder(codes)
        return made[..., : images.shape[-2], : images.shape[-1]]


def _reflected(images: Float[Tensor, "b c height width"], stride: int) -> Float[Tensor, "b c h w"]:
    """Fill up both sides to multiples of the stride; images smaller than the rest are reflected several times."""
    for axis in (-2, -1):
        size = images.shape[axis]
        if rest := -size % stride:
            period = max(1, 2 * size - 2)
            places = torch.arange(size + rest, device=images.device) % period
            images = images.index_select(axis, torch.minimum(places, period - places))
    return images


class _Residual(nn.Module):
    """x + a 3×3 and a 1×1 convolution of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.body = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, inner, 3, 1, 1), nn.ReLU(), nn.Conv2d(inner, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        body: Tensor = self.body(x)
        return x + body


def vq_autoencoder(
    image_channels: int, stride: int = 4, channels: int = 64, codes: int = 512, dim: int = 64
) -> VQAutoEncoder:
    """The paper's convolutional auto-encoder: log2(stride) strided convolutions and two residual blocks, and back.

    Args:
        image_channels: C.
        stride: pixels per code along each side, a power of 2.
        channels: width of the hidden layers; the paper's has 256.
        codes: N, size of the codebook.
        dim: D, size of a code.

    Raises:
        ParameterError: a number is out of range.
    """
    for name, value in (("image_channels", image_channels), ("channels", channels), ("codes", codes), ("dim", dim)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ParameterError(f"{name} must be a whole number ≥ 1, got {value!r}.")
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 2 or stride & (stride - 1):
        raise ParameterError(f"stride must be a power of 2 such as 4 or 8, got {stride!r}.")
    halvings = stride.bit_length() - 1
    widths = [image_channels, *[channels] * halvings]
    down = [layer for width in widths[:-1] for layer in (nn.Conv2d(width, channels, 4, 2, 1), nn.ReLU())]
    up = [layer for width in widths[-2::-1] for layer in (nn.ReLU(), nn.ConvTranspose2d(channels, width, 4, 2, 1))]
    encoder = nn.Sequential(
        *down,
        nn.Conv2d(channels, channels, 3, 1, 1),
        *(_Residual(channels) for _ in range(2)),
        nn.ReLU(),
        nn.Conv2d(channels, dim, 1),
    )
    decoder = nn.Sequential(
        nn.Conv2d(dim, channels, 3, 1, 1),
        *(_Residual(channels) for _ in range(2)),
        *up,
    )
    codebook = torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes)
    return VQAutoEncoder(encoder, decoder, codebook, stride, image_channels)


def train_vq(
    net: VQAutoEncoder,
    batches: Callable[[], Iterable[Float[Tensor, "b c h w"]]],
    epochs: int,
    beta: float = 0.25,
    lr: float = 1e-3,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Train in place, with Adam and a rate that falls from epoch to epoch.

    In the first quarter of the epochs nothing is quantised. Then codes begin as encoded vectors, and one that stays
    unused for 50 steps becomes another vector (not in the last epoch); otherwise most of the codebook would lie idle.
    The choice of vectors is the same every time.

    Args:
        batches: called for each epoch's pixels in [0, 1], on the network's device.
        epochs: passes.
        beta: weight of the commitment.
        lr: rate of the first epoch.
        progress: called with the number of epochs that are done.

    Raises:
        MixwellError: the loss is not finite.
    """
    chance = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), lr=lr)
    used = torch.zeros(len(net.codebook), dtype=torch.bool, device=net.codebook.device)
    age = 0  # steps since codes were placed
    net.train()
    progress(0)
    for epoch in range(epochs):
        plain = epoch < epochs // 4
        optimiser.param_groups[0]["lr"] = lr * (1 - epoch / epochs)
        for images in batches():
            if not plain and (age == 0 or (age % _PATIENCE == 0 and epoch + 1 < epochs)):
                _place_anew(net, ~used, images, chance)
                used.zero_()
            optimiser.zero_grad()
            if plain:
                total = F.mse_loss(net.decode(net.encode(images), images), images)
            else:
                total, _, _, indices = net.loss(images, beta)
                used[indices.flatten()] = True
                age += 1
            torch.autograd.backward(total)
            optimiser.step()
        if not torch.isfinite(total):
            raise MixwellError(
                f"The auto-encoder's loss is not finite after {epoch + 1} epochs. Check that pixels are finite and lie "
                "in [0, 1]."
            )
        progress(epoch + 1)


@torch.no_grad()
def _place_anew(
    net: VQAutoEncoder, codes: Bool[Tensor, " n"], images: Float[Tensor, "b c h w"], chance: torch.Generator
) -> None:
    """Put these codes where encoded vectors are; each vector is taken once before one is taken twice."""
    vectors = net.encode(images).movedim(1, -1).flatten(0, 2)
    wanted = codes.nonzero()[:, 0]
    order = torch.randperm(len(vectors), generator=chance)
    net.codebook[wanted] = vectors[order.repeat(len(wanted) // len(order) + 1)[: len(wanted)]]
