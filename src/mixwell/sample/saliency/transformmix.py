"""TransformMix: move two images and mask them as a module does that was taught by a frozen classifier beforehand.

Cheung, Yeung, "TransformMix: Learning Transformation and Mixing Strategies from Data", 2024, arXiv:2403.12429.

A small module sees a teacher's class activation map and features of both images and λ. It moves each image by an affine
map and mixes what it moved by a mask. First the module alone is trained, so that the teacher recognises both images in
the mix; then it is frozen, and augments the training of any network. The label follows the drawn λ, not the mask.
Equations: CAM = ReLU(Σ_k w_k A_k), from 0 to 1 → `unit_range` of `Pretrained.activation`; STN and MPN →
`mixwell.nets.transform_mixer.TransformMixer`; the warps → `warped`; m = σ(logit/τ) → `mask_of`; x̃ = m⊙x_a + (1-m)⊙x_b →
`shown`; λ·CE(T(x̃), y_a) + (1-λ)·CE(T(x̃), y_b) → `search`.

The teacher and the module are there before training: `recipe.prepare(batches, data)`, which `mixwell train` and
`mixwell prepare` call, trains or loads the one and searches the other. By default the teacher is a small CNN, trained
on the clean training images; `teacher="resnet50"` takes one of timm with the recipe's classes, the folder of a finished
run that run's network, and `recipe.options[0].blend.teacher.use(net)` one of your own.

A module may be searched on one data set and used on another. `recipe.options[0].blend.save(FILE)` writes it, and
`mixwell prepare` leaves it in the cache as transform-mixer-….pt; `transformmix(mixer="FILE")` takes it. It fits the
teacher that it was searched with: a small CNN comes with it, another is to be named again. As that teacher may know
other classes, it then sees the map of the class that it takes an image for (`cam="predicted"`).

Images are moved as they are normalised for training: what comes from beyond an image's border is 0, its data set's
mean colour, and shows neither image.

Paper and code: the authors published no code, and we could not read the paper's numbers. Sizes of the layers, τ = 1,
Adam at 1e-3 for 10 epochs and λ ~ Beta(1, 1) are our choice, and so is the scaling of the class activation maps.
`gamma` adds a loss on the mask's mean, which the paper does not have.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from numpy.random import Generator, Philox
from torch import Tensor, nn

from mixwell.core.artefacts import Workshop
from mixwell.core.axes import Blend, Need, Per, Scene
from mixwell.core.batch import Batch, Pixels
from mixwell.core.criteria import SoftCrossEntropy
from mixwell.core.errors import MixwellError, ModelError, ParameterError, number_in
from mixwell.core.mix import Mix, Partners, layout_of, onto
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.rng import key_of, seeded
from mixwell.core.targets import Targets
from mixwell.nets.pretrained import Pretrained
from mixwell.nets.transform_mixer import Transform, TransformMixer, mask_of
from mixwell.ops.affine import inverse_of, warped
from mixwell.sample.saliency.automix import area_loss

__all__ = ["LearnedTransform", "search", "shown", "unit_range", "visible"]

Mixer = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(maps, partner, λ) → (θ, mask's logits), see `TransformMixer.forward`."""


