"""AMR: mix the codes of images, and train an auto-encoder so that a critic takes decoded mixes for real images.

Beckham, Honari, Verma, Lamb, Ghadiri, Hjelm, Bengio, Pal, "On Adversarial Mixup Resynthesis", NeurIPS 2019,
arXiv:1903.02709.

An auto-encoder g∘f learns to reconstruct images. A critic D learns to tell images from reconstructions and from decoded
mixes of codes, and the auto-encoder to fool it, so that mixes become plausible images. Codes are mixed by one α per
pair, by one per channel, or channel by channel from one image or the other.
Equations: f, g and D → `mixwell.nets.resynthesis`; α → `CodeShares`; h_mix = α·h_1 + (1-α)·h_2 → `mix_codes`; the
auto-encoder's objective λ·‖x - g(h)‖ + ℓ(D(g(h)), 1) + ℓ(D(g(h_mix)), 1) + β·‖f(g(h_mix)) - h_mix‖ and the critic's
ℓ(D(x), 1) + ℓ(D(g(h)), 0) + ℓ(D(g(h_mix)), 0) → `Resynthesis.lessons`, of `judged` and `deviation`. `variant="acai"`
is the baseline of the paper, in which the critic is to tell 2·min(α, 1-α) of a mix, and 0 of all else →
`how_mixed`.

The paper learns codes without labels and has no classifier. Ours learns from decoded mixes, without gradient to the
auto-encoder, and each image's label has its share of the code (λ, or a share of the channels); that is our addition.
The players learn first in each step, the auto-encoder in every fifth, from a mix with partners and α of their own; then
codes are mixed as the recipe says. Codes are made once in a step, and the critic judges the very images that the
auto-encoder was judged by. The paper's rates take thousands of steps until mixes are more than blurs;
`amr(update_g_every=1, lr=0.001)` shows blurred clothes after a hundred. `0.5*amr | 0.5*none` also trains on clean
batches.

The networks see pixels from -1 to 1, so that the normalisation must be known, and take their depth from the example
images: sides are halved until codes are about 4 wide. Sides that are no multiples of a code's are filled up with the
border, which is cut off again.

Paper and code: the ℓ₂ norms of the equations are mean absolute differences in the code (`recon="l2"` squares them).
Defaults are those of the CIFAR-10 experiments, of the authors' scripts rather than of their code. Their version of
"fm2" draws one probability for the whole batch (`per="batch"`). In the code's mixes of k images by channels only the
last one counts; ours has all, as meant. A supervised mixer for attributes is not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from numpy.random import Generator
from torch import Tensor, nn
from torch.func import functional_call

from mixwell.core.axes import Blend, Need, Per, Scene, per_of
from mixwell.core.errors import ModelError, ParameterError, number_in
from mixwell.core.mix import Mix, Partners, layout_of, onto
from mixwell.core.plain import OF_A_PAIR, Beta, Permutation
from mixwell.core.registry import Pieces, method
from mixwell.core.turns import Player, Turn
from mixwell.nets.resynthesis import AutoEncoder, Critic, fill_up, scales_for
from mixwell.probe import Anatomy
from mixwell.sample.ksample.dcutmix import convex

__all__ = ["CodeShares", "Resynthesis", "ResynthesisDraws", "deviation", "how_mixed", "judged", "mix_codes"]

Mixer = Literal["mixup", "mixup2", "fm", "fm2"]
Norm = Literal["l1", "l2"]
GanLoss = Literal["bce", "mse"]
Variant = Literal["amr", "acai"]


def mix_codes(
    codes: Float[Tensor, "b d h w"], partners: Partners, shares: Float[Tensor, "#b k #d"]
) -> Float[Tensor, "b d h w"]:
    """Σ_k α_k·h_k over each code and its partners.

    Args:
        partners: K - 1 of each row.
        shares: α of each row (or all), source (the row itself first) and channel (or all), in the codes' dtype.
    """
    first, *others = (share[:, :, None, None] for share in shares.unbind(1))
    mixed = first * codes
    for which, share in enumerate(others):
        mixed = mixed + share * partners.of(codes, which)
    return mixed


def judged(logits: Float[Tensor, " b"], wanted: float | Float[Tensor, " b"], loss: GanLoss) -> Float[Tensor, ""]:
    """ℓ(D, t): how far the probabilities of the critic's logits are from what is wanted, the mean over rows in fp32.

    Args:
        wanted: t in [0, 1], of each row or of all.
        loss: "bce", cross-entropy of probability and t, or "mse", their squared difference.
    """
    logits = logits.float()
    target = torch.as_tensor(wanted, device=logits.device).to(logits.dtype).expand_as(logits)
    if loss == "mse":
        return F.mse_loss(logits.sigmoid(), target)
    return F.binary_cross_entropy_with_logits(logits, target)


def deviation(made: Float[Tensor, "b ..."], wanted: Float[Tensor, "b ..."], norm: Norm) -> Float[Tensor, ""]:
    """The mean absolute ("l1") or squared ("l2") difference, in fp32."""
    distance = F.l1_loss if norm == "l1" else F.mse_loss
    return distance(made.float(), wanted.float())


def how_mixed(alpha: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """2·min(α, 1-α): 0 for an image alone, 1 for half of each; what ACAI's critic is to tell of a mix."""
    return 2 * torch.minimum(alpha, 1 - alpha)


