"""StyleMix: what two images show and how they look are mixed by different ratios, through a style transfer network.

Hong, Choi, Kim, "StyleMix: Separating Content and Style for Enhanced Data Augmentation", CVPR 2021,
doi:10.1109/CVPR46437.2021.01462.

A frozen encoder and decoder give one image the style of another: AdaIN(F₁, F₂) has the content of F₁ and the channel
moments of F₂. StyleMix decodes a convex combination of F₁, F₂ and both transfers, in which the own content has weight
r_c and the own style r_s → `mixed_maps`. StyleCutMix shows one content inside a box and the other outside, each partly
in the other's style, by γ less so → `mixed_in_box`; `variant="auto"` takes a larger γ the farther apart the styles of
the two classes are: γ = tanh(distance / δ) → `style_distances`, `strength`. Labels follow r·(content share) +
(1-r)·(style share); StyleCutMix's own style share is γλ + (1-γ)r_s, with the box's realised area λ.

The networks, and the classes' styles, are made before training: `recipe.prepare(batches, data)`, which `mixwell train`
and `mixwell prepare` call. The default is a small auto-encoder of the training images. The paper's are the published
VGG-19 encoder and decoder of AdaIN at 224 pixels: `encoder="vgg_normalised.pth", decoder="decoder.pth", size=224`.
Others are given with `recipe.options[0].blend.use(encoder, decoder)`.

What StyleMix shows is always a decoder's rendering, also where nothing is mixed. Like the authors' networks, ours see
images as they are normalised for training, and their output is not clipped.

Paper and code: the authors' code draws all ratios and one box per batch (`per="batch"`). Its class styles count one
image per class and batch, since it adds with repeated indices; ours count all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from numpy.random import Generator
from torch import Tensor, nn

from mixwell.core.artefacts import Workshop
from mixwell.core.axes import Blend, Per, Scene, per_of
from mixwell.core.errors import BatchError, MixwellError, ParameterError, number_in
from mixwell.core.mix import Mix, Partners, layout_of, onto
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.rng import key_of, seeded
from mixwell.nets.frozen import Frozen
from mixwell.nets.style import StyleEncoder, load_weights, style_networks, train_style, vgg_networks
from mixwell.ops.boxes import area_of, boxes_around, outside
from mixwell.ops.moments import moments, with_moments

__all__ = [
    "BoxDraws",
    "BoxStyles",
    "MapDraws",
    "MapStyles",
    "StyleBlend",
    "StyleTransfer",
    "mixed_in_box",
    "mixed_maps",
    "strength",
    "style_distances",
    "style_vectors",
    "styles_of",
]

Variant = Literal["stylemix", "stylecutmix", "auto"]
Maps = Callable[[Tensor], "Tensor | tuple[Tensor, ...]"]

_SAME_CLASS = 2.0
"""Added to a class's distance from itself, so that pairs of one class are not mixed by style alone."""


def mixed_maps(
    own: Float[Tensor, "b c h w"],
    other: Float[Tensor, "b c h w"],
    content: Float[Tensor, " #b"],
    style: Float[Tensor, " #b"],
    both: Float[Tensor, " #b"],
) -> Float[Tensor, "b c h w"]:
    """t·F₁ + (1-r_c-r_s+t)·F₂ + (r_c-t)·AdaIN(F₁, F₂) + (r_s-t)·AdaIN(F₂, F₁).

    A transfer scales and shifts channels, so the sum is one scale for each map and a shift.

    Args:
        own, other: F₁ and F₂.
        content, style: r_c and r_s, the own image's.
        both: t in [max(0, r_c + r_s - 1), min(r_c, r_s)], what keeps both.
    """
    mean, std = moments(own, (2, 3))
    mean_, std_ = moments(other, (2, 3))
    content, style, both = (ratio.to(mean.dtype).view(-1, 1, 1, 1) for ratio in (content, style, both))
    there, back = std_ / std, std / std_
    only_content, only_style = content - both, style - both
    shift = only_content * (mean_ - mean * there) + only_style * (mean - mean_ * back)
    mixed = torch.addcmul(shift, own, both + only_content * there)
    return mixed.addcmul_(other, 1 - content - style + both + only_style * back)


