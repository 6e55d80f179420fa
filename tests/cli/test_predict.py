"""Image files are seen as the run's test set is."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch
from PIL import Image

from mixwell.core.errors import ParameterError
from mixwell.data import from_datasets, load
from mixwell.data.folder import ImageFolder
from mixwell.predict import image_files, predict, view
from mixwell.train import Run, trained

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits(trained_run):
    """A run on digits, put together again."""
    return trained(Run.read(trained_run("cutmix")))


@pytest.fixture
def files(digits, tmp_path):
    """The first test images as files, in a folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    for row in range(7):
        Image.fromarray(digits.data.test[row][0][0].numpy()).save(folder / f"{row}.png")
    return folder


def test_files_are_classified_as_the_test_set_is(digits, files):
    found = predict(digits, [files], top=10, batch_size=3)
    assert [each.path.name for each in found.found] == [f"{row}.png" for row in range(7)]
    assert found.unread == {}
    images = torch.stack([digits.data.test[row][0] for row in range(7)]).float() / 255
    with torch.no_grad():
        wanted = digits.predictor(digits.data.pixels.normalise(images)).softmax(1)
    for row, each in zip(wanted, found.found, strict=True):
        torch.testing.assert_close(torch.tensor(each.probabilities), row.sort(descending=True).values)
        assert list(each.classes) == [digits.data.classes[label] for label in row.argsort(descending=True)]


def test_a_table_names_what_could_not_be_read(run, trained_run, files):
    (files / "8.png").write_bytes(b"nothing")
    found = run("predict", str(trained_run("cutmix")), str(files), str(files / "none.png"), "--top", "2", columns=200)
    assert found.code == 0
    lines = found.out.splitlines()
    assert len(lines) == 2 + 7
    assert lines[2].split()[0] == str(files / "0.png")
    assert lines[2].count("%") == 2
    assert "8.png" in found.err
    assert "none.png: there is no such file" in found.err
    assert "none.png" not in found.out


def test_a_narrow_screen_shows_names(run, trained_run, files):
    found = run("predict", str(trained_run("cutmix")), str(files), columns=60)
    assert all(len(line) <= 60 for line in found.out.splitlines())
    assert str(files) not in found.out
    assert found.out.count("%") == 7 * 3


def test_json_and_csv_hold_the_same(run, trained_run, files):
    argv = ("predict", str(trained_run("cutmix")), str(files), "--top", "3")
    listed = json.loads(run(*argv, "--json").out)
    rows = list(csv.DictReader(io.StringIO(run(*argv, "--csv").out)))
    assert len(listed) == 7
    assert len(rows) == 7 * 3
    flat = [
        (each["image"], str(rank), ranked["class"], ranked["probability"])
        for each in listed
        for rank, ranked in enumerate(each["classes"], 1)
    ]
    for (image, rank, name, share), row in zip(flat, rows, strict=True):
        assert (image, rank, name) == (row["image"], row["rank"], row["class"])
        assert share == pytest.approx(float(row["probability"]), rel=1e-5)
    assert run(*argv, "--json", "--csv").code == 1


def test_where_nothing_can_be_read_the_command_fails(run, trained_run, tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    argv = ("predict", str(trained_run("cutmix")), str(tmp_path / "a.png"), str(tmp_path / "empty"))
    for how in ((), ("--json",)):
        found = run(*argv, *how, columns=200)
        assert found.code == 1
        assert "a.png: cannot identify" in found.err
        assert "empty: no images in this folder" in found.err
        assert found.out == ("[]\n" if how else "")
    assert "No images were given" in run("predict", str(trained_run("cutmix"))).err
    assert run("predict", str(tmp_path), str(tmp_path / "a.png")).code == 1


def test_large_colour_pictures_are_resized_cropped_and_made_grey(digits, tmp_path):
    picture = Image.new("RGB", (320, 160), (255, 0, 0))
    picture.paste((0, 255, 0), (80, 0, 240, 160))
    picture.save(tmp_path / "wide.png")
    seen = view(tmp_path / "wide.png", digits.data)
    assert seen.shape == (1, 16, 16)
    assert seen[:, :, 1:-1].unique().tolist() == [150], "green, 0.587 · 255, but for what the edges let in"


def test_fashion_has_a_border(tmp_path):
    data = load("fashion-mini")
    image = data.test[3][0]
    whole = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    whole.save(tmp_path / "whole.png")
    whole.crop((2, 2, 30, 30)).save(tmp_path / "inner.png")
    whole.crop((2, 2, 30, 30)).resize((280, 280), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    assert torch.equal(view(tmp_path / "whole.png", data), image)
    assert torch.equal(view(tmp_path / "inner.png", data), image)
    large = view(tmp_path / "large.png", data)
    assert not large[:, :2].any()
    without, _ = ImageFolder([tmp_path / "large.png"], [0], size=32)[0]
    assert (large.float() - image.float()).abs().mean() < (without.float() - image.float()).abs().mean() / 2


def test_folders_of_images_are_seen_as_the_loader_reads_them(tmp_path):
    noise = torch.randint(256, (50, 90, 3), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(tmp_path / "a.jpg")
    files = ImageFolder([tmp_path / "a.jpg"] * 2, [0, 1], size=24)
    data = from_datasets(files, files)
    assert torch.equal(view(tmp_path / "a.jpg", data), files[0][0])


def test_images_are_changed_as_at_evaluation(trained_run, files, monkeypatch):
    net = trained(Run.read(trained_run("stackmix")))
    shapes = []
    net.predictor.register_forward_pre_hook(lambda module, given: shapes.append(tuple(given[0].shape)))
    predict(net, [files])
    assert shapes == [(7, 1, 32, 16)]


def test_binary_losses_give_a_probability_for_each_class(trained_run, files):
    net = trained(Run.read(trained_run(criterion="bce")))
    (first, *_) = predict(net, [files], top=10).found
    images = torch.stack([net.data.test[0][0]]).float() / 255
    with torch.no_grad():
        wanted = net.predictor(net.data.pixels.normalise(images)).sigmoid().sort(descending=True).values
    torch.testing.assert_close(torch.tensor([first.probabilities]), wanted)


def test_each_file_is_taken_once(files):
    found = [path.name for path, _ in image_files([files / "3.png", files, str(files / "3.png")])]
    assert found == ["3.png", "0.png", "1.png", "2.png", "4.png", "5.png", "6.png"]


@pytest.mark.parametrize("change", [{"top": 0}, {"batch_size": 0}, {"top": True}])
def test_numbers_are_checked(digits, files, change):
    with pytest.raises(ParameterError, match="whole number ≥ 1"):
        predict(digits, [files], **change)


def test_averaged_weights_are_another_network(run, trained_run, files):
    folder = str(trained_run(ema=0.9))
    last, averaged = (run("predict", folder, str(files), "--json", *how).out for how in ((), ("--ema",)))
    assert last != averaged
