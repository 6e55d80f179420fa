"""One process at a time: locks that the system frees when their holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mixwell.core.errors import MixwellError

__all__ = ["Busy", "holder", "locked"]


class Busy(Exception):
    """Another process holds the lock; the text says which."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made for it and removed afterwards.

    Raises:
        Busy: another process holds it.
        MixwellError: the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _taken(path)
    except OSError as error:
        raise MixwellError(f"{path} cannot be locked: {error.strerror or error}. Choose another folder.") from error
    try:
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"process": os.getpid(), "machine": socket.gethostname()}).encode())
        yield
    finally:
        with suppress(FileNotFoundError):
            path.unlink()
        os.close(handle)


def _taken(path: Path) -> int:
    """A handle of the locked file that has this name."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            told = os.read(handle, 1000).decode()
            os.close(handle)
            raise Busy(told) from error
        # Its last holder may have removed the file between the opening and the locking.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)


def holder(path: Path) -> str | None:
    """Who holds a lock, or None if nobody does."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(handle, 1000).decode()
    finally:
        os.close(handle)
    return None