def unit_range(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Each map rectified and stretched to [0, 1]; a constant one is 0."""
    maps = maps.relu()
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low + 1e-8)


def shown(
    x: Float[Tensor, "b c h w"],
    partner: Int[Tensor, " b"],
    theta: Float[Tensor, "b 2 2 3"],
    mask: Float[Tensor, "b 1 h w"],
) -> Float[Tensor, "b c h w"]:
    """m⊙x_a + (1-m)⊙x_b of the moved rows and partners, at least in fp32.

    Args:
        x: images, or anything aligned with them.
        partner: row of each row's partner.
        theta: θ_a and θ_b.
        mask: m, at the size of x.
    """
    x = x.contiguous()
    own, other = warped(x, theta[:, 0]), warped(x.index_select(0, partner), theta[:, 1])
    return torch.lerp(other, own, mask.to(own.dtype))


def visible(mask: Float[Tensor, "b 1 h w"], theta: Float[Tensor, "b 2 2 3"]) -> Float[Tensor, "b 2 h w"]:
    """The shares of both moved images in what each pixel shows; where it shows nothing, those of the mask."""
    wanted, whole = torch.cat((mask, 1 - mask), 1), torch.ones_like(mask)
    found = wanted * torch.cat((warped(whole, theta[:, 0]), warped(whole, theta[:, 1])), 1)
    total = found.sum(1, keepdim=True)
    return torch.where(total > 1e-6, found / total, wanted)


def search(
    mixer: nn.Module,
    look: Callable[[Tensor, Tensor], Tensor],
    judge: Callable[[Tensor], Tensor],
    batches: Callable[[], Iterable[tuple[Float[Tensor, "b c h w"], Shaped[Tensor, "b ..."]]]],
    rng: Generator,
    *,
    alpha: float = 1.0,
    epochs: int = 10,
    lr: float = 1e-3,
    tau: float = 1.0,
    gamma: float = 0.0,
    progress: Callable[[int], None] = lambda done: None,
) -> Float[Tensor, " epochs"]:
    """Train the module in place by a teacher's loss on its mixes, with Adam and a rate that falls from epoch to epoch.

    Args:
        mixer: a `TransformMixer`.
        look: (images, labels) → (B, 1 + C, h, w), what the module sees of them.
        judge: images → the teacher's logits, differentiable in the images.
        batches: called for each epoch's images and labels, on the module's device.
        rng: of partners and ratios.
        alpha: λ ~ Beta(α, α).
        epochs: passes.
        lr: rate of the first epoch.
        tau: τ of the mask.
        gamma: weight of |mean(m) - λ|.
        progress: called with the number of epochs that are done.

    Returns:
        The mean loss of each epoch.

    Raises:
        MixwellError: the loss is not finite.
    """
    criterion, losses = SoftCrossEntropy(), []
    optimiser = torch.optim.Adam(mixer.parameters(), lr=lr)
    mixer.train()
    progress(0)
    for epoch in range(epochs):
        optimiser.param_groups[0]["lr"] = lr * (1 - epoch / epochs)
        seen = []
        for images, labels in batches():
            twice = 2 if len(images) == 1 else 1  # BatchNorm has no statistics of a single place
            images, labels = (torch.cat([x] * twice) for x in (images, labels))
            partners = Partners.at(onto(rng.permutation(len(images)), images)[:, None], labels)
            drawn = torch.from_numpy(rng.beta(alpha, alpha, len(images)))
            lam = drawn.to(images.device, torch.float32, non_blocking=True)
            theta, logits = mixer(look(images, labels), partners.column(), lam)
            mask = mask_of(logits, (images.shape[2], images.shape[3]), tau)
            said = judge(shown(images, partners.column(), theta, mask))
            targets = Targets(labels, partners.sources, partners.shares(drawn), said.shape[1])
            loss: Tensor = criterion(said, targets)
            if gamma:
                loss = loss + gamma * area_loss(1 - mask, lam, 0.0)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            seen.append(loss.detach())
        losses.append(torch.stack(seen).mean())
        if not torch.isfinite(losses[-1]):
            raise MixwellError(
                f"The mixer's loss is not finite after {epoch + 1} epochs. Check that images are finite and normalised."
            )
        progress(epoch + 1)
    return torch.stack(losses)


class LearnedTransform(Blend):
    """Show two images, each moved by an affine map, under a mask, as a frozen module chooses.

    Args:
        teacher: the classifier that shows the module what the images are.
        mixer: file of a searched module; None to search one.
        transform, width: of the module, see `TransformMixer`.
        tau: τ of the mask.
        cam: whose class's activation map the module sees, the image's "label" or what the teacher has "predicted"; None
            for the label, and the prediction where the teacher comes with the module.
        alpha, epochs, lr, gamma: of the search, see `search`.

    Attributes:
        losses: (E,) the mean loss of each epoch of the search, once the module is there.
    """

    gives = OF_A_PAIR | {Need.MASKS}
    hidden = False
    aligned = False
    shows_shares = False
    exact = False  # between pixels they are interpolated, and beyond the border there are none

    def __init__(
        self,
        teacher: Pretrained,
        mixer: str | None = None,
        transform: Transform = "affine",
        width: int = 64,
        tau: float = 1.0,
        cam: Literal["label", "predicted"] | None = None,
        alpha: float = 1.0,
        epochs: int = 10,
        lr: float = 1e-3,
        gamma: float = 0.0,
    ) -> None:
        super().__init__()
        with torch.device("meta"):
            TransformMixer(1, transform, width)  # a wrong number is told where it is written
        if epochs < 1:
            raise ParameterError(f"epochs must be a whole number ≥ 1, got {epochs!r}.")
        if mixer is None and cam == "predicted":
            raise ParameterError(
                "cam='predicted' is for a module that was searched on other classes, and none is given. Give "
                "mixer='FILE', or leave cam out."
            )
        self.teacher = teacher
        self.file = mixer
        self.transform, self.width, self.epochs = transform, width, epochs
        self.tau = number_in("tau", tau, 0, open_low=True)
        self.alpha = number_in("alpha", alpha, 0, open_low=True)
        self.lr = number_in("lr", lr, 0, open_low=True)
        self.gamma = number_in("gamma", gamma, 0)
        self.cam = cam
        self.mixer: Mixer | None = None
        self.losses = torch.empty(0)
        self._own = False

    def use(self, mixer: Mixer) -> None:
        """Take this module in place of one that `prepare` searches or loads."""
        self._take(mixer)
        self._own = True

    def save(self, file: str | Path) -> None:
        """Write the module, and the teacher where it is the small CNN, to be taken by `transformmix(mixer=FILE)`.

        Raises:
            MixwellError: there is no module that was searched or loaded.
        """
        if not isinstance(self.mixer, TransformMixer):
            raise self._unprepared()
        torch.save(self._packed(self.mixer, self.losses), file)

    def train(self, mode: bool = True) -> LearnedTransform:
        """The module stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.mixer, nn.Module):
            self.mixer.eval()
        return self

    def prepare(self, workshop: Workshop) -> None:
        """Make or load the teacher and the module.

        Raises:
            ModelError: the file is no module's, or does not fit the teacher; the teacher knows other classes.
        """
        if self.file is None:
            self.teacher.prepare(workshop)
            if self._own:
                return
            channels = self._channels(workshop)
            names = ("transform", "width", "tau", "alpha", "epochs", "lr", "gamma")
            settings = {**{name: getattr(self, name) for name in names}, "teacher": self.teacher.fingerprint}
            made = workshop.made("transform-mixer", settings, lambda: self._searched(workshop, channels))
        else:
            made = _read(self.file)
            small = _part(made, "teacher.")
            if small and self.teacher.small:
                self.teacher.restore(small)
                self.teacher.to(workshop.device)
                self.cam = self.cam or "predicted"
            elif self.teacher.small:
                raise ModelError(
                    f"mixer: the module in {self.file} was searched with a teacher that is not in the file. Name that "
                    "teacher as it was named then: transformmix(mixer=..., teacher=...)."
                )
            else:
                self.teacher.prepare(workshop)
        mixer = TransformMixer.of(_part(made, "mixer."))
        if self.file is not None and mixer.channels != (found := self._channels(workshop)):
            raise ModelError(
                f"mixer: the module in {self.file} was searched for {mixer.channels} channels of its teacher's last "
                f"stage, but this teacher has {found}. Name the teacher that it was searched with."
            )
        self.tau, self.losses = float(made["tau"]), made["losses"]
        self._take(mixer.to(workshop.device))

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: None,
        scene: Scene,
    ) -> Mix:
        if self.mixer is None:
            raise self._unprepared()
        size, partner = (images.shape[2], images.shape[3]), partners.column()
        with torch.no_grad():
            maps = self.seen(images.detach(), scene.batch.labels, scene.batch.pixels)
            theta, logits = self.mixer(maps, partner, lam.detach())
            mask = mask_of(logits, size, self.tau)

        def apply(x: Tensor) -> Tensor:
            there = (x.shape[2], x.shape[3])
            made = shown(x, partner, theta, mask if there == size else mask_of(logits, there, self.tau))
            return made.to(x.dtype).contiguous(memory_format=layout_of(x))

        def masks(mix: Mix) -> Tensor:
            return visible(mask, theta)

        def origins(mix: Mix) -> Tensor:
            back = inverse_of(theta[:, 0]), inverse_of(theta[:, 1])
            return torch.cat((warped(mask, back[0]), warped(1 - mask, back[1])), 1)

        area = mask.mean((1, 2, 3))
        return Mix.of_pair(
            apply(images), partners, lam, apply, lam=lam, area=area, make_masks=masks, make_origins=origins
        )

    def seen(
        self, images: Float[Tensor, "b c h w"], labels: Shaped[Tensor, "b ..."], pixels: Pixels | None
    ) -> Float[Tensor, "b d y x"]:
        """What the module sees of each image: its class activation map, from 0 to 1, and the teacher's features."""
        features, maps = self.teacher.activation(images, None if self.cam == "predicted" else labels, pixels)
        return torch.cat((unit_range(maps)[:, None], features), 1)

    def _take(self, mixer: Mixer) -> None:
        if isinstance(mixer, nn.Module):
            mixer.requires_grad_(False).eval()
        self.mixer = mixer

    def _unprepared(self) -> MixwellError:
        return MixwellError(
            "transformmix mixes by a module that was searched beforehand, and there is none yet. Call "
            "recipe.prepare(batches, data) before training, which makes or loads it; `mixwell train` does so by itself."
        )

    def _channels(self, workshop: Workshop) -> int:
        """Channels of the teacher's features, once it has been seen that it fits the images and their classes.

        Raises:
            ModelError: it knows other classes than the recipe.
        """
        batch = next(iter(workshop.batches()), None)
        if batch is None:
            raise MixwellError("TransformMix needs training batches, but there are none. Give at least one.")
        images = batch.images[:2].to(workshop.device)
        classes = self.teacher.logits(images, batch.pixels).shape[1]
        if self.cam != "predicted" and workshop.num_classes not in (None, classes):
            other = "." if self.file is None else ", or let it tell them: cam='predicted'."
            raise ModelError(
                f"transformmix reads its teacher's maps of the images' classes, but the teacher tells {classes} apart, "
                f"and the recipe has {workshop.num_classes}. Give a teacher of these classes{other}"
            )
        return self.teacher.features(images, batch.pixels).shape[1]

    def _searched(self, workshop: Workshop, channels: int) -> dict[str, Tensor]:
        pixels: Pixels | None = None

        def placed(batch: Batch) -> tuple[Tensor, Tensor]:
            nonlocal pixels
            pixels = batch.pixels
            return batch.images.to(workshop.device, torch.float32), batch.labels.to(workshop.device)

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            return (placed(batch) for batch in workshop.batches())

        @torch.no_grad()
        def look(images: Tensor, labels: Tensor) -> Tensor:
            return self.seen(images, labels, pixels)

        with seeded(key_of("transform-mixer"), nn.Identity()):
            mixer = TransformMixer(channels, self.transform, self.width).to(workshop.device)
        losses = search(
            mixer,
            look,
            lambda mixed: self.teacher.logits(mixed, pixels),
            batches,
            Generator(Philox(key_of("transform-mixer"))),
            alpha=self.alpha,
            epochs=self.epochs,
            lr=self.lr,
            tau=self.tau,
            gamma=self.gamma,
            progress=lambda done: workshop.progress("transform mixer", done, self.epochs),
        )
        return self._packed(mixer, losses)

    def _packed(self, mixer: TransformMixer, losses: Float[Tensor, " epochs"]) -> dict[str, Tensor]:
        """What a file holds."""
        parts = {f"mixer.{name}": value.cpu() for name, value in mixer.state_dict().items()}
        if self.teacher.small and self.teacher.there:
            parts |= {f"teacher.{name}": value for name, value in self.teacher.weights.items()}
        return {**parts, "tau": torch.tensor(self.tau, dtype=torch.float64), "losses": losses.cpu()}


