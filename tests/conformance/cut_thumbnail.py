"""Replays Cut-Thumbnail: thumbnails of partners, of the images themselves, and of two partners, at one place each."""

import numpy as np

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.sample.ksample.cut_thumbnail import OwnThumbnailDraws, thumbnail

SOURCE = "official code; *_multi, thumb_bilinear: independent reference"
INPUTS = ("x", "y", "num_classes", "size", "lam", "index", "index2", "box", "box2", "logits")
COMPARE = {"thumb_bilinear": close(1e-6), "target_*": close(1e-7), "loss_*": close(1e-6, rtol=1e-6), "*": equal()}


def replay(case: Case) -> dict[str, np.ndarray]:
    x, y, net = case.tensor("x"), case.tensor("y"), GivenLogits(case.tensor("logits"))
    extent = np.array(x.shape[2:])
    boxes = np.stack([case[name].reshape(2, 2) for name in ("box", "box2")])
    sides = boxes[:, 1] - boxes[:, 0]
    # A corner is drawn in [0, 1); the middle of the golden's pixel falls into that pixel again.
    corners = ((boxes[:, 0] + 0.5) / (extent - sides + 1))[None]

    def turn(variant: str, **draws: object) -> mixwell.Turn:
        text = f"cut_thumbnail(variant={variant}, lam={float(case['lam'])}, participation_rate=1, per=batch)"
        recipe = mixwell.create(text, num_classes=int(case["num_classes"]))
        piece = recipe.options[0].blend or recipe.options[0].alone
        # The golden's thumbnails are square whatever the image is, so their shares of its two sides may differ.
        piece.sizes = list(sides / extent)[: len(piece.sizes)]
        return one_turn(recipe, net, x, y, **draws)

    answers = {}
    own = turn("self", alone=OwnThumbnailDraws(True, corners[:, :1]))
    answers |= {"out_st": net.images, "loss_st": own.loss}
    single = turn("single", pairing=case["index"], blend=corners[:, :1])
    answers |= {"out_mst": net.images, "target_mst": single.targets.dense().double(), "loss_mst": single.loss}
    multiple = turn("multiple", pairing=np.stack((case["index"], case["index2"])), blend=corners)
    answers |= {"out_multi": net.images, "target_multi": multiple.targets.dense().double()}
    small = tuple(sides[0].tolist())
    answers |= {f"thumb_{resize}": thumbnail(x, small, resize) for resize in ("nearest", "bilinear")}
    return {name: tensor.numpy() for name, tensor in answers.items()}
