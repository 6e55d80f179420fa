"""What a page tells of a recipe's methods."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from mixwell import RunError
from mixwell.report import Library
from mixwell.report.recipes import Picture


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    for name in ("methods/cutmix.md", "methods/mixup.md", "pictures/mixup.png"):
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "docs"


def test_methods_are_linked_and_parameters_are_not(docs: Path, tmp_path: Path) -> None:
    about = Library(docs).about("0.5*mixup(alpha=0.8) | 0.5*stackmix(cutmix)", tmp_path / "out" / "page.html")
    assert "".join(word for word, _ in about.words) == "0.5*mixup(alpha=0.8) | 0.5*stackmix(cutmix)"
    assert [word for word in about.words if word[1]] == [
        ("mixup", "../docs/methods/mixup.md"),
        ("cutmix", "../docs/methods/cutmix.md"),
    ]
    assert about.picture == Picture("mixup", "../docs/pictures/mixup.png", "")


def test_sections_and_axes_are_the_registrys() -> None:
    about = Library().about("cutmix + transmix", Path("page.html"))
    assert about.sections == ("1.3 cutting", "2.5 attention")
    assert about.axes == ("blend", "label")
    assert about.words == (("cutmix", ""), (" + ", ""), ("transmix", ""))
    assert about.picture is None


@pytest.mark.parametrize("recipe", ["none", "a_method_of_the_future(strength=2)"])
def test_what_the_registry_does_not_know_is_text(recipe: str) -> None:
    about = Library().about(recipe, Path("page.html"))
    assert (about.words, about.sections, about.axes) == (((recipe, ""),), (), ())


def test_the_gallerys_pictures_come_first_and_can_be_embedded(docs: Path, tmp_path: Path) -> None:
    gallery = tmp_path / "my gallery"
    (gallery / "pictures").mkdir(parents=True)
    with pytest.raises(RunError, match="no pictures"):
        Library.of_checkout(gallery)
    Image.new("RGB", (900, 300), "red").save(gallery / "pictures" / "cutmix_alpha_0_5_mixup.png")
    Image.new("RGB", (300, 900), "blue").save(gallery / "mixup.png")
    library = Library(docs, gallery, embed=True)
    picture = library.about("cutmix(alpha=0.5) + mixup", tmp_path / "page.html").picture
    assert picture is not None
    assert picture.of == "cutmix(alpha=0.5) + mixup"
    assert picture.address == "my%20gallery/pictures/cutmix_alpha_0_5_mixup.png"
    head, _, body = picture.thumbnail.partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(body)))
    assert (head, image.size) == ("data:image/webp;base64", (440, 147))
    red, _, blue = image.convert("RGB").getpixel((200, 70))
    assert red > 200 > 50 > blue
    other = library.about("cutmix + mixup", tmp_path / "page.html").picture
    assert other is not None
    assert (other.of, other.address) == ("mixup", "my%20gallery/mixup.png")
    assert Library.of_checkout(gallery).gallery == gallery


def test_a_broken_picture_is_told(docs: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        Library(docs, embed=True).about("mixup", Path("page.html"))