def _part(made: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in made.items() if name.startswith(prefix)}


def _read(file: str) -> dict[str, Tensor]:
    path, wanted = Path(file).expanduser(), "Give one that recipe.options[0].blend.save(FILE) wrote."
    if not path.is_file():
        raise ModelError(f"mixer: there is no file {path}. {wanted}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"mixer: {path} cannot be read as a file of tensors. {wanted}") from error
    if not isinstance(found, dict) or not {"tau", "losses"} <= found.keys():
        raise ModelError(f"mixer: {path} holds no module of TransformMix. {wanted}")
    return found


@method("transformmix", section="1.7", paper="2403.12429", venue="arXiv 2024")
def transformmix(
    alpha: float = 1.0,
    transform: Transform = "affine",
    tau: float = 1.0,
    mixer: str | None = None,
    cam: Literal["label", "predicted"] | None = None,
    width: int = 64,
    epochs: int = 10,
    lr: float = 1e-3,
    gamma: float = 0.0,
    teacher: str | None = None,
    teacher_size: int | None = None,
    teacher_epochs: int = 5,
    prob: float = 1.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    alpha: λ ~ Beta(α, α), in the search and after it.
    transform: how images are moved: "affine", or by a scale and two shifts ("scale-translate").
    tau: τ, a smaller one makes masks harder.
    mixer: file of a module that was searched before, perhaps on other data; it brings its own transform, width and τ.
    cam: the class whose activation map the module sees: the image's "label", or the one that the teacher has
        "predicted"; by default the label, and the prediction where the teacher comes with the module's file.
    width: channels of the module's hidden layers.
    epochs: passes of the search over the training images.
    lr: rate of the search's first epoch.
    gamma: weight of |mean(m) - λ| in the search.
    teacher: None for a small CNN trained beforehand, the folder of a finished run, or a name of timm whose classes are
        the recipe's.
    teacher_size: pixels of both sides at which the teacher sees images; None for the network's own.
    teacher_epochs: passes of the small CNN's training over the training images.
    prob: share of the batches that are mixed.
    per: one λ per "sample" or per "batch".
    """
    found = Pretrained(
        teacher, owner="transformmix", size=teacher_size, epochs=teacher_epochs, own_classes=cam == "predicted"
    )
    blend = LearnedTransform(found, mixer, transform, width, tau, cam, alpha, epochs, lr, gamma)
    return Pieces(essential=blend, suggested=Beta(alpha, per=per), prob=prob)
