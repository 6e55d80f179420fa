"""Write what the registry knows: docs/methods, docs/index.md, docs/pairs.md, the README's table, and all pictures.

    python tools/make_docs.py                    texts, and pictures that are missing or out of date
    python tools/make_docs.py --pictures all     the same with every picture drawn anew
    python tools/make_docs.py --pictures none    texts only

Pictures need scikit-image, for its photographs: pip install "mixwell[all]".
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

import mixwell
from mixwell.cli.page import Page, parameter_docs
from mixwell.core.axes import Blend, Need, Piece, SelfBlend, Slot, Statistics
from mixwell.core.compose import LOSS_SLOTS
from mixwell.core.pairs import Verdict, pairs
from mixwell.gallery import matrix, sheet
from mixwell.nets import create_net

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
MIXES = ("mixup", "cutmix", "puzzlemix", "augmix")
"""Columns of the README's picture."""
HOST = "cutmix"
"""What mixes the images for methods that only say something about labels or losses."""
PICTURED = {
    "amr": "update_g_every=1, rec_weight=1000.0, scales=2",
    "attentive_cutmix": "teacher_epochs=100",
    "automix_barycenter": "distance=kl, rec_weight=10.0",
    "comixup": "beta=0.16",
    "token_labeling": "teacher_epochs=100",
    "tokenmix": "teacher_epochs=100",
    "supermix": "teacher_epochs=100, max_unsuccessful_fraction=0.0",
    "transformmix": "teacher_epochs=100, epochs=300, lr=0.003",
    "tokenmixup": "inputs=none",
}
"""Settings under which four photographs show what usual batches do."""
SEEDS = 5_000
"""How many seeds are tried for one whose draws show something."""
SIDE = 160
CROPS = {
    "astronaut": ("astronaut", (20, 0, 420, 400)),
    "cat": ("chelsea", (90, 0, 390, 300)),
    "coffee": ("coffee", (60, 0, 460, 400)),
    "rocket": ("rocket", (130, 20, 520, 410)),
}
"""Name, scikit-image's function, and the square that is shown."""
NOTE = "verdicts"
"""The matrix's note of what it was drawn of."""
MARKS = "<!-- methods: written by tools/make_docs.py -->", "<!-- /methods -->"


# Texts


def texts() -> dict[Path, str]:
    """Every generated text by its file."""
    pages = [Page.of(mixwell.method_of(slug)) for slug in mixwell.methods()]
    found = {DOCS / "methods" / f"{page.slug}.md": method_page(page) for page in pages}
    found[DOCS / "index.md"] = (
        "# Methods\n\nOne page per method, by section of the survey. A recipe adds methods up, such as "
        "`cutmix + decouplemix`; see the [README](../README.md), and [which methods go together](pairs.md).\n\n"
        f"{table(pages, 'methods/')}\n"
    )
    found[DOCS / "pairs.md"] = pairs_page(verdicts())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, start, rest = readme.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (start and end):
        raise SystemExit(f"README.md must contain the lines {MARKS[0]!r} and {MARKS[1]!r}, around its table.")
    found[ROOT / "README.md"] = f"{before}{start}\n{table(pages, 'docs/methods/')}\n{end}{after}"
    return found


def table(pages: list[Page], folder: str) -> str:
    """One row per method, with links into `folder`."""
    rows = ["| method | what it does | decides | paper |", "|---|---|---|---|"]
    for (section, family), members in groupby(pages, key=lambda page: (page.section, page.family)):
        rows.append(f"| **{section} {family}** | | | |")
        rows += [
            f"| [`{page.slug}`]({folder}{page.slug}.md) | {cell(page.summary)} | {', '.join(page.axes)} | "
            f"{page.venue}, {linked(page)} |"
            for page in members
        ]
    return "\n".join(rows)


@cache
def verdicts() -> Mapping[tuple[str, str], Verdict]:
    """What becomes of every pair of methods."""
    return pairs()


