"""Replays AMR: the auto-encoder and critic of the golden in one step of the recipe's players, and the mixers' codes."""

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, close
from mixwell.core.turns import Turn
from mixwell.sample.generative.amr import Resynthesis, ResynthesisDraws, how_mixed, mix_codes

SOURCE = "official code; the wanted probabilities have the critic's shape, which newer versions of torch ask for"
INPUTS = ("images_u8", "gen_encoder__*", "gen_decoder__*", "disc_encoder__*", "perm", "perm2", "alpha_*")
COMPARE = {
    "D_*": close(1e-5),
    "dec_*": close(2e-5),
    "gen_first_conv_after_one_adam_step": close(1e-6),
    "loss_gen_loss": close(1e-4),
    "*": close(1e-5),
}


class Net(nn.Module):
    """A classifier of two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.mean((1, 2, 3))[:, None])


def weights_of(case: Case, prefix: str) -> dict[str, Tensor]:
    """The golden's state of one network under our names; the right singular vectors follow from the left ones."""
    names = [name for name in case if name.startswith(prefix) and not name.endswith("_v")]
    ours = {"__": ".", ".module.": ".", "weight_bar": "weight", "weight_u": "u"}

    def renamed(name: str) -> str:
        for old, new in ours.items():
            name = name.replace(old, new)
        return name.removeprefix(prefix)

    return {renamed(name): case.tensor(name) for name in names}


class Run:
    """One step of a recipe whose players are the golden's."""

    def __init__(self, case: Case) -> None:
        first, last = case.tensor("gen_encoder__0__weight"), case.tensor("gen_decoder__0__weight")
        scales = sum(name.startswith("disc_") and name.endswith("_u") for name in case) // 2 - 1
        sizes = f"depth={len(first)}, latent={last.shape[1]}, scales={scales}"
        pixels = mixwell.Pixels((0.0,), (1.0,))
        # The first of its steps is one of both players, as all are with update_g_every=1.
        self.recipe = mixwell.create(f"amr(rec_weight=10, update_g_every=1, {sizes})", 2, pixels=pixels)
        self.net, self.images = Net(), case.tensor("images_u8").float() / 255
        self.recipe.bind(self.net, self.images)
        self.blend: Resynthesis = self.recipe.options[0].blend
        self.blend.autoencoder.load_state_dict(weights_of(case, "gen_"))
        self.blend.critic.load_state_dict(weights_of(case, "disc_"))
        self.probabilities: list[Tensor] = []
        self.decoded: list[Tensor] = []
        self.coded: list[Tensor] = []
        self.blend.critic.register_forward_hook(self.judge)
        self.blend.autoencoder.decoder.register_forward_hook(self.decode)

    def judge(self, _: nn.Module, args: tuple[Tensor], logits: Tensor) -> None:
        self.probabilities.append(logits.detach().sigmoid())

    def decode(self, _: nn.Module, args: tuple[Tensor], images: Tensor) -> None:
        self.coded.append(args[0].detach())
        self.decoded.append(images.detach())

    def turns(self, case: Case) -> dict[str, Turn]:
        """Take the step, each player with its own optimiser."""
        rows, alpha = len(self.images), case["alpha_mixup"].reshape(-1)
        optimisers = {}
        for group in self.recipe.parameter_groups(self.net):
            kind = torch.optim.Adam if group.pop("optimizer", "") == "adam" else torch.optim.SGD
            optimisers[group["turn"]] = kind([{name: value for name, value in group.items() if name != "turn"}])
        option = self.recipe.options[0]
        draws = mixwell.Draws(
            {
                self.blend: ResynthesisDraws(case["perm"][:, None], alpha, None, None),
                option.pairing: case["perm"],
                option.ratio: alpha,
            }
        )
        turns = {}
        for turn in self.recipe.turns(self.net, self.images, torch.zeros(rows, dtype=torch.int64), draws=draws):
            optimisers[turn.group].zero_grad()
            turn.loss.backward()
            optimisers[turn.group].step()
            turns[turn.group] = turn
        return turns


def replay(case: Case) -> dict[str, np.ndarray]:
    run = Run(case)
    turns = run.turns(case)
    codes, mixed = run.coded[:2]
    learnt = turns["amr/autoencoder"].parts
    answers = {
        "enc": codes,
        "enc_mix": mixed,
        "dec_recon": run.decoded[0],
        "dec_mix": run.decoded[1],
        **dict(zip(("D_recon_gstep", "D_mix_gstep", "D_real", "D_recon", "D_mix"), run.probabilities, strict=True)),
        "loss_gen_loss": turns["amr/autoencoder"].loss.detach().double(),
        "loss_disc_g_recon": learnt["reconstruction_judged"].double(),
        "loss_disc_g_mix": learnt["mix_judged"].double(),
        "loss_recon": learnt["reconstruction"].double() / run.blend.rec_weight,
        "loss_consist": learnt.get("consistency", torch.zeros(())).double(),
        "loss_d_x": turns["amr/critic"].loss.detach().double() / 3,
        "gen_first_conv_after_one_adam_step": run.blend.autoencoder.encoder[0].weight.detach(),
        "acai_target": how_mixed(case.tensor("alpha_mixup").flatten()),
    }
    labels = torch.arange(len(codes))
    pairs = mixwell.Partners.at(case.tensor("perm")[:, None], labels)
    threes = mixwell.Partners.at(torch.stack((case.tensor("perm"), case.tensor("perm2")), 1), labels)
    for name in ("mixup2", "fm", "fm2"):
        alpha = case.tensor(f"alpha_{name}").flatten(2).mT
        answers[f"mix_{name}"] = mix_codes(codes, pairs, torch.cat((alpha, 1 - alpha), 1))
    answers["mix_dirichlet3"] = mix_codes(codes, threes, case.tensor("alpha_dirichlet3").flatten(2))
    answers["mix_fm3"] = mix_codes(codes, threes, case.tensor("alpha_fm3").flatten(2))
    return {name: tensor.numpy() for name, tensor in answers.items()}
