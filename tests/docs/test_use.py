"""The lines under "Use" of every method's page run, and train the network."""

from __future__ import annotations

import pytest
import torch

import mixwell


@pytest.mark.parametrize("slug", mixwell.methods())
def test_its_lines_train(slug, blocks_of, root, cnn, vit):
    (block,) = blocks_of(f"docs/methods/{slug}.md")
    tokens = "--model vit-s" in (root / "docs" / "methods" / f"{slug}.md").read_text(encoding="utf-8")
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)
    pixels = mixwell.Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    batch = mixwell.Batch(images, labels, pixels, index=torch.arange(8))
    model = (vit if tokens else cnn)(classes=10)
    before = [parameter.clone() for parameter in model.parameters()]
    names = {"images": images, "labels": labels, "batch": batch, "model": model, "pixels": pixels}
    names |= {"batches": lambda: [batch], "held_out": lambda: [batch]}
    exec(compile(block, f"{slug}.md", "exec"), names)
    if "loss" in names and "optimizer" not in names:
        names["loss"].backward()
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    else:
        assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
