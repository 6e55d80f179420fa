"""The command itself: usage, exit codes, errors."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import warnings

import pytest
import torch

import mixwell
import mixwell.nets.taught
from mixwell.cli import COMMANDS, main


def test_help_names_every_command(run):
    found = run("--help")
    assert found.code == 0
    assert found.err == ""
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", found.out, re.MULTILINE)
    assert max(map(len, found.out.splitlines())) <= 80


def test_no_command_is_wrong_usage_and_shows_the_help_on_stderr(run):
    found = run()
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("usage: mixwell COMMAND")


def test_version(run):
    assert run("--version").out == f"mixwell {mixwell.__version__}\n"


@pytest.mark.parametrize(("given", "meant"), [("trian", "train"), ("--vesion", "--version")])
def test_unknown_words_are_wrong_usage_and_suggest(run, given, meant):
    found = run(given)
    assert (found.code, found.out) == (2, "")
    assert f"did you mean '{meant}'" in found.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_that_fits_the_terminal(run, name):
    found = run(name, "--help")
    assert found.code == 0
    assert found.out.startswith(f"usage: mixwell {name}")
    assert max(map(len, found.out.splitlines())) <= 80
    assert "-h, --help" in found.out


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_wrong_usage(run, name):
    found = run(name, "--no-such-option")
    assert (found.code, found.out) == (2, "")
    assert found.err


@pytest.fixture
def without(monkeypatch):
    """Make a package impossible to import, and forget the commands that did import it."""

    def hide(package: str) -> None:
        for name in [name for name in sys.modules if name.startswith(("mixwell.cli.", f"{package}."))]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)

    return hide


@pytest.mark.parametrize(("package", "command"), [("tyro", "list"), ("rich", "show"), ("accelerate", "train")])
def test_a_missing_extra_names_what_to_install(run, without, package, command):
    without(package)
    found = run(command)
    assert (found.code, found.out) == (1, "")
    assert package in found.err
    assert 'pip install "mixwell[train]"' in " ".join(found.err.split())


def test_any_other_missing_module_is_a_defect_and_not_hidden(without):
    without("mixwell.cli.page")
    with pytest.raises(ModuleNotFoundError):
        main(["list"])


def test_debugging_shows_where_an_error_comes_from(monkeypatch):
    monkeypatch.setenv("MIXWELL_DEBUG", "1")
    with pytest.raises(mixwell.UnknownMethod):
        main(["show", "cutmx"])


def test_interruption(run, monkeypatch):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("mixwell.cli.commands.list"), "main", interrupted)
    assert run("list").code == 130


def test_own_warnings_are_shown_in_words_and_others_as_ever(run, monkeypatch):
    before, told = warnings.formatwarning, []

    def warning(argv):
        here = mixwell.nets.taught.__file__
        told.append(warnings.formatwarning("A training\nof 14 steps", UserWarning, here, 121))
        told.append(warnings.formatwarning("old", DeprecationWarning, here, 121))
        told.append(warnings.formatwarning("other", UserWarning, torch.__file__, 7))
        return 0

    monkeypatch.setattr(importlib.import_module("mixwell.cli.commands.list"), "main", warning)
    assert run("list").code == 0
    assert told[0] == "Warning: A training\nof 14 steps\n"
    assert [words.split(":")[1] for words in told[1:]] == ["121", "7"]
    assert warnings.formatwarning is before


def test_as_a_process(process):
    listing = process("list", environment={"NO_COLOR": "1"})
    out, err = listing.communicate(timeout=120)
    assert (listing.returncode, err) == (0, "")
    assert "cutmix" in out
    assert "\x1b" not in out
    wrong = process("show", "cutmx")
    out, err = wrong.communicate(timeout=120)
    assert (wrong.returncode, out) == (1, "")
    assert err.startswith("Error: Unknown method 'cutmx'")
    assert "Traceback" not in err


def test_a_reader_that_goes_away_is_no_error(process):
    listing = process("list")
    assert listing.stdout is not None
    listing.stdout.close()
    assert listing.wait(timeout=120) == 141
    assert listing.stderr is not None
    assert listing.stderr.read() == ""


def test_listing_imports_none_of_the_slow_libraries():
    code = (
        "import sys; from mixwell.cli import main; main(['list', '--json']); "
        "print(sorted({'timm', 'torchvision', 'accelerate', 'sklearn'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == "[]\n"