def pairs_page(found: Mapping[tuple[str, str], Verdict]) -> str:
    """Which methods go together: the picture, what its colours mean, and the partners of each method."""
    slugs = mixwell.methods()
    accepted = sum(verdict.accepted for verdict in found.values())
    slots = Counter(verdict.slot for verdict in found.values() if verdict.slot)
    unable = len(found) - accepted - slots.total()
    decided = ", ".join(f"{slot} {count:,}" for slot, count in slots.most_common())
    rows = ["| method | goes with | |", "|---|---|---|"]
    for slug in slugs:
        partners = [other for other in slugs if other != slug and found[slug, other].accepted]
        rows.append(f"| [`{slug}`](methods/{slug}.md) | {len(partners)} | {', '.join(partners)} |")
    parts = [
        "# Which methods go together",
        f"{accepted:,} of the {len(found):,} recipes of two methods, `A + B`, are accepted, and each of these trains. "
        "The others are refused with the reason. Which method comes first never decides that; it only decides whose "
        "suggestions are taken where both have one.",
        "![A matrix of all methods, with a coloured cell for every pair](pictures/pairs.png)",
        "Rows are first methods, columns second ones; sections of the survey stand apart.",
        f"- **green**: they go together ({accepted:,}).\n"
        f"- **grey**: both decide the same, and a recipe has one of each ({slots.total():,}: {decided}). "
        "`0.5*A | 0.5*B` switches between them.\n"
        f"- **orange**: one of them could not act beside the other ({unable:,}); it needs something that the mixes do "
        "not have. The message says what would work.",
        "A third method can bring what two of them miss: `augmix + decouplemix` mixes no images, and `augmix + mixup + "
        "decouplemix` does. What a recipe needs of the network is checked when it is bound to one.",
        "`mixwell list --pairs` prints the matrix, `mixwell list --pairs METHOD` one method's partners and why the "
        "others are none, and `--json` makes data of both.",
        "\n".join(rows),
    ]
    return "\n\n".join(parts) + "\n"


def method_page(page: Page) -> str:
    """The page of one method."""
    entry = mixwell.method_of(page.slug)
    pieces = entry.build()
    _, *paragraphs = entry.doc.split("\n\n")
    citation, *body = paragraphs
    split = next((i for i, text in enumerate(body) if text.startswith("Paper and code:")), len(body))
    differences = "\n\n".join(body[split:]).removeprefix("Paper and code:").strip()
    parts = [
        f"# {page.title}",
        f"{page.summary[:1].upper()}{page.summary[1:]}.",
        *map(prose, body[:split]),
        "## Use",
        usage(page.slug),
        *([picture(page)] if pictured(page.slug) else []),
        "## Parameters",
        parameters(page),
        "## Pieces",
    ]
    if pieces.essential:
        parts += [
            "Essential pieces are what the method is about; suggested ones give way to another method of the recipe.",
            pieces_table(pieces),
        ]
    if page.beside is not None:
        parts.append(f"It comes with the recipe `{page.beside}`.")
    if needs := needs_lines(pieces.essential):
        parts += ["## Needs", needs]
    if differences:
        parts += ["## Paper and code", prose(differences)]
    if page.conformance is not None:
        parts += ["## Conformance", f"Compared by `mixwell conformance` with: {page.conformance.rstrip('.')}."]
    cited = prose(citation).replace(page.reference, linked(page))
    parts += ["## Citation", f"{cited} Section {page.section} of the survey."]
    return "\n\n".join(parts) + "\n"


def usage(slug: str) -> str:
    """Three lines of Python and one of the shell."""
    text = recipe_text(slug)
    tokens = mixwell.create(text, 10).needs_tokens
    raw = needs_pixels(picture_text(slug))
    create = f"mixwell.create({json.dumps(text)}, num_classes=10{', pixels=pixels' if raw else ''})"
    parts = [
        f"```python\nimport mixwell\n\nrecipe = {create}\nloss = recipe(model, images, labels)\n```",
        "`pixels` says how the images were normalised: `mixwell.Pixels(mean, std)`." if raw else "",
        f"```\nmixwell train --recipe {shlex.quote(text)}{' --model vit-s' if tokens else ''}\n```",
    ]
    return "\n\n".join(filter(None, parts))


