"""Every golden file agrees with mixwell, and the harness that says so misses nothing."""

import os
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

import mixwell
from mixwell import conformance as harness

REPLAYS = Path(__file__).parent
SHIPPED = REPLAYS.parent / "golden"
PILOT = ["mixup", "cutmix", "manifold_mixup", "transmix"]


def pytest_generate_tests(metafunc):
    if "golden_file" in metafunc.fixturenames:
        given = metafunc.config.getoption("golden")
        folder = SHIPPED if given is None else metafunc.config.invocation_params.dir / given
        files = sorted(folder.glob("*.npz"))
        if not files:
            raise pytest.UsageError(f"--golden: {folder} holds no <slug>.npz")
        metafunc.parametrize("golden_file", files, ids=lambda file: file.stem)


def test_golden(golden_file):
    report = harness.check(golden_file, REPLAYS, shipped=golden_file.parent.resolve() == SHIPPED.resolve())
    assert report.ok, "\n".join(report.missed)
    assert report.compared


@pytest.mark.parametrize("slug", mixwell.methods())
def test_every_method_is_replayed(slug):
    assert (SHIPPED / f"{slug}.npz").is_file()
    assert (REPLAYS / f"{slug}.py").is_file()


@pytest.mark.parametrize("slug", PILOT)
def test_other_seeds_sizes_and_shapes(slug, fresh_cases, tmp_path):
    np.savez(tmp_path / f"{slug}.npz", **fresh_cases[slug])
    report = harness.check(tmp_path / f"{slug}.npz", REPLAYS, shipped=True)
    assert report.ok, "\n".join(report.missed)
    with np.load(SHIPPED / f"{slug}.npz") as shipped:
        assert set(shipped.files) == set(fresh_cases[slug])
    assert not report.skipped


def test_optional_arrays_may_lack(tmp_path):
    for slug, optional in (("mixup", {"lam_elem", "mixed_elem"}), ("transmix", {"box_small", "target_small_box"})):
        with np.load(SHIPPED / f"{slug}.npz") as shipped:
            np.savez(
                tmp_path / f"{slug}.npz", **{name: shipped[name] for name in shipped.files if name not in optional}
            )
    reports = harness.conformance(tmp_path, REPLAYS)
    assert [report.slug for report in reports if report.ok] == ["mixup", "transmix"]


