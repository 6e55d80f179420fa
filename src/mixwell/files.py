"""Files that are whole: their name holds what it held before, or all of what it shall hold."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, data: bytes, *, parents: bool = True) -> None:
    """Write a file beside its place, flush it and move it there.

    Args:
        path: of the file.
        data: all that it shall hold.
        parents: whether folders above it that are missing are made.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    beside = path.with_name(f"{path.name}.tmp")
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _flush_folder(path.parent)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """See that a renamed file's new name is on the disk, where folders can be flushed."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
