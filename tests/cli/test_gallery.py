from __future__ import annotations

import re
import signal
import sys

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    """Three pictures of noise, and a file that is none."""
    for name in ("owl", "fox", "cat"):
        noise = torch.randint(256, (40, 50, 3), dtype=torch.uint8)
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise.numpy()).save(path)
    (tmp_path / "images" / "broken.jpg").write_bytes(b"nothing")
    return tmp_path / "images"


def test_a_gallery_of_ones_own_images(run, folder, tmp_path):
    out = tmp_path / "out"
    given = ("--images", str(folder), "--size", "32", "--recipes", "mixup", "puzzlemix + cutmix", "transmix")
    found = run("gallery", *given, "-o", str(out))
    assert found.code == 0
    assert (
        found.out == f"Drew 2 of 3 recipes. 1 could not act, and the page says why. The page is {out / 'index.html'}\n"
    )
    assert "broken.jpg" in found.err
    assert "[3/3] transmix(switch_prob=1.0)" in found.err
    assert "'puzzlemix + cutmix' cannot act here: puzzlemix and cutmix both decide the blend" in found.err.replace(
        "\n", " "
    )
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["mixup.png", "transmix.png"]
    page = (out / "index.html").read_text()
    for words in (str(folder), "owl", "fox", "cat", "both decide the blend"):
        assert words in page


def test_fewer_images_can_be_shown(run, folder, tmp_path):
    widths = []
    for count in ("2", "3"):
        out = tmp_path / count
        assert (
            run(
                "gallery",
                "--images",
                str(folder),
                "--size",
                "32",
                "--count",
                count,
                "--recipes",
                "mixup",
                "-o",
                str(out),
            ).code
            == 0
        )
        with Image.open(out / "pictures" / "mixup.png") as picture:
            widths.append(picture.width)
    assert widths[1] - widths[0] == 4 * 32 + 8


def test_without_images_there_are_photographs(run, tmp_path, monkeypatch):
    pytest.importorskip("skimage")
    found = run("gallery", "--size", "32", "--recipes", "cutmix", "-o", str(tmp_path / "out"))
    assert found.code == 0
    assert "astronaut" in (tmp_path / "out" / "index.html").read_text()
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    missing = run("gallery", "--recipes", "cutmix", "-o", str(tmp_path / "none"))
    assert missing.code == 1
    assert "mixwell[vision]" in missing.err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("--recipes", "mixup"), 2, "--out"),
        (("-o", "out", "--images", "nowhere"), 1, "Expected a folder of images"),
        (("-o", "out", "--images", "images", "--size", "33"), 1, "multiple of 8"),
        (("-o", "out", "--images", "images", "--count", "1"), 1, "2 … 16"),
        (("-o", "out", "--images", "images", "--recipes", "mixop"), 1, "did you mean 'mixup'"),
        (("-o", "images", "--images", "images"), 1, "holds something that is no gallery"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(run, folder, monkeypatch, argv, code, message):
    monkeypatch.chdir(folder.parent)
    found = run("gallery", *argv, columns=200)
    assert found.code == code
    assert message in found.err
    assert not (folder.parent / "out").exists()
    assert not (folder / "index.html").exists()


def test_an_interrupt_leaves_a_page_of_what_was_drawn(process, folder, tmp_path):
    out = tmp_path / "out"
    dear = ["amr", "amr(beta=0.5)", "amr(beta=0.25)"]
    child = process(
        "gallery", "--images", str(folder), "--size", "32", "-o", str(out), "--recipes", "mixup", *dear, "cutmix",
        environment={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.stderr is not None
    told = []
    for line in child.stderr:
        told.append(line)
        # Python loses an interrupt that comes while it runs a callback: who sees it go on presses again.
        if re.match(r"\[\d/5\] amr", line):
            child.send_signal(signal.SIGINT)
    assert child.wait(timeout=60) == 130, told
    assert "Traceback" not in "".join(told)
    begun = [line for line in told if re.match(r"\[\d/5\]", line)]
    assert 2 <= len(begun) <= 4
    drawn = sorted(path.name for path in (out / "pictures").iterdir())
    assert len(drawn) == len(begun) - 1
    assert drawn[-1] == "mixup.png"
    for name in drawn:
        with Image.open(out / "pictures" / name) as picture:
            picture.load()
    page = (out / "index.html").read_text()
    assert sorted(re.findall(r'src="pictures/([^"]+)"', page)) == drawn
    assert not list(out.rglob("*.tmp"))