def needs_pixels(text: str) -> bool:
    """Whether the recipe looks at raw pixels; it says so when it misses them."""
    recipe = mixwell.create(text, 4)
    net, images = create_net("vit-s" if recipe.needs_tokens else "cnn-s", 4), torch.rand(4, 3, 32, 32)
    batch = mixwell.Batch(images, torch.arange(4))
    try:
        recipe.prepare(lambda: [batch], "random numbers for the documentation")
        recipe.use_data(train=lambda: [batch], held_out=lambda: [batch]).bind(net, images)
        recipe.before_epoch(net)
        next(recipe.turns(net, batch))
    except mixwell.BatchError as error:
        if "raw pixels" not in str(error):
            raise
        return True
    return False


def parameters(page: Page) -> str:
    """A row per parameter."""
    if not page.parameters:
        return "None."
    docs = parameter_docs(mixwell.method_of(page.slug))
    rows = [f"| `{name}` | `{default!r}` | {cell(docs[name])} |" for name, default in page.parameters.items()]
    return "\n".join(["| name | default | |", "|---|---|---|", *rows])


def pieces_table(pieces: mixwell.Pieces) -> str:
    """A row per piece, in the order of the axes."""
    order = list(Slot)
    roles = [
        *((piece, "essential") for piece in pieces.essential),
        *((piece, "suggested") for piece in pieces.suggested),
    ]
    rows = [
        f"| {piece.slot.axis} | `{type(piece).__name__}` | {cell(first_sentence(piece))} | {role} |"
        for piece, role in sorted(roles, key=lambda pair: order.index(pair[0].slot))
    ]
    return "\n".join(["| axis | piece | | |", "|---|---|---|---|", *rows])


def needs_lines(pieces: tuple[Piece, ...]) -> str:
    """What the essential pieces ask of the blend and of the network."""
    order = list(Need)
    asked = sorted({need for piece in pieces for need in piece.needs}, key=order.index)
    looks = sorted({want.kind.replace("_", " ") for piece in pieces for want in (*piece.wants(), *piece.views())})
    lines = [f"- of the mixes: {need.value}" for need in asked]
    lines += [f"- of the network: its {look}" for look in looks]
    if not looks and any(piece.network for piece in pieces):
        lines.append("- a network at hand: it cannot be used with `mix_batch`")
    return "\n".join(lines)


def first_sentence(piece: Piece) -> str:
    return " ".join((inspect.getdoc(type(piece)) or "").partition("\n\n")[0].split())


def prose(text: str) -> str:
    """A docstring as Markdown: only asterisks outside code mean something else there."""
    return "".join(part if i % 2 else part.replace("*", r"\*") for i, part in enumerate(re.split(r"(`[^`]*`)", text)))


def cell(text: str) -> str:
    return prose(text).replace("|", r"\|")


def linked(page: Page) -> str:
    """The paper with its address."""
    return f"[{page.reference}]({page.url})"


def recipe_text(slug: str) -> str:
    """The method alone if it makes images of its own, beside a host if it does not."""
    pieces = mixwell.method_of(slug).build()
    acts = pieces.beside or any(
        isinstance(piece, Blend | SelfBlend | Statistics) for piece in (*pieces.essential, *pieces.suggested)
    )
    return slug if acts else f"{HOST} + {slug}"


# Pictures


def pictured(slug: str) -> bool:
    """Whether the method can be seen: it changes images, maps or labels, not only the loss."""
    pieces = mixwell.method_of(slug).build()
    return pieces.beside is not None or any(piece.slot not in LOSS_SLOTS for piece in pieces.essential)


def picture_text(slug: str) -> str:
    """The recipe of the picture: it always mixes, and in the network's first stage if it mixes hidden maps."""
    entry = mixwell.method_of(slug)
    given = [PICTURED[slug]] if slug in PICTURED else []
    if entry.gate and entry.build().prob < 1:
        given.append(f"{entry.gate}=1.0")
    if "sites" in entry.parameters:
        given.append("sites=(1,)")
    call = f"{slug}({', '.join(given)})" if given else slug
    return recipe_text(slug).replace(slug, call)


