"""Replays DJMix with a linear auto-encoder: codes, reconstructions, mixes, and the loss of given predictions."""

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, GivenLogits, close, equal, one_turn
from mixwell.core.turns import Turn
from mixwell.nets.vq import VQAutoEncoder

SOURCE = "independent reference"
INPUTS = ("x", "enc_*", "codebook", "dec_*", "lam", "y", "num_classes", "logits_*")
COMPARE = {"code_index": equal(), "z": close(1e-4), "recon": close(1e-5), "mixed": close(1e-5), "*": close(1e-5)}


class LinearDecoder(nn.Module):
    """A transposed convolution whose bias is a patch."""

    def __init__(self, weight: Tensor, patch: Tensor) -> None:
        super().__init__()
        self.weight, self.patch = weight, patch

    def forward(self, codes: Tensor) -> Tensor:
        made = nn.functional.conv_transpose2d(codes, self.weight, stride=self.weight.shape[-1])
        return made + self.patch.tile(1, *codes.shape[2:])


def autoencoder_of(case: Case) -> VQAutoEncoder:
    weight = case.tensor("enc_weight")
    dim, channels, stride, _ = weight.shape
    encoder = nn.Conv2d(channels, dim, stride, stride)
    encoder.load_state_dict({"weight": weight, "bias": case.tensor("enc_bias")})
    decoder = LinearDecoder(case.tensor("dec_weight"), case.tensor("dec_bias_patch"))
    return VQAutoEncoder(encoder, decoder, case.tensor("codebook"), stride, channels)


def replay(case: Case) -> dict[str, np.ndarray]:
    net = autoencoder_of(case).requires_grad_(False)
    images, labels = case.tensor("x"), case.tensor("y")
    loss = net.loss(images, beta=0.25)
    views: list[Tensor] = []

    def turn(task: str, *logits: str) -> Turn:
        """One step of which the network's predictions for the two views are given."""
        pixels = mixwell.Pixels((0.0,), (1.0,))
        recipe = mixwell.create(f"djmix(weight=1, task={task})", int(case["num_classes"]), pixels=pixels)
        recipe.options[0].alone.use(net)
        model = GivenLogits(torch.cat([case.tensor(name) for name in logits]))
        found = one_turn(recipe, model, images, labels, alone=case["lam"])
        views[:] = model.images.chunk(2)
        return found

    mixed = turn("mixed", "logits_mixed", "logits_x")
    clean = turn("clean", "logits_x", "logits_mixed")
    return {
        "z": net.encode(images).numpy(),
        "code_index": net.nearest(net.encode(images)).numpy(),
        "recon": net(images).numpy(),
        "recon_mse": loss.reconstruction.numpy(),
        "vq_codebook_mse": loss.codebook.numpy(),
        "vq_loss_beta025": loss.total.numpy(),
        "mixed": views[1].numpy(),
        "ce_x": clean.parts["criterion"].numpy(),
        "ce_mixed": mixed.parts["criterion"].numpy(),
        "js": clean.parts["djmix"].numpy(),
        "loss_ce_x_plus_js": clean.loss.numpy(),
        "loss_ce_mixed_plus_js": mixed.loss.numpy(),
    }
