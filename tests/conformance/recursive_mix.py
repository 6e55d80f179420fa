"""Replays RecursiveMix: consecutive batches, each pasted into the next, and the loss of the boxes' features."""

import numpy as np
import torch
from torch import nn

import mixwell
from mixwell.conformance import Case, close, equal
from mixwell.sample.cutting.recursive_mix import BoxDraws, box_features, pasted

SOURCE = "official code"
INPUTS = (
    "images",
    "labels",
    "logits",
    "area_ratio",
    "center_*",
    "alpha",
    "omega",
    "features",
    "fc_roi_*",
)
COMPARE = {
    "mixed": equal(),
    "box_*": equal(),
    "mixed_bilinear_step1": close(1e-6),
    "target": close(1e-6),
    "*": close(1e-5, rtol=1e-6),
}


class Given(nn.Module):
    """A network whose last map and logits are given, step by step."""

    def __init__(self, maps: torch.Tensor, logits: torch.Tensor) -> None:
        super().__init__()
        self.maps, self.logits = maps, logits
        self.layer1 = nn.Identity()
        self.step, self.images = 0, None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.images = images
        self.layer1(self.maps[self.step])
        return self.logits[self.step]


def replay(case: Case) -> dict[str, np.ndarray]:
    batches, labels = case.tensor("images"), case.tensor("labels")
    net = Given(case.tensor("features"), case.tensor("logits"))
    classes, size = net.logits.shape[2], tuple(batches.shape[3:])
    alpha, omega = float(case["alpha"]), float(case["omega"])
    recipe = mixwell.create(f"recursive_mix(alpha={alpha}, omega={omega}, per=batch)", classes).bind(net, batches[0])
    (option,) = recipe.options
    (consistency,) = option.terms
    answers: dict[str, list[np.ndarray]] = {}
    with torch.no_grad():
        consistency.head.weight.copy_(case.tensor("fc_roi_weight"))
        consistency.head.bias.copy_(case.tensor("fc_roi_bias"))
        for step, (images, y) in enumerate(zip(batches, labels, strict=True)):
            net.step = step
            # A centre is drawn in [0, 1); the middle of the golden's pixel falls into that pixel again.
            centre = (np.array([[case["center_row"][step], case["center_col"][step]]]) + 0.5) / size
            drawn = BoxDraws(case["area_ratio"][[step]], centre)
            scene = mixwell.Scene(mixwell.Batch(images, y), mixwell.Draws({option.blend: drawn}))
            mix = option.mix(images, scene)
            boxes = np.zeros((1, 4), np.int64) if mix.boxes is None else mix.boxes
            (turn,) = recipe.turns(net, images, y, draws=scene.draws)
            found = box_features(net.maps[step], boxes, size[1], len(images))
            seen = mix.boxes is not None
            loss = float(turn.parts["recursive_mix"])
            own = float(turn.targets.weights[0, 0])
            for name, value in {
                "mixed": net.images,
                "target": turn.targets.dense(),
                "box_x0_y0_x1_y1": torch.from_numpy(boxes[0, [2, 0, 3, 1]]).float(),
                "lam": mix.area[0],
                "roi_features": found if seen else torch.zeros_like(found),
                "roi_logits": consistency.head(found) if seen else torch.zeros(len(y), classes),
                "loss_cls": turn.parts["criterion"],
                "loss_roi": torch.tensor(loss / (omega * (1 - own)) if own < 1 else 0.0),
                "loss_total": turn.loss,
            }.items():
                answers.setdefault(name, []).append(value.numpy())
    stacked = {name: np.stack(values) for name, values in answers.items()}
    one = answers["box_x0_y0_x1_y1"][1].astype(np.int64)[None, [1, 3, 0, 2]]
    stacked["mixed_bilinear_step1"] = pasted(batches[1], batches[0], one, "bilinear").numpy()
    return stacked