def picture(page: Page) -> str:
    return (
        f"![Four photographs, and what {page.title} makes of them](../pictures/{page.slug}.png)\n\n"
        "Bars show the labels; see [how the pictures are made](../pictures/README.md)."
    )


def photographs() -> tuple[Tensor, list[str]]:
    """(4, 3, 160, 160) pixels in [0, 1], and their names."""
    from skimage import data

    found = []
    for function, box in CROPS.values():
        square = Image.fromarray(getattr(data, function)()).crop(box).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        found.append(torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255)
    return torch.stack(found), list(CROPS)


def telling_seed(images: Tensor) -> int:
    """The first seed that mixes no photograph with itself, and with shares that can be seen."""

    def telling(seed: int, text: str) -> bool:
        _, targets = mixwell.create(text, len(images), seed=seed).mix_batch(images, torch.arange(len(images)))
        shares = targets.dense()
        return bool((shares.amax(1) < 0.8).all())

    for seed in range(SEEDS):
        if all(telling(seed, text) for text in ("mixup", "cutmix")):
            return seed
    raise SystemExit(f"None of {SEEDS} seeds mixes every photograph with another by a share of at least 20%.")


def seed_of(slug: str, images: Tensor, seed: int) -> int:
    """A seed that shows the method; for augmentations of single images one that changes every photograph."""
    pieces = mixwell.method_of(slug).build().essential
    if any(piece.slot is not Slot.SELF or piece.network for piece in pieces) or not pieces:
        return seed

    def least_change(tried: int) -> float:
        recipe = mixwell.create(slug, len(images), seed=tried, pixels=mixwell.Pixels((0.0,), (1.0,)))
        mixed, _ = recipe.mix_batch(images, torch.arange(len(images)))
        return float((mixed - images).abs().mean((1, 2, 3)).amin())

    return max(range(40), key=least_change)


def draw(which: str) -> None:
    """Draw the pictures that are missing, or all of them, and drop those of methods that are gone."""
    folder = DOCS / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {folder / f"{slug}.png": slug for slug in mixwell.methods() if pictured(slug)}
    table_of_pairs = folder / "pairs.png"
    for path in set(folder.glob("*.png")) - {*wanted, folder / "mixes.png", table_of_pairs}:
        path.unlink()
    if which == "all" or not shows(table_of_pairs, verdicts()):
        note = PngInfo()
        note.add_text(NOTE, digest(verdicts()))
        save(matrix(mixwell.methods(), verdicts()).quantize(64), table_of_pairs, note)
    images, names = photographs()
    seed = telling_seed(images)
    for path, slug in wanted.items():
        if which == "all" or not path.is_file():
            # 256 colours are enough for a method's page, and a fourth of the bytes.
            shown = sheet([picture_text(slug)], images, names, seed=seed_of(slug, images, seed))
            save(shown.quantize(256), path)
    mixes = folder / "mixes.png"
    if which == "all" or not mixes.is_file():
        save(sheet(MIXES, images, names, seed=seed, across=True, columns=3), mixes)


def digest(found: Mapping[tuple[str, str], Verdict]) -> str:
    """A text that differs between verdicts that look different in the matrix."""
    shown = [(*pair, verdict.accepted, bool(verdict.slot)) for pair, verdict in found.items()]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def shows(path: Path, found: Mapping[tuple[str, str], Verdict]) -> bool:
    """Whether a matrix was drawn of these verdicts, which it notes: letters differ between machines."""
    if not path.is_file():
        return False
    with Image.open(path) as picture:
        return picture.info.get(NOTE) == digest(found)


def save(picture: Image.Image, path: Path, note: PngInfo | None = None) -> None:
    picture.save(path, optimize=True, pnginfo=note)
    print(f"drew {path.relative_to(ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/ and the README's table from the registry.")
    parser.add_argument("--pictures", choices=("missing", "all", "none"), default="missing")
    which = parser.parse_args().pictures
    wanted = texts()
    for path in set((DOCS / "methods").glob("*.md")) - set(wanted):
        path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    if which != "none":
        draw(which)


if __name__ == "__main__":
    main()
