from __future__ import annotations

import re

import pytest
from rich.cells import cell_len

import mixwell
from mixwell.cli.page import parameter_docs


def words(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


@pytest.mark.parametrize("slug", mixwell.methods())
def test_the_page_of_every_method(run, slug):
    found = run("show", slug)
    assert (found.code, found.err) == (0, "")
    assert max((cell_len(line.rstrip()) for line in found.out.splitlines()), default=0) <= 80
    entry = mixwell.method_of(slug)
    text = words(found.out)
    assert text.startswith(words(entry.doc.partition("\n")[0]))
    assert entry.reference in text
    for name in entry.parameters:
        assert any(line.startswith(f"  {name} ") for line in found.out.splitlines()), f"{name} has no row"
    assert f"{slug}, essential" in text or entry.build().beside is not None
    (call,) = re.findall(r'mixwell.create\("(.*?)", num_classes=10\)', text)
    assert slug in call.split(" + ")
    assert isinstance(mixwell.create(call, num_classes=10), mixwell.Recipe)
    assert "$ mixwell train --recipe" in text
    assert not re.search(r"\bat 0x|bound method", text)


def test_a_method_without_a_sample_policy_is_shown_with_one(run):
    found = run("show", "decouplemix")
    assert found.code == 0
    assert "It needs a sample policy; what follows is mixup + decouplemix." in found.out


@pytest.mark.parametrize("slug", mixwell.methods())
def test_every_parameter_is_documented(slug):
    entry = mixwell.method_of(slug)
    docs = parameter_docs(entry)
    assert list(docs) == list(entry.parameters)
    assert all(docs.values())


def test_a_recipe_shows_who_answers_each_question(run):
    lines = run("show", "cutmix(alpha=0.5) + transmix", columns=140).out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith("  ") and line.split()}
    assert "Box" in rows["blend"]
    assert "cutmix, essential" in rows["blend"]
    assert "alpha=0.5" in rows["ratio"]
    assert "cutmix, suggested" in rows["ratio"]
    assert "transmix, essential" in rows["label"]
    assert rows["pairing"].rstrip().endswith("plain")


def test_parts_of_a_piece_show_their_settings(run):
    assert "slic=Slic(n_segments=30)" in words(run("show", "superpixel_grid(n_segments=30)", columns=140).out)


def test_a_switch_shows_its_weights(run):
    found = run("show", "0.25*mixup | 0.75*cutmix").out
    first, second = found.index("on 25% of the batches"), found.index("on 75% of the batches")
    assert "Linear" in found[first:second]
    assert "Box" in found[second:]


def test_none(run):
    found = run("show", "none")
    assert found.code == 0
    assert "Images stay as they are." in found.out


def test_a_model_that_suits(run):
    found = run("show", "transmix", "--model", "vit-s")
    assert (found.code, found.err) == (0, "")
    assert "transmix can act on vit-s." in found.out
    (row,) = [line for line in found.out.splitlines() if "the input" in line]
    assert "3×32×32" in row
    assert "mixes here" in row


def test_a_model_without_attention_is_refused_with_the_reason(run):
    found = run("show", "transmix", "--model", "resnet18")
    assert found.code == 1
    assert "layer4" in found.out
    assert "can act on" not in found.out
    assert "no self-attention" in words(found.err)
    assert "vit-s" in found.err


def test_the_sites_that_a_recipe_uses(run):
    out = run("show", "manifold_mixup(sites=(1, 'layer2.0'))", "--model", "resnet18", "--size", "64").out
    rows = [line.split() for line in out[out.index("11,") :].splitlines()]
    used = {row[-4] for row in rows if row[-2:] == ["mixes", "here"]}
    assert used == {"layer1", "layer2.0"}
    assert ["1", "layer1", "64×16×16", "mixes", "here"] in rows


def test_options_of_the_network(run):
    out = run("show", "mixup", "--model", "vit-s", "--model-options", "depth=2", "--channels", "1", "--size", "16").out
    assert "1×16×16" in out
    assert "blocks.1" in out
    assert "blocks.2" not in out


def test_a_site_that_does_not_exist_lists_those_that_do(run):
    found = run("show", "manifold_mixup(sites=(7,))", "--model", "cnn-s")
    assert found.code == 1
    assert "layer1, layer2, layer3" in words(found.err)


def test_images_that_the_network_cannot_take(run):
    found = run("show", "cutmix", "--model", "vgg11", "--size", "8")
    assert found.code == 1
    assert "vgg11 cannot take images 3×8×8" in words(found.err)


def test_an_unknown_method_suggests(run):
    found = run("show", "cutmx")
    assert (found.code, found.out) == (1, "")
    assert "did you mean 'cutmix'" in words(found.err)


@pytest.mark.parametrize(
    ("recipe", "place"), [("0.5*mixup + 3", 12), ("cutmix +", 8), ("cutmix(alpha=)", 13), ("cutmix?", 6)]
)
def test_a_malformed_recipe_shows_the_place(run, recipe, place):
    found = run("show", recipe)
    assert (found.code, found.out) == (1, "")
    lines = found.err.splitlines()
    assert lines[-2] == f"  {recipe}"
    assert lines[-1] == f"  {' ' * place}^"


@pytest.mark.parametrize("given", ["depth", "=2"])
def test_options_are_key_value(run, given):
    found = run("show", "mixup", "--model", "vit-s", "--model-options", given)
    assert (found.code, found.out) == (2, "")
    assert "KEY=VALUE" in found.err
