"""Methods that need no pixel grid train networks for tables and for one-dimensional signals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mixwell

RECIPES = [
    "mixup",
    "k_mixup(k=4)",
    "bc",
    "bc(variant='bc+')",
    "local_mixup(decay=0.05)",
    "local_mixup(graph=threshold, quantile=0.5)",
    "local_mixup(graph=knn, k=8)",
    "local_mixup(variant=partners, decay=0.5)",
]
CLASSES = 3
SIGNALS = pytest.mark.parametrize("kind", ["table", "signal"])


def table(rows: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Twelve features, of which the classes share a sign pattern."""
    labels = torch.arange(rows) % CLASSES
    centres = torch.eye(CLASSES).repeat(1, 4) * 3
    return centres[labels] + torch.randn(rows, 12, generator=noise), labels


def signal(rows: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two channels of 32 samples of a sine, whose frequency is the class and whose phase and loudness are random."""
    labels = torch.arange(rows) % CLASSES
    phase, loud = torch.rand(2, rows, 2, 1, generator=noise)
    time = torch.linspace(0, 1, 32)
    wave = torch.sin(2 * torch.pi * (time * (3 * labels + 2)[:, None, None] + phase)) * (0.5 + loud)
    return wave + 0.2 * torch.randn(wave.shape, generator=noise), labels


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def conv1d() -> nn.Module:
    stages = [nn.Conv1d(2, 12, 7, padding=3), nn.ReLU(), nn.Conv1d(12, 12, 7, padding=3), nn.ReLU()]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(12, CLASSES))


KINDS: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], Callable[[], nn.Module]]] = {
    "table": (table, mlp),
    "signal": (signal, conv1d),
}


@SIGNALS
@pytest.mark.parametrize("text", RECIPES)
def test_it_learns(text: str, kind: str):
    torch.manual_seed(0)
    data, network = KINDS[kind]
    noise = torch.Generator().manual_seed(0)
    model, recipe = network(), mixwell.create(text, CLASSES)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        loss = recipe(model, *data(33, noise))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        assert torch.isfinite(loss)
    unseen, labels = data(300, noise)
    with torch.no_grad():
        right = (model(recipe.eval_images(unseen)).argmax(1) == labels).float().mean()
    assert right > 0.9


@SIGNALS
@pytest.mark.parametrize("text", RECIPES[:4] + RECIPES[-1:])
def test_it_mixes_without_a_network(text: str, kind: str):
    """Rows and labels are mixed alike: what is linear in the rows is linear in the labels."""
    x, labels = KINDS[kind][0](33, torch.Generator().manual_seed(1))
    mixed, targets = mixwell.create(text, CLASSES).mix_batch(x, labels)
    assert mixed.shape == x.shape
    torch.testing.assert_close(targets.dense().sum(1), torch.ones(33))
    if "bc+" not in text:
        weights = targets.weights.view(33, 2, *(1,) * (x.ndim - 1))
        torch.testing.assert_close(mixed, (x[targets.sources] * weights).sum(1))


@SIGNALS
@pytest.mark.parametrize("text", ["cutmix", "local_mixup + cutmix", "bc + cutmix"])
def test_methods_that_cut_say_what_they_need(text: str, kind: str):
    data, network = KINDS[kind]
    with pytest.raises(mixwell.BatchError, match=r"cutmix cuts pixel grids: expected images \(B, C, H, W\)"):
        mixwell.create(text, CLASSES)(network(), *data(9, torch.Generator().manual_seed(2)))