@pytest.mark.parametrize("slug", PILOT)
def test_a_change_of_any_one_value_is_missed(slug, tmp_path):
    """Each compared array in turn gets one wrong value: that array must be missed, and only that."""
    with np.load(SHIPPED / f"{slug}.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    names = [one.name for one in harness.check(SHIPPED / f"{slug}.npz", REPLAYS).compared]
    assert names
    for name in names:
        wrong = arrays[name].copy()
        wrong.flat[-1] += 1 if wrong.dtype.kind in "iu" else 1e-4
        np.savez(tmp_path / f"{slug}.npz", **{**arrays, name: wrong})
        missed = harness.check(tmp_path / f"{slug}.npz", REPLAYS).missed
        assert [miss.partition(":")[0] for miss in missed] == [name]


# The harness itself, on a replay of its own

X = np.arange(6.0).reshape(2, 3)
DOUBLE = "return {'double': 2 * case['x']}"


@pytest.fixture
def toy(tmp_path):
    """Write a golden and a replay, and check them."""

    def run(body: str, *, shipped=False, golden=None, **declared):
        declared = {"SOURCE": "'official code'", "INPUTS": "('x',)", "COMPARE": "{'*': equal()}", **declared}
        extra = declared.pop("extra", "")
        head = "\n".join(f"{name} = {value}" for name, value in declared.items())
        (tmp_path / "toy.py").write_text(
            f"import numpy as np\nfrom mixwell.conformance import close, equal, no_worse\n{head}\n"
            f"def replay(case):\n    {body}\n{dedent(extra)}"
        )
        np.savez(tmp_path / "toy.npz", **({"x": X, "double": 2 * X} if golden is None else golden))
        return harness.check(tmp_path / "toy.npz", tmp_path, shipped=shipped)

    return run


def test_an_edited_replay_of_the_same_size_and_second_is_read_again(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert toy("return {'double': 2 * case['x']}").ok
    stamp = (tmp_path / "toy.py").stat()
    write = Path.write_text

    def same_second(path, text):
        write(path, text)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    monkeypatch.setattr(Path, "write_text", same_second)
    assert not toy("return {'double': 3 * case['x']}").ok


def test_right_answer(toy):
    report = toy(DOUBLE, shipped=True)
    assert report.ok
    assert report.compared == (harness.Compared("double", "equal", 0.0),)


@pytest.mark.parametrize(
    ("body", "miss"),
    [
        ("return {'double': 3 * case['x']}", "5 of 6 values are off by up to 5, allowed is equal"),
        ("return {}", "double: neither returned by the replay nor SKIPPED"),
        ("return {'double': 2 * case['x'], 'more': case['x']}", "more: returned by the replay, but the golden has no"),
        ("return {'double': 2 * case['x'], 'x': case['x']}", "x: returned by the replay, but declared as INPUTS"),
        ("return {'double': 2 * case['x'][:1]}", "expected shape (2, 3), got (1, 3)"),
        ("return {'double': (2 * case['x']).astype(int)}", "expected floating values (float64), got integer (int64)"),
        ("return {'double': np.where(case['x'] == 5, np.nan, 2 * case['x'])}", "1 of 6 values are NaN on one side"),
    ],
)
def test_misses(toy, body, miss):
    report = toy(body)
    assert not report.ok
    assert len(report.missed) == 1
    assert miss in report.missed[0]


def test_replay_sees_names_of_answers_but_no_values(toy):
    with pytest.raises(KeyError, match="double"):
        toy("return {'double': case['double']}")
    assert toy("return {name: 2 * case['x'] for name in case.wanted}").ok


def test_replay_cannot_change_what_it_is_compared_with(toy):
    report = toy("case['x'] *= 0; return {'double': 2 * case['x']}")
    assert not report.ok


def test_golden_nan_and_infinity_must_be_met(toy):
    golden = {"x": X, "double": np.array([np.nan, np.inf, -np.inf])}
    assert toy("return {'double': np.array([np.nan, np.inf, -np.inf])}", golden=golden).ok
    assert not toy("return {'double': np.array([np.nan, np.inf, np.inf])}", golden=golden).ok
    assert not toy("return {'double': np.array([0, np.inf, -np.inf])}", golden=golden).ok


def test_texts_and_booleans(toy):
    golden = {"x": X, "names": np.array(["a", "b"]), "flags": np.array([True, False])}
    assert toy("return {'names': np.array(['a', 'b']), 'flags': np.array([True, False])}", golden=golden).ok
    missed = toy("return {'names': np.array(['a', 'c']), 'flags': np.array([1, 0])}", golden=golden).missed
    assert missed == ("names: 1 of 2 texts differ", "flags: expected boolean values (bool), got integer (int64)")


def test_close_is_absolute_plus_relative():
    golden = np.array([0.0, 100.0])
    comparator = harness.close(0.1, rtol=0.01)
    assert comparator.judge(np.array([0.1, 101.1]), golden)[1] == ""
    assert comparator.judge(np.array([0.11, 100.0]), golden)[1]
    assert comparator.judge(np.array([0.0, 98.8]), golden)[1]


def test_no_worse_takes_lower_energies_of_either_sign():
    comparator = harness.no_worse(tol=1e-3)
    for energy in (-100.0, 0.0, 100.0):
        golden = np.array([energy])
        assert comparator.judge(golden - 50, golden) == (0.0, "")
        assert comparator.judge(golden + 1e-3, golden)[1] == ""
        assert comparator.judge(golden + 1, golden)[1]


def test_integers_are_not_compared_modulo_256():
    assert harness.close(1).judge(np.array([0], np.uint8), np.array([255], np.uint8))[0] == 255


def test_skipped_arrays_are_reported_and_not_answered(toy):
    golden = {"x": X, "double": 2 * X, "log": X}
    report = toy(DOUBLE, golden=golden, SKIPPED="{'log': 'the card calls it a log'}")
    assert report.ok
    assert report.skipped == {"log": "the card calls it a log"}
    returned = "return {'double': 2 * case['x'], 'log': case['x']}"
    (miss,) = toy(returned, golden=golden, SKIPPED="{'log': 'a log'}").missed
    assert miss == "log: returned by the replay, but declared as SKIPPED"


@pytest.mark.parametrize(
    ("declared", "miss"),
    [
        ({"INPUTS": "('x', 'nothing*')"}, "INPUTS pattern 'nothing*' matches nothing"),
        ({"SKIPPED": "{'nothing': 'why'}"}, "SKIPPED pattern 'nothing' matches nothing"),
        ({"COMPARE": "{'nothing': equal(), '*': equal()}"}, "COMPARE pattern 'nothing' matches nothing"),
        ({"COMPARE": "{'*': equal(), 'double': close(1)}"}, "COMPARE pattern 'double' matches nothing"),
    ],
)
def test_patterns_that_decide_nothing_are_defects_in_shipped_goldens(toy, declared, miss):
    assert toy(DOUBLE, **declared).ok
    assert toy(DOUBLE, shipped=True, **declared).missed == (miss,)


def test_array_without_comparator(toy):
    (miss,) = toy(DOUBLE, COMPARE="{'other': equal()}").missed
    assert miss.startswith("double: no comparator")


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"SOURCE": "'somebody'"}, "SOURCE must begin with"),
        ({"SKIPPED": "{'double': ''}"}, "must give a reason for double"),
        ({"REINJECTED": "('double',)"}, "REINJECTED and downstream"),
    ],
)
def test_declarations_are_checked(toy, declared, message):
    with pytest.raises(mixwell.DataError, match=message):
        toy(DOUBLE, **declared)


