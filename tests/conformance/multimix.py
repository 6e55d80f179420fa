"""Replays MultiMix: mixtures of embeddings, and of every position under each kind of attention."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, close, one_turn
from mixwell.core.turns import Turn
from mixwell.sample.style.multimix import HullDraws, attended, attention_of

SOURCE = "independent reference"
INPUTS = ("feat", "y", "num_classes", "clf_w", "clf_b", "alpha", "Lam", "Lam_dense")
COMPARE = {"loss*": close(1e-6), "*": close(1e-10)}  # the criterion works in fp32


class Classifier(nn.Linear):
    """The golden's; `embedding` is what it was last given."""

    def __init__(self, case: Case) -> None:
        super().__init__(*reversed(case["clf_w"].shape))
        self.weight, self.bias = nn.Parameter(case.tensor("clf_w")), nn.Parameter(case.tensor("clf_b"))

    def forward(self, embedding: Tensor) -> Tensor:
        self.embedding = embedding
        return super().forward(embedding)


class Net(nn.Module):
    """A network whose only stage gives what it is fed; it pools and classifies that."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.layer1 = nn.Identity()
        self.fc = Classifier(case)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(x).mean((2, 3)))


def given(lam: Tensor) -> Callable[..., Tensor]:
    """In place of drawn weights."""
    return lambda draws, positions, rows, device: lam


@torch.no_grad()
def replay(case: Case) -> dict[str, np.ndarray]:
    maps, labels, classes = case.tensor("feat"), case.tensor("y"), int(case["num_classes"])
    net, lam = Net(case), case.tensor("Lam")
    lam_dense = case.tensor("Lam_dense").permute(2, 0, 1)  # positions first
    positions, n, _ = lam_dense.shape

    def turn(text: str, weights: Tensor) -> Turn:
        recipe = mixwell.create(f"multimix(n={n}, chunk={n}, {text})", classes)
        recipe.options[0].blend.lam = given(weights)
        return one_turn(recipe, net, maps, labels, place=0, blend=HullDraws(case["alpha"], 0))

    def by_mixture(rows: Tensor) -> np.ndarray:
        """(r·n, …) → (n, …, r)."""
        return rows.unflatten(0, (positions, n)).movedim(0, -1).numpy()

    def labels_of(weights: Tensor) -> Tensor:
        sources = torch.arange(len(labels)).expand(weights.shape)
        return mixwell.Targets(labels, sources, weights, classes).dense()

    answers = {"Z": maps.mean((2, 3)).numpy(), "y_mix": labels_of(lam).numpy()}
    answers["loss"] = turn("variant=multimix", lam[None]).loss.numpy()
    answers["z_mix"] = net.fc.embedding.numpy()
    for name in ("gap_relu", "cam_relu", "gap_softmax"):
        towards = net.fc.weight[labels] if name == "cam_relu" else maps.mean((2, 3))
        attention = attention_of(maps, towards, "softmax" if name == "gap_softmax" else "relu")
        answers[f"attn_{name}"] = attention.numpy()
        answers[f"loss_dense_{name}"] = turn(f"variant=dense, attention={name}", lam_dense).loss.numpy()
        mixed = by_mixture(net.fc.embedding)
        if name == "gap_relu":
            weights = attended(lam_dense, attention).flatten(0, 1)
            answers |= {"W_dense": by_mixture(weights), "z_dense": mixed, "y_dense": by_mixture(labels_of(weights))}
        else:
            answers[f"z_dense_{name}_0"] = mixed[0]
    return answers
