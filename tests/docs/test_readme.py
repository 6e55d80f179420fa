"""The README's code runs, in the order in which it is read, with small stand-ins for what the reader brings."""

from __future__ import annotations

import re

import pytest
import torch

import mixwell


@pytest.fixture(scope="module")
def ran(blocks_of, readers_names):
    """The names that are left after all blocks ran in one namespace."""
    names = readers_names()
    model = names["model"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for block in blocks_of("README.md"):
        exec(compile(block, "README.md", "exec"), names)
    return names, before


def test_every_block_runs_and_trains(ran):
    names, before = ran
    assert torch.isfinite(names["loss"])
    assert any(not torch.equal(value, before[name]) for name, value in names["model"].state_dict().items())


def test_the_loader_of_mixes_gives_targets(ran):
    images, targets = next(iter(ran[0]["loader_of_mixes"]))
    assert images.shape == (8, 3, 32, 32)
    assert isinstance(targets, mixwell.Targets)
    assert targets.sources.shape == (8, 2)


def test_what_is_refused_is_refused(blocks_of):
    (block,) = [block for block in blocks_of("README.md") if "IncompatibleRecipe" in block]
    text = re.search(r'create\("(.+?)"', block)[1]
    with pytest.raises(mixwell.IncompatibleRecipe, match="both decide"):
        mixwell.create(text, 10)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/index.md",
        "docs/methods.md",
        "docs/matrix.md",
        "docs/defects.md",
        "docs/design.md",
        "docs/pairs.md",
        "docs/gallery.md",
        "docs/pictures/README.md",
    ],
)
def test_links_lead_somewhere(root, name):
    text = (root / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    assert [link for link in links if not ((root / name).parent / link).exists()] == []