@dataclass(frozen=True)
class CodeShares:
    """How much of each source every channel of a mixed code shows.

    Attributes:
        mixer: "mixup" has one α for all channels, "mixup2" one for each; "fm" takes each channel from one image by a
            fair coin, "fm2" by a coin that shows the own image with probability λ.
        k: images in a mix. Of more than two, α ~ Dirichlet ("mixup"), or each channel shows any of them ("fm").
        latent: D, channels.
        alpha: of the Beta or Dirichlet distribution of α.

    Raises:
        ParameterError: a number is out of range, or there is no such mixer of k images.
    """

    mixer: Mixer = "mixup"
    k: int = 2
    latent: int = 64
    alpha: float = 1.0

    def __post_init__(self) -> None:
        number_in("alpha", self.alpha, 0, open_low=True)
        if self.k < 2:
            raise ParameterError(f"k must be a whole number ≥ 2, got {self.k}. It counts the image itself.")
        if self.k > 2 and self.mixer not in ("mixup", "fm"):
            raise ParameterError(
                f"mixer={self.mixer!r} mixes two codes, got k={self.k}. Take mixer='mixup' or 'fm', or k=2."
            )

    @property
    def takes_lam(self) -> bool:
        """Whether shares follow a λ that is drawn elsewhere."""
        return self.k == 2 and self.mixer in ("mixup", "fm2")

    def draw(self, rows: int, rng: Generator) -> Float32[np.ndarray, "rows _ _"] | None:
        """What `of` needs besides λ: the shares; for "fm2" uniforms (R, 1, D); for "mixup" of two nothing."""
        if self.mixer == "mixup":
            drawn = None if self.k == 2 else rng.dirichlet(np.full(self.k, self.alpha), rows)[:, :, None]
        elif self.mixer == "mixup2":
            own = rng.beta(self.alpha, self.alpha, (rows, 1, self.latent))
            drawn = np.concatenate((own, 1 - own), 1)
        elif self.mixer == "fm":
            shown = rng.integers(self.k, size=(rows, 1, self.latent))
            drawn = shown == np.arange(self.k)[:, None]
        else:
            drawn = rng.random((rows, 1, self.latent))
        return None if drawn is None else drawn.astype(np.float32)

    def of(
        self, drawn: Float32[np.ndarray, "#b _ _"] | None, lam: Float[Tensor, " #b"], like: Float[Tensor, "..."]
    ) -> Float32[Tensor, "#b k #d"]:
        """The shares of each row, source and channel; they sum to 1 over the sources. On the device of `like`."""
        if drawn is not None and not self.takes_lam:
            return onto(drawn, like)
        own = lam.detach().to(like.device, torch.float32, non_blocking=True)[:, None, None]
        if drawn is not None:
            own = (onto(drawn, like) < own).float()
        return torch.cat((own, 1 - own), 1)


