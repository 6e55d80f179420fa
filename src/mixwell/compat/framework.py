"""Packages that an adapter is for."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["framework"]


def framework(module: str, extra: str) -> Any:
    """Import `module`.

    Raises:
        ImportError: it is not there; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"This adapter is for {package}, which could not be imported ({error}). "
            f'Install it with: pip install "mixwell[{extra}]"',
            name=module,
        ) from error
