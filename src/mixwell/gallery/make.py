"""A gallery of one's own images: a sheet per recipe, and a page of them."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from mixwell.core.errors import BatchError, IncompatibleRecipe, MixwellError, ParameterError
from mixwell.files import write_whole
from mixwell.gallery.page import MARK, Card, gallery_page
from mixwell.gallery.recipes import Exhibit, exhibits, seed_of, telling_seed
from mixwell.gallery.sheet import sheet

__all__ = ["Watcher", "gallery"]

_PAGE = "index.html"
_TRIES = 300
"""How many seeds are tried for one that mixes every image with another."""
_SHORT = 14
"""Letters of a class's name that a bar has room for."""


class Watcher:
    """What is told while a gallery is drawn; these do nothing."""

    def recipe(self, recipe: str, done: int, total: int) -> None:
        """A recipe is drawn next, after `done` of `total`."""

    def working(self, what: str, done: int, total: int) -> None:
        """Before it acts something is made or trained, and so many steps of it are done."""

    def refused(self, recipe: str, reason: str) -> None:
        """A recipe could not act."""


def gallery(
    images: Float[Tensor, "b c h w"],
    labels: Sequence[str] | Int[Tensor, " b"],
    *,
    recipes: Sequence[str] | None = None,
    out: str | Path,
    seed: int | None = None,
    progress: Watcher | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Draw what recipes make of images: `out/pictures/RECIPE.png` for each, and `out/index.html`, which shows them.

    The page is written after every recipe, and each file at once, so that whatever stops it leaves a page of what was
    drawn. A recipe that cannot act on these images is listed there with the reason.

    Args:
        images: (B, 1 or 3, H, W) floating pixels in [0, 1], B ≥ 2; they are one batch.
        labels: B class names or ids; images of one label are of one class.
        recipes: texts; a method's name alone stands for the recipe in which it can act and be seen. All methods if not
            given.
        out: a folder of its own; one that is there must hold a gallery, whose page and pictures are replaced.
        seed: of all draws; if not given one that mixes every image with another, where there is one.
        progress: told how far it has come.
        notes: paragraphs for the top of the page.

    Returns:
        the page.

    Raises:
        RecipeSyntaxError, UnknownMethod, ParameterError: a recipe cannot be read, or there are none.
        BatchError: images or labels are not these.
        MixwellError: the folder holds something else or cannot be written, or no recipe could act.
        KeyboardInterrupt: passed on, also where what had to be put back raised another error.
    """
    watcher, folder = progress or Watcher(), Path(out)
    if isinstance(labels, Tensor):
        labels = [f"class {label}" for label in labels.tolist()]
    if images.ndim != 4 or not images.is_floating_point() or len(images) < 2 or len(labels) != len(images):
        raise BatchError(
            f"A gallery needs at least two floating images (B, C, H, W) and a label for each, got {images.dtype} "
            f"{tuple(images.shape)} and {len(labels)} labels."
        )
    shown = exhibits(recipes)
    if not shown:
        raise ParameterError("recipes must name at least one recipe, e.g. mixup cutmix; got none.")
    _check_own(folder)
    short = _short_names(labels)
    seed = telling_seed(images, _TRIES) if seed is None else seed
    cards: list[Card] = []
    refused: dict[str, str] = {}

    def write_page() -> None:
        text = gallery_page(
            cards,
            {short[name]: name for name in short},
            images=len(images),
            planned=len(shown),
            refused=refused,
            notes=notes,
        )
        _write(folder / _PAGE, text.encode())

    if not (folder / _PAGE).exists():
        write_page()
    for number, exhibit in enumerate(shown):
        watcher.recipe(exhibit.text, number, len(shown))
        try:
            picture = _drawn(exhibit, images, [short[name] for name in labels], seed, watcher.working)
        except (MixwellError, ModuleNotFoundError, RuntimeError) as error:
            if _interrupted(error):
                raise KeyboardInterrupt from error
            refused[exhibit.text] = str(error)
            watcher.refused(exhibit.text, str(error))
        else:
            file = f"pictures/{exhibit.name}.png"
            _write(folder / file, _png(picture))
            cards.append(Card(exhibit, file, picture.size))
        write_page()
    if not cards:
        recipe, reason = next(iter(refused.items()))
        raise IncompatibleRecipe(f"None of the {len(shown)} recipes could act on these images; {recipe}: {reason}")
    return folder / _PAGE


def _drawn(
    exhibit: Exhibit, images: Tensor, names: Sequence[str], seed: int, working: Callable[[str, int, int], None]
) -> Image.Image:
    """The sheet of one recipe; a method alone may have a seed that shows it better."""
    alone = len(exhibit.about) == 1 and exhibit.about[0].slug == exhibit.name
    own = seed_of(exhibit.name, images, seed) if alone else seed
    return sheet([exhibit.text], images, names, seed=own, progress=working)


def _interrupted(error: BaseException) -> bool:
    """Whether the error arose while an interrupt was on its way, from what had to be put back or was left half done."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, KeyboardInterrupt):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def _png(picture: Image.Image) -> bytes:
    """256 colours are enough, and a fourth of the bytes."""
    buffer = io.BytesIO()
    picture.quantize(256).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _short_names(labels: Sequence[str]) -> dict[str, str]:
    """Every class's name in letters that the bars have, and as short as they are; no two alike."""
    found: dict[str, str] = {}
    for place, name in enumerate(dict.fromkeys(labels), 1):
        plain = "".join(filter(str.isprintable, unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()))
        plain = plain.strip() or f"class {place}"
        short = plain if len(plain) <= _SHORT else f"{plain[: _SHORT - 1]}…"
        taken = short in found.values()
        found[name] = f"{plain[: _SHORT - 4]}… {place}" if taken else short
    return found


def _check_own(folder: Path) -> None:
    """See that nothing but a gallery lies where this one shall.

    Raises:
        ParameterError: something does.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ParameterError(f"{folder} is a file; a gallery needs a folder. Choose another.")
    page = folder / _PAGE
    own = page.is_file() and MARK in page.read_text(encoding="utf-8", errors="replace")
    if not own and any(path.suffix != ".tmp" for path in folder.iterdir()):
        raise ParameterError(f"{folder} holds something that is no gallery. Choose a new or an empty folder.")


def _write(path: Path, data: bytes) -> None:
    try:
        write_whole(path, data)
    except OSError as error:
        raise MixwellError(
            f"{path} cannot be written: {error.strerror or error}. Free space, or choose another folder."
        ) from error