class ResynthesisDraws(NamedTuple):
    """What a step draws besides the recipe's partners and λ.

    Attributes:
        partners: (B, K-1) of the players' mix, a permutation per column.
        lam: (B,) or (1,) λ of the players' mix; not used by mixers that take none.
        learned, shown: what `CodeShares.draw` gives for the players' mix, and for the classifier's.
    """

    partners: Int64[np.ndarray, "b p"]
    lam: Float[np.ndarray, " #b"]
    learned: Float32[np.ndarray, "#b _ _"] | None
    shown: Float32[np.ndarray, "#b _ _"] | None


class Resynthesis(Blend):
    """Decode mixed codes of an auto-encoder that learns beside the network, against a critic.

    Owns both, which exist once it is built; each has an optimiser of its own.

    Args:
        shares: how codes are mixed.
        variant: "amr", or "acai" with ACAI's critic.
        depth, scales: of the networks, see `AutoEncoder`; scales by the size of the example images if not given.
        rec_weight: weight λ of the reconstruction.
        beta: weight of the consistency of codes, the encoded mix's and the mix of codes.
        recon: norm of the reconstruction's difference.
        gan_loss: of the critic's probabilities; ACAI's is "mse".
        lr, betas, weight_decay: of both optimisers, Adam.
        update_g_every: steps from one of the auto-encoder to its next.
        per: one α per "sample", or one per "batch"; of every channel where channels differ.
    """

    network = True
    hidden = False
    shows_shares = False
    exact = False
    repeats = False

    def __init__(
        self,
        shares: CodeShares,
        variant: Variant = "amr",
        *,
        depth: int = 16,
        scales: int | None = None,
        rec_weight: float = 50.0,
        beta: float = 0.0,
        recon: Norm = "l1",
        gan_loss: GanLoss = "bce",
        lr: float = 1e-4,
        betas: tuple[float, ...] = (0.5, 0.99),
        weight_decay: float = 1e-5,
        update_g_every: int = 5,
        per: Per = "sample",
    ) -> None:
        super().__init__()
        self.shares = shares
        self.partners = shares.k - 1
        self.takes_lam = shares.takes_lam
        self.gives = OF_A_PAIR if shares.k == 2 else frozenset({Need.SIMPLEX, Need.OWN_ROW})
        if variant == "acai" and (shares.mixer != "mixup" or shares.k > 2):
            raise ParameterError(
                f"variant='acai' has its critic tell the α of a pair, got mixer={shares.mixer!r}, k={shares.k}. Take "
                "mixer='mixup' and k=2."
            )
        self.variant = variant
        self.depth, self.scales = depth, scales
        with torch.device("meta"):
            AutoEncoder(1, 2 if scales is None else scales, depth, shares.latent)  # a wrong number is told right here
        self.rec_weight = number_in("rec_weight", rec_weight, 0)
        self.beta = number_in("beta", beta, 0)
        self.recon = recon
        self.gan_loss: GanLoss = "mse" if variant == "acai" else gan_loss
        if len(betas) != 2:
            raise ParameterError(f"betas must be two numbers, such as (0.5, 0.99), got {betas!r}.")
        first, second = (number_in("betas", value, 0, 1, open_high=True) for value in betas)
        self.settings = {
            "lr": number_in("lr", lr, 0, open_low=True),
            "betas": (first, second),
            "weight_decay": number_in("weight_decay", weight_decay, 0),
        }
        self.update_g_every = int(number_in("update_g_every", update_g_every, 1))
        self.per = per_of(per)
        self.autoencoder: AutoEncoder | None = None
        self.critic: Critic | None = None

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        """Make both networks for images like the example's.

        Raises:
            ModelError: there are no example images, or they have no pixel grid.
        """
        example = anatomy.example_for("The auto-encoder")
        if example.ndim != 4:
            raise ModelError(
                f"The auto-encoder takes images (B, C, H, W), got examples {tuple(example.shape)}. Take a recipe such "
                "as mixup."
            )
        if self.scales is None:
            self.scales = scales_for((example.shape[2], example.shape[3]))
        sizes = (example.shape[1], self.scales, self.depth, self.shares.latent)
        self.autoencoder = AutoEncoder(*sizes).to(example.device)
        self.critic = Critic(*sizes).to(example.device)

    def players(self) -> Mapping[str, Player]:
        found: dict[str, nn.Module | None] = {"amr/autoencoder": self.autoencoder, "amr/critic": self.critic}
        return {
            name: Player(tuple(net.parameters()), "adam", self.settings)
            for name, net in found.items()
            if net is not None
        }

    def draw(self, rows: int, rng: Generator) -> ResynthesisDraws:
        count = 1 if self.per == "batch" else rows
        columns = [rng.permutation(rows) for _ in range(self.partners)]
        lam = rng.beta(self.shares.alpha, self.shares.alpha, count)
        return ResynthesisDraws(np.stack(columns, 1), lam, self.shares.draw(count, rng), self.shares.draw(count, rng))

    def lessons(self, scene: Scene) -> Iterator[Turn]:
        """The auto-encoder's objective in every `update_g_every`th step, then the critic's.

        Raises:
            BatchError: the images' normalisation is not known, or they have other channels than the networks.
        """
        autoencoder, critic = self._networks()
        draws: ResynthesisDraws = scene.draws[self]
        learns = scene.clock.step % self.update_g_every == 0
        with torch.set_grad_enabled(learns):
            images, codes = self._seen(scene)
            shares = self.shares.of(draws.learned, torch.from_numpy(draws.lam), codes)
            partners = Partners.at(onto(draws.partners, codes), scene.batch.labels)
            mixed_codes = mix_codes(codes, partners, shares)
            again, mixed = autoencoder.decode(codes), autoencoder.decode(mixed_codes)
        amr = self.variant == "amr"
        if learns:
            fixed = {name: parameter.detach() for name, parameter in critic.named_parameters()}
            parts = {"reconstruction": self.rec_weight * deviation(again, images, self.recon)}
            if amr:
                seen = functional_call(critic, fixed, (again,))
                parts["reconstruction_judged"] = judged(seen, 1.0, self.gan_loss)
            parts["mix_judged"] = judged(functional_call(critic, fixed, (mixed,)), float(amr), self.gan_loss)
            if self.beta:
                parts["consistency"] = self.beta * deviation(autoencoder.encode(mixed), mixed_codes, "l1")
            yield _turn("amr/autoencoder", parts)
        target = 0.0 if amr else how_mixed(shares[:, 0, 0])
        yield _turn(
            "amr/critic",
            {
                "image": judged(critic(images), float(amr), self.gan_loss),
                "reconstruction": judged(critic(again.detach()), 0.0, self.gan_loss),
                "mix": judged(critic(mixed.detach()), target, self.gan_loss),
            },
        )

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: ResynthesisDraws,
        scene: Scene,
    ) -> Mix:
        shares = self.shares.of(draws.shown, lam, images)
        weights = shares.mean(2).expand(partners.sources.shape)
        with torch.no_grad():
            _, codes = self._seen(scene)
        pixels = scene.batch.pixels
        assert pixels is not None, "raw pixels are known"

        def apply(x: Tensor) -> Tensor:
            """Images are encoded, mixed and decoded; of other maps the mean by the label shares is taken."""
            if x.shape[1:] != images.shape[1:] or x.dtype != images.dtype:
                return convex(x, partners, weights)
            autoencoder, _ = self._networks()
            with torch.no_grad():
                of_x = codes if x is scene.batch.images else autoencoder.encode(self._canvas(pixels.raw(x)))
                made = autoencoder.decode(mix_codes(of_x, partners, shares))[..., : x.shape[2], : x.shape[3]]
                return pixels.normalise((made + 1) / 2).to(x.dtype, memory_format=layout_of(x))

        return Mix(apply(images), partners.sources, weights, partners.pool, apply, lam=lam if self.takes_lam else None)

    def _networks(self) -> tuple[AutoEncoder, Critic]:
        assert self.autoencoder is not None, "a recipe binds before it is trained"
        assert self.critic is not None, "and makes both"
        return self.autoencoder, self.critic

    def _canvas(self, raw: Float[Tensor, "b c height width"]) -> Float32[Tensor, "b c h w"]:
        """Pixels in [0, 1] as the networks see them."""
        assert self.scales is not None, "a recipe binds before it mixes"
        return fill_up(raw.float() * 2 - 1, self.scales)

    def _seen(self, scene: Scene) -> tuple[Float32[Tensor, "b c h w"], Float[Tensor, "b d y x"]]:
        """The batch as the networks see it, and its codes, which are made once in a step."""

        def find() -> tuple[Tensor, Tensor]:
            canvas = self._canvas(scene.batch.raw)
            return canvas, self._networks()[0].encode(canvas)

        found: tuple[Tensor, Tensor] = scene.once(self, find)
        return found


