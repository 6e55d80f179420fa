"""The generated pages are those of the registry."""

from __future__ import annotations

import importlib.util
import re

import pytest
from PIL import Image

import mixwell


@pytest.fixture(scope="module")
def maker(root):
    spec = importlib.util.spec_from_file_location("make_docs", root / "tools" / "make_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_page_per_method(root):
    pages = {path.stem for path in (root / "docs" / "methods").glob("*.md")}
    assert pages == set(mixwell.methods()), "run `make docs`"


def test_texts_are_up_to_date(maker, root):
    old = [
        str(path.relative_to(root))
        for path, text in maker.texts().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert not old, f"{', '.join(old)}: not what the registry says; run `make docs`"


def test_every_visible_method_has_its_picture(maker, root):
    wanted = {slug for slug in mixwell.methods() if maker.pictured(slug)}
    pictures = {path.stem: path for path in (root / "docs" / "pictures").glob("*.png")}
    assert set(pictures) == {*wanted, "mixes", "pairs"}, "run `make docs`"
    for path in pictures.values():
        with Image.open(path) as picture:
            picture.load()
            assert 600 <= picture.width <= 1200, path


def test_the_matrix_of_pairs_is_up_to_date(maker, root):
    assert maker.shows(root / "docs" / "pictures" / "pairs.png", maker.verdicts()), "run `make docs`"


def test_the_page_of_pairs_says_what_create_does(maker):
    page = maker.pairs_page(maker.verdicts())
    refused, accepted = re.search(r"`([^`]*)` mixes no images, and `([^`]*)` does", page).groups()
    mixwell.create(accepted, 10)
    with pytest.raises(mixwell.IncompatibleRecipe, match="nothing in this recipe mixes images"):
        mixwell.create(refused, 10)
    for slug in mixwell.methods():
        (partners,) = re.findall(rf"^\| \[`{slug}`\]\(methods/{slug}.md\) \| \d+ \| (.*) \|$", page, re.MULTILINE)
        found = {other for other in mixwell.methods() if other != slug and maker.verdicts()[slug, other].accepted}
        assert set(partners.split(", ")) == found


def test_a_page_says_what_the_registry_says(maker):
    for slug in mixwell.methods():
        entry = mixwell.method_of(slug)
        page = maker.method_page(maker.Page.of(entry))
        assert f"[{entry.reference}]({entry.url})" in page
        for name in entry.parameters:
            assert f"| `{name}` |" in page
        for piece in entry.build().essential:
            assert f"`{type(piece).__name__}`" in page
