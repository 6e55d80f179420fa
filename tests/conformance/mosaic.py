"""Replays RICAP's relatives: the canvas of a detector's mosaic, and four whole images side by side."""

import numpy as np
import torch

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.ops.boxes import area_of
from mixwell.ops.corners import stitched, tile_boxes

METHOD = "ricap"
SOURCE = "official code (canvas before the affine step); stitch_*: independent reference"
INPUTS = ("s", "xc", "yc", "order", "fill", "img?_u8", "stitch_x", "stitch_perms")
COMPARE = {"stitch_out": close(1e-6), "*": equal()}


def replay(case: Case) -> dict[str, np.ndarray]:
    tiles = [case.tensor(f"img{which}_u8").permute(2, 0, 1)[None] for which in range(4)]
    point, size = (int(case["yc"]), int(case["xc"])), (2 * int(case["s"]), 2 * int(case["s"]))
    canvas = stitched(tiles, point, size, float(case["fill"]))
    boxes = tile_boxes([tuple(tile.shape[2:]) for tile in tiles], point, size)

    x = case.tensor("stitch_x")
    net = GivenLogits(torch.zeros(len(x), len(x)))
    one_turn(
        mixwell.create("ricap(variant=stitch)", num_classes=len(x)),
        net,
        x,
        torch.arange(len(x)),
        pairing=case["stitch_perms"],
    )
    return {
        "canvas_u8": canvas[0].permute(1, 2, 0).numpy(),
        "visible_area": area_of(boxes, (1, 1)).astype(np.int64),
        "stitch_out": net.images.numpy(),
    }
