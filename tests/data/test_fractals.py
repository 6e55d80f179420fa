"""Pictures to mix with: fractals that are distinct, seeded and cached, and folders of pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

import mixwell
from mixwell.data.fractals import fractals, pictures_in


def test_every_picture_is_another_and_none_is_plain(tmp_path):
    pictures = fractals(80, 32, folder=tmp_path)
    assert pictures.shape == (80, 3, 32, 32)
    assert pictures.dtype == torch.uint8
    assert len(pictures.flatten(1).unique(dim=0)) == 80
    levels = pictures.double()
    assert levels.flatten(1).std(1).min() > 15
    assert (levels.amax(1) - levels.amin(1)).mean((1, 2)).min() > 3, "they are coloured"
    quarters = levels.unfold(2, 16, 16).unfold(3, 16, 16).flatten(4).std(-1).amax(1)
    assert (quarters > 5).float().mean() > 0.95, "they fill the frame"


def test_pictures_depend_on_the_seed_alone(tmp_path, global_random_states):
    before = global_random_states()
    first = fractals(5, 24, seed=1, folder=tmp_path / "one")
    torch.set_default_dtype(torch.float64)
    try:
        again = fractals(5, 24, seed=1, folder=tmp_path / "two")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(first, again)
    assert not torch.equal(first, fractals(5, 24, seed=2, folder=tmp_path / "one"))
    assert global_random_states() == before


@pytest.mark.parametrize(("count", "size"), [(1, 1), (1, 130), (3, 7), (2, 64)])
def test_any_count_and_size(tmp_path, count, size):
    assert fractals(count, size, folder=tmp_path).shape == (count, 3, size, size)


def test_they_are_made_once_and_a_damaged_file_anew(tmp_path):
    told = []

    def made():
        return fractals(70, 16, folder=tmp_path, progress=lambda *step: told.append(step))

    first = made()
    assert told == [("fractals", 64, 70), ("fractals", 70, 70)]
    assert torch.equal(made(), first)
    assert len(told) == 2, "the second came from the cache"
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    assert torch.equal(made(), first)
    assert len(told) == 4
    assert torch.equal(made(), first)
    assert len(told) == 4, "the damaged file was replaced"
    assert list(tmp_path.iterdir()) == [file]


def test_settings_have_files_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXWELL_CACHE", str(tmp_path))
    for settings in ((2, 16, 0), (3, 16, 0), (2, 17, 0), (2, 16, 1)):
        assert fractals(*settings).shape[0] == settings[0]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(("name", "value"), [("count", 0), ("size", -1), ("seed", -1), ("count", 2.0), ("size", True)])
def test_numbers_out_of_range(tmp_path, name, value):
    with pytest.raises(mixwell.ParameterError, match=name):
        fractals(folder=tmp_path, **{name: value})


def test_a_folder_gives_its_pictures_in_the_order_of_their_names(tmp_path):
    (tmp_path / "more").mkdir()
    for name, level, mode in (("b.png", 200, "L"), ("a.png", 100, "RGB"), ("more/c.bmp", 50, "RGB")):
        array = np.full((40, 60, 3) if mode == "RGB" else (40, 60), level, np.uint8)
        array[:, :8] = 0  # cut away with the longer side's ends
        Image.fromarray(array, mode).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    pictures = pictures_in(tmp_path, 20)
    assert pictures.dtype == torch.uint8
    assert pictures.shape == (3, 3, 20, 20)
    assert pictures.flatten(1).unique(dim=1).tolist() == [[100], [200], [50]]


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(mixwell.DataError, match="No folder"):
        pictures_in(tmp_path / "nowhere", 16)
    with pytest.raises(mixwell.DataError, match="No pictures below"):
        pictures_in(tmp_path, 16)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(mixwell.DataError, match=r"broken\.png cannot be decoded"):
        pictures_in(tmp_path, 16)
