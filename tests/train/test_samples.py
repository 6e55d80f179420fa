"""Pictures of what a recipe's networks make, after each epoch."""

import io

import numpy as np
import torch
from PIL import Image

import mixwell
from mixwell.train import train
from mixwell.train.samples import renders, samples


def test_mixes_of_networks_are_drawn_after_each_epoch(quick, digits, outcome, monkeypatch):
    changes = {"recipe": "automix(stage=1)", "batch_size": 60}
    train(quick(**changes), dataset=digits, progress=False)
    pictures = sorted((quick().folder / "samples").glob("*"))
    assert [path.name for path in pictures] == ["epoch-001.png", "epoch-002.png"]
    first, last = (np.asarray(Image.open(path)) for path in pictures)
    height = 4 + 2 * 68
    assert first.shape == (height, 4 + 8 * 68, 3)
    assert (first[: height // 2] == last[: height // 2]).all(), "the images stay the same"
    assert (first[height // 2 :] != last[height // 2 :]).any(), "the mixer has learnt"

    monkeypatch.setattr("mixwell.train.engine.renders", lambda recipe: False)
    train(quick("plain", **changes), dataset=digits, progress=False)
    assert outcome(quick().folder) == outcome(quick("plain").folder), "drawing leaves no trace"


def test_recipes_that_only_cut_are_not_drawn(quick, digits):
    train(quick(recipe="cutmix", epochs=1), dataset=digits, progress=False)
    assert not (quick().folder / "samples").exists()
    assert not renders(mixwell.create("puzzlemix", 10))


def test_hidden_maps_are_not_drawn(vit):
    """Even if a network learns where they are mixed."""
    recipe = mixwell.create("tokenmixup", 7).bind(vit(), torch.rand(2, 3, 32, 32))
    assert recipe.owns
    assert not renders(recipe)


def test_colours_and_pixels(cnn):
    """Normalised images are drawn as the pixels they were; a mix of an image with itself is that image."""
    pixels = mixwell.Pixels((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    raw = torch.rand(2, 3, 64, 64)
    batch = mixwell.Batch(pixels.normalise(raw), torch.arange(2), pixels)
    model = cnn()
    recipe = mixwell.create("automix", 7, seed=1).bind(model, batch.images)
    page = np.asarray(Image.open(io.BytesIO(samples(recipe, model, batch, mixwell.Clock(3)))))
    shown = page[4:68, 4:68]
    np.testing.assert_allclose(shown, raw[0].permute(1, 2, 0) * 255, atol=1)
    assert recipe.steps == 0
