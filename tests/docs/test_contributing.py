"""CONTRIBUTING's method is a method: it registers, keeps its own tests, composes and trains. It leaves no trace."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

import mixwell
from mixwell.core import registry

NAME = "mixwell.sample.cutting.stripes"


@pytest.fixture
def method_file(blocks_of, monkeypatch):
    """The method's block, imported as the file that it stands for, and the test block."""
    code, tests = blocks_of("CONTRIBUTING.md")
    known = mixwell.methods()
    assert "stripes" not in known
    module = ModuleType(NAME)
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setitem(sys.modules, NAME, module)
    exec(compile(code, "stripes.py", "exec"), module.__dict__)
    assert sorted(mixwell.methods()) == sorted([*known, "stripes"])
    return module, tests


def test_its_tests_pass(method_file):
    names: dict[str, object] = {}
    exec(compile(method_file[1], "test_stripes.py", "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


@pytest.mark.parametrize(
    "text", ["stripes", "stripes(count=4, per=batch)", "k_mixup + stripes", "stripes + decouplemix"]
)
def test_it_trains_one_step(method_file, cnn, text):
    model, images = cnn(), torch.randn(6, 3, 24, 40)
    recipe = mixwell.create(text, 7)
    loss = recipe(model, images, torch.arange(6))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_it_meets_attention(method_file, vit):
    recipe = mixwell.create("k_mixup + stripes + transmix", 7)
    assert torch.isfinite(recipe(vit(), torch.randn(6, 3, 32, 32), torch.arange(6)))


def test_its_mixes_keep_the_contract(method_file):
    images = torch.randn(5, 3, 24, 40, dtype=torch.float64)
    recipe = mixwell.create("stripes", 5)
    option = recipe.options[0]
    scene = mixwell.Scene(mixwell.Batch(images, torch.arange(5)), option.draw(5, recipe._streams, 0))
    mix = option.mix(images, scene)
    assert torch.equal(mix.apply(images), mix.images)
    torch.testing.assert_close(mix.masks.mean((2, 3)), mix.weights)
    shown = torch.einsum("rkhw,rkchw->rchw", mix.masks.double(), images[mix.sources])
    torch.testing.assert_close(shown, mix.images)


@pytest.mark.usefixtures("method_file")
def test_it_has_a_page():
    entry = mixwell.method_of("stripes")
    assert entry.title == "Stripes: show the partner in random horizontal stripes"
    with pytest.raises(mixwell.ParameterError, match="count"):
        mixwell.create("stripes(count=1)", 7)


def test_it_leaves_no_trace():
    assert "stripes" not in mixwell.methods()
    assert NAME not in sys.modules
