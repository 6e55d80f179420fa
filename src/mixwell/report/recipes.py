"""What the registry knows of a recipe's methods: where they stand in the survey, what they decide, their pages."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from mixwell.core.algebra import Call, Sum, Switched, parse
from mixwell.core.errors import MixwellError, RunError
from mixwell.core.registry import Method, method_of

__all__ = ["About", "Library", "Picture"]


@dataclass(frozen=True)
class Picture:
    """A picture of what a recipe does, or one of its methods.

    Attributes:
        of: the recipe or the method.
        address: of the file.
        thumbnail: the picture, small, as a data URI; "" if it was not asked for.
    """

    of: str
    address: str
    thumbnail: str


@dataclass(frozen=True)
class About:
    """A recipe in the registry's words.

    Attributes:
        words: the recipe's text in parts, each with the address of its page; "" for none.
        picture: of what it does; None if there is none.
        sections: of the survey, such as "1.3 cutting".
        axes: what its methods decide, such as "blend".
    """

    words: tuple[tuple[str, str], ...]
    picture: Picture | None
    sections: tuple[str, ...]
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Library:
    """Where pages and pictures are.

    Attributes:
        docs: folder that holds methods/SLUG.md and pictures/SLUG.png; None for no links.
        gallery: folder of pictures that are named by recipe or method, or of a gallery; looked at first.
        embed: whether pages hold small copies of the pictures.
    """

    docs: Path | None = None
    gallery: Path | None = None
    embed: bool = False

    @classmethod
    def of_checkout(cls, gallery: Path | None = None, *, embed: bool = False) -> Library:
        """With the docs of the checkout that mixwell runs from, if it is one.

        Raises:
            RunError: the gallery is not there, or holds no picture.
        """
        if gallery is not None and not _pictures(gallery) and not _pictures(gallery / "pictures"):
            raise RunError(f"There are no pictures in {gallery}. Give a folder that `mixwell gallery` made.")
        docs = Path(__file__).resolve().parents[3] / "docs"
        return cls(docs if (docs / "methods").is_dir() else None, gallery, embed)

    def about(self, recipe: str, page: Path) -> About:
        """What is known of a recipe, with addresses relative to a page; unknown methods have none."""
        try:
            slugs = list(dict.fromkeys(_slugs(parse(recipe))))
        except MixwellError:
            slugs = []
        methods = [method_of(slug) for slug in slugs]
        words = re.split(rf"\b({'|'.join(slugs)})\b(?!\s*=)", recipe) if slugs else [recipe]
        return About(
            tuple((word, self._page(word, page) if word in slugs else "") for word in words if word),
            self._picture(recipe, slugs, page),
            tuple(dict.fromkeys(section_of(method) for method in methods)),
            tuple(dict.fromkeys(axis for method in methods for axis in _axes(method))),
        )

    def _picture(self, recipe: str, slugs: Sequence[str], page: Path) -> Picture | None:
        """The picture of the recipe, or else of its first method that has one."""
        names = {re.sub(r"\W+", "_", recipe).strip("_")[:60]: recipe, **{slug: slug for slug in slugs}}
        own = [] if self.gallery is None else [self.gallery, self.gallery / "pictures"]
        docs = [] if self.docs is None else [self.docs / "pictures"]
        for folders, (name, of), ending in product((own, docs), names.items(), _ENDINGS):
            for folder in folders:
                if (file := folder / f"{name}{ending}").is_file():
                    return Picture(of, _address(file, page), _thumbnail(file) if self.embed else "")
        return None

    def _page(self, slug: str, page: Path) -> str:
        if self.docs is None or not (found := self.docs / "methods" / f"{slug}.md").is_file():
            return ""
        return _address(found, page)


_ENDINGS = (".png", ".webp", ".jpg")
_THUMBNAIL = (440, 440)
"""Largest width and height of a small copy in pixels."""


def _pictures(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in _ENDINGS] if folder.is_dir() else []


@cache
def _thumbnail(picture: Path) -> str:
    try:
        with Image.open(picture) as image:
            small = image.convert("RGB")
    except OSError as error:
        raise RunError(f"The picture {picture} cannot be read: {error}. Replace it, or leave out --embed.") from error
    small.thumbnail(_THUMBNAIL)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=75)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def section_of(method: Method) -> str:
    """The survey's number and title, as the method's folder has it."""
    return f"{method.section} {method.build.__module__.split('.')[-2]}"


def _axes(method: Method) -> list[str]:
    return [piece.slot.axis for piece in method.build().essential] or ["recipe"]


def _slugs(node: Any) -> Iterator[str]:
    """The methods of a recipe and of the recipes inside it, in order."""
    if isinstance(node, Call):
        yield node.slug
        for _, value in node.given:
            yield from _slugs(value)
    elif isinstance(node, Sum):
        for term in node.terms:
            yield from _slugs(term)
    elif isinstance(node, Switched):
        for _, option in node.options:
            yield from _slugs(option)


def _address(of: Path, page: Path) -> str:
    """Relative where both are on one drive."""
    try:
        return quote(Path(os.path.relpath(of.resolve(), page.resolve().parent)).as_posix())
    except ValueError:
        return of.resolve().as_uri()
