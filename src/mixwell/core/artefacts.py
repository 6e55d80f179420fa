"""Things that a recipe needs before training begins, made or loaded once: `Recipe.prepare`.

An artefact is a mapping of named tensors, cached in a folder under a hash of everything that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixwell.core.batch import Batch
from mixwell.core.errors import MixwellError

__all__ = ["Progress", "Workshop", "cache_folder", "cached"]

Progress = Callable[[str, int, int], None]
"""(what is made, steps done, steps in all), called while something is made."""


def _silent(what: str, done: int, total: int) -> None:
    """No progress is shown."""


def cache_folder() -> Path:
    """Where artefacts are kept: `$MIXWELL_CACHE`, else `mixwell` in the user's cache folder."""
    if own := os.environ.get("MIXWELL_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixwell"


def cached(
    kind: str,
    settings: Mapping[str, Any],
    make: Callable[[], dict[str, Tensor]],
    folder: Path | None = None,
    *,
    sound: Callable[[dict[str, Tensor]], bool] = bool,
) -> dict[str, Tensor]:
    """The artefact of these settings: read from the cache, or made and written there atomically.

    A file that cannot be read, or holds what is not `sound`, is made anew. Where the cache cannot be written, what was
    made is returned all the same.

    Args:
        kind: what it is; the first part of the file's name.
        settings: everything that it depends on, as JSON values.
        make: makes it, on the CPU.
        folder: the cache; `cache_folder()` if not given.
        sound: whether what was read can be relied on.
    """
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=10).hexdigest()
    path = (folder or cache_folder()) / f"{kind}-{digest}.pt"
    if path.is_file() and (found := _read(path)) is not None and sound(found):
        return found
    made = make()
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(made, part)
        part.replace(path)
    except (OSError, RuntimeError):  # torch raises the latter where it cannot open a file
        with suppress(OSError):
            part.unlink()
    return made


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        found: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever a damaged file may cause: it is made anew
        return None
    return found


@dataclass(eq=False)
class Workshop:
    """From what and where a recipe's pieces make what they need.

    Attributes:
        batches: a new pass over the clean training batches, in the same order every time.
        data: a text that names the data; another text makes the artefacts anew.
        device: where to compute.
        num_classes: of the recipe, or None.
        folder: the cache.
        progress: told how far the making has come.
        unaugmented: like `batches`, but of the images as they are stored; None where `batches` are.
        rows: how many images a pass has, if that is known.
    """

    batches: Callable[[], Iterable[Batch]]
    data: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    num_classes: int | None = None
    folder: Path | None = None
    progress: Progress = _silent
    unaugmented: Callable[[], Iterable[Batch]] | None = None
    rows: int | None = None

    def originals(self) -> Iterable[Batch]:
        """A new pass over the training images as they are stored, for what is kept of every single image."""
        return (self.unaugmented or self.batches)()

    def made(self, kind: str, settings: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The artefact of these settings and this data.

        Raises:
            MixwellError: there is no batch to make it of.
        """

        def checked() -> dict[str, Tensor]:
            if next(iter(self.batches()), None) is None:
                raise MixwellError(f"{kind} is made of training batches, but there are none. Give at least one.")
            return make()

        return cached(kind, {**settings, "data": self.data}, checked, self.folder)
