"""Replays AutoMix: one λ and permutation per batch, the mixer with the golden's weights on the golden's features."""

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, close
from mixwell.nets.mixblock import attend
from mixwell.nets.teacher import ema_update, momentum_at
from mixwell.sample.saliency.automix import LessonDraws

SOURCE = "official code"
INPUTS = (
    *("images_u8", "labels", "feature", "index_mb", "index_bb", "lam", "lam_margin_case", "cotangent_mb", "*_w_*"),
    *("logits", "ema_q", "ema_k", "ema_m", "momentum_iters", "momentum_total_iters"),
)
SKIPPED = {
    "maskloss_[!L]*": "a mask loss of the official code that no AutoMix configuration uses",
    "maskloss_*_Variance": "a mask loss of the official code that no AutoMix configuration uses",
}
COMPARE = {
    "*_grad_*": close(1e-4, 1e-4),
    "*_mask1_*": close(1e-5),
    "*_attention_*": close(1e-5),
    "*_img_mix_*": close(1e-5),
    "momentum_values": close(1e-12),
    "*": close(1e-6),
}


class Net(nn.Module):
    """A network whose first stage gives the golden's features, and whose classifiers repeat its logits."""

    def __init__(self, feature: Tensor, logits: Tensor) -> None:
        super().__init__()
        self.feature, self.logits = feature, logits
        self.layer1, self.layer2 = nn.Identity(), nn.Identity()
        self.fc = nn.Linear(logits.shape[1], logits.shape[1])
        nn.init.eye_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        self.layer2(self.layer1(self.feature))
        return self.fc(self.logits)


class Bound:
    """A recipe that is bound to the golden's network and holds the golden's mixer."""

    def __init__(self, case: Case, prefix: str, **options: object) -> None:
        self.images, self.labels = case.tensor("images_u8").float() / 255, case.tensor("labels")
        self.lam = case["lam"].astype(np.float64)
        self.index = case["index_mb"], case["index_bb"]
        self.net = Net(case.tensor("feature"), case.tensor("logits"))
        given = ", ".join(f"{name}={value}" for name, value in {"per": "batch", **options}.items())
        self.recipe = mixwell.create(f"automix({given})", num_classes=self.net.logits.shape[1])
        (self.option,) = self.recipe.bind(self.net, example=self.images).options
        nn.init.eye_(self.option.blend.teacher.head.weight)
        self.mixer = self.option.blend.mixer
        for name, conv in {"query__conv": self.mixer.query, "value": self.mixer.value}.items():
            conv.weight = nn.Parameter(case.tensor(f"{prefix}_w_{name}__weight"))
            conv.bias = nn.Parameter(case.tensor(f"{prefix}_w_{name}__bias"))

    def mask(self, which: int) -> Tensor:
        """The mixer's mask for the mixer's (0) or the classifier's (1) draws."""
        index, lam = torch.from_numpy(self.index[which]), torch.from_numpy(self.lam[which : which + 1])
        return self.mixer(self.net.feature, index, lam, self.images.shape[2:])[:, 0]

    def step(self) -> mixwell.Step:
        """A step whose clean and mixed passes returned the golden's logits."""
        draws = LessonDraws(self.index[0], self.lam[:1], adjust=np.zeros(1), judged=0.5)
        scene = mixwell.Scene(mixwell.Batch(self.images, self.labels))
        partners = mixwell.Partners.at(torch.from_numpy(self.index[1])[:, None], self.labels)
        mix = self.option.blend.mix(self.images, partners, torch.from_numpy(self.lam[1:]), draws, scene)
        outputs = mixwell.Outputs(self.net.logits)
        return mixwell.Step(scene, mix, outputs, outputs)

    def terms(self, step: mixwell.Step) -> list[Tensor]:
        """What the recipe adds to the loss: the clean batch's and the mixer's part."""
        targets = self.option.targets(step)
        return [term.value(step, targets, self.option.criterion) for term in self.option.terms]


def replay(case: Case) -> dict[str, np.ndarray]:
    answers: dict[str, Tensor] = {}
    for prefix in ("nocat", "cat"):
        run = Bound(case, prefix, lam_concat=str(prefix == "cat").lower(), mixer_prob=0)
        step = run.step()
        _, mask_loss = run.terms(step)
        answers |= {f"{prefix}_mask1_mb": run.mask(0), f"{prefix}_mask1_bb": run.mask(1)}
        answers[f"{prefix}_mask_loss"] = mask_loss
        convs = {"query__conv": run.mixer.query, "value": run.mixer.value}
        weights = {
            f"{name}__{kind}": getattr(conv, kind) for name, conv in convs.items() for kind in ("weight", "bias")
        }
        total = (step.mix.lesson.images * case.tensor("cotangent_mb")).sum() + mask_loss
        for name, gradient in zip(weights, torch.autograd.grad(total, [*weights.values()]), strict=True):
            answers[f"{prefix}_grad_{name}"] = gradient

    run = Bound(case, "nocat", gamma=0)
    step = run.step()
    loss_one, loss_mix = run.terms(step)
    area_only = Bound(case, "nocat", gamma=1, mixer_prob=0)
    query, key, _ = run.mixer.maps(run.net.feature, torch.from_numpy(run.index[0]), torch.zeros(1))
    answers |= {
        "nocat_img_mix_mb": step.mix.lesson.images,
        "nocat_img_mix_bb": step.mix.images,
        "nocat_attention_mb_first": attend(query, key)[:1],
        "nocat_adjust_official_img_mix_bb": Bound(case, "nocat", mask_adjust=1, rule="code").step().mix.images,
        "maskloss_L1": area_only.terms(area_only.step())[1],
        "loss_mix": loss_mix,
        "loss_one": loss_one,
    }

    average = case.tensor("ema_k").clone()
    ema_update([average], [case.tensor("ema_q")], float(case["ema_m"]))
    total = int(case["momentum_total_iters"])
    clocks = [mixwell.Clock(int(step), total) for step in case["momentum_iters"]]
    answers |= {
        "ema_k_new": average,
        "momentum_values": torch.tensor([momentum_at(clock) for clock in clocks], dtype=torch.float64),
    }
    return {name: tensor.detach().numpy() for name, tensor in answers.items()}
