"""Random numbers of single images: Philox's known answers, distributions, and independence of the batch."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kstest

from mixwell.evaluate.corrupting.draws import Draws, philox

INDEX = torch.arange(40)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter: str, key: str, answer: str):
    words = [torch.tensor([int(word, 16)]) for word in counter.split()]
    low, high = (int(word, 16) for word in key.split())
    assert [f"{int(word):08x}" for word in philox(words, low | high << 32)] == answer.split()


def test_uniform_numbers_are_uniform_and_normal_ones_normal():
    draws = Draws(0, "test", index=INDEX)
    uniform, normal = draws.uniform("a", 50, 31), draws.normal("b", 50, 31)
    assert uniform.shape == normal.shape == (40, 50, 31)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert kstest(uniform.flatten(), "uniform").pvalue > 1e-3
    assert kstest(normal.flatten(), "norm").pvalue > 1e-3


def test_neighbouring_numbers_images_and_streams_are_independent():
    draws = Draws(3, "test", index=INDEX)
    for numbers in (draws.normal("a", 1001), draws.uniform("a", 1001) - 0.5):
        numbers = numbers / numbers.std()
        others = numbers.roll(1, 0), numbers.roll(1, 1), numbers.roll(2, 1), numbers.flip(1)
        other_stream, other_key = draws.normal("c", 1001), Draws(4, "test", index=INDEX).normal("a", 1001)
        for other in (*others, other_stream, other_key):
            assert abs(float((numbers * other).mean())) < 5 / numbers.numel() ** 0.5 * 1.5


def test_an_image_has_its_numbers_in_whatever_batch_it_is():
    whole = Draws(0, "test", index=INDEX).normal("a", 3, 5)
    some = torch.tensor([39, 3, 3, 17])
    assert torch.equal(Draws(0, "test", index=some).normal("a", 3, 5), whole[some])
    far = torch.tensor([2**40 + 3])
    assert not torch.equal(Draws(0, "test", index=far).normal("a", 3, 5), whole[3:4])
