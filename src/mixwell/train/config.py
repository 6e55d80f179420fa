"""What a training run is: one frozen dataclass, which the command line and Python both take."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from mixwell.core.errors import ParameterError, closest, number_in

__all__ = ["TrainConfig", "differing"]

_WITHOUT_EFFECT = frozenset({"out", "tracker", "workers", "checkpoint_seconds", "checkpoint_steps", "threads"})
"""Fields that may change between a run and its resumption, because they do not say what is trained."""

_WHERE_SET: dict[str, Any] = {"label_noise": 0.0, "augment_options": {}, "decay_norms": False}
"""Fields that are younger than others' run folders, and belong to the identity where they differ from this value."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Raises:
        ParameterError: a value is out of range, or of the wrong type.
    """

    recipe: str = "cutmix"
    """What is mixed and how, e.g. "cutmix(alpha=0.5) + transmix"; "none" for plain training."""
    data: str = "fashion-mini"
    """Data set: fashion-mini, fashion-mnist, digits, cifar10, cifar100, svhn, stl10, tiny-imagenet, cub200, aircraft,
    imagefolder:PATH, or hf:NAME for a set of the Hugging Face Hub."""
    data_options: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Options of the data set, such as size=28 channels=1."""
    root: Path | None = None
    """Folder of the data; $MIXWELL_DATA or ~/.cache/mixwell if not given."""
    held_out: float | None = None
    """Share of the training images that are kept from training, for recipes that look at such images; 0.1 for those if
    not given, else 0."""
    label_noise: float = 0.0
    """Share of the training labels that are replaced by another class, drawn uniformly; held-out images are training
    images too, and test labels stay true."""
    augment: Literal["crop-flip", "rrc-flip"] | None = None
    """Augmentation of the training images before they are mixed: shifted crops, or resized ones, and mirror images."""
    augment_options: dict[str, int | float | bool | str] = field(default_factory=dict)
    """More of it: least_area=0.08 of the resized crops, randaugment=POLICY in timm's words, erase=PROBABILITY of random
    erasing."""
    model: str = "cnn-s"
    """Network: cnn-s, vit-s, resnet18-cifar, preact-resnet18, wrn-28-10, or any name of timm or torchvision."""
    model_options: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Keyword arguments of the network, such as drop_rate=0.1."""
    init: str | None = None
    """Start from "pretrained" weights of the library, or from a safetensors FILE of a state dict."""
    epochs: int = 15
    """Passes over the training set."""
    batch_size: int = 100
    """Images per batch and process."""
    accumulate: int = 1
    """Batches whose gradients make one step of the optimiser."""
    seed: int = 0
    """Of everything random: initial weights, order, augmentation, mixing, dropout."""
    out: Path | None = None
    """Folder of the run; runs/RECIPE-DATA-MODEL-sSEED-HASH if not given. The same command again resumes there."""
    optimizer: str = "sgd"
    """Any optimiser of timm, by its name there; "sgd" is with Nesterov momentum."""
    optimizer_options: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Keyword arguments of the optimiser, such as eps=1e-6."""
    lr: float = 0.1
    """Learning rate after warm-up."""
    weight_decay: float = 5e-4
    """Weight decay; as in timm, none on biases, norms and what the network exempts."""
    decay_norms: bool = False
    """Weight decay on those, too."""
    momentum: float = 0.9
    """Momentum, for optimisers that have it."""
    schedule: str = "cosine"
    """Learning rate over time: cosine, tanh, poly, step, multistep or constant (those of timm, stepped per update)."""
    warmup_epochs: float = 1.0
    """Epochs in which the learning rate rises linearly."""
    min_lr: float = 0.0
    """Where cosine, tanh and poly schedules end."""
    decay_rate: float = 0.1
    """Factor of each decay of the step and multistep schedules; exponent of poly."""
    decay_epochs: float = 30.0
    """Epochs between the decays of the step schedule."""
    decay_milestones: tuple[int, ...] = ()
    """Epochs of the decays of the multistep schedule."""
    criterion: str | None = None
    """cross_entropy, bce or softmax_bce; the recipe's own if not given."""
    label_smoothing: float = 0.0
    """ε of label smoothing, applied to every source's label."""
    class_weights: tuple[float, ...] | None = None
    """Weight of each class in the loss."""
    mix_until: float | None = None
    """Epoch from which on nothing is mixed any more; fractions are rounded to whole batches."""
    clip: float | None = None
    """Largest norm of the gradient."""
    ema: float | None = None
    """Decay per step of an exponential moving average of the weights, evaluated and saved beside them; it starts lower,
    at 1 - (1 + step)^(-2/3)."""
    precision: Literal["no", "fp16", "bf16"] = "no"
    """Mixed precision; fp16 needs a GPU."""
    channels_last: bool = True
    """Keep images and weights in channels-last memory, which is faster for most convolutional networks."""
    compile: bool = False
    """Compile the network with torch.compile."""
    compile_backend: str = "inductor"
    """Backend of torch.compile."""
    tracker: Literal["tensorboard", "wandb"] | None = None
    """Also send the history to a tracker."""
    workers: int = 0
    """Processes that read images; sets that lie in memory need none."""
    checkpoint_seconds: float = 30.0
    """Seconds between resumable states; one is also written at the end of every epoch."""
    checkpoint_steps: int | None = None
    """Batches between resumable states, besides the ones by time."""
    threads: int | None = None
    """CPU threads of the computation; torch's own choice if not given."""

    def __post_init__(self) -> None:
        _whole("epochs", self.epochs, 1)
        _whole("batch_size", self.batch_size, 1)
        _whole("accumulate", self.accumulate, 1)
        _whole("seed", self.seed, 0, 2**63 - 1)
        _whole("workers", self.workers, 0)
        for name in ("checkpoint_steps", "threads"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        number_in("lr", self.lr, 0, open_low=True)
        for name in ("weight_decay", "min_lr", "checkpoint_seconds", "warmup_epochs"):
            number_in(name, getattr(self, name), 0)
        for name in ("decay_rate", "decay_epochs"):
            number_in(name, getattr(self, name), 0, open_low=True)
        number_in("momentum", self.momentum, 0, 1)
        number_in("label_smoothing", self.label_smoothing, 0, 1)
        number_in("label_noise", self.label_noise, 0, 1)
        if self.warmup_epochs > self.epochs:
            raise ParameterError(
                f"warmup_epochs must be at most epochs={self.epochs}, got {self.warmup_epochs:g}. Lower it, e.g. to 0."
            )
        if self.held_out is not None and not 0 <= number_in("held_out", self.held_out, 0, 1) < 1:
            raise ParameterError(f"held_out must be a share in [0, 1), such as 0.1, got {self.held_out!r}.")
        if self.clip is not None:
            number_in("clip", self.clip, 0, open_low=True)
        if self.mix_until is not None:
            number_in("mix_until", self.mix_until, 0)
        if self.ema is not None and not 0 < number_in("ema", self.ema, 0, 1) < 1:
            raise ParameterError(f"ema must be a decay in (0, 1), such as 0.999, got {self.ema!r}.")
        _one_of("augment", self.augment, (None, "crop-flip", "rrc-flip"))
        _one_of("precision", self.precision, ("no", "fp16", "bf16"))
        _one_of("tracker", self.tracker, (None, "tensorboard", "wandb"))
        for epoch in self.decay_milestones:
            _whole("decay_milestones", epoch, 1)

    def to_json(self) -> dict[str, Any]:
        """Every field, as JSON writes and reads it."""
        plain: dict[str, Any] = json.loads(
            json.dumps({each.name: getattr(self, each.name) for each in fields(self)}, default=str)
        )
        return plain

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that say what is trained; a run is resumed only with the same ones."""
        said = {name: value for name, value in self.to_json().items() if name not in _WITHOUT_EFFECT}
        return {name: value for name, value in said.items() if name not in _WHERE_SET or value != _WHERE_SET[name]}

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits of `identity`."""
        text = json.dumps(self.identity, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        if self.out is not None:
            return Path(self.out).expanduser()
        words = (self.recipe, self.data, self.model, f"s{self.seed}", self.hash)
        return Path("runs") / "-".join(re.sub(r"[^\w.]+", "_", word).strip("_")[:40] for word in words)


def differing(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """Each field in which two identities differ, with both values."""
    return [
        f"{name} is {new.get(name)!r}, was {old.get(name)!r}"
        for name in sorted({*new, *old})
        if new.get(name) != old.get(name)
    ]


def _whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        top = "" if high is None else f" and <= {high}"
        raise ParameterError(f"{name} must be a whole number >= {low}{top}, got {value!r}.")


def _one_of(name: str, value: Any, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        words = [word for word in allowed if word is not None]
        also = " or None" if None in allowed else ""
        raise ParameterError(
            f"{name} must be one of {', '.join(words)}{also}, got {value!r}; {closest(str(value), words)}"
        )
