"""The console command `mixwell`.

Exit codes: 0 done, 1 a mistake that mixwell explains (MIXWELL_DEBUG=1 shows where it came from), 2 wrong usage,
130 Ctrl-C, 141 the reader of a pipe went away.
"""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import get_terminal_size

from mixwell import __version__
from mixwell.core.errors import MixwellError, closest

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "demo": "compare recipes on the data that comes with mixwell, in a few minutes, and make a page of it",
    "list": "all methods, and which questions they answer",
    "show": "a method's page, or what a recipe does; with --model, whether a network suits it",
    "prepare": "make what a recipe needs before training; train does it by itself",
    "train": "train a network with a recipe; the same command again resumes the run",
    "evaluate": "how good, calibrated and robust trained networks are, and what their recipes cost",
    "bench": "train recipes × data × models × seeds, from a file; on several processes, or on Ray",
    "search": "which recipes suit your data and network: the best of many, within a budget",
    "report": "one page about all finished runs below a folder: leaderboards, intervals, comparisons, curves",
    "gallery": "what every method makes of images, as pictures on a page",
    "export": "the network of a run as a plain state dict",
    "predict": "what the network of a run takes images for",
    "conformance": "compare every method with the outputs of its authors' code",
}
"""Each is a module of `mixwell.cli.commands` with a `main(argv)`, imported when it is called."""

_EXTRAS = {
    "train": ("accelerate", "rich", "safetensors", "sklearn", "timm", "torchmetrics", "torchvision", "tyro"),
    "report": ("jinja2", "PIL"),
    "ray": ("ray",),
    "search": ("optuna",),
    "vision": ("skimage",),
    "hf": ("datasets",),
}
"""The modules that each extra installs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mixwell argv...` and return the exit code.

    Args:
        argv: the words after `mixwell`; those of the process if not given.
    """
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks λ shows "?" in its place.
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="replace")
    try:
        with _warnings_in_words():
            code = _dispatch(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer has no reader either; without this, Python complains while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (MixwellError, ModuleNotFoundError) as error:
        message = str(error) if isinstance(error, MixwellError) else _missing(error)
        if message is None or os.environ.get("MIXWELL_DEBUG") == "1":
            raise
        print(_block(f"Error: {message}"), file=sys.stderr)
        return 1
    return code


@contextmanager
def _warnings_in_words() -> Iterator[None]:
    """Warnings that mixwell itself gives are shown without the line of code that they come from."""
    usual, own = warnings.formatwarning, str(Path(__file__).parent.parent)

    def shown(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if filename.startswith(own) and category is UserWarning:
            return f"{_block(f'Warning: {message}')}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = shown
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    name, *rest = argv
    if name == "--version":
        print(f"mixwell {__version__}")
        return 0
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        print(f"mixwell has no {what} {name!r}; {closest(name, [*COMMANDS, '--help', '--version'])}", file=sys.stderr)
        return 2
    code: int = importlib.import_module(f"mixwell.cli.commands.{name}").main(rest)
    return code


def _usage() -> str:
    width = min(get_terminal_size().columns, 100)
    lines = [
        textwrap.fill(text, width, initial_indent=f"  {name:<13}", subsequent_indent=" " * 15)
        for name, text in COMMANDS.items()
    ]
    return "\n".join(
        [
            "usage: mixwell COMMAND [OPTIONS]",
            "",
            *textwrap.wrap("Every mixup method of the survey, on any PyTorch model.", width),
            "",
            "commands:",
            *lines,
            "",
            "mixwell COMMAND --help shows the options of one, mixwell --version the version.",
            "",
            "  mixwell show cutmix",
            "  mixwell train --recipe cutmix",
        ]
    )


def _missing(error: ModuleNotFoundError) -> str | None:
    """What to install, if the module belongs to an extra."""
    package = (error.name or "").partition(".")[0]
    extra = next((name for name, modules in _EXTRAS.items() if package in modules), None)
    if extra is None:
        return None
    return f'this command needs {package}, which is not installed. Run: pip install "mixwell[{extra}]"'


def _block(message: str) -> str:
    """The message wrapped to the terminal; lines that are set in (a recipe, a caret) stay as they are."""
    width = min(get_terminal_size().columns, 100)
    lines = message.splitlines()
    return "\n".join(line if line.startswith(" ") else textwrap.fill(line, width) for line in lines)
