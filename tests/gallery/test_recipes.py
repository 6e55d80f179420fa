"""A gallery shows every method in a recipe in which it acts, under a seed that shows it."""

from __future__ import annotations

import pytest
import torch

import mixwell
from mixwell.gallery.recipes import AXES, exhibits, picture_text, pictured, telling_seed


def test_every_method_is_an_exhibit_of_its_own():
    found = exhibits()
    assert [exhibit.name for exhibit in found] == mixwell.methods()
    for exhibit in found:
        assert str(mixwell.create(exhibit.text, 4))
        assert set(exhibit.axes) <= set(AXES)
        assert exhibit.axes
        assert exhibit.sections[0].startswith(mixwell.method_of(exhibit.name).section)
    assert {exhibit.name for exhibit in found if exhibit.only_loss} == {
        slug for slug in mixwell.methods() if not pictured(slug)
    }


def test_a_name_stands_for_the_recipe_in_which_the_method_acts():
    first, second, third = exhibits(["transmix", "cutmix(alpha=0.5)", "puzzlemix + decouplemix"])
    assert first.text == picture_text("transmix")
    assert (second.name, second.text) == ("cutmix_alpha_0_5", "cutmix(alpha=0.5)")
    assert [entry.slug for entry in third.about] == ["puzzlemix", "decouplemix"]
    assert third.axes == ("blend", "loss")
    assert third.sections == ("1.7 saliency", "2.1 objective")


def test_methods_inside_recipes_are_named_once():
    (found,) = exhibits(["0.5*mixup | 0.5*stackmix(cutmix + mixup)"])
    assert [entry.slug for entry in found.about] == ["mixup", "stackmix", "cutmix"]
    (plain,) = exhibits(["none"])
    assert (plain.about, plain.axes, plain.only_loss) == ((), (), False)


def test_recipes_come_once_and_their_names_are_unique():
    found = exhibits(["mixup", "(mixup)", "cutmix", "(mixup | cutmix) + transmix", "mixup | cutmix + transmix"])
    assert [exhibit.text for exhibit in found][:2] == ["mixup", "cutmix"]
    assert len(found) == 4
    assert found[3].name == f"{found[2].name}-2"


def test_typing_errors_are_told():
    with pytest.raises(mixwell.UnknownMethod, match="cutmix"):
        exhibits(["mixup", "cutmux"])


@pytest.mark.parametrize("count", [2, 4])
def test_the_seed_mixes_every_image_with_another(count):
    images = torch.rand(count, 3, 32, 32)
    seed = telling_seed(images)
    for text in ("mixup", "cutmix"):
        _, targets = mixwell.create(text, count, seed=seed).mix_batch(images, torch.arange(count))
        assert (targets.dense().amax(1) < 0.8).all()


def test_where_no_seed_does_the_best_is_taken():
    images = torch.rand(8, 3, 32, 32)

    def mixed(seed):
        return sum(
            int((mixwell.create(text, 8, seed=seed).mix_batch(images, torch.arange(8))[1].dense().amax(1) < 0.8).sum())
            for text in ("mixup", "cutmix")
        )

    assert mixed(telling_seed(images, 12)) == max(map(mixed, range(12))) < 16