def _turn(group: str, parts: Mapping[str, Tensor]) -> Turn:
    """A player's turn, whose loss is the sum of its parts."""
    return Turn(
        torch.stack([*parts.values()]).sum(), group, {n: part.detach() for n, part in parts.items()}, last=False
    )


@method("amr", section="1.9", paper="1903.02709", venue="NeurIPS 2019")
def amr(
    mixer: Mixer = "mixup",
    k: int = 2,
    variant: Variant = "amr",
    alpha: float = 1.0,
    rec_weight: float = 50.0,
    beta: float = 0.0,
    recon: Norm = "l1",
    gan_loss: GanLoss = "bce",
    latent: int = 64,
    depth: int = 16,
    scales: int | None = None,
    lr: float = 1e-4,
    betas: tuple[float, ...] = (0.5, 0.99),
    weight_decay: float = 1e-5,
    update_g_every: int = 5,
    prob: float = 1.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    mixer: "mixup" mixes codes by one α, "mixup2" each channel by its own; "fm" takes each channel from either image by
        a fair coin, "fm2" by a coin that shows the own image with probability α.
    k: images in a mix; more than two for "mixup" (α ~ Dirichlet) and "fm".
    variant: "amr", or "acai" with a critic that tells how much a mix was mixed.
    alpha: α ~ Beta(α, α), or Dirichlet(α, …, α); 1 is the paper's, uniform.
    rec_weight: λ, weight of the reconstruction; the paper takes 50 on CIFAR-10 and 10 on SVHN and MNIST.
    beta: β, weight of the consistency of a mix's codes; 0 in the paper's experiments.
    recon: the reconstruction's difference, "l1" (absolute) or "l2" (squared).
    gan_loss: of the critic's probabilities, "bce" or "mse"; "acai" always has "mse".
    latent: channels of a code; the paper takes 2, 16 and 64.
    depth: channels of the networks' first layers.
    scales: how often sides are halved; none: until codes are about 4 wide.
    lr: learning rate of both players' Adam.
    betas: its decays.
    weight_decay: its weight decay.
    update_g_every: steps from one of the auto-encoder to its next; the critic learns in each.
    prob: share of the batches that are mixed, and that the players learn from.
    per: one α per "sample" or per "batch".
    """
    blend = Resynthesis(
        CodeShares(mixer, k, latent, alpha),
        variant,
        depth=depth,
        scales=scales,
        rec_weight=rec_weight,
        beta=beta,
        recon=recon,
        gan_loss=gan_loss,
        lr=lr,
        betas=betas,
        weight_decay=weight_decay,
        update_g_every=update_g_every,
        per=per,
    )
    suggested = Beta(alpha, per=per) if blend.takes_lam else Permutation(k - 1)
    return Pieces(essential=blend, suggested=suggested, prob=prob)