def mixed_in_box(
    own: Float[Tensor, "b c h w"],
    other: Float[Tensor, "b c h w"],
    own_styled: Float[Tensor, "b c h w"],
    other_styled: Float[Tensor, "b c h w"],
    around: Float[Tensor, "#b 1 h w"],
    style: Float[Tensor, " #b"],
    gamma: Float[Tensor, " #b"],
) -> Float[Tensor, "b c h w"]:
    """r_s·x₁ + (1-r_s)·g₁₂ inside the box, (1-r_s)·x₂ + r_s·g₂₁ outside, where g₁₂ = γ·x₁ + (1-γ)·D(AdaIN(F₁, F₂)).

    Args:
        own, other: x₁ and x₂.
        own_styled, other_styled: each in the style of the other.
        around: 1 outside the box, 0 inside.
        style: r_s, the own image's.
        gamma: γ, how much of the transfers is taken back.
    """
    style, gamma = (ratio.to(own.dtype).view(-1, 1, 1, 1) for ratio in (style, gamma))
    inside = torch.lerp(own_styled, own, 1 - (1 - style) * (1 - gamma))
    return torch.lerp(inside, torch.lerp(other_styled, other, 1 - style * (1 - gamma)), around)


def styles_of(maps: Iterable[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b d"]:
    """Each image's style: the channel means and deviations of its maps, one map after the other."""
    return torch.cat([part.flatten(1) for one in maps for part in moments(one, (2, 3))], 1)


def style_vectors(
    batches: Iterable[tuple[Float[Tensor, "_ d"], Shaped[Tensor, "_ ..."]]], num_classes: int = 0
) -> Float[Tensor, "c d"]:
    """The mean style of each class, in fp64 on the CPU; 0 for a class without images.

    Args:
        batches: styles, and class ids or rows of class shares.
        num_classes: how many classes there are at least.
    """
    sums, counts = torch.zeros(()), torch.zeros(num_classes, dtype=torch.float64)
    for styles, labels in batches:
        styles, labels = styles.double().cpu(), labels.cpu()
        ids = not labels.is_floating_point()
        found = max(len(counts), int(labels.max()) + 1 if ids else labels.shape[1])
        counts = F.pad(counts, (0, found - len(counts)))
        sums = sums if sums.ndim else styles.new_zeros(found, styles.shape[1])
        sums = F.pad(sums, (0, 0, 0, found - len(sums)))
        if ids:
            sums.index_add_(0, labels.long(), styles)
            counts.index_add_(0, labels.long(), torch.ones(len(labels), dtype=torch.float64))
        else:
            sums += labels.T.double() @ styles
            counts += labels.sum(0)
    return sums / counts.clamp_min(torch.finfo(torch.float64).tiny)[:, None]


def style_distances(vectors: Float[Tensor, "c d"]) -> Float[Tensor, "c c"]:
    """The mean squared difference between the styles of any two classes, and 2 more on the diagonal; in fp32."""
    apart = torch.cdist(vectors.double(), vectors.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    return (apart / vectors.shape[1]).fill_diagonal_(_SAME_CLASS).float()


def strength(
    distances: Float[Tensor, "c c"], own: Shaped[Tensor, "b ..."], other: Shaped[Tensor, "b ..."], delta: float
) -> Float[Tensor, " b"]:
    """γ = tanh(distance / δ).

    Args:
        distances: between the styles of classes.
        own, other: class ids, or rows of class shares: then by the mean distance.
        delta: δ > 0.
    """
    if not own.is_floating_point():
        return torch.tanh(distances[own.long(), other.long()] / delta)
    own, other = (rows.to(distances.dtype) / rows.sum(1, keepdim=True) for rows in (own, other))
    with torch.autocast(distances.device.type, enabled=False):
        return torch.tanh(((own @ distances) * other).sum(1) / delta)


class StyleTransfer(nn.Module):
    """A frozen encoder and decoder, and the size of the images that they see.

    Args:
        size: pixels of the shorter side; None for the images' own.
        encoder, decoder: files of AdaIN's weights; None for small networks that `prepare` trains.
        channels: of the small networks' first map; the second has twice as many.
        epochs: of their training.
    """

    def __init__(
        self,
        size: int | None = None,
        encoder: str | None = None,
        decoder: str | None = None,
        channels: int = 16,
        epochs: int = 5,
    ) -> None:
        super().__init__()
        if size is not None and size < 1:
            raise ParameterError(f"size must be a whole number ≥ 1, or none for the images' own, got {size!r}.")
        if (encoder is None) != (decoder is None):
            raise ParameterError(
                f"encoder and decoder belong together, got encoder={encoder!r} and decoder={decoder!r}. Give both "
                "files, or neither."
            )
        with torch.device("meta"):
            style_networks(1, (channels, 2 * channels))  # a wrong number is told where it is written
        if epochs < 1:
            raise ParameterError(f"epochs must be a whole number ≥ 1, got {epochs!r}.")
        self.size, self.channels, self.epochs = size, channels, epochs
        self.files = None if encoder is None or decoder is None else (encoder, decoder)
        self.encoder: Frozen | None = None
        self.decoder: Frozen | None = None
        self.own = False

    def use(self, encoder: Maps, decoder: Callable[[Tensor], Tensor]) -> None:
        """Take these networks in place of those that `prepare` makes."""
        self.encoder, self.decoder, self.own = Frozen(encoder), Frozen(decoder), True

    def prepare(self, workshop: Workshop) -> None:
        """Load or train the networks, unless there are some of the user's own."""
        if self.own:
            return
        if self.files is not None:
            nets = vgg_networks()
            for net, file in zip(nets, self.files, strict=True):
                load_weights(net, file)
        else:
            settings = {"channels": self.channels, "epochs": self.epochs}
            made = workshop.made("style-networks", settings, lambda: self._trained(workshop))
            nets = self._small(made["0.levels.0.0.weight"].shape[1])
            nn.ModuleList(nets).load_state_dict(made)
        self.encoder, self.decoder = (Frozen(net).to(workshop.device) for net in nets)

    def _small(self, image_channels: int) -> tuple[StyleEncoder, nn.Sequential]:
        with seeded(key_of("style-networks"), nn.Identity()):
            return style_networks(image_channels, (self.channels, 2 * self.channels))

    def _trained(self, workshop: Workshop) -> dict[str, Tensor]:
        def images() -> Iterator[Tensor]:
            return (batch.images.to(workshop.device, torch.float32) for batch in workshop.batches())

        def report(done: int) -> None:
            workshop.progress("style networks", done, self.epochs)

        encoder, decoder = self._small(next(images()).shape[1])
        nets = nn.ModuleList((encoder, decoder)).to(workshop.device)
        train_style(encoder, decoder, images, self.epochs, progress=report)
        return {name: value.cpu() for name, value in nets.state_dict().items()}

    def distances(self, workshop: Workshop) -> Float[Tensor, "c c"]:
        """How far apart the styles of the training set's classes are. Kept, unless the networks are the user's own."""

        def vectors() -> dict[str, Tensor]:
            styles = (
                (styles_of(self.maps(self.canvas(batch.images.to(workshop.device)))), batch.labels)
                for batch in workshop.batches()
            )
            return {"vectors": style_vectors(styles)}

        if self.own:
            return style_distances(vectors()["vectors"]).to(workshop.device)
        settings: dict[str, Any] = {"size": self.size, "channels": self.channels, "epochs": self.epochs}
        if self.files is not None:
            weights = Path(self.files[0]).read_bytes()
            settings = {"size": self.size, "encoder": hashlib.blake2b(weights, digest_size=10).hexdigest()}
        made = workshop.made("class-styles", settings, vectors)
        return style_distances(made["vectors"]).to(workshop.device)

    def maps(self, canvas: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        """The encoder's maps; the last is the one that is mixed.

        Raises:
            MixwellError: there is no encoder yet.
        """
        if self.encoder is None:
            raise _unprepared("an encoder and a decoder")
        made = self.encoder(canvas)
        return made if isinstance(made, tuple) else (made,)

    def image(self, maps: Float[Tensor, "b _ _ _"], canvas: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """What the decoder makes of maps of such a canvas; what it adds on the right and below is cut off.

        Raises:
            BatchError: the decoder makes smaller images, or of other channels.
        """
        assert self.decoder is not None, "a decoder comes with the encoder"
        made: Tensor = self.decoder(maps)[..., : canvas.shape[2], : canvas.shape[3]]
        if made.shape != canvas.shape:
            raise BatchError(
                f"A style decoder must make images of what was encoded: expected {tuple(canvas.shape)}, got "
                f"{tuple(made.shape)}. Give a decoder that mirrors the encoder."
            )
        return made.to(canvas.dtype)

    def canvas(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c height width"]:
        """The images at the size at which styles are transferred, in fp32 or fp64."""
        wide = images if images.dtype is torch.float64 else images.float()
        return _resized(wide.contiguous(), self.size_of(images))

    def size_of(self, images: Float[Tensor, "b c h w"]) -> tuple[int, int]:
        """Height and width of the images' canvas."""
        height, width = images.shape[2:]
        scale = 1 if self.size is None else self.size / min(height, width)
        return round(height * scale), round(width * scale)


def _unprepared(what: str) -> MixwellError:
    return MixwellError(
        f"stylemix needs {what}, and has none yet. Call recipe.prepare(batches, data) before training, which makes or "
        "loads it; `mixwell train` does so by itself."
    )


def _resized(images: Float[Tensor, "b c h w"], size: tuple[int, ...]) -> Float[Tensor, "b c height width"]:
    return images if images.shape[2:] == size else F.interpolate(images, size, mode="bilinear")


class MapDraws(NamedTuple):
    """What a mix of maps needs besides the content's ratio.

    Attributes:
        style: (B,) or (1,) r_s ~ Beta(α, α).
        both: (B,) or (1,) where t lies between its bounds, uniform in [0, 1).
    """

    style: Float[np.ndarray, " #b"]
    both: Float[np.ndarray, " #b"]


class BoxDraws(NamedTuple):
    """What a mix of a box needs besides its area.

    Attributes:
        style: (B,) or (1,) r_s ~ Beta(α, α).
        gamma: (B,) or (1,) γ ~ Beta(α₂, α₂); None where it follows from the classes.
        centres: (B, 2) or (1, 2) row and column, uniform in [0, 1).
    """

    style: Float[np.ndarray, " #b"]
    gamma: Float[np.ndarray, " #b"] | None
    centres: Float[np.ndarray, "#b 2"]


class StyleBlend(Blend):
    """Mix contents by one ratio and styles by another.

    Args:
        transfer: the networks.
        alpha: r_s ~ Beta(α, α).
        r: weight of the content's share in the label; the style's has 1 - r.
        per: one draw per "sample" or per "batch".
    """

    gives = OF_A_PAIR
    hidden = False
    shows_shares = False
    exact = False
    repeats = False

    def __init__(self, transfer: StyleTransfer, alpha: float, r: float = 0.7, per: Per = "sample") -> None:
        super().__init__()
        self.transfer = transfer
        self.alpha = number_in("alpha", alpha, 0, open_low=True)
        self.r = number_in("r", r, 0, 1)
        self.per = per_of(per)

    def use(self, encoder: Maps, decoder: Callable[[Tensor], Tensor]) -> None:
        """Take these networks in place of those that `prepare` makes. Modules are frozen, and move with the recipe.

        Args:
            encoder: normalised images (B, C, H, W) → a map, or several of which the last is mixed; the channel moments
                of all are the style.
            decoder: a map → images of the encoded ones' size; what is more on the right and below is cut off.
        """
        self.transfer.use(encoder, decoder)

    def prepare(self, workshop: Workshop) -> None:
        self.transfer.prepare(workshop)

    def rendered(
        self, x: Float[Tensor, "b c h w"], mixed: Callable[[Float[Tensor, "b c height width"]], Tensor]
    ) -> Float[Tensor, "b c h w"]:
        """Images after a change of their canvas, at their own size, dtype and memory layout."""
        made = _resized(mixed(self.transfer.canvas(x)), tuple(x.shape[2:]))
        return made.to(x.dtype).contiguous(memory_format=layout_of(x))


class MapStyles(StyleBlend):
    """StyleMix: decode a mix of both images' maps and of their transfers. λ is the content's ratio r_c."""

    def draw(self, rows: int, rng: Generator) -> MapDraws:
        count = 1 if self.per == "batch" else rows
        return MapDraws(rng.beta(self.alpha, self.alpha, count), rng.random(count))

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: MapDraws,
        scene: Scene,
    ) -> Mix:
        content, style = lam.detach().cpu().numpy(), draws.style
        least, most = np.maximum(content + style - 1, 0), np.minimum(content, style)
        both = least + draws.both * (most - least)
        ratios = [onto(ratio.astype(np.float32), images) for ratio in (content, style, both)]

        def mixed(canvas: Tensor) -> Tensor:
            own = self.transfer.maps(canvas)[-1]
            return self.transfer.image(mixed_maps(own, partners.of(own), *ratios), canvas)

        def apply(x: Tensor) -> Tensor:
            if _like(x, images):
                return self.rendered(x, mixed)
            return torch.lerp(partners.of(x), x, ratios[0].to(x.dtype).view(-1, *(1,) * (x.ndim - 1)))

        own = torch.from_numpy(self.r * content + (1 - self.r) * style)
        return Mix.of_pair(apply(images), partners, own, apply, lam=lam)


class BoxStyles(StyleBlend):
    """StyleCutMix: one content inside a box, the other outside. λ is the box's area before clipping; it is the own's.

    Args:
        transfer, alpha, r, per: see `StyleBlend`.
        gamma_alpha: γ ~ Beta(α₂, α₂).
        delta: δ, if γ = tanh(distance of the classes' styles / δ) in place of a drawn one.
    """

    def __init__(
        self,
        transfer: StyleTransfer,
        alpha: float,
        r: float = 0.7,
        per: Per = "sample",
        gamma_alpha: float = 0.8,
        delta: float | None = None,
    ) -> None:
        super().__init__(transfer, alpha, r, per)
        self.gamma_alpha = number_in("gamma_alpha", gamma_alpha, 0, open_low=True)
        self.delta = None if delta is None else number_in("delta", delta, 0, open_low=True)
        self.distances: Tensor | None
        self.register_buffer("distances", None)

    def prepare(self, workshop: Workshop) -> None:
        super().prepare(workshop)
        if self.delta is not None:
            self.distances = self.transfer.distances(workshop)

    def draw(self, rows: int, rng: Generator) -> BoxDraws:
        count = 1 if self.per == "batch" else rows
        style = rng.beta(self.alpha, self.alpha, count)
        gamma = rng.beta(self.gamma_alpha, self.gamma_alpha, count) if self.delta is None else None
        return BoxDraws(style, gamma, rng.random((count, 2)))

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: BoxDraws,
        scene: Scene,
    ) -> Mix:
        cuts, size = np.sqrt(lam.detach().cpu().numpy()), self.transfer.size_of(images)
        boxes = boxes_around(cuts, draws.centres, size)
        area, style = (onto(array.astype(np.float32), images) for array in (area_of(boxes, size), draws.style))
        gamma = self._gamma(draws, partners, images)

        def mixed(canvas: Tensor) -> Tensor:
            own = self.transfer.maps(canvas)[-1]
            mean, std = moments(own, (2, 3))
            other, mean_, std_ = (partners.of(each) for each in (own, mean, std))
            around = outside(boxes, size, canvas.device, canvas.dtype)
            own_styled = self.transfer.image(with_moments(own, mean, std, mean_, std_), canvas)
            other_styled = self.transfer.image(with_moments(other, mean_, std_, mean, std), canvas)
            return mixed_in_box(canvas, partners.of(canvas), own_styled, other_styled, around, style, gamma)

        def apply(x: Tensor) -> Tensor:
            if _like(x, images):
                return self.rendered(x, mixed)
            of_x = (x.shape[2], x.shape[3])
            around = outside(boxes_around(cuts, draws.centres, of_x), of_x, x.device, x.dtype)
            return torch.lerp(x, partners.of(x), around)

        own = self.r * area + (1 - self.r) * (gamma * area + (1 - gamma) * style)
        return Mix.of_pair(apply(images), partners, own, apply, lam=lam)

    def _gamma(self, draws: BoxDraws, partners: Partners, images: Tensor) -> Float[Tensor, " #b"]:
        """γ as drawn, or by the classes.

        Raises:
            MixwellError: nothing is known of the classes' styles.
            BatchError: a class was not among the images that the recipe was prepared on.
        """
        if draws.gamma is not None:
            return onto(draws.gamma.astype(np.float32), images)
        if self.distances is None or self.delta is None:
            raise _unprepared("the styles of the classes")
        pool, known = partners.pool, len(self.distances)
        ids = not pool.is_floating_point()
        if (pool.is_cpu and ids and int(pool.max()) >= known) or (not ids and pool.shape[1] != known):
            raise BatchError(
                f"stylemix(variant=auto) was prepared on {known} classes, got labels of others. Prepare it on training "
                "images of all classes."
            )
        own, other = (pool.index_select(0, partners.sources[:, source]) for source in (0, 1))
        return strength(self.distances, own, other, self.delta)


def _like(x: Tensor, images: Tensor) -> bool:
    """Whether a tensor may be taken for images, so that a network can make something of it."""
    return x.shape[1:] == images.shape[1:] and x.dtype == images.dtype


@method("stylemix", section="1.6", paper="doi:10.1109/CVPR46437.2021.01462", venue="CVPR 2021")
def stylemix(
    variant: Variant = "stylemix",
    alpha: float | None = None,
    r: float = 0.7,
    gamma_alpha: float = 0.8,
    delta: float = 3.0,
    prob: float | None = None,
    per: Per = "sample",
    size: int | None = None,
    encoder: str | None = None,
    decoder: str | None = None,
    channels: int = 16,
    epochs: int = 5,
) -> Pieces:
    """Args:
    variant: "stylemix" mixes maps, "stylecutmix" cuts a box, "auto" cuts a box and chooses γ by the classes' styles.
    alpha: the ratios of content and style are drawn from Beta(α, α); none: the paper's 0.5 for "stylemix", else 1.
    r: weight of the content's share in the label; the style's has 1-r.
    gamma_alpha: γ, how much of the style transfer is taken back, is drawn from Beta(α₂, α₂); for "stylecutmix" only.
    delta: δ of γ = tanh(distance / δ); for "auto" only. The paper takes 3 on CIFAR-100, 1 on CIFAR-10, for distances
        by VGG; the small network's are several times smaller.
    prob: share of the batches that are mixed; none: the paper's 0.2 for "stylemix", else 0.5.
    per: one draw per "sample" or per "batch".
    size: pixels of the shorter side of the images that the networks see; none: the images' own. The paper's is 224.
    encoder: file with the weights of AdaIN's normalised VGG-19; none: a small network is trained.
    decoder: file with the weights of AdaIN's decoder.
    channels: of the small network's first map; the second has twice as many.
    epochs: passes of its training over the training images.
    """
    if variant != "stylecutmix" and gamma_alpha != 0.8:
        raise ParameterError(
            f"gamma_alpha is a parameter of variant='stylecutmix', got {gamma_alpha!r} with {variant!r}. Leave it out."
        )
    if variant != "auto" and delta != 3.0:
        raise ParameterError(f"delta is a parameter of variant='auto', got {delta!r} with {variant!r}. Leave it out.")
    transfer = StyleTransfer(size, encoder, decoder, channels, epochs)
    maps = variant == "stylemix"
    alpha = (0.5 if maps else 1.0) if alpha is None else alpha
    prob = (0.2 if maps else 0.5) if prob is None else prob
    blend: StyleBlend
    if maps:
        blend = MapStyles(transfer, alpha, r, per)
    else:
        blend = BoxStyles(transfer, alpha, r, per, gamma_alpha, delta if variant == "auto" else None)
    return Pieces(essential=blend, suggested=Beta(alpha, per=per), prob=prob)
