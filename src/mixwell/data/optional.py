"""Packages that only some data sets need."""

from __future__ import annotations

import importlib
from typing import Any

from mixwell.core.errors import DataError

__all__ = ["require"]


def require(module: str, purpose: str, extra: str = "train") -> Any:
    """Import `module`.

    Raises:
        DataError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{purpose} needs the package {module.partition('.')[0]}, which could not be imported ({error}). "
            f'Install it with: pip install "mixwell[{extra}]"'
        ) from error
