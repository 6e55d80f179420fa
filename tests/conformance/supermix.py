"""Replays SuperMix with the golden's linear teacher: every round of the search, and the mixes that succeed."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, Comparator, close, equal
from mixwell.core.axes import Scene
from mixwell.core.mix import Partners
from mixwell.sample.saliency.supermix import Round, SearchedMix, cyclic, search, wanted_of

SOURCE = "official code"
INPUTS = (
    "images_norm",
    "teacher_W",
    "teacher_b",
    "lambda_s",
    *(f"c?/{name}" for name in ("K", "mask_w", "sigma", "max_iter", "tol_count", "dirichlet", "iters_saved")),
)

_TIGHT = close(1e-3, rtol=1e-3)


@dataclass(frozen=True)
class Drifting(Comparator):
    """Tight in the first three rounds; later ones amplify rounding errors (fp32 and fp64 part by as much)."""

    def judge(self, got: np.ndarray, golden: np.ndarray) -> tuple[float, str]:
        if got.shape != golden.shape:
            return super().judge(got, golden)
        early, late = _TIGHT.judge(got[:3], golden[:3]), super().judge(got[3:], golden[3:])
        return max(early[0], late[0]), early[1] or late[1]


def drifting(atol: float, rtol: float = 0.0) -> Drifting:
    return Drifting(f"{_TIGHT.name} for 3 rounds, then close(atol={atol:g}, rtol={rtol:g})", atol, rtol)


COMPARE = {
    "teacher_pred": equal(),
    "c?/n_iter": equal(),
    "c?/success_idx": equal(),
    "c?/fail_iters": equal(),
    "c?/mask_logits_iters": drifting(3.0),
    "c?/step_iters": drifting(1.0, rtol=0.1),
    "c?/kl_plus_sparsity_iters": drifting(0.05),
    "c?/grad_*": close(1e-6, rtol=1e-4),
    "c?/*": close(5e-3, rtol=1e-3),
}


class LinearTeacher(nn.Module):
    """A linear classifier of images at 8 × 8."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        weight = case.tensor("teacher_W")
        self.fc = nn.Linear(weight.shape[1], len(weight))
        self.fc.weight, self.fc.bias = nn.Parameter(weight), nn.Parameter(case.tensor("teacher_b"))
        self.side = round((weight.shape[1] / case["images_norm"].shape[1]) ** 0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(images, self.side).flatten(1))


@dataclass
class Config:
    """One of the golden's configurations."""

    case: Case
    name: str

    def __post_init__(self) -> None:
        self.images = self.case.tensor("images_norm")
        self.teacher = LinearTeacher(self.case)
        self.classes = self.teacher(self.images).argmax(1)
        self.shares = self.case.tensor(f"{self.name}/dirichlet")
        self.k, self.width, self.max_iter, self.tolerated = (
            int(self.case[f"{self.name}/{key}"]) for key in ("K", "mask_w", "max_iter", "tol_count")
        )
        self.sigma, self.lambda_s = float(self.case[f"{self.name}/sigma"]), float(self.case["lambda_s"])

    def rounds(self) -> list[Round]:
        sources = cyclic(len(self.images), self.k)
        wanted = wanted_of(self.classes[sources], self.shares, len(self.teacher.fc.bias))
        return list(
            search(
                self.images,
                sources,
                wanted,
                self.teacher,
                width=self.width,
                sigma=self.sigma,
                lambda_s=self.lambda_s,
                max_iter=self.max_iter,
                tolerated=self.tolerated,
            )
        )

    def mix(self) -> SearchedMix:
        """By the recipe's own blend, whose share of failures is that of the golden's count."""
        fraction = self.tolerated / len(self.images)
        recipe = mixwell.create(
            f"supermix(k={self.k}, width={self.width}, sigma={self.sigma}, lambda_s={self.lambda_s}, "
            f"max_iter={self.max_iter}, max_unsuccessful_fraction={fraction!r})"
        )
        blend = recipe.options[0].blend
        blend.teacher.use(self.teacher)
        batch = mixwell.Batch(self.images, torch.arange(len(self.images)))
        no_lam = torch.full((1,), torch.nan)
        return blend.mix(self.images, Partners.alone(batch), no_lam, self.shares.numpy(), Scene(batch))


def scattered(rounds: list[Round], rows: int, name: str, rest: float) -> np.ndarray:
    """A number per row and round; `rest` is the golden's for rows that have succeeded."""
    found = torch.full((len(rounds), rows), rest, dtype=torch.float32)
    for one, line in zip(rounds, found, strict=True):
        line[one.rows] = getattr(one, name).float()
    return found.numpy()


def replay(case: Case) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {"teacher_pred": LinearTeacher(case)(case.tensor("images_norm")).argmax(1).numpy()}
    for name in sorted({name.partition("/")[0] for name in case if "/" in name}):
        config = Config(case, name)
        rounds, mix = config.rounds(), config.mix()
        rows, first = len(config.images), rounds[0]
        won = mix.valid.nonzero()[:, 0]
        shown = won[: case.wanted[f"{name}/mixed"][0]]
        saved = [rounds[int(number) - 1].logits for number in case[f"{name}/iters_saved"]]
        found = {
            "n_iter": np.array(len(rounds)),
            "success_idx": won.numpy(),
            "mixed": mix.images[shown].numpy(),
            "mask_full": mix.masks[shown].unsqueeze(2).numpy(),
            "mask_logits_iters": torch.stack(saved).unsqueeze(3).numpy(),
            "fail_iters": scattered(rounds, rows, "failed", 0.0).astype(np.int8),
            "grad_iter1": first.gradient.unsqueeze(2).numpy(),
            "grad_smooth_iter1": first.direction.unsqueeze(2).numpy(),
            "step_iters": scattered(rounds, rows, "step", 1e-4),
            "kl_plus_sparsity_iters": scattered(rounds, rows, "loss", 0.0),
            "pred_mix": mix.said[won].numpy(),
        }
        out |= {f"{name}/{key}": value for key, value in found.items()}
    return out
