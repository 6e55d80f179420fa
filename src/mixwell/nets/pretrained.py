"""A frozen classifier that methods look at images through: a small one, a finished run's, one of timm, or one's own.

It is never trained: always in evaluation mode, in its own precision without autocast, and no part of its holder's
parameters, so that neither optimisers nor checkpoints know it. It moves with its holder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mixwell.core.artefacts import Workshop
from mixwell.core.batch import Batch, Pixels
from mixwell.core.errors import BatchError, MixwellError, ModelError, ParameterError
from mixwell.core.rng import key_of, seeded
from mixwell.nets.cnn_s import CNNS
from mixwell.nets.factory import create_net
from mixwell.nets.library import library
from mixwell.probe import Anatomy, Edit, Outputs, Probe, Want
from mixwell.probe.cam import class_activation

__all__ = ["Pretrained", "plain_weights", "train_classifier"]


class Pretrained(nn.Module):
    """A frozen classifier, there once it is prepared or given.

    Gradients reach its images, never its parameters.

    Args:
        teacher: None for a `cnn-s` that `prepare` trains on the clean training images; the folder of a finished run on
            such images; or a name of timm, whose network gets its pretrained weights, its own normalisation and size.
        owner: the method that looks through it, for messages.
        size: pixels of both sides at which it sees images; None for timm's own, else for the images' own.
        epochs: passes of the small network's training.
        own_classes: whether a run's network may tell other classes apart than the recipe's.

    Raises:
        ParameterError: a number is out of range.
    """

    def __init__(
        self,
        teacher: str | None = None,
        *,
        owner: str,
        size: int | None = None,
        epochs: int = 5,
        own_classes: bool = False,
    ) -> None:
        super().__init__()
        if size is not None and size < 1:
            raise ParameterError(f"teacher_size must be a whole number ≥ 1, or none for its own, got {size!r}.")
        if epochs < 1:
            raise ParameterError(f"teacher_epochs must be a whole number ≥ 1, got {epochs!r}.")
        self.teacher, self.owner, self.epochs, self.own_classes = teacher, owner, epochs, own_classes
        self._size = self._wanted_size = size
        self._net: tuple[nn.Module] | None = None  # in a tuple it is no submodule
        self._pixels: Pixels | None = None
        self._channels: int | None = None
        self._probe: Probe | None = None
        self._own = False

    def use(self, net: nn.Module, pixels: Pixels | None = None, size: int | None = None) -> None:
        """Take this network in place of one that `prepare` makes; it is frozen.

        Args:
            net: images → logits.
            pixels: how its images are normalised; None: as those of the recipe.
            size: pixels of both sides of its images; None for any.
        """
        self._own = True
        self._take(net, None, pixels, self._wanted_size or size)

    def prepare(self, workshop: Workshop) -> None:
        """Train or load the network, unless there is one of the user's own.

        Raises:
            ModelError: the name is unknown, there are no weights, or the run does not fit these images.
        """
        if self._own:
            return
        if self.teacher is None:
            settings = {"classes": workshop.num_classes, "epochs": self.epochs, "size": self._size}
            made = workshop.made("teacher", settings, lambda: self._trained(workshop))
            self.restore(made)
        elif (Path(self.teacher).expanduser() / "run.json").is_file():
            example = _first(workshop, "A teacher")
            classes = None if self.own_classes else _classes_of(workshop)
            trained = _of_run(Path(self.teacher).expanduser(), example, classes)
            self._take(trained, example.images.shape[1], None, self._size)
        else:
            self._take(*_of_timm(self.teacher, self._size))
        self.to(workshop.device)

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Take the small network that `prepare` trained elsewhere.

        Args:
            weights: what `weights` was there.
        """
        channels = weights["stem.0.weight"].shape[1]
        net = _small(channels, len(weights["fc.bias"]))
        net.load_state_dict(dict(weights))
        self._take(net, channels, None, self._size)

    @property
    def small(self) -> bool:
        """Whether it is the small network, or will be."""
        return self.teacher is None and not self._own

    @property
    def weights(self) -> dict[str, Tensor]:
        """The network's parameters and buffers, on the CPU."""
        assert self._net is not None, "only a network that is there has weights"
        return {name: value.cpu() for name, value in self._net[0].state_dict().items()}

    def features(
        self, images: Float[Tensor, "b c h w"], pixels: Pixels | None = None, site: int | str = -1
    ) -> Float[Tensor, "b d y x"]:
        """The map of a site in fp32; by default the last stage's. Differentiable in the images, as are `logits`.

        Args:
            images: normalised, of any floating dtype.
            pixels: how; needed where the network has a normalisation of its own.
            site: a stage's number or a module's name.

        Raises:
            MixwellError: there is no network yet.
            BatchError: the images' normalisation is not known, or they have other channels than the network takes.
            SiteError: the network has no such site.
        """
        want = Want("features", site)
        return self._outputs(images, pixels, want)[want].float()

    def logits(self, images: Float[Tensor, "b c h w"], pixels: Pixels | None = None) -> Float[Tensor, "b classes"]:
        """What it says of the images, in fp32; arguments and errors as of `features`."""
        return self._outputs(images, pixels).logits.float()

    def activation(
        self,
        images: Float[Tensor, "b c h w"],
        labels: Shaped[Tensor, "b ..."] | None = None,
        pixels: Pixels | None = None,
    ) -> tuple[Float[Tensor, "b d y x"], Float[Tensor, "b y x"]]:
        """The last stage's map, and what each of its places adds to the logit of the row's class, both in fp32.

        Args:
            images, pixels: as of `features`, as are errors.
            labels: class ids, or rows that weight the classes' maps; None for the classes that it takes them for.

        Raises:
            ModelError: the classifier does not take the last stage's channels, or the labels speak of other classes.
        """
        want = Want("features", -1)
        outputs = self._outputs(images, pixels, want)
        classes = outputs.logits.shape[1]
        if labels is None:
            labels = outputs.logits.argmax(1)
        elif labels.is_floating_point() and labels.shape[1] != classes:
            raise ModelError(
                f"{self.owner} reads its teacher's maps of the images' classes, but the teacher tells {classes} apart, "
                f"and labels have {labels.shape[1]}. Give a teacher of these classes."
            )
        assert self._probe is not None, "it has just been asked"
        return outputs[want].float(), class_activation(self._probe.anatomy, outputs[want], labels, bias=False)

    def class_maps(
        self, images: Float[Tensor, "b c h w"], pixels: Pixels | None = None
    ) -> Float[Tensor, "b classes y x"]:
        """What it would say if its last stage saw nothing but one place, for each place; arguments as of `features`.

        All that comes after the last stage is applied to every place alone; in transformers a patch's token takes the
        place of the class token too. Where the places are averaged and classified by a linear layer, the mean over all
        places is `logits`.

        Raises:
            ModelError: what comes after the last stage needs more than one place.
        """
        grid = [0, 0]

        def alone(hidden: Tensor, prefix: Tensor | None) -> tuple[Tensor, Tensor | None]:
            grid[:] = hidden.shape[2:]
            each = hidden.permute(0, 2, 3, 1).reshape(-1, hidden.shape[1], 1, 1)
            return each, None if prefix is None else each.flatten(1)[:, None].expand(-1, prefix.shape[1], -1)

        try:
            logits = self._outputs(images, pixels, edit=alone).logits.float()
        except RuntimeError as error:
            raise ModelError(
                f"{self.owner}'s teacher cannot classify single places of its last stage: {error}. Take one that "
                "averages them, such as 'resnet50'."
            ) from error
        return logits.view(len(images), *grid, -1).permute(0, 3, 1, 2)

    @property
    def there(self) -> bool:
        """Whether there is a network yet."""
        return self._net is not None

    @property
    def fingerprint(self) -> str:
        """A digest of the network's weights and of what it takes images for."""
        assert self._net is not None, "only a network that is there has weights"
        digest = hashlib.blake2b(repr((self._pixels, self._size)).encode(), digest_size=10)
        for name, value in self._net[0].state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _outputs(self, images: Tensor, pixels: Pixels | None, *wants: Want, edit: Edit | None = None) -> Outputs:
        if self._net is None:
            raise MixwellError(
                f"{self.owner} looks at images through a teacher network, and there is none yet. Call "
                "recipe.prepare(batches, data) before training, which makes or loads it; `mixwell train` does so by "
                "itself."
            )
        with torch.autocast(images.device.type, enabled=False):
            shown = self._shown(images, pixels)
            if self._probe is None:
                self._probe = Probe(self._net[0], shown)
            edits = {} if edit is None else {self._probe.anatomy.site(-1).name: edit}
            return self._probe.run(shown, wants=wants, edits=edits)

    def _shown(self, images: Tensor, pixels: Pixels | None) -> Tensor:
        """The images as the network takes them."""
        assert self._net is not None, "it is checked before"
        like = next(self._net[0].parameters(), None)
        images = images.to(torch.float32 if like is None else like.dtype)
        if self._pixels is not None:
            if pixels is None:
                raise BatchError(
                    f"{self.owner}'s teacher normalises pixels in its own way, but the batch does not say how its "
                    "images were normalised. Expected `pixels=Pixels(mean=..., std=...)` in the Batch or in "
                    "mixwell.create(..., pixels=...)."
                )
            raw = pixels.raw(images)
            grey = raw.shape[1] == 1
            images = self._pixels.normalise(raw.expand(-1, len(self._pixels.mean), -1, -1) if grey else raw)
        if self._channels is not None and images.shape[1] != self._channels:
            raise BatchError(
                f"{self.owner}'s teacher takes images of {self._channels} channels, got {tuple(images.shape)}. Prepare "
                "the recipe with images like those."
            )
        return _resized(images, self._size).contiguous()

    def _take(self, net: nn.Module, channels: int | None, pixels: Pixels | None, size: int | None) -> None:
        self._net, self._probe = (net.requires_grad_(False).eval(),), None
        self._channels, self._pixels, self._size = channels, pixels, size

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Pretrained:
        """Move the network too."""
        if self._net is not None:
            self._net[0]._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _trained(self, workshop: Workshop) -> dict[str, Tensor]:
        def batches() -> Iterable[tuple[Tensor, Tensor]]:
            for batch in workshop.batches():
                images = batch.images.to(workshop.device, torch.float32)
                yield _resized(images, self._size), batch.labels.to(workshop.device)

        def report(done: int) -> None:
            workshop.progress("teacher", done, self.epochs)

        net = _small(_first(workshop, "A teacher").images.shape[1], _classes_of(workshop)).to(workshop.device)
        train_classifier(net, batches, self.epochs, progress=report)
        return {name: value.cpu() for name, value in net.state_dict().items()}


