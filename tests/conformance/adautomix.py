"""Replays AdAutoMix: one set of shares per batch, the mixer with the golden's weights, and its linear teacher."""

import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, close
from mixwell.sample.saliency.adautomix import AdversarialDraws, normalised, similarity

SOURCE = "official code"
INPUTS = (
    *("images_u8", "labels", "feature", "perm_mb", "perm_bb", "lam2", "lam3_raw", "cotangent_mb", "*_w_conv_*"),
    "teacher_w",
)
COMPARE = {
    "*_grad_*": close(1e-4, 1e-4),
    "*_mask_*": close(1e-5),
    "*_img_mix_*": close(1e-5),
    "lam3": close(1e-12),
    "*": close(2e-6, 1e-6),
}
LAYERS = {"conv_q__conv": "query", "conv_k__conv": "key", "conv_v": "value"}


class Net(nn.Module):
    """A network whose first stage gives the golden's features, and that classifies pooled images linearly."""

    def __init__(self, feature: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.feature = feature
        self.layer1, self.layer2 = nn.Identity(), nn.Identity()
        self.fc = nn.Linear(*weight.shape, bias=False)
        self.fc.weight = nn.Parameter(weight.T.clone())

    def forward(self, images: Tensor) -> Tensor:
        self.layer2(self.layer1(self.feature))
        return self.fc(F.adaptive_avg_pool2d(images, 4).flatten(1))


class Run:
    """A step of a recipe that is bound to the golden's network and holds the golden's mixer."""

    def __init__(self, case: Case, prefix: str, count: int, step: int = 0, beta: float = 0.3) -> None:
        images, labels = case.tensor("images_u8").float() / 255, case.tensor("labels")
        net = Net(case.tensor("feature"), case.tensor("teacher_w"))
        settings = f"mix_samples={count}, lam_concat={str(prefix == 'cat').lower()}, beta={beta}"
        recipe = mixwell.create(f"adautomix({settings}, lam_margin=0, per=batch)", num_classes=net.fc.out_features)
        (self.option,) = recipe.bind(net, example=images).options
        blend = self.option.blend
        self.mixer = blend.mixer
        for head in (blend.mixed_head, blend.teacher.head):
            head.load_state_dict(net.fc.state_dict())
        for layer, name in LAYERS.items():
            weights = {kind: case.tensor(f"{prefix}_w_{layer}__{kind}") for kind in ("weight", "bias")}
            self.mixer.get_submodule(name).load_state_dict(weights)
        raw, lam = (case["lam2"], case["lam2"][1:]) if count == 2 else (case["lam3_raw"], np.full(1, np.nan))
        draws = AdversarialDraws(case["perm_mb"], raw[None].astype(np.float64))
        batch, probe = mixwell.Batch(images, labels), mixwell.Probe(net, images)
        drawn = mixwell.Draws({blend.counts: count})
        scene = mixwell.Scene(batch, drawn, mixwell.Views(probe, batch), clock=mixwell.Clock(step))
        partners = mixwell.Partners.at(case.tensor("perm_bb")[: blend.partners].T, labels)
        self.mix = blend.mix(images, partners, torch.from_numpy(lam.astype(np.float64)), draws, scene)
        outputs = mixwell.Outputs(net(self.mix.lesson.images).detach())
        self.step = mixwell.Step(scene, self.mix, outputs, mixwell.Outputs(net(images)))

    def losses(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the classifier on the mixer's images, of the clean batch and the averages, and of the mixer."""
        option, targets = self.option, self.option.targets(self.step)
        terms = [term.value(self.step, targets, option.criterion) for term in option.terms]
        return option.criterion(self.step.outputs.logits, targets), *terms


def replay(case: Case) -> dict[str, np.ndarray]:
    answers: dict[str, Tensor] = {"lam3": torch.from_numpy(normalised(case["lam3_raw"][None]))[0]}
    for prefix in ("nocat", "cat"):
        run = Run(case, prefix, 2)
        read = run.mixer.read(case.tensor("feature"))

        def masks(run: Run, read: tuple[Tensor, ...] = read) -> Tensor:
            wanted = run.mix.lesson.targets
            return run.mixer.masks(read, wanted.sources, wanted.weights, run.mix.images.shape[2:])

        answers |= {f"{prefix}_2_mask_mb": masks(run)[:, 0], f"{prefix}_2_mask_bb": run.mix.masks[:, 0]}
        total = (run.mix.lesson.images * case.tensor("cotangent_mb")).sum()
        for layer, name in LAYERS.items():
            for kind, weight in run.mixer.get_submodule(name).named_parameters():
                (gradient,) = torch.autograd.grad(total, weight, retain_graph=True)
                answers[f"{prefix}_2_grad_{layer}__{kind}"] = gradient
        three = Run(case, prefix, 3)
        answers |= {f"{prefix}_3_mask_mb": masks(three), f"{prefix}_3_mask_bb_first": three.mix.masks[:1]}
        if prefix == "nocat":
            answers |= {"nocat_2_img_mix_mb": run.mix.lesson.images, "nocat_3_img_mix_mb": three.mix.lesson.images}

    run = Run(case, "nocat", 3, step=1)  # an odd one, in which the mixer's loss is the teacher's
    lesson, (mixed, others, mixers) = run.mix.lesson, run.losses()
    logits = lesson.judge(lesson.images)
    answers |= {
        "teacher_mix_logits": logits,
        "teacher_clean_logits": lesson.clean[lesson.targets.sources.T],
        "gen_ce": mixers,
        "gen_cos": similarity(logits, lesson.clean, lesson.targets.sources, lesson.targets.weights),
        "cls_loss_one_and_linear_mix": others,
        "cls_loss_mix": mixed,
        "cls_total": mixed + others,
    }
    for name in case.wanted:
        if found := re.fullmatch(r"gen_loss_adversarial_beta(\d)(\d+)", name):
            answers[name] = Run(case, "nocat", 3, beta=float(f"{found[1]}.{found[2]}")).losses()[2]
    return {name: tensor.detach().numpy() for name, tensor in answers.items()}
