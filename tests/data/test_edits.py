"""Edited images: made by a pipeline, taken up where it was stopped, and read from folders of any origin."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import mixwell
from mixwell.data.edits import EditFolder, folder_of, make_edits, nearly_constant, pipeline_of

PIXELS = mixwell.Pixels((0.5,), (0.25,))
PROMPTS = {"snowy": "Make it snowy", "a sketch": "Make it a sketch"}


def batches(rows: int = 7, channels: int = 3, size: tuple[int, int] = (10, 14)) -> list[mixwell.Batch]:
    images = torch.rand(rows, channels, *size, generator=torch.Generator().manual_seed(0))
    images = images.mul(255).round().div(255)
    parts = torch.arange(rows).split(3)
    return [mixwell.Batch(PIXELS.normalise(images[part]), part, PIXELS, index=part) for part in parts]


class Inverting:
    """A pipeline that shows the negative, and remembers how it was called."""

    def __init__(self, stop: int | None = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.stop = stop

    def __call__(self, **given: Any) -> SimpleNamespace:
        if self.stop is not None and len(self.calls) >= self.stop:
            raise KeyboardInterrupt
        self.calls.append(given)
        return SimpleNamespace(images=[Image.eval(image, lambda level: 255 - level) for image in given["image"]])


def make(
    folder: Path, pipeline: Callable[..., Any], *, of: Iterable[mixwell.Batch] | None = None, **options: Any
) -> None:
    given = {"prompts": PROMPTS, "settings": {"pipeline": "inverting"}, "size": 10, **options}
    make_edits(folder, lambda: batches() if of is None else of, pipeline=lambda: pipeline, **given)


def write(path: Path, level: int = 100, size: tuple[int, int] = (14, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path)


def read(folder: EditFolder, rows: list[int], points: list[float], shape: tuple[int, int, int] = (3, 10, 14)):
    return folder.read(np.array(rows), np.array(points), shape)


# Making


def test_every_image_is_edited_by_every_prompt(tmp_path: Path):
    told: list[tuple[object, ...]] = []
    pipeline = Inverting()
    make(tmp_path, pipeline, size=32, guidance=3.0, steps=5, progress=lambda *words: told.append(words))
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert found == [f"{name}/{row:06d}.png" for name in ("a-sketch", "snowy") for row in range(7)]
    assert told[0] == ("edited images", 0, 14)
    assert told[-1] == ("edited images", 14, 14)
    assert [call["prompt"][0] for call in pipeline.calls] == ["Make it snowy"] * 3 + ["Make it a sketch"] * 3
    for call in pipeline.calls:
        assert len(call["prompt"]) == len(call["image"]) == len(call["generator"])
        assert all(image.size == (32, 32) for image in call["image"])
        assert (call["guidance_scale"], call["num_inference_steps"], call["num_images_per_prompt"]) == (3.0, 5, 1)


def test_edits_have_the_images_size_and_show_them(tmp_path: Path):
    square = batches(size=(10, 10))
    make(tmp_path, Inverting(), of=square)
    made, good = read(EditFolder(tmp_path), list(range(7)), [0.0] * 7, (3, 10, 10))
    raw = torch.cat([batch.raw for batch in square])
    torch.testing.assert_close(made.float() / 255, 1 - raw, atol=1e-6, rtol=0)
    assert good.all()
    wide = tmp_path / "wide"
    make(wide, Inverting())
    assert Image.open(next(wide.rglob("*.png"))).size == (14, 10)


def test_a_call_that_was_stopped_is_taken_up(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, Inverting(stop=2))
    there = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert len(there) == 6
    told: list[tuple[object, ...]] = []
    second = Inverting()
    make(tmp_path, second, progress=lambda *words: told.append(words))
    assert told[0] == ("edited images", 6, 14)
    assert sum(len(call["image"]) for call in second.calls) == 8
    assert {path: path.stat().st_mtime_ns for path in there} == there
    third = Inverting()
    make(tmp_path, third)
    assert not third.calls
    assert not list(tmp_path.rglob("*.part"))


def test_the_noise_is_each_images_own_whatever_was_made_before(tmp_path: Path):
    def seeds(pipeline: Inverting) -> list[int]:
        return [generator.initial_seed() for call in pipeline.calls for generator in call["generator"]]

    whole, part = Inverting(), Inverting()
    make(tmp_path / "whole", whole)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "part", Inverting(stop=1))
    make(tmp_path / "part", part)
    assert len(set(seeds(whole))) == 14
    assert seeds(part) == seeds(whole)[3:]


def test_a_further_prompt_adds_to_the_folder(tmp_path: Path):
    make(tmp_path, Inverting())
    pipeline = Inverting()
    make(tmp_path, pipeline, prompts={**PROMPTS, "rainbow": "Make it a rainbow"})
    assert {call["prompt"][0] for call in pipeline.calls} == {"Make it a rainbow"}


def test_a_folder_of_other_settings_is_refused(tmp_path: Path):
    make(tmp_path, Inverting())
    assert json.loads((tmp_path / "edits.json").read_text()) == {"pipeline": "inverting"}
    with pytest.raises(mixwell.DataError, match=r"made otherwise: pipeline 'inverting', now 'other'"):
        make(tmp_path, Inverting(), settings={"pipeline": "other"})


def test_images_that_cannot_be_edited(tmp_path: Path):
    nameless = [mixwell.Batch(batch.images, batch.labels, PIXELS) for batch in batches()]
    with pytest.raises(mixwell.DataError, match="these batches have none"):
        make(tmp_path / "a", Inverting(), of=nameless)
    with pytest.raises(mixwell.DataError, match="1 or 3 channels"):
        make(tmp_path / "b", Inverting(), of=batches(channels=4))
    with pytest.raises(mixwell.DataError, match="one image for each, got 0 for 3"):
        make(tmp_path / "c", lambda **given: SimpleNamespace(images=[]))
    make(tmp_path / "d", Inverting(), of=batches(channels=1))
    assert Image.open(next((tmp_path / "d").rglob("*.png"))).mode == "RGB"


# Reading


def test_any_folder_of_that_layout_serves(tmp_path: Path):
    write(tmp_path / "snowy" / "0.jpg", 10)
    write(tmp_path / "snowy" / "000001.png", 20, size=(20, 20))
    write(tmp_path / "mosaic" / "1.PNG", 30)
    (tmp_path / "mosaic" / "notes.txt").write_text("not an image")
    (tmp_path / "README.md").write_text("not a prompt")
    folder = EditFolder(tmp_path)
    assert folder.names == ["mosaic", "snowy"]
    assert folder.without(4) == [2, 3]
    made, good = read(folder, [0, 1, 1, 0], [0.9, 0.1, 0.9, 0.0])
    assert made.shape == (4, 3, 10, 14)
    assert made.dtype == torch.uint8
    assert made.float().mean((1, 2, 3)).round().tolist() == [10, 30, 20, 10]
    assert good.all()
    assert read(EditFolder(tmp_path, ["snowy"]), [1], [0.0])[0].float().mean() == 20


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures_have_the_channels_that_are_asked_for(tmp_path: Path, channels: int):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (6, 6), (200, 100, 50)).save(tmp_path / "a" / "0.png")
    made, _ = read(EditFolder(tmp_path), [0], [0.0], (channels, 6, 6))
    expected = [124] if channels == 1 else [200, 100, 50, 200][:channels]
    assert made[0, :, 3, 3].tolist() == expected


def test_skipped_edits_give_way_to_the_next(tmp_path: Path):
    for name, level in (("a", 0), ("b", 90), ("c", 255)):
        write(tmp_path / name / "0.png", level)
    write(tmp_path / "a" / "1.png", 0)
    made, good = read(EditFolder(tmp_path), [0, 0, 0, 1], [0.1, 0.5, 0.9, 0.5])
    assert made.float().mean((1, 2, 3)).tolist() == [90, 90, 90, 0]
    assert good.tolist() == [True, True, True, False]


def test_each_of_an_images_edits_is_taken_as_often(tmp_path: Path):
    for name, level in (("a", 40), ("b", 80), ("c", 120)):
        write(tmp_path / name / "0.png", level, (4, 4))
    points = np.random.default_rng(0).random(3000)
    made, _ = EditFolder(tmp_path).read(np.zeros(3000, np.int64), points, (3, 4, 4))
    levels, counts = made[:, 0, 0, 0].unique(return_counts=True)
    assert levels.tolist() == [40, 80, 120]
    assert (counts / 3000 - 1 / 3).abs().max() < 0.05  # six standard deviations


def test_pictures_in_memory_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from mixwell.data import edits

    write(tmp_path / "a" / "0.png", 40)
    folder = EditFolder(tmp_path)
    first = read(folder, [0], [0.0])[0]
    (tmp_path / "a" / "0.png").unlink()
    assert torch.equal(read(folder, [0], [0.0])[0], first)
    monkeypatch.setattr(edits, "_KEPT", 0)
    write(tmp_path / "a" / "1.png", 40)
    folder = EditFolder(tmp_path)
    read(folder, [1], [0.0])
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(mixwell.DataError, match="cannot be decoded"):
        read(folder, [1], [0.0])


def test_missing_folders_and_edits_are_told(tmp_path: Path):
    with pytest.raises(mixwell.DataError, match=r"No folder .*PROMPT/INDEX\.png"):
        EditFolder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(mixwell.DataError, match="No edited images in"):
        EditFolder(tmp_path / "empty")
    write(tmp_path / "some" / "snowy" / "3.png")
    with pytest.raises(mixwell.DataError, match=r"No edited images in .*some/mosaic"):
        EditFolder(tmp_path / "some", ["snowy", "mosaic"])
    with pytest.raises(mixwell.DataError, match=r"Image 4 \(and 1 more of this batch\) has no edit .*000004\.png"):
        read(EditFolder(tmp_path / "some"), [3, 4, 5], [0.0] * 3)
    (tmp_path / "some" / "snowy" / "6.png").write_text("no image")
    with pytest.raises(mixwell.DataError, match=r"6\.png cannot be decoded"):
        read(EditFolder(tmp_path / "some"), [6], [0.0])


def test_folders_of_prompts():
    assert folder_of("watercolor art") == "watercolor-art"
    assert folder_of("ukiyo-e") == "ukiyo-e"
    assert folder_of("../a sketch, with crayon!") == "a-sketch-with-crayon"
    with pytest.raises(mixwell.ParameterError, match="letters or digits"):
        folder_of("!?")


# What counts as nothing


def mostly(level: int, share: float) -> Tensor:
    picture = torch.randint(20, 230, (1, 3, 20, 20), dtype=torch.uint8)
    flat = picture.view(1, 3, -1)
    flat[..., : round(400 * share)] = level
    return picture


def test_nearly_constant_pictures_are_black_or_white():
    for level in (0, 3, 252, 255):
        assert nearly_constant(mostly(level, 0.92))
        assert not nearly_constant(mostly(level, 0.88))
    assert not nearly_constant(torch.full((1, 3, 8, 8), 128, dtype=torch.uint8))
    assert nearly_constant(torch.zeros(2, 1, 1, 1, dtype=torch.uint8)).tolist() == [True, True]
    halves = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    halves[..., 4:] = 255
    assert not nearly_constant(halves)


def test_the_code_sees_white_alone():
    assert nearly_constant(mostly(255, 0.92), "code")
    assert not nearly_constant(mostly(255, 0.88), "code")
    assert not nearly_constant(mostly(0, 1.0), "code")
    assert not nearly_constant(mostly(252, 1.0), "code")


# diffusers


def tiny_pipeline(folder: Path) -> None:
    """InstructPix2Pix with random weights, as small as it may be, saved to a folder."""
    diffusers = pytest.importorskip("diffusers")
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    tokenizer = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    tokenizer.model_max_length = 40
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        diffusers.StableDiffusionInstructPix2PixPipeline(
            vae=diffusers.AutoencoderKL(
                block_out_channels=(8, 8),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                norm_num_groups=4,
            ),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(vocab_size=len(words), max_position_embeddings=40, **text, **ends)
            ),
            tokenizer=tokenizer,
            unet=diffusers.UNet2DConditionModel(
                sample_size=8,
                in_channels=8,
                out_channels=4,
                layers_per_block=1,
                block_out_channels=(8, 16),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=16,
                norm_num_groups=4,
                attention_head_dim=4,
            ),
            scheduler=diffusers.PNDMScheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)


def test_a_pipeline_of_diffusers_edits(tmp_path: Path):
    tiny_pipeline(tmp_path / "pipeline")
    pipeline = pipeline_of(str(tmp_path / "pipeline"), torch.device("cpu"))
    assert type(pipeline.scheduler).__name__ == "EulerAncestralDiscreteScheduler"
    for name, of in (("all", batches(3)), ("again", batches(3)), ("last", batches(3)[0:1])):
        make(tmp_path / name, pipeline, of=of, size=16, steps=2)
    all_, again, last = (EditFolder(tmp_path / name) for name in ("all", "again", "last"))
    pictures = read(all_, [0, 1, 2], [0.0] * 3)[0]
    assert torch.equal(pictures, read(again, [0, 1, 2], [0.0] * 3)[0])
    assert torch.equal(pictures[:1], read(last, [0], [0.0])[0])
    assert (pictures[0].int() - pictures[1].int()).abs().sum() > 0
    with pytest.raises(mixwell.ModelError, match="cannot be loaded"):
        pipeline_of(str(tmp_path / "all"), torch.device("cpu"))


def test_without_diffusers_its_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(mixwell.DataError, match=r'pip install "mixwell\[diffusion\]"'):
        pipeline_of("any/name", torch.device("cpu"))
