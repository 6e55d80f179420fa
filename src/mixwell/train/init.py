"""Starting from weights in a file."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from mixwell.core.errors import ModelError

__all__ = ["load_init"]


def load_init(model: nn.Module, file: str, num_classes: int) -> str:
    """Load a state dict into `model`; a classifier of another size keeps its new weights.

    Returns:
        what was done, for the log.

    Raises:
        ModelError: the file is missing or damaged, or does not fit the network.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ModelError(f"init: expected 'pretrained' or a safetensors file, found no file {file!r}.")
    try:
        stored = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"init: {file} is no safetensors file that can be read: {error}. Save a state dict with "
            "safetensors.torch.save_file."
        ) from error
    own = model.state_dict()
    skipped = set()
    wrong = [f"{name}: not in the file" for name in sorted(own.keys() - stored.keys())]
    wrong += [f"{name}: not in the network" for name in sorted(stored.keys() - own.keys())]
    for name in sorted(own.keys() & stored.keys()):
        mine, theirs = own[name].shape, stored[name].shape
        if mine == theirs:
            continue
        if mine[1:] == theirs[1:] and _classifies(model, name, num_classes):
            skipped.add(name)
        else:
            wrong.append(f"{name}: {tuple(theirs)} in the file, {tuple(mine)} in the network")
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ModelError(
            f"init: {file} does not fit {type(model).__name__}: {'; '.join(wrong[:4])}{more}. Choose the network that "
            "the weights are of, with the same options."
        )
    with torch.no_grad():
        for name in own.keys() - skipped:
            own[name].copy_(stored[name])
    if not skipped:
        return f"Starts from {file}."
    return f"Starts from {file}, but for {', '.join(sorted(skipped))}: made anew, for {num_classes} classes."


def _classifies(model: nn.Module, name: str, num_classes: int) -> bool:
    owner = model.get_submodule(name.rpartition(".")[0])
    return num_classes in (getattr(owner, "out_features", None), getattr(owner, "out_channels", None))