SOLVER = {"x": X, "labels": np.array([0, 1]), "energy": np.array(3.0), "mixed": np.array([5, 6])}


def test_solver_labels_are_reinjected_for_what_comes_downstream(toy):
    report = toy(
        "return {'labels': np.array([1, 0]), 'energy': np.array(2.5)}",
        golden=SOLVER,
        COMPARE="{'energy': no_worse(), 'labels': close(1), '*': equal()}",
        REINJECTED="('labels',)",
        extra="def downstream(case):\n    return {'mixed': case['labels'] + 5}",
        shipped=True,
    )
    assert report.ok
    assert {one.name for one in report.compared} == {"labels", "energy", "mixed"}


def test_downstream_may_not_echo_or_repeat(toy):
    report = toy(
        "return {'energy': np.array(3.0)}",
        golden=SOLVER,
        REINJECTED="('labels',)",
        extra="def downstream(case):\n    return {'mixed': case['labels'] + 5, 'energy': 0, 'labels': case['labels']}",
    )
    assert "labels: downstream() returns what it was given" in report.missed
    assert "energy: both replay() and downstream() return it" in report.missed


def test_one_broken_replay_does_not_hide_the_others(toy, tmp_path):
    toy(DOUBLE)
    np.savez(tmp_path / "alone.npz", x=X)
    np.savez(tmp_path / "broken.npz", x=X)
    (tmp_path / "broken.py").write_text(
        "SOURCE, INPUTS, COMPARE = 'official code', ('x',), {}\ndef replay(case):\n    return case['y']\n"
    )
    alone, broken, good = harness.conformance(tmp_path, tmp_path)
    assert good.ok
    assert "alone has a golden file but no replay" in alone.missed[0]
    assert broken.missed == ("the replay raised KeyError at broken.py:3: 'y'",)
    table = harness.render([alone, broken, good])
    assert [line.split()[-1] for line in table.splitlines()[2:5]] == ["MISS", "MISS", "ok"]
    assert "broken: MISS the replay raised KeyError" in table


def test_another_case_of_a_method_stands_below_it(toy, tmp_path):
    toy(DOUBLE, METHOD="'transmix'")
    for slug in ("mixup", "transmix"):
        np.savez(tmp_path / f"{slug}.npz", x=X, double=2 * X)
        (tmp_path / f"{slug}.py").write_text((tmp_path / "toy.py").read_text().replace("METHOD = 'transmix'", ""))
    reports = harness.conformance(tmp_path, tmp_path)
    assert all(report.ok for report in reports)
    assert [report.name for report in reports] == ["mixup", "transmix", "transmix (toy)"]
    assert harness.render(reports).splitlines()[4].startswith("transmix (toy)  1")
    with pytest.raises(mixwell.UnknownMethod, match="'transmixx'"):
        toy(DOUBLE, METHOD="'transmixx'")


def test_table_shows_worst_error_and_reasons(toy):
    report = toy(
        "return {'double': 2 * case['x'] + 0.25}",
        golden={"x": X, "double": 2 * X, "log": X},
        COMPARE="{'*': close(0.5)}",
        SKIPPED="{'log': 'not an output'}",
    )
    lines = harness.render([report]).splitlines()
    assert lines[2].split() == ["toy", "1", "1", "2.5e-01", "double", "official", "code", "ok"]
    assert lines[3] == "toy: log skipped: not an output"


def test_checkout_is_found_from_inside_it_and_missed_outside(monkeypatch, tmp_path):
    for part in ("src/mixwell", "tests/golden", "tests/conformance", "deep/down"):
        (tmp_path / "checkout" / part).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "checkout/deep/down")
    assert harness.find_checkout() == tmp_path / "checkout"
    with pytest.raises(mixwell.DataError, match="holds no golden file"):
        harness.conformance()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(harness, "__file__", str(tmp_path / "lib/site-packages/mixwell/conformance.py"))
    with pytest.raises(mixwell.DataError, match="installed package does not hold them"):
        harness.conformance()


def test_replay_without_golden_is_missed_in_the_checkout(monkeypatch, tmp_path, toy):
    toy(DOUBLE)
    for part in ("src/mixwell", "tests/golden", "tests/conformance"):
        (tmp_path / "checkout" / part).mkdir(parents=True)
    (tmp_path / "toy.npz").rename(tmp_path / "checkout/tests/golden/toy.npz")
    (tmp_path / "toy.py").rename(tmp_path / "checkout/tests/conformance/toy.py")
    for name in ("conftest.py", "test_conformance.py", "idle.py"):
        (tmp_path / "checkout/tests/conformance" / name).touch()
    monkeypatch.chdir(tmp_path / "checkout")
    idle, good = harness.conformance()
    assert good.ok
    assert idle.missed == ("the replay idle.py has no golden file idle.npz",)
