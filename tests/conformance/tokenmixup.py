"""Replays TokenMixup in small transformers that have the golden's tokens and attention, with and without class token.

The authors' code puts mixed rows first; `order` brings ours into that order.
"""

import numpy as np
import torch
from torch import Tensor, nn

import mixwell
from mixwell.conformance import Case, GivenAttention, close, equal, one_turn
from mixwell.probe.attention import watch_heads
from mixwell.sample.attention.tokenmixup import difficulty, gains, matched, most_salient, replaced

SOURCE = "official code; *_paper is an independent reference of the paper's rule in loops and fp64"
INPUTS = (
    *("*_x", "*_y", "*_attn", "*_score_logits", "*_tau", "rho"),
    *("vtm_src", "vtm_kappa", "vtm_ln_*", "vtm_num_heads", "vtm_w_*"),
)
COMPARE = {
    "*_easy": equal(),
    "*_partner": equal(),
    "*_order": equal(),
    "*_mask_*": equal(),
    "*_x_*": equal(),
    "vtm_topk": equal(),
    "vtm_tokens_*": equal(),
    "*": close(1e-6),
}
RULES = {"official": "code", "paper": "paper"}


class GivenBlock(nn.Module):
    """A block with a given attention, which keeps what it is given and gives it on."""

    def __init__(self, attention: Tensor) -> None:
        super().__init__()
        self.attn = GivenAttention(attention)
        self.tokens = torch.empty(0)

    def forward(self, tokens: Tensor) -> Tensor:
        self.attn()
        self.tokens = tokens
        return tokens


class SelfAttention(nn.Module):
    """The golden's attention, its projections apart."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.num_heads, width = int(case["vtm_num_heads"]), case["vtm_src"].shape[3]
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.proj = nn.Linear(width, width)
        given = {name.removeprefix("vtm_w_"): case.tensor(name) for name in case if name.startswith("vtm_w_")}
        self.load_state_dict(
            {"_".join(name.split("_")[:-1]) + "." + name.split("_")[-1]: w for name, w in given.items()}
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Norm and attention, whose input and output it keeps."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(case["vtm_src"].shape[3])
        self.norm.load_state_dict({name: case.tensor(f"vtm_ln_{name}") for name in ("weight", "bias")})
        self.attn = SelfAttention(case)
        self.tokens = self.out = torch.empty(0)

    def forward(self, tokens: Tensor) -> Tensor:
        self.tokens = tokens
        return self.attn(self.norm(tokens))


class Net(nn.Module):
    """A transformer whose blocks are given tokens of their own, whatever the images and the blocks before."""

    def __init__(self, blocks: list[nn.Module], sources: Tensor, classes: int, *, class_token: bool) -> None:
        super().__init__()
        if class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 1))
        self.blocks = nn.ModuleList(blocks)
        self.sources = sources
        self.head = nn.Linear(sources.shape[3], classes)
        self.out = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        for block, tokens in zip(self.blocks, self.sources, strict=True):
            self.out = block(tokens)
        return self.head(self.out.mean(1))


class GivenScores(nn.Module):
    """A ScoreNet with the golden's answers."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, patches: Tensor, prefix: Tensor | None) -> Tensor:
        return self.logits


def horizontal(case: Case, prefix: str) -> dict[str, Tensor]:
    x, y, attention = (case.tensor(f"{prefix}_{name}") for name in ("x", "y", "attn"))
    scores, tau, rho = case.tensor(f"{prefix}_score_logits"), float(case[f"{prefix}_tau"]), float(case["rho"])
    net = Net([GivenBlock(attention)], x[None], y.shape[1], class_token=prefix == "cls")
    images = torch.zeros(len(x), 1, 1, x.shape[1] - (prefix == "cls"))  # of a shape whose tokens form a row

    want = mixwell.Want("class_attention" if prefix == "cls" else "patch_attention", 0)
    saliency = mixwell.Probe(net).run(images, wants=[want])[want]
    hard = difficulty(scores, mixwell.Targets.of(y))
    easy = hard <= tau
    gain = gains(saliency, rho)
    partner = matched(gain, easy)
    order = torch.cat((easy.nonzero()[:, 0], (~easy).nonzero()[:, 0]))
    answers = {
        "saliency": saliency,
        "difficulty": hard,
        "easy": easy,
        "cost": gain[easy],
        "partner": partner[easy],
        "order": order,
    }
    for name, rule in RULES.items():
        recipe = mixwell.create(f"tokenmixup(inputs=none, block=0, tau={tau!r}, rho={rho!r}, rule={rule})", y.shape[1])
        recipe.bind(net, images)
        recipe.options[0].blend.score = GivenScores(scores)
        turn = one_turn(recipe, net, images, y)
        answers[f"mask_{name}"] = replaced(saliency, partner, easy, rho, rule)[easy]
        answers[f"x_{name}"] = net.blocks[0].tokens[order]
        answers[f"y_{name}"] = turn.targets.dense()[order]
    return {f"{prefix}_{name}": tensor for name, tensor in answers.items()}


def vertical(case: Case) -> dict[str, Tensor]:
    sources, attention, kappa = case.tensor("vtm_src"), case.tensor("vtm_attn"), int(case["vtm_kappa"])
    tokens = sources.shape[2]
    blocks = [*map(GivenBlock, attention), Block(case)]
    net = Net(blocks, sources, 2, class_token=True)
    images = torch.zeros(sources.shape[1], 1, 1, tokens - 1)
    wants = [mixwell.Want("class_attention", block) for block in range(len(attention))]
    seen = mixwell.Probe(net).run(images, wants=wants)
    answers = {"vtm_topk": torch.stack([most_salient(seen[want], kappa) for want in wants])}
    for name, rule in RULES.items():
        last = len(attention)
        recipe = mixwell.create(
            f"tokenmixup(variant=vertical, inputs=none, memory_block={last}, kappa={kappa}, rule={rule})", 2
        )
        rows: list[Tensor] = []
        handles = watch_heads("attn", blocks[-1].attn, lambda heads, rows=rows: rows.append(heads.rows()))
        drawn = recipe.options[0].blend.draw(len(images), np.random.default_rng(0))
        one_turn(recipe, net, images, torch.zeros(len(images), dtype=torch.long), blend=drawn)
        for handle in handles:
            handle.remove()
        answers[f"vtm_tokens_{name}"] = blocks[-1].tokens[:, tokens:]
        answers[f"vtm_out_{name}"] = net.out
        if rule == "code":
            answers["vtm_attn_out"] = rows[0][:, :, :tokens, :tokens]
    return answers


def replay(case: Case) -> dict[str, np.ndarray]:
    answers = horizontal(case, "pool") | horizontal(case, "cls") | vertical(case)
    return {name: tensor.detach().numpy() for name, tensor in answers.items()}
