"""A gallery is a page and whole pictures, whatever happens while it is drawn."""

from __future__ import annotations

import importlib
import re

import pytest
import torch
from PIL import Image

import mixwell
from mixwell.gallery import Watcher, gallery, make

NAMES = ["cat", "dog", "cat"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32)


class Noted(Watcher):
    def __init__(self):
        self.begun, self.steps, self.reasons = [], [], {}

    def recipe(self, recipe, done, total):
        self.begun.append((recipe, done, total))

    def working(self, what, done, total):
        self.steps.append((what, done, total))

    def refused(self, recipe, reason):
        self.reasons[recipe] = reason


def cards(page):
    return re.findall(
        r'<article class="card" id="([^"]+)" data-sections="([^"]*)" data-axes="([^"]*)"', page.read_text()
    )


def test_there_is_a_picture_for_each_recipe(images, tmp_path):
    noted = Noted()
    recipes = ["transmix", "puzzlemix + decouplemix", "mixup", "rankmixup"]
    page = gallery(images, NAMES, recipes=recipes, out=tmp_path / "out", progress=noted)
    assert page == tmp_path / "out" / "index.html"
    found = cards(page)
    assert sorted(found) == [
        ("mixup", "1.1 linear", "blend"),
        ("puzzlemix_decouplemix", "1.7 saliency|2.1 objective", "blend|loss"),
        ("rankmixup", "2.2 calibration", "loss"),
        ("transmix", "2.5 attention", "label"),
    ]
    for name, *_ in found:
        with Image.open(tmp_path / "out" / "pictures" / f"{name}.png") as picture:
            picture.load()
            shown = re.search(rf'src="pictures/{name}.png" [^>]*width="(\d+)" height="(\d+)"', page.read_text())
            assert picture.size == tuple(map(int, shown.groups()))
    assert [done for _, done, _ in noted.begun] == [0, 1, 2, 3]
    assert noted.reasons == {}
    assert "not to be seen" in page.read_text(), "rankmixup changes the loss only"
    assert not list(tmp_path.rglob("*.tmp"))


def test_nothing_comes_from_elsewhere(images, tmp_path):
    text = gallery(images, NAMES, recipes=["mixup"], out=tmp_path).read_text()
    assert set(re.findall(r'(?:src|href)="([^"#]*)', text)) - {"", "data:,"} == {
        "pictures/mixup.png",
        "https://arxiv.org/abs/1710.09412",
    }
    assert not re.search(r"@import|url\(|fetch|<link(?! rel=\"icon\")", text)


def test_what_cannot_act_is_listed_and_stops_nothing(images, tmp_path):
    noted = Noted()
    page = gallery(images, NAMES, recipes=["cutmix + puzzlemix", "mixup"], out=tmp_path, progress=noted)
    assert [name for name, *_ in cards(page)] == ["mixup"]
    assert list(noted.reasons) == ["cutmix + puzzlemix"]
    assert "both decide the blend" in page.read_text()
    with pytest.raises(mixwell.IncompatibleRecipe, match="both decide the blend"):
        gallery(images, NAMES, recipes=["cutmix + puzzlemix"], out=tmp_path)


def test_errors_of_torch_stop_nothing_either(images, tmp_path, monkeypatch):
    drawn = make.sheet

    def failing(recipes, *given, **options):
        if recipes == ["mixup"]:
            raise RuntimeError("out of memory")
        return drawn(recipes, *given, **options)

    monkeypatch.setattr(make, "sheet", failing)
    text = gallery(images, NAMES, recipes=["mixup", "cutmix"], out=tmp_path).read_text()
    assert "out of memory" in text


def test_what_was_drawn_before_an_interrupt_is_a_whole_gallery(images, tmp_path):
    class Stops(Watcher):
        def recipe(self, recipe, done, total):
            if done == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gallery(images, NAMES, recipes=["mixup", "cutmix"], out=tmp_path / "out", progress=Stops())
    page = tmp_path / "out" / "index.html"
    assert [name for name, *_ in cards(page)] == ["mixup"]
    assert "Not all of the 2 are drawn yet" in page.read_text()
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["index.html", "mixup.png", "pictures"]
    again = gallery(images, NAMES, recipes=["mixup", "cutmix"], out=tmp_path / "out")
    assert len(cards(again)) == 2
    assert "drawn yet" not in again.read_text()


@pytest.mark.parametrize("chained", [True, False], ids=["said to come of it", "raised on the way"])
def test_an_error_that_an_interrupt_led_to_is_an_interrupt(images, tmp_path, monkeypatch, chained):
    def interrupted(*args, **options):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            if chained:
                raise RuntimeError("cannot be put back") from interrupt
            raise RuntimeError("cannot be put back")  # noqa: B904 as by a `finally` or an `__exit__`

    monkeypatch.setattr(make, "sheet", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gallery(images, NAMES, recipes=["mixup", "cutmix"], out=tmp_path)
    assert 'id="cutmix"' not in (tmp_path / "index.html").read_text()


def test_training_is_told(images, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("mixwell.gallery.act"), "_STEPS", 3)
    noted = Noted()
    gallery(images, NAMES, recipes=["automix", "attentive_cutmix(teacher_epochs=2)"], out=tmp_path, progress=noted)
    assert [step for step in noted.steps if step[0] == "training"] == [("training", step, 3) for step in (1, 2, 3)]
    assert ("teacher", 2, 2) in noted.steps


def test_equal_seeds_draw_equal_pictures(images, tmp_path):
    pages = [
        gallery(images, NAMES, recipes=["cutmix"], out=tmp_path / str(place), seed=seed)
        for place, seed in enumerate((1, 1, 2))
    ]
    first, again, other = ((page.parent / "pictures" / "cutmix.png").read_bytes() for page in pages)
    assert first == again != other


def test_a_folder_that_holds_something_else_is_left_alone(images, tmp_path):
    (tmp_path / "index.html").write_text("my page")
    with pytest.raises(mixwell.ParameterError, match="holds something"):
        gallery(images, NAMES, recipes=["mixup"], out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    with pytest.raises(mixwell.ParameterError, match="is a file"):
        gallery(images, NAMES, recipes=["mixup"], out=tmp_path / "index.html")


def test_names_are_short_unlike_and_escaped(images, tmp_path):
    names = ["a cat whose name is <long> & bold", "a cat whose name is longer", "猫"]
    text = gallery(images, names, recipes=["mixup"], out=tmp_path).read_text()
    assert "a cat whose name is &lt;long&gt; &amp; bold" in text
    short = list(make._short_names(names).values())
    assert short == ["a cat whose n…", "a cat whos… 2", "class 3"]
    assert f'猫 <span class="soft">({short[2]})' in text


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.rand(1, 3, 32, 32), ["cat"]),
        (torch.rand(2, 3, 32, 32), ["cat"]),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), ["cat", "dog"]),
        (torch.rand(2, 32, 32), ["cat", "dog"]),
    ],
)
def test_other_images_are_refused(images, labels, tmp_path):
    with pytest.raises(mixwell.BatchError, match="at least two floating images"):
        gallery(images, labels, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_class_ids_are_labels_too(images, tmp_path):
    assert "class 7" in gallery(images, torch.tensor([7, 1, 7]), recipes=["mixup"], out=tmp_path).read_text()
