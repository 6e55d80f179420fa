"""`mixwell export`: the network of a run as a plain state dict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from mixwell.cli.options import read_options
from mixwell.cli.screen import Screen
from mixwell.export import export
from mixwell.train import Run

__all__ = ["Export", "main"]


@dataclass(frozen=True)
class Export:
    """Which run, and where to."""

    run: Path
    """Folder of a finished run."""
    out: Path
    """File to write: .safetensors, or .pt or .pth for torch.save with FILE.json beside it."""
    ema: bool = False
    """Export the averaged weights, of a run that keeps some."""
    overwrite: bool = False
    """Replace a file that is there."""


def main(argv: Sequence[str]) -> int:
    """Export, and say how to load it; returns the exit code."""
    config = read_options(
        Export,
        argv,
        prog="mixwell export",
        description="Write the network of a run as a plain state dict.",
        positional="run",
        short={"out": "-o"},
    )
    made = export(Run.read(config.run), config.out.expanduser(), ema=config.ema, overwrite=config.overwrite)
    facts, screen = made.facts, Screen()
    channels, height, width = facts["input_shape"]
    options = "".join(f", {name}={value!r}" for name, value in facts["model_options"].items())
    size = max(height, width)
    call = f"create_net({facts['model']!r}, {len(facts['classes'])}, channels={channels}, size={size}{options})"
    for line in (
        f"Exported {facts['model']} trained with {facts['recipe']}, accuracy {facts['accuracy']:.2%}, to {made.path}",
        *([f"What it has to be told is in {made.beside}"] if made.beside is not None else []),
        *(f"{name.capitalize()}: {facts[name]}" for name in ("images", "predictor") if name in facts),
        f"It fits mixwell.nets.{call}",
    ):
        screen.print(Text(line), soft_wrap=True)
    return 0
