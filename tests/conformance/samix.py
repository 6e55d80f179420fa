"""Replays SAMix: one λ and permutation per batch, the mixer with the golden's weights on the golden's features."""

import re

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, close
from mixwell.core.criteria import SoftCrossEntropy
from mixwell.label.objective.decouplemix import Decoupled
from mixwell.sample.saliency.automix import LessonDraws
from mixwell.sample.saliency.samix import SAMixLoss, encoded, local_loss

SOURCE = "official code; ref_*: independent reference"
INPUTS = (
    *("images_u8", "labels", "feature", "index_mb", "index_bb", "lam", "cotangent_mb", "w_*"),
    *("rescale_lam_in", "logits", "dm_labels_a", "dm_labels_b"),
)
COMPARE = {
    "grad_*": close(1e-4, 1e-4),
    "*mask1_*": close(1e-5),
    "img_mix_*": close(1e-5),
    "rescale_lam_*": close(1e-12),
    "*": close(2e-6, 1e-6),
}
LAYERS = {
    "value__conv__0__conv": "inner",
    "value__conv__0__bn": "norm",
    "value__conv__1__conv": "value",
    "key__conv": "key",
    "query__conv": "query",
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


class Run:
    """A step of a recipe that is bound to the golden's network and holds the golden's mixer."""

    def __init__(self, case: Case, k: float = 0.25, **options: object) -> None:
        images, labels = case.tensor("images_u8").float() / 255, case.tensor("labels")
        lam = case["lam"].astype(np.float64)
        net = Net(case.tensor("feature"), case.tensor("logits"))
        settings = {"per": "batch", "mask_adjust": 0, "lam_margin": 0, "lam_mul_k": k, **options}
        text = f"samix({', '.join(f'{name}={value}' for name, value in settings.items())})"
        recipe = mixwell.create(text, num_classes=net.logits.shape[1])
        (self.option,) = recipe.bind(net, example=images).options
        nn.init.eye_(self.option.blend.teacher.head.weight)
        self.mixer = self.option.blend.mixer
        for layer, name in LAYERS.items():
            weights = {key.split("__")[-1]: case.tensor(key) for key in case if key.startswith(f"w_{layer}__")}
            self.mixer.get_submodule(name).load_state_dict(weights)
        draws = LessonDraws(case["index_mb"], lam[:1], adjust=np.ones(1), judged=0.5)
        scene = mixwell.Scene(mixwell.Batch(images, labels))
        partners = mixwell.Partners.at(case.tensor("index_bb")[:, None], labels)
        self.mix = self.option.blend.mix(images, partners, torch.from_numpy(lam[1:]), draws, scene)
        outputs = mixwell.Outputs(net.logits)
        self.step = mixwell.Step(scene, self.mix, outputs, outputs)

    def mixers_loss(self) -> Tensor:
        """The part of the loss that the mixer learns from."""
        targets = self.option.targets(self.step)
        return self.option.terms[1].value(self.step, targets, self.option.criterion)


def mixed_targets(case: Case) -> mixwell.Targets:
    """Each row's two classes with shares λ and 1-λ."""
    rows, lam = len(case["dm_labels_a"]), case["lam"][0]
    pool = torch.cat((case.tensor("dm_labels_a"), case.tensor("dm_labels_b")))
    sources = torch.stack((torch.arange(rows), torch.arange(rows) + rows), 1)
    return mixwell.Targets(pool, sources, torch.tensor([lam, 1 - lam], dtype=torch.float64).expand(rows, 2))


def replay(case: Case) -> dict[str, np.ndarray]:
    run = Run(case, mixer_prob=0)
    mask_loss = run.mixers_loss()
    answers: dict[str, Tensor] = {
        "mask1_mb": run.mix.lesson.mask[:, 0],
        "mask1_bb": run.mix.masks[:, 1],
        "img_mix_mb": run.mix.lesson.images,
        "img_mix_bb": run.mix.images,
        "mask_loss": mask_loss,
        "bn_running_mean_after": run.mixer.norm.running_mean,
        "kminus1_mask1_mb": Run(case, k=-1, mixer_prob=0).mix.lesson.mask[:, 0],
    }
    weights = {
        f"grad_{layer}__{kind}": weight
        for layer, name in LAYERS.items()
        for kind, weight in run.mixer.get_submodule(name).named_parameters()
    }
    total = (run.mix.lesson.images * case.tensor("cotangent_mb")).sum() + mask_loss
    answers |= dict(zip(weights, torch.autograd.grad(total, [*weights.values()]), strict=True))

    logits, targets = case.tensor("logits"), mixed_targets(case)
    wide = logits.double()
    answers |= {
        "dm_loss_eta1": Decoupled(1.0)(wide, targets).float(),
        "ref_local_per_sample": local_loss(wide, targets.classes, targets.weights),
        "ref_global_per_sample": SoftCrossEntropy().rows(wide, targets),
        "ref_eta05_loss": SAMixLoss(eta=0.5).about_logits(wide, targets, SoftCrossEntropy()),
    }
    for name in case.wanted:
        if found := re.fullmatch(r"rescale_lam_k(\d+)(?:_(\d+))?", name):
            answers[name] = encoded(case.tensor("rescale_lam_in"), float(f"{found[1]}.{found[2] or 0}"))
        elif name.startswith("loss_head_k_neg"):  # η of the released configurations, which changes nothing
            answers[name] = Run(case, gamma=0).mixers_loss()
    return {name: tensor.detach().numpy() for name, tensor in answers.items()}
