"""What a config accepts, and what makes two configs the same run."""

import json
from pathlib import Path

import pytest

from mixwell import ParameterError
from mixwell.train import TrainConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", True),
        ("accumulate", 0),
        ("seed", -1),
        ("workers", -1),
        ("threads", 0),
        ("checkpoint_steps", 0),
        ("checkpoint_seconds", -1.0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", "0.1"),
        ("weight_decay", -1e-4),
        ("momentum", 1.5),
        ("warmup_epochs", 16.0),
        ("min_lr", -0.1),
        ("decay_rate", 0.0),
        ("decay_milestones", (0,)),
        ("label_smoothing", 1.5),
        ("label_noise", 1.5),
        ("label_noise", "some"),
        ("clip", 0.0),
        ("ema", 1.0),
        ("ema", 0.0),
        ("mix_until", -1.0),
        ("precision", "fp8"),
        ("augment", "flip"),
        ("tracker", "tensorbord"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(field, value):
    with pytest.raises(ParameterError, match=field):
        TrainConfig(**{field: value})


def test_every_field_is_documented_on_the_command_line(capsys):
    tyro = pytest.importorskip("tyro")
    with pytest.raises(SystemExit):
        tyro.cli(TrainConfig, args=["--help"])
    text = capsys.readouterr().out
    for field in TrainConfig.__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in text


def test_the_command_line_reads_every_kind_of_field():
    tyro = pytest.importorskip("tyro")
    words = (
        "--data-options size 28 channels 1 --class-weights 1 2 --out here --model-options drop_rate 0.5 qk_norm True"
    )
    config = tyro.cli(TrainConfig, args=words.split())
    assert config.data_options == {"size": 28, "channels": 1}
    assert config.model_options == {"drop_rate": 0.5, "qk_norm": True}
    assert config.class_weights == (1.0, 2.0)
    assert config.out == Path("here")


def test_only_what_changes_the_training_changes_the_hash():
    config = TrainConfig()
    same = TrainConfig(out=Path("x"), workers=3, checkpoint_seconds=1, checkpoint_steps=7, tracker="wandb", threads=4)
    assert same.hash == config.hash
    assert TrainConfig(lr=0.2).hash != config.hash
    assert TrainConfig(data_options={"size": 28}).hash != config.hash


def test_configs_without_label_noise_keep_the_hash_they_had_before_there_was_any():
    assert TrainConfig().hash == "5c31e0fe"
    assert "label_noise" not in TrainConfig(label_noise=0).identity
    assert TrainConfig(label_noise=0.4).hash != TrainConfig().hash


def test_younger_fields_leave_the_hash_of_older_runs_where_they_are_not_set():
    identity = TrainConfig().identity
    assert not {"augment_options", "decay_norms"} & identity.keys()
    for changed in ({"augment_options": {"erase": 0.5}}, {"decay_norms": True}):
        assert TrainConfig(**changed).hash != TrainConfig().hash
        assert TrainConfig(**changed).identity.items() >= changed.items()


def test_the_folder_is_named_after_the_run():
    folder = TrainConfig(recipe="0.5*mixup | 0.5*cutmix", data="imagefolder:/a/b").folder
    assert folder.parent == Path("runs")
    assert folder.name.startswith("0.5_mixup_0.5_cutmix-imagefolder_a_b-cnn_s-s0-")
    assert TrainConfig(out=Path("here")).folder == Path("here")


def test_a_config_survives_json():
    config = TrainConfig(out=Path("x"), class_weights=(1.0, 2.0), data_options={"size": 28})
    assert json.loads(json.dumps(config.to_json())) == config.to_json()
