"""The wheel: what is in it, and how it fares beside its core dependencies alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

LARGEST = 10_000_000
SLOWEST = 0.5

MIX = """
import json, torch, mixwell

images, labels = torch.rand(6, 3, 32, 32), torch.arange(6)
pixels = mixwell.Pixels((0.0,) * 3, (1.0,) * 3)
mixed = []
for slug in mixwell.methods():
    try:
        found, targets = mixwell.create(slug, num_classes=6, pixels=pixels).mix_batch(images, labels)
    except mixwell.MixwellError:
        continue  # it needs a network, or another method beside it
    assert found.shape[1] == 3 and bool(torch.isfinite(found).all()), slug
    assert targets.dense(6).shape == (len(found), 6), slug
    mixed.append(slug)
print(json.dumps(mixed))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = ("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))
    subprocess.run([sys.executable, *command], check=True, capture_output=True, timeout=300)
    (found,) = folder.glob("*.whl")
    return found


def needed(names: list[str]) -> dict[str, Distribution]:
    """The distributions of some requirements and of all that they require."""
    found: dict[str, Distribution] = {}
    while names:
        wanted = Requirement(names.pop())
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        name = wanted.name.lower().replace("_", "-")
        if name not in found:
            found[name] = distribution(name)
            names += found[name].requires or []
    return found


@pytest.fixture(scope="module")
def alone(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and its core dependencies, linked from this one, and nothing else."""
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    for each in needed(list(PROJECT["dependencies"])).values():
        assert each.files is not None
        for top in {path.parts[0] for path in each.files} - {"..", "__pycache__"}:
            target = Path(str(each.locate_file(top)))
            if target.exists() and not (site / top).exists():
                (site / top).symlink_to(target)
    install = ("-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet", str(wheel))
    subprocess.run([sys.executable, *install], check=True, timeout=300)
    return python


def run(python: Path | str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`python ARGV...`, away from the checkout and from its path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(python), *argv],
        env={**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        cwd=Path(python).anchor,
        capture_output=True,
        text=True,
        check=check,
        timeout=300,
    )


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size <= LARGEST


def test_the_wheel_holds_the_package_and_its_data_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    inside = {name for name in names if name.startswith("mixwell/")}
    (info,) = {name.partition("/")[0] for name in names} - {"mixwell"}
    assert info == f"mixwell-{PROJECT['version']}.dist-info"
    checkout = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src" / "mixwell").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == checkout
    assert {Path(name).suffix for name in inside} <= {".py", ".typed", ".toml", ".j2", ".css", ".js", ".npz", ".md", ""}
    for name in ("py.typed", "data/fashion_mini/fashion_mini.npz", "data/fashion_mini/LICENSE"):
        assert f"mixwell/{name}" in inside
    assert any(name.startswith("mixwell/report/templates/") for name in inside)
    assert sum(name.startswith("mixwell/presets/") and name.endswith(".toml") for name in inside) >= 30
    assert f"{info}/licenses/LICENSE" in names


def test_no_dependency_has_an_upper_bound():
    extras = PROJECT["optional-dependencies"]
    for text in (*PROJECT["dependencies"], *(each for extra in extras.values() for each in extra)):
        bounds = [specifier.operator for specifier in Requirement(text).specifier]
        assert set(bounds) <= {">=", ">", "!="}, text
    assert re.fullmatch(r">=3\.\d+", PROJECT["requires-python"])


def test_every_extra_that_a_command_may_need_is_one_of_the_projects(alone):
    named = json.loads(run(alone, "-c", "import json, mixwell.cli as c; print(json.dumps(list(c._EXTRAS)))").stdout)
    assert set(named) <= PROJECT["optional-dependencies"].keys()


def test_the_environment_lacks_every_extra(alone):
    code = "import importlib.util as u, sys; print([m for m in sys.argv[1:] if u.find_spec(m)])"
    modules = ("accelerate", "datasets", "PIL", "rich", "safetensors", "sklearn", "timm", "torchvision", "tyro")
    assert run(alone, "-c", code, *modules).stdout == "[]\n"
    installed = "import mixwell, mixwell.presets as p; print(mixwell.__file__, p.preset(p.presets()[0]).cost)"
    assert re.match(r"\S+/site-packages/mixwell/__init__\.py \d+ epochs", run(alone, "-c", installed).stdout)


def test_importing_is_quick_and_leaves_the_solvers_alone(alone):
    code = """
import sys, time, torch
begun = time.process_time()
import mixwell
print(time.process_time() - begun, *({"scipy", "maxflow"} & set(sys.modules)))
"""
    spent, solvers = [], set()
    for _ in range(5):
        seconds, *found = run(alone, "-c", code).stdout.split()
        spent.append(float(seconds))
        solvers |= set(found)
    assert min(spent) <= SLOWEST
    assert not solvers


def test_recipes_of_images_alone_mix_without_any_extra(alone):
    mixed = set(json.loads(run(alone, "-c", MIX).stdout))
    assert mixed >= {"mixup", "cutmix", "fmix", "resizemix", "smoothmix", "ricap", "hmix_gmix", "k_mixup", "yoco", "bc"}
    here = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n{MIX}"
    assert mixed == set(json.loads(run(sys.executable, "-c", here).stdout))


@pytest.mark.parametrize("command", ["list", "train"])
def test_commands_without_their_extra_say_what_to_install(alone, command):
    found = run(alone, "-m", "mixwell", command, check=False)
    assert (found.returncode, found.stdout) == (1, "")
    assert re.search(r"this command needs \w+, which is not installed", found.stderr)
    assert 'Run: pip install "mixwell[train]"' in found.stderr


def test_help_and_version_need_no_extra(alone):
    assert run(alone, "-m", "mixwell", "--version").stdout == f"mixwell {PROJECT['version']}\n"
    assert "mixwell COMMAND" in run(alone.parent / "mixwell", "--help").stdout
