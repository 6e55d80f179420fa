"""Write what registry and results say: docs/methods, tables, parts of guides, the README's table, and all pictures.

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
from collections import Counter
from collections.abc import Mapping
from functools import cache
from itertools import groupby
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

import mixwell
from method_facts import RESULTS, bibtex, leaderboards, our_result, published
from method_usage import usage
from mixwell.cli.page import Page, parameter_docs
from mixwell.core.axes import Need, Piece, Slot
from mixwell.core.pairs import Verdict, pairs
from mixwell.gallery import matrix, photographs, sheet
from mixwell.gallery.recipes import picture_text, pictured, recipe_text, seed_of, telling_seed

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
MIXES = ("mixup", "cutmix", "puzzlemix", "augmix")
"""Columns of the README's picture."""
AXES = ("pairing", "ratio", "blend", "place", "label", "loss")
"""The questions, as the matrix of methods asks them."""
NOTE = "verdicts"
"""The matrix's note of what it was drawn of."""


# Texts


def texts() -> dict[Path, str]:
    """Every generated text by its file."""
    pages = [Page.of(mixwell.method_of(slug)) for slug in mixwell.methods()]
    found = {DOCS / "methods" / f"{page.slug}.md": method_page(page) for page in pages}
    found[DOCS / "methods.md"] = (
        "# Methods\n\nOne page per method, by section of the survey. A recipe adds methods up, such as "
        "`cutmix + decouplemix`; see [which questions each answers](matrix.md), [which methods go together](pairs.md), "
        "and [a picture of each](gallery.md).\n\n"
        f'<div class="stacked methods" markdown="1">\n\n{table(pages, "methods/")}\n\n</div>\n'
    )
    found[DOCS / "matrix.md"] = matrix_page(pages)
    found[DOCS / "pairs.md"] = pairs_page(verdicts())
    found[DOCS / "gallery.md"] = gallery_page(pages)
    found[ROOT / "README.md"] = filled(ROOT / "README.md", methods=table(pages, "docs/methods/"))
    choosing = DOCS / "guides" / "choosing.md"
    found[choosing] = filled(
        choosing,
        results=leaderboards(),
        noise=leaderboards(RESULTS.with_name("label-noise")),
        crops=leaderboards(RESULTS.with_name("crop-flip")),
    )
    return found


def filled(path: Path, **texts: str) -> str:
    """A file that is written by hand, with each text between the marks of its name."""
    whole = path.read_text(encoding="utf-8")
    for name, text in texts.items():
        start, end = f"<!-- {name}: written by tools/make_docs.py -->\n", f"<!-- /{name} -->"
        before, found, rest = whole.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{path.name} must contain the lines {start.strip()!r} and {end!r}.")
        whole = "".join([before, start, f"{text}\n" if text else "", end, after])
    return whole


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
        "[![A matrix of all methods, with a coloured cell for every pair](pictures/pairs.png)](pictures/pairs.png)",
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


def gallery_page(pages: list[Page]) -> str:
    """The pictures of all methods by section, each of which leads to the method's page."""
    parts = [
        "# Gallery",
        "What each method makes of four photographs; a picture leads to the method's page. "
        "[How they are made](pictures/README.md), and what the rows show. `mixwell gallery --images DIR -o DIR` draws "
        "them of images of your own.",
        "Sections: "
        + ", ".join(
            f"[{section} {family}](#{section.replace('.', '')}-{family})"
            for section, family in dict.fromkeys((page.section, page.family) for page in pages)
        )
        + ".",
    ]
    for (section, family), found in groupby(pages, key=lambda page: (page.section, page.family)):
        members = list(found)
        parts.append(f"## {section} {family}")
        for page in members:
            if pictured(page.slug):
                shown = f"[![What {page.title} makes of them](pictures/{page.slug}.png)](methods/{page.slug}.md)"
                parts += [f"[**{page.title}**](methods/{page.slug}.md): {cell(page.summary)}.", shown]
        if unseen := [f"[{page.title}](methods/{page.slug}.md)" for page in members if not pictured(page.slug)]:
            parts.append(f"Not seen, as only the loss is changed: {', '.join(unseen)}.")
    return "\n\n".join(parts) + "\n"


def matrix_page(pages: list[Page]) -> str:
    """Which questions each method answers: a mark for each axis."""
    rows = [f"| method | {' | '.join(AXES)} |", f"|---|{'|'.join([':-:'] * len(AXES))}|"]
    for (section, family), members in groupby(pages, key=lambda page: (page.section, page.family)):
        rows.append(f"| **{section} {family}** |{' |' * len(AXES)}")
        rows += [f"| [`{page.slug}`](methods/{page.slug}.md) | {' | '.join(marks(page))} |" for page in members]
    parts = [
        "# Which questions each method answers",
        "- ● what the method is about: it has an answer of its own, which always holds.\n"
        "- ○ the paper's choice, which gives way to other methods of the recipe.\n"
        "- no mark: the method leaves the question to the others, or to the plain answer.",
        "The questions: who mixes with whom (*pairing*), how much of each (*ratio*), how the new image is made "
        "(*blend*), where in the network (*place*), what its label is (*label*), and what is minimised (*loss*). "
        "`random_mix` and others that choose among recipes leave all of them to those. [Which methods go together]"
        "(pairs.md) follows from this table, and from what each needs of the others.",
        f'<div class="matrix" markdown="1">\n\n{chr(10).join(rows)}\n\n</div>',
    ]
    return "\n\n".join(parts) + "\n"


def marks(page: Page) -> list[str]:
    """● where the method has an essential piece on the axis, ○ where it has but a suggested one."""
    essential, suggested = ({Slot(name).axis for name in found} for found in (page.essential, page.suggested))
    return ["●" if axis in essential else "○" if axis in suggested else "" for axis in AXES]


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
        usage(page.slug, recipe_text(page.slug)),
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
    parts += ["## Needs and cost", *filter(None, [needs_lines(pieces.essential), cost_line(page)])]
    if differences:
        parts += ["## Paper and code", prose(differences[:1].upper() + differences[1:])]
    if page.conformance is not None:
        parts += ["## Conformance", f"Compared by `mixwell conformance` with: {page.conformance.rstrip('.')}."]
    if result := our_result(page.slug):
        parts += ["## Our result", result]
    if figures := published(page.slug):
        parts += ["## Published results", figures]
    cited = prose(citation).replace(page.reference, linked(page))
    parts += ["## Citation", f"{cited} Section {page.section} of the survey."]
    parts += filter(None, [bibtex(page, entry)])
    return "\n\n".join(parts) + "\n"


def parameters(page: Page) -> str:
    """A row per parameter."""
    if not page.parameters:
        return "None."
    docs = parameter_docs(mixwell.method_of(page.slug))
    rows = [f"| `{name}` | `{default!r}` | {cell(docs[name])} |" for name, default in page.parameters.items()]
    defaults = "Defaults are the paper's where it gives them; what its code does otherwise is said below."
    return "\n".join([defaults, "", "| name | default | |", "|---|---|---|", *rows])


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


def cost_line(page: Page) -> str:
    """What a training takes besides one pass over the mix, as the pieces declare it."""
    if page.cost:
        return f"Besides one training pass over the mix: {', '.join(page.cost)}."
    return "Nothing is declared besides one training pass over the mix."


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


# Pictures


def picture(page: Page) -> str:
    return (
        f"![Four photographs, and what {page.title} makes of them](../pictures/{page.slug}.png)\n\n"
        "Bars show the labels; see [how the pictures are made](../pictures/README.md)."
    )


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
    found = photographs()
    images, names = found.images, found.labels
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