def train_classifier(
    net: nn.Module,
    batches: Callable[[], Iterable[tuple[Float[Tensor, "b c h w"], Shaped[Tensor, "b ..."]]]],
    epochs: int,
    lr: float = 1e-2,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Train in place by cross-entropy, with Adam and a rate that falls from epoch to epoch.

    Args:
        batches: called for each epoch's images and labels (class ids, or rows of class shares), on the network's
            device.
        epochs: passes.
        lr: rate of the first epoch.
        progress: called with the number of epochs that are done.

    Raises:
        MixwellError: the loss is not finite.
    """
    optimiser = torch.optim.Adam(net.parameters(), lr=lr)
    net.train()
    progress(0)
    for epoch in range(epochs):
        optimiser.param_groups[0]["lr"] = lr * (1 - epoch / epochs)
        for images, labels in batches():
            twice = 2 if len(images) == 1 else 1  # BatchNorm has no statistics of a single place
            images, labels = (torch.cat([x] * twice) for x in (images, labels))
            optimiser.zero_grad()
            loss = F.cross_entropy(net(images), labels if labels.is_floating_point() else labels.long())
            torch.autograd.backward(loss)
            optimiser.step()
        if not torch.isfinite(loss):
            raise MixwellError(
                f"The teacher's loss is not finite after {epoch + 1} epochs. Check that images are finite and "
                "normalised."
            )
        progress(epoch + 1)


def plain_weights(weights: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The state dict of a plain network in that of a predictor, which may hold it as `net` beside a head of its own
    (token_labeling).

    Args:
        weights: the predictor's.
        net: a network of that kind; of any number of classes.
    """
    own = net.state_dict()
    inside = {name: f"net.{name}" for name in own}
    if own.keys() == weights.keys() or not weights.keys() >= set(inside.values()):
        return dict(weights)
    return {name: weights[stored] for name, stored in inside.items()}


def _small(channels: int, classes: int) -> CNNS:
    with seeded(key_of("teacher"), nn.Identity()):
        return CNNS(classes, channels)


def _resized(images: Float[Tensor, "b c h w"], size: int | None) -> Float[Tensor, "b c y x"]:
    if size is None or images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _first(workshop: Workshop, what: str) -> Batch:
    batch = next(iter(workshop.batches()), None)
    if batch is None:
        raise MixwellError(f"{what} is fitted to training batches, but there are none. Give at least one.")
    return batch


def _classes_of(workshop: Workshop) -> int:
    """How many classes the recipe has, or the labels speak of."""
    if workshop.num_classes is not None:
        return workshop.num_classes
    labels = [batch.labels for batch in workshop.batches()]
    return labels[0].shape[1] if labels[0].is_floating_point() else 1 + max(int(ids.max()) for ids in labels)


def _of_run(folder: Path, example: Batch, classes: int | None) -> nn.Module:
    """The trained network of a finished run, of so many classes or, for None, of its own."""
    run: dict[str, Any] = json.loads((folder / "run.json").read_text())
    file = folder / "weights.safetensors"
    if run.get("status") != "finished" or not file.is_file():
        raise ModelError(
            f"teacher: the run in {folder} is not finished, or its weights were dropped. Finish it with the "
            "command that began it, or give another."
        )
    stored, config = file.read_bytes(), run["config"]
    if hashlib.blake2b(stored, digest_size=16).hexdigest() != run["files"][file.name]:
        raise ModelError(f"teacher: {file} is damaged: its checksum is not that of run.json. Restore it from a copy.")
    weights = library("safetensors.torch").load(stored)
    _, channels, height, width = example.images.shape

    def net_of(classes: int) -> nn.Module:
        size = max(height, width)
        return create_net(config["model"], classes, channels=channels, size=size, **config.get("model_options", {}))

    any_net = net_of(2)
    weights = plain_weights(weights, any_net)
    if classes is None:
        classes = len(weights[f"{Anatomy(any_net).classifier}.weight"])
    net = net_of(classes)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(
            f"teacher: the {config['model']} of {folder} does not fit images ({channels}, {height}, {width}) of "
            f"{classes} classes: {error} Give a run on data like these."
        ) from error
    return net


def _of_timm(name: str, size: int | None) -> tuple[nn.Module, int, Pixels, int]:
    """A pretrained network of timm, its channels, its normalisation and the size of its images."""
    if Path(name).expanduser().is_dir():
        raise ModelError(f"teacher: {name} holds no run.json. Give the folder of a finished run, or a name of timm.")
    name = name.removeprefix("timm/")
    known = library("timm").models.get_pretrained_cfg(name)
    classes, size = (1000, size or 224) if known is None else (known.num_classes, size or known.input_size[-1])
    net = create_net(f"timm/{name}", classes, size=size, pretrained=True)
    config: dict[str, Any] = net.pretrained_cfg  # type: ignore[assignment]
    return net, config["input_size"][0], Pixels(tuple(config["mean"]), tuple(config["std"])), size
