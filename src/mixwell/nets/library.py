"""Libraries of networks, imported when first asked for."""

from __future__ import annotations

import importlib
from typing import Any

from mixwell.core.errors import ModelError

__all__ = ["library"]


def library(module: str) -> Any:
    """Import `module` of timm or torchvision.

    Raises:
        ModelError: the library is not installed.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ModelError(
            f"this network needs {package}, which is not installed. Run: pip install 'mixwell[train]'"
        ) from error
