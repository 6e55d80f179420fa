"""Run folders: what a training leaves on disk, and how it survives a kill, a full disk and bit rot.

    run.json              config, versions, result; with a checksum of itself
    history.jsonl         one line per epoch
    weights.safetensors   the trained network (and ema.safetensors), unless they were dropped
    recipe.safetensors    what the recipe itself has trained, if it owns networks
    evaluation.json       what `mixwell evaluate` found; with a checksum of itself
    state/                while training: latest.json, and the state that it points to

Every file is written beside its place, flushed to the disk and moved there, so that each name holds either what it held
before or all of what it shall hold.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mixwell.core.errors import RunError
from mixwell.files import write_whole

__all__ = ["RunFolder"]

_ANEW = "Restore it from a copy, or delete the folder to train anew."


class RunFolder:
    """One run on disk. Nothing is made before `begin`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fresh = self._made = False

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / "run.json").exists()

    @property
    def has_state(self) -> bool:
        """Whether there is something to resume from."""
        return (self.path / "state" / "latest.json").exists()

    # run.json

    def run(self) -> dict[str, Any]:
        """What run.json says.

        Raises:
            RunError: it is damaged.
        """
        return self._described(self.path / "run.json")

    def begin(self, run: Mapping[str, Any]) -> None:
        """Make the folder and its run.json.

        Raises:
            RunError: the folder holds something else, or cannot be made.
        """
        if self.path.exists() and not self.exists:
            if not self.path.is_dir():
                raise RunError(f"{self.path} is a file; a run needs a folder. Choose another --out.")
            if strangers := [each.name for each in self.path.iterdir() if each.suffix != ".tmp"]:
                raise RunError(
                    f"{self.path} holds {strangers[0]!r} but no run.json, so it is no run of mixwell. Choose another "
                    "--out."
                )
        try:
            self._fresh, self._made = not self.exists, not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            for left in (*self.path.glob("*.tmp"), *self.path.glob("state/*.tmp"), *self.path.glob("samples/*.tmp")):
                left.unlink()
        except OSError as error:
            raise RunError(f"The run folder {self.path} cannot be made: {error}. Choose another --out.") from error
        self.describe(run)

    def describe(self, run: Mapping[str, Any]) -> None:
        """Write run.json."""
        self._describe(self.path / "run.json", run)

    def discard(self) -> None:
        """Undo `begin`, if this run was begun by it and nothing was saved since."""
        if self._fresh and not self.has_state:
            for name in ("run.json", "history.jsonl"):
                (self.path / name).unlink(missing_ok=True)
            if self._made:
                shutil.rmtree(self.path, ignore_errors=True)

    # history.jsonl

    def write_history(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write all lines; they are few."""
        self._write(self.path / "history.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())

    def history(self) -> list[dict[str, Any]]:
        """All records.

        Raises:
            RunError: the file is missing or damaged.
        """
        path = self.path / "history.jsonl"
        try:
            return [json.loads(line) for line in self._read(path).decode().splitlines()]
        except ValueError as error:
            raise RunError(f"{path} is damaged ({error}). {_ANEW}") from error

    # evaluation.json

    def evaluation(self) -> dict[str, Any] | None:
        """What evaluation.json says, or None if there is none.

        Raises:
            RunError: it is damaged.
        """
        path = self.path / "evaluation.json"
        return self._described(path, "Delete it, and evaluate the run again.") if path.exists() else None

    def write_evaluation(self, found: Mapping[str, Any]) -> None:
        """Write evaluation.json."""
        self._describe(self.path / "evaluation.json", found)

    # Tensors

    def write_weights(self, name: str, tensors: Mapping[str, Tensor]) -> str:
        """Write a state dict as safetensors; returns its checksum for run.json."""
        # Copies, because safetensors refuses tensors that share memory, as tied weights do.
        data = safetensors.torch.save(
            {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
        )
        self._write(self.path / name, data)
        return _checksum(data)

    def weights(self, name: str) -> dict[str, Tensor]:
        """Read what `write_weights` wrote.

        Raises:
            RunError: the file was dropped, is missing, or not what was written.
        """
        run = self.run()
        if name in run.get("dropped", ()):
            raise RunError(
                f"The weights of {self.path} were dropped after its evaluation. Train the config of its run.json anew, "
                "in another folder."
            )
        data = self._read(self.path / name)
        if _checksum(data) != run["files"].get(name):
            raise RunError(f"{self.path / name} is damaged: its checksum is not that of run.json. {_ANEW}")
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
        return tensors

    def write_sample(self, epoch: int, picture: bytes) -> None:
        """Keep a picture of what the recipe's networks make after an epoch, numbered from 1."""
        path = self.path / "samples" / f"epoch-{epoch:03}.png"
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from error
        self._write(path, picture)

    def write_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Write a resumable state, then make it the latest, then drop those before it."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        data = buffer.getvalue()
        folder = self.path / "state"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from error
        target = folder / f"{name}.pt"
        self._write(target, data)
        self._describe(folder / "latest.json", {"file": target.name, "checksum": _checksum(data)})
        for old in folder.glob("*.pt"):
            if old != target:
                old.unlink()

    def state(self) -> bytes:
        """The latest state, for `torch.load(..., weights_only=True)`.

        Raises:
            RunError: it is missing or damaged.
        """
        pointer = self._described(self.path / "state" / "latest.json")
        path = self.path / "state" / str(pointer["file"])
        data = self._read(path)
        if _checksum(data) != pointer["checksum"]:
            raise RunError(f"{path} is damaged: its checksum is not that of latest.json. {_ANEW}")
        return data

    def drop_state(self) -> None:
        """Remove what only an unfinished run needs."""
        shutil.rmtree(self.path / "state", ignore_errors=True)

    def drop_weights(self) -> None:
        """Keep only what a finished run came to: no weights, state or pictures. `run.json` says which weights."""
        run = self.run()
        self.describe({**run, "dropped": sorted(run["files"])})
        for name in run["files"]:
            (self.path / name).unlink(missing_ok=True)
        for name in ("state", "samples"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    # Inside

    def _described(self, path: Path, advice: str = _ANEW) -> dict[str, Any]:
        data = self._read(path)
        try:
            content = json.loads(data)
        except ValueError as error:
            raise RunError(f"{path} is damaged ({error}). {advice}") from error
        if not isinstance(content, dict) or content.pop("checksum_of_this", None) != _checksum(_text(content)):
            raise RunError(f"{path} is damaged or was edited: it does not match its own checksum. {advice}")
        return content

    def _describe(self, path: Path, content: Mapping[str, Any]) -> None:
        self._write(path, _text({**content, "checksum_of_this": _checksum(_text(content))}))

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error}. {_ANEW}") from error

    def _write(self, path: Path, data: bytes) -> None:
        try:
            write_whole(path, data, parents=False)
        except OSError as error:
            raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path} cannot be written: {error.strerror or error}. What was saved before is whole: free space or fix the "
        "permissions, and the same command resumes from there."
    )


def _text(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _checksum(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
