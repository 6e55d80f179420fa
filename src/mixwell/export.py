"""The network of a run as a plain state dict, which loads without mixwell's training code."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from mixwell.core.axes import Piece
from mixwell.core.errors import ParameterError, RunError
from mixwell.data import Loader
from mixwell.files import write_whole
from mixwell.nets.pretrained import plain_weights
from mixwell.probe.capture import logits_of
from mixwell.train import Run, TrainConfig, Trained, evaluate, trained
from mixwell.train.named import net_of

__all__ = ["SUFFIXES", "Exported", "export"]

SUFFIXES = (".safetensors", ".pt", ".pth")
"""Endings of a file's name, which say its format: safetensors, or what `torch.save` writes."""
_CHECKED = 64
"""Test images on which the file must predict as the run does."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the state dict.
        beside: the file of the facts, FILE.json; None where they are in the state dict's file.
        facts: what a user of the network has to know: "model" and "model_options", which make it by `create_net`;
            "classes"; "input_shape" (channels, height, width); "mean" and "std" of the normalisation, of pixels in
            [0, 1]; "accuracy" on the test set; "recipe"; "weights", last or averaged; "images", what else is done to
            images before the network sees them.
    """

    path: Path
    beside: Path | None
    facts: Mapping[str, Any]


def export(run: Run, path: str | Path, *, ema: bool = False, overwrite: bool = False) -> Exported:
    """Write the network that a run's evaluation uses, for `create_net(...).load_state_dict` or timm's own loading.

    What is written was loaded into a new network before, which predicts exactly as the run's does. Of a predictor that
    also asks a head of its own (token_labeling) the plain network is kept, and its own accuracy measured.

    Args:
        run: a finished run.
        path: of the file; its ending is one of `SUFFIXES`.
        ema: the averaged weights in place of the last ones.
        overwrite: whether other files may be replaced.

    Raises:
        ParameterError: the ending is another.
        RunError: a file with other content is there, or nothing can be written; the run is damaged, cannot be made
            again, or holds no averaged weights; the exported network predicts other things than the run.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ParameterError(f"The file must end in {', '.join(SUFFIXES)}, got {path.name!r}. Rename it.")
    net = trained(run, ema=ema)
    fresh = net_of(TrainConfig(**run.facts["config"]), net.data)
    weights = plain_weights(net.predictor.state_dict(), fresh)
    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    weights = {name: value.detach().clone().contiguous() for name, value in weights.items()}
    plain = net.predictor if weights.keys() == net.predictor.state_dict().keys() else net.predictor.get_submodule("net")
    facts = _facts(run, net, plain, ema=ema)
    if path.suffix == ".safetensors":
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
        files = {path: safetensors.torch.save(weights, {"format": "pt", **texts})}
    else:
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        files = {
            path: buffer.getvalue(),
            path.with_name(f"{path.name}.json"): (json.dumps(facts, indent=2) + "\n").encode(),
        }
    _check(fresh, _read(path.suffix, files[path]), plain, net)
    for file, data in files.items():
        if file.exists() and not overwrite and (not file.is_file() or file.read_bytes() != data):
            raise RunError(f"{file} is there already. Choose another name, or say --overwrite (overwrite=True).")
    for file, data in files.items():
        try:
            write_whole(file, data)
        except OSError as error:
            raise RunError(f"{file} cannot be written: {error.strerror or error}. Choose another place.") from error
    return Exported(path, None if len(files) == 1 else [*files][1], facts)


def _facts(run: Run, net: Trained, plain: nn.Module, *, ema: bool) -> dict[str, Any]:
    config, result = run.facts["config"], run.facts["result"]
    whole, accuracy = plain is net.predictor, (result["ema"] if ema else result)["accuracy"]
    further = f"the plain network; the run's own predictor, with a head of its own, has an accuracy of {accuracy:.4f}"
    if not whole:
        loader = Loader(net.data.test, config["batch_size"], pixels=net.data.pixels, shuffle=False)
        accuracy = evaluate(plain, loader, images=net.recipe.eval_images).accuracy
    pieces = [piece for option in net.recipe.options for piece in cast(Any, option).pieces]
    changed = {type(piece).__name__ for piece in pieces if type(piece).eval_images is not Piece.eval_images}
    facts = {
        "recipe": run.recipe,
        "model": config["model"],
        "model_options": config["model_options"],
        "data": config["data"],
        "classes": list(net.data.classes),
        "input_shape": list(net.data.shape),
        "mean": list(net.data.pixels.mean),
        "std": list(net.data.pixels.std),
        "accuracy": accuracy,
        "weights": "averaged" if ema else "last",
        "mixwell": run.facts["versions"]["mixwell"],
    }
    if changed:
        facts["images"] = f"pass them through create(recipe).eval_images first ({', '.join(sorted(changed))})"
    if not whole:
        facts["predictor"] = further
    return facts


def _read(suffix: str, data: bytes) -> dict[str, Tensor]:
    found: dict[str, Tensor]
    if suffix == ".safetensors":
        found = safetensors.torch.load(data)
    else:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return found


@torch.no_grad()
def _check(fresh: nn.Module, weights: Mapping[str, Tensor], plain: nn.Module, net: Trained) -> None:
    """See that a new network with these weights predicts as the run's does.

    Raises:
        RunError: it does not.
    """
    images = next(Loader(net.data.test, _CHECKED, pixels=net.data.pixels, shuffle=False).epoch(0)).images
    images = net.recipe.eval_images(images)
    fresh.load_state_dict(weights)
    ours, theirs = (logits_of(each(images)) for each in (plain.eval(), fresh.eval()))
    if not torch.equal(ours, theirs):
        raise RunError(
            f"A new {type(fresh).__name__} with the exported weights predicts other things than the run (logits differ "
            f"by up to {float((ours - theirs).abs().max()):g}), so nothing was written."
        )
