"""`mixwell train`: train a network with a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import PartialState
from rich.text import Text

from mixwell.cli.options import read_options
from mixwell.cli.screen import Screen, table
from mixwell.presets import preset
from mixwell.train import Evaluation, Result, TrainConfig, train

__all__ = ["GROUPS", "main"]

GROUPS = {
    "data": ("data_options", "root", "label_noise", "augment", "augment_options", "workers"),
    "network": ("model_options", "init"),
    "mixing and loss": ("mix_until", "criterion", "label_smoothing", "class_weights"),
    "optimiser": (
        "optimizer",
        "lr",
        "weight_decay",
        "decay_norms",
        "momentum",
        "optimizer_options",
        "accumulate",
        "clip",
        "ema",
    ),
    "schedule": (
        "schedule",
        "warmup_epochs",
        "min_lr",
        "decay_rate",
        "decay_epochs",
        "decay_milestones",
    ),
    "speed": ("precision", "channels_last", "compile", "compile_backend", "threads"),
    "run folder": ("checkpoint_seconds", "checkpoint_steps", "tracker"),
}
"""How the help sorts the fields of `TrainConfig`; the others come first."""


def main(argv: Sequence[str]) -> int:
    """Train, and print what came of it; returns the exit code."""
    config = read_options(
        TrainConfig,
        argv,
        prog="mixwell train",
        description="Train a network with a recipe. The same command again resumes the run.",
        groups=GROUPS,
        presets=lambda name: preset(name).fields,
    )
    result = train(config, progress=True)
    if PartialState().is_main_process:
        _print(Screen(), config, result)
    return 0


def _print(screen: Screen, config: TrainConfig, result: Result) -> None:
    rows = table("recipe", "accuracy", "ECE", "NLL", "s/epoch")
    rows.add_row(config.recipe, *_figures(result), f"{result.seconds_per_epoch:.1f}")
    if result.ema is not None:
        rows.add_row("averaged weights", *_figures(result.ema), "")
    screen.print()
    screen.print(rows)
    screen.print(Text(f"\nThe run is in {result.folder}"), soft_wrap=True)


def _figures(of: Result | Evaluation) -> tuple[str, str, str]:
    return f"{of.accuracy:.2%}", f"{of.ece:.4f}", f"{of.nll:.4f}"
