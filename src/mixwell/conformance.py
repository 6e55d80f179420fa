"""Conformance: mixwell's answers beside the outputs of the authors' own code, for the same inputs and draws.

`tests/golden/<slug>.npz` holds a method's inputs, draws and outputs; `tests/conformance/<slug>.py` replays them with
mixwell's public code. A replay file declares:

    SOURCE       "official code" or "independent reference", and what departs from it
    INPUTS       name patterns of the arrays that the replay is given; it never sees the others
    COMPARE      {name pattern: comparator}; the first pattern that matches counts, so "*" comes last
    SKIPPED      {name pattern: reason} of the arrays that are not answered, if any
    replay(case) gives {name: array} for every array that is neither given nor skipped
    METHOD       the method that a file named otherwise is a case of, if it is

A solver's answer may differ from the golden's and be as good. Its downstream arrays are then a second case: REINJECTED
names the solver's arrays, which `replay` still answers, and `downstream(case)`, which is given them besides the inputs,
answers what follows from them.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor, nn

from mixwell.core.axes import Draws
from mixwell.core.batch import Batch
from mixwell.core.errors import DataError
from mixwell.core.recipe import Recipe
from mixwell.core.registry import method_of
from mixwell.core.turns import Turn

__all__ = [
    "Case",
    "Comparator",
    "Compared",
    "GivenAttention",
    "GivenLogits",
    "Report",
    "check",
    "close",
    "conformance",
    "equal",
    "find_checkout",
    "no_worse",
    "one_turn",
    "render",
    "source_of",
]

Array = NDArray[Any]

_SOURCES = ("official code", "independent reference")
_KINDS = {"b": "boolean", "i": "integer", "u": "integer", "f": "floating", "c": "complex", "U": "text", "S": "text"}


# What replays are made of


class Case(dict[str, Array]):
    """The arrays that a replay is given, by name.

    Attributes:
        wanted: names and shapes of the arrays that it must answer (names may carry parameters, and a golden may keep
            the first rows only; the values stay hidden).
    """

    def __init__(self, arrays: Mapping[str, Array], wanted: Mapping[str, tuple[int, ...]] | None = None) -> None:
        super().__init__(arrays)
        self.wanted = dict(wanted or {})

    def tensor(self, name: str) -> Tensor:
        """The array as a tensor of its own shape and dtype."""
        return torch.from_numpy(self[name])


class GivenAttention(nn.Module):
    """Self-attention that multiplies out to a given one: per head, token i's query is log a[i], its key one-hot.

    Args:
        attention: (B, heads, N, N) softmaxed; zeros are as good as those of a softmax.
    """

    scale = 1.0

    def __init__(self, attention: Float[Tensor, "b heads n n"]) -> None:
        super().__init__()
        _, self.num_heads, n, _ = attention.shape
        attention = attention.float()
        query = attention.clamp_min(torch.finfo(torch.float32).tiny).log()
        key = torch.eye(n).expand_as(attention)
        self.tokens = torch.cat((query, key), -1).transpose(1, 2).flatten(2)
        # In each head q takes the first n channels, k the last n, and both leave n channels empty.
        take_first, take_last = torch.eye(2 * n), torch.eye(2 * n).roll(n, 1)
        take_first[n:] = take_last[n:] = 0
        heads, width = torch.eye(self.num_heads), self.tokens.shape[2]
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        parts = (torch.kron(heads, take_first), torch.kron(heads, take_last), torch.zeros(width, width))
        self.qkv.weight = nn.Parameter(torch.cat(parts))

    def forward(self) -> Tensor:
        found: Tensor = self.qkv(self.tokens)
        return found


class GivenLogits(nn.Module):
    """A network that returns given logits, so that a recipe's own label and criterion meet the golden's logits.

    Attributes:
        images: what it was last fed: the mixed images.
    """

    def __init__(self, logits: Float[Tensor, "b c"]) -> None:
        super().__init__()
        self.logits = logits
        self.images: Tensor | None = None

    def forward(self, images: Float[Tensor, "b ..."]) -> Float[Tensor, "b c"]:
        self.images = images
        return self.logits


def one_turn(
    recipe: Recipe,
    model: nn.Module,
    images: Float[Tensor, "b ..."] | Batch,
    labels: Shaped[Tensor, "b ..."] | None = None,
    **draws: Any,
) -> Turn:
    """The only turn of one step of a recipe without a switch, under given draws.

    Args:
        images, labels: of the step; or a batch, which has its labels.
        draws: by the slot's name (`pairing`, `ratio`, `blend`, `place`, ...) what its piece would have drawn.
    """
    (option,) = recipe.options
    given = Draws({getattr(option, slot): value for slot, value in draws.items()})
    (turn,) = recipe.turns(model, images, labels, draws=given)
    return turn


# How arrays are compared


@dataclass(frozen=True)
class Comparator:
    """How far an array may be from its golden: |got - golden| ≤ atol + rtol·|golden|; `one_sided`: only above it."""

    name: str
    atol: float = 0.0
    rtol: float = 0.0
    one_sided: bool = False

    def judge(self, got: Array, golden: Array) -> tuple[float, str]:
        """The worst error (∞ where values cannot be subtracted), and what is wrong, or ""."""
        if got.shape != golden.shape:
            return np.inf, f"expected shape {golden.shape}, got {got.shape}"
        kinds = [_KINDS.get(array.dtype.kind, array.dtype.kind) for array in (golden, got)]
        if kinds[0] != kinds[1]:
            return np.inf, f"expected {kinds[0]} values ({golden.dtype}), got {kinds[1]} ({got.dtype})"
        if kinds[0] == "text":
            differ = int((got != golden).sum())
            return (np.inf, f"{differ} of {golden.size} texts differ") if differ else (0.0, "")
        wrong_nan = int((np.isnan(got) != np.isnan(golden)).sum())
        if wrong_nan:
            return np.inf, f"{wrong_nan} of {golden.size} values are NaN on one side only"
        return self._distance(got, golden)

    def _distance(self, got: Array, golden: Array) -> tuple[float, str]:
        wide = np.complex128 if golden.dtype.kind == "c" else np.float64
        with np.errstate(invalid="ignore"):
            same = (got == golden) | np.isnan(golden)
            away = got.astype(wide) - golden.astype(wide)
            error = np.where(same, 0, np.maximum(away, 0) if self.one_sided else np.abs(away))
            allowed = self.atol + self.rtol * np.abs(golden.astype(wide))
            exact = self.atol == self.rtol == 0 and not self.one_sided
            bad = ~same if exact else ~(same | (error <= allowed))
        worst = float(error.max(initial=0.0))
        if not bad.any():
            return worst, ""
        return worst, f"{int(bad.sum())} of {golden.size} values are off by up to {worst:.3g}, allowed is {self.name}"


def equal() -> Comparator:
    """Every value is the same."""
    return Comparator("equal")


def close(atol: float, rtol: float = 0.0) -> Comparator:
    """|got - golden| ≤ atol + rtol·|golden| for every value."""
    relative = f", rtol={rtol:g}" if rtol else ""
    return Comparator(f"close(atol={atol:g}{relative})", atol, rtol)


def no_worse(tol: float = 1e-6) -> Comparator:
    """For energies that a solver minimises: got ≤ golden + tol·(1 + |golden|); lower is better."""
    return Comparator(f"no_worse(tol={tol:g})", tol, tol, one_sided=True)


# What came of it


@dataclass(frozen=True)
class Compared:
    """One array that was answered: its name, its comparator's name and the worst error."""

    name: str
    comparator: str
    error: float


