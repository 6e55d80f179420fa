"""Replays LGCOAMix on given superpixels and features, pooled as they are meant and as the official code reads them."""

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, close, equal

SOURCE = "official code"
INPUTS = (
    *("images_u8", "labels", "perm", "slic_a", "slic_b", "bernoulli_b", "feature_q64", "global_logits"),
    *("sa_*", "fc_local_*"),
)
SKIPPED = {
    "n_segments_*": "numbers of superpixels asked of scikit-image, whose maps are given",
    "slic_*_permute": "scikit-image's maps of the images in their right layout; its versions differ",
}
COMPARE = {
    "superpixel_map_mix": equal(),
    "selected_idx": equal(),
    "num_pixels": equal(),
    "mask_b": equal(),
    "img_mix": close(1e-7),
    "*_topn_idx": equal(),
    "*_local_targets": equal(),
    "*_lam_area": close(1e-7),
    "*_loss_*": close(1e-6, rtol=1e-5),
    "*": close(1e-6),
}

PASTED = 10000
"""What the official code adds to the labels of the partner's superpixels."""


class Net(nn.Module):
    """A network with given logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.layer1 = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        self.layer1(images)
        return self.logits


class Given(nn.Module):
    """In place of a decoder, given features."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, maps: object, size: object) -> Tensor:
        return self.features


def dense(maps: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels from 0 on without gaps, image by image, and the labels they stand for."""
    names, found = zip(*(np.unique(one, return_inverse=True) for one in maps), strict=True)
    return np.stack([one.reshape(maps.shape[1:]) for one in found]), list(names)


def padded(rows: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Rows of any length, filled up with -1."""
    out = np.full(shape, -1, rows[0].dtype)
    for row, values in enumerate(rows):
        out[row, : len(values)] = values
    return out


class Run:
    """One step of a recipe that holds the golden's superpixels, features and weights."""

    def __init__(self, case: Case, **options: str) -> None:
        images, labels = case.tensor("images_u8").double() / 255, case.tensor("labels")
        features, logits = case.tensor("feature_q64").double() / 64, case.tensor("global_logits")
        (own, self.own_names), (other, self.other_names) = dense(case["slic_a"]), dense(case["slic_b"])
        self.count = int(max(own.max(), other.max())) + 1
        given = ", ".join(f"{name}={value}" for name, value in options.items())
        recipe = mixwell.create(f"lgcoamix(width={features.shape[1]}, prob=1, {given})", logits.shape[1])
        (option,) = recipe.bind(Net(logits), images).options
        label = option.label
        label.decoder = Given(features)
        weights = {name.removeprefix("sa_"): case.tensor(name) for name in case if name.startswith("sa_")}
        label.attention.load_state_dict(
            {name.replace("__", ".").replace("LayerNorm", "norm"): value for name, value in weights.items()}
        )
        label.local.load_state_dict({name: case.tensor(f"fc_local_{name}") for name in ("weight", "bias")})
        label.double()
        partners = mixwell.Partners.at(case.tensor("perm")[:, None], labels)
        coins = np.where(case["bernoulli_b"] == 1, 0.25, 0.75)
        segments = torch.from_numpy(own), torch.from_numpy(other)
        self.mix = option.blend.paste(images, partners, segments, self.count, coins)
        scene = mixwell.Scene(mixwell.Batch(images, labels))
        step = mixwell.Step(scene, self.mix, mixwell.Outputs(logits, dict.fromkeys(label.wants(), images)))
        with torch.no_grad():
            self.targets = option.targets(step)
            self.loss = option.criterion(logits, self.targets)
            self.parts = [term.value(step, self.targets, option.criterion) for term in option.terms]
        self.weights = [term.weight for term in option.terms]
        self.there = (self.targets.attended.pixels > 0).numpy()
        self.rank = np.cumsum(self.there, 1) - 1
        """A label's place among the superpixels that there are."""

    @property
    def share(self) -> np.ndarray:
        """The partner's share of each label."""
        return self.targets.weights[:, 1].double().numpy()

    def each(self, array: Tensor) -> list[np.ndarray]:
        """Row by row, the values of the superpixels that there are."""
        return [values[there] for values, there in zip(array.numpy(), self.there, strict=True)]

    def top(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The salient superpixels of each row, and the class of the image that each comes from."""
        found, mix = self.targets.attended, self.mix
        source = torch.where(found.top < self.count, mix.sources[:, :1], mix.sources[:, 1:])
        tops = [top[valid] for top, valid in zip(found.top.numpy(), found.valid.numpy(), strict=True)]
        kinds = [kind[valid] for kind, valid in zip(mix.pool[source].numpy(), found.valid.numpy(), strict=True)]
        return [rank[top] for rank, top in zip(self.rank, tops, strict=True)], kinds


def replay(case: Case) -> dict[str, np.ndarray]:
    answers: dict[str, np.ndarray] = {}
    for prefix, layout in (("official", "reshape"), ("permute", "permute")):
        run, by_attention = Run(case, layout=layout), Run(case, layout=layout, rule="attention")
        top, kinds = run.top()
        found = {
            "att_weight": padded(run.each(run.targets.attended.weights), case.wanted[f"{prefix}_att_weight"]),
            "topn_idx": padded(top, case.wanted[f"{prefix}_topn_idx"]),
            "local_targets": padded(kinds, case.wanted[f"{prefix}_local_targets"]),
            "lam_area": run.mix.weights[:, 1].double().numpy(),
            "lam_att": by_attention.share,
            "lam": run.share,
            "loss_local_ce": (run.parts[0] / run.weights[0]).numpy(),
            "loss_scl": (run.parts[1] / run.weights[1]).numpy(),
            "loss_global": run.loss.numpy(),
            "loss_total": (run.loss + sum(run.parts)).numpy(),
        }
        answers |= {f"{prefix}_{name}": array for name, array in found.items()}
    names = [
        np.concatenate([np.pad(mine, (0, run.count - len(mine))), PASTED + theirs.astype(np.int64)])
        for mine, theirs in zip(run.own_names, run.other_names, strict=True)
    ]
    selected = [rank[run.count :][there[run.count :]] for rank, there in zip(run.rank, run.there, strict=True)]
    return {
        **answers,
        "superpixel_map_mix": np.stack([name[one] for name, one in zip(names, run.mix.regions.numpy(), strict=True)]),
        "selected_idx": padded(selected, case.wanted["selected_idx"]),
        "num_pixels": padded(run.each(run.targets.attended.pixels.long()), case.wanted["num_pixels"]),
        "mask_b": run.mix.masks[:, 1].numpy().astype(np.uint8),
        "img_mix": run.mix.images.numpy(),
    }