@dataclass(frozen=True)
class Report:
    """How one method agrees with its golden file.

    Attributes:
        slug: the method, or the name of another case of one.
        source: whose outputs the golden holds.
        compared: the arrays that were answered.
        skipped: the arrays that were not, with the reason.
        missed: everything that is wrong, one sentence each.
        method: the method that it is a case of, or "" if it is named by it.
    """

    slug: str
    source: str
    compared: tuple[Compared, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    missed: tuple[str, ...] = ()
    method: str = ""

    @property
    def name(self) -> str:
        """The method, and the case of it if there is more than one."""
        return f"{self.method} ({self.slug})" if self.method else self.slug

    @property
    def ok(self) -> bool:
        return not self.missed

    @property
    def worst(self) -> Compared | None:
        """The array with the largest error."""
        return max(self.compared, key=lambda one: one.error, default=None)


# Replay files


@dataclass(frozen=True)
class _Replay:
    """What a replay file declares."""

    path: Path
    source: str
    inputs: tuple[str, ...]
    compare: Mapping[str, Comparator]
    skipped: Mapping[str, str]
    reinjected: tuple[str, ...]
    replay: Callable[[Case], Mapping[str, Array]]
    downstream: Callable[[Case], Mapping[str, Array]] | None
    method: str


def _load_replay(slug: str, folder: Path) -> _Replay:
    path = folder / f"{slug}.py"
    if not path.is_file():
        raise DataError(
            f"{slug} has a golden file but no replay: expected {path}. Write one that declares SOURCE, INPUTS, COMPARE "
            "and replay(case), or take the golden file away."
        )
    module = _module(f"mixwell_replay_{slug}", path)
    missing = [name for name in ("SOURCE", "INPUTS", "COMPARE", "replay") if not hasattr(module, name)]
    if missing:
        raise DataError(f"{path} must declare {', '.join(missing)}; see mixwell.conformance.")
    found = _Replay(
        path,
        module.SOURCE,
        tuple(module.INPUTS),
        dict(module.COMPARE),
        dict(getattr(module, "SKIPPED", {})),
        tuple(getattr(module, "REINJECTED", ())),
        module.replay,
        getattr(module, "downstream", None),
        method_of(module.METHOD).slug if hasattr(module, "METHOD") else "",
    )
    if not found.source.startswith(_SOURCES):
        raise DataError(f"{path}: SOURCE must begin with {' or '.join(map(repr, _SOURCES))}, got {found.source!r}.")
    if unexplained := [pattern for pattern, reason in found.skipped.items() if not reason]:
        raise DataError(f"{path}: SKIPPED must give a reason for {', '.join(unexplained)}.")
    if bool(found.reinjected) != (found.downstream is not None):
        raise DataError(f"{path}: REINJECTED and downstream(case) belong together; declare both or neither.")
    return found


def _module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a .py file has a spec"
    assert isinstance(spec.loader, SourceFileLoader), "and a loader of its source"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # Always from its text: bytecode on disk passes for that of an edited file of the same size and second.
    code = spec.loader.source_to_code(path.read_bytes(), path)
    exec(code, module.__dict__)
    return module


def _matched(name: str, patterns: Iterable[str]) -> str | None:
    """The first pattern that matches the name."""
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


# The harness


def check(golden: Path, replays: Path, *, shipped: bool = False) -> Report:
    """Replay one golden file and compare every array of it.

    Args:
        golden: `<slug>.npz`.
        replays: folder with `<slug>.py`.
        shipped: whether this is mixwell's own golden file, in which each declared pattern must match something.

    Raises:
        DataError: there is no replay for the slug, or it does not declare what it must.
        UnknownMethod: it declares a METHOD that does not exist.
        Exception: whatever the replay raised.
    """
    found = _load_replay(golden.stem, replays)
    with np.load(golden, allow_pickle=False) as archive:
        arrays: dict[str, Array] = {name: archive[name] for name in archive.files}
    given = [name for name in arrays if _matched(name, found.inputs)]
    skipped = {
        name: found.skipped[pattern]
        for name in arrays
        if name not in given and (pattern := _matched(name, found.skipped))
    }
    wanted = [name for name in arrays if name not in given and name not in skipped]
    again = [name for name in wanted if _matched(name, found.reinjected)]

    missed: list[str] = []
    got = _answers(found.replay, arrays, given, wanted)
    if found.downstream is not None and again:
        second = _answers(found.downstream, arrays, [*given, *again], [name for name in wanted if name not in again])
        missed += [f"{name}: downstream() returns what it was given" for name in again if name in second]
        missed += [f"{name}: both replay() and downstream() return it" for name in second if name in got]
        got = {**second, **got}
    missed += [f"{name}: neither returned by the replay nor SKIPPED" for name in wanted if name not in got]
    for name in got:
        if name not in arrays:
            missed.append(f"{name}: returned by the replay, but the golden has no such array")
        elif name not in wanted:
            missed.append(f"{name}: returned by the replay, but declared as {'INPUTS' if name in given else 'SKIPPED'}")

    compared: list[Compared] = []
    for name in wanted:
        pattern = _matched(name, found.compare)
        if pattern is None:
            missed.append(f"{name}: no comparator in COMPARE; add one, or '*' as the last pattern")
        elif name in got:
            comparator = found.compare[pattern]
            error, wrong = comparator.judge(got[name], arrays[name])
            compared.append(Compared(name, comparator.name, error))
            missed += [f"{name}: {wrong}"] if wrong else []
    if shipped:
        missed += _dead_patterns(found, given, list(skipped), wanted, again)
    return Report(golden.stem, found.source, tuple(compared), skipped, tuple(missed), found.method)


def _answers(
    replay: Callable[[Case], Mapping[str, Array]], arrays: Mapping[str, Array], given: list[str], wanted: list[str]
) -> dict[str, Array]:
    """What a replay returns for copies of the given arrays."""
    shapes = {name: arrays[name].shape for name in wanted}
    answered = replay(Case({name: arrays[name].copy() for name in given}, shapes))
    return {name: np.asarray(array) for name, array in answered.items()}


def _dead_patterns(
    found: _Replay, given: list[str], skipped: list[str], wanted: list[str], again: list[str]
) -> list[str]:
    """Declared patterns that decide about no array."""
    dead = []
    for declared, patterns, names in (
        ("INPUTS", found.inputs, given),
        ("SKIPPED", found.skipped, skipped),
        ("COMPARE", found.compare, wanted),
        ("REINJECTED", found.reinjected, again),
    ):
        used = {_matched(name, patterns) for name in names}
        dead += [f"{declared} pattern {pattern!r} matches nothing" for pattern in patterns if pattern not in used]
    return dead


def find_checkout() -> Path:
    """The source checkout around the current folder, or the one that the package was installed from in editable mode.

    Raises:
        DataError: there is neither; an installed wheel has no golden files.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if all((folder / part).is_dir() for part in ("src/mixwell", "tests/golden", "tests/conformance")):
            return folder
    raise DataError(
        f"No golden files: expected tests/golden and tests/conformance in {here}, above it, or beside the package. The "
        "installed package does not hold them. Run this in a source checkout of mixwell, or give both folders."
    )


def source_of(slug: str) -> str | None:
    """What the method's outputs are compared with, as its replay declares; None without a replay or a checkout."""
    try:
        replay = find_checkout() / "tests" / "conformance" / f"{slug}.py"
    except DataError:
        return None
    if not replay.is_file():
        return None
    for node in ast.parse(replay.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SOURCE":
            return " ".join(str(ast.literal_eval(node.value)).split())
    return None


def conformance(golden: Path | None = None, replays: Path | None = None) -> list[Report]:
    """Replay every golden file of a folder.

    Args:
        golden: folder of `<slug>.npz`; the checkout's `tests/golden` if not given.
        replays: folder of `<slug>.py`; the checkout's `tests/conformance` if not given.

    Returns:
        One report per file, by method. What a replay raises is in its report's `missed`. With the checkout's own golden
        files, a replay without a golden file and a declared pattern that matches nothing are misses too.

    Raises:
        DataError: a folder is missing or holds no golden file.
    """
    shipped = golden is None
    golden = golden or find_checkout() / "tests/golden"
    replays = replays or find_checkout() / "tests/conformance"
    for folder in (golden, replays):
        if not folder.is_dir():
            raise DataError(f"No folder {folder}. Give the folder of the golden files, or none to take tests/golden.")
    files = sorted(golden.glob("*.npz"))
    if not files:
        raise DataError(f"{golden} holds no golden file: expected <slug>.npz for each method.")
    reports = [_reported(file, replays, shipped) for file in files]
    if shipped:
        idle = {path.stem for path in replays.glob("*.py")} - {path.stem for path in files}
        reports += [
            Report(slug, "", missed=(f"the replay {slug}.py has no golden file {slug}.npz",))
            for slug in idle
            if slug != "conftest" and not slug.startswith("test_")
        ]
    return sorted(reports, key=lambda report: (report.method or report.slug, report.method, report.slug))


def _reported(file: Path, replays: Path, shipped: bool) -> Report:
    """The report of one file, also if its replay raises: one broken replay must not hide the others."""
    try:
        return check(file, replays, shipped=shipped)
    except DataError as error:
        return Report(file.stem, "", missed=(str(error),))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).parent == replays] or frames
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
        return Report(file.stem, "", missed=(f"the replay raised {type(error).__name__} at {place}: {error}",))


def render(reports: Iterable[Report]) -> str:
    """The reports as a table, then why arrays were skipped, then every miss."""
    reports = list(reports)
    head = ("slug", "compared", "skipped", "worst error", "source", "verdict")
    rows = [head, *map(_row, reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("─" * width for width in widths))
    lines += [f"{report.name}: {name} skipped: {why}" for report in reports for name, why in report.skipped.items()]
    lines += [f"{report.name}: MISS {miss}" for report in reports for miss in report.missed]
    return "\n".join(lines)


def _row(report: Report) -> tuple[str, ...]:
    worst = report.worst
    error = "" if worst is None else f"{worst.error:.1e} {worst.name}" if worst.error else "0"
    verdict = "ok" if report.ok else "MISS"
    return report.name, str(len(report.compared)), str(len(report.skipped)), error, report.source, verdict
