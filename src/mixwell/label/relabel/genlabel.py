"""GenLabel: label a mix with what the classes' densities say about it, not only with what went into it.

Sohn, Shang, Chen, Moon, Papailiopoulos, Lee, "GenLabel: Mixup Relabeling using Generative Models", ICML 2022,
arXiv:2201.02354.

A mix may fall among images of a third class, and its label is then wrong. A density is fitted to each class's features;
the posterior of the mixed image under equal priors, blended with the label of the mix, is what is trained. Equations:
densities → `mixwell.ops.densities`; posterior → `posterior`; γ·y_gen + (1-γ)·y_mix → `GenerativeShares`. Training on
the blended label is exactly the paper's γ·CE(z, y_gen) + (1-γ)·CE(z, y_mix).

Features are those of the mixed image in the pass that is trained, at the classifier's input (`site="embedding"`), at
another site (averaged over places), or the pixels (`site="input"`). Densities are fitted to the clean training images
before each epoch, as the network then sees them. In a loop of your own that is `recipe.use_data(train=...)` and, at the
start of each epoch, `recipe.before_epoch(model)`. The share of mixes that the densities put into a class which is not
among their sources is in the log as "intrusion".

Paper and code: the paper labels with all classes, the authors' toy code with the two likeliest (`top_k=2`). Their
features of images are those of a network that was trained before and stays as it is; ours are the network's own, fitted
anew per epoch, so that densities follow them. A large γ, such as the 0.8 of the authors' toys, then lets labels follow
the network's own mistakes, so γ is 0.2; the paper tunes it. Their covariances are a class's own with a ridge of 1e-4
(`ridge`). In many dimensions these are singular or too sure, which `covariance="shared"` or "diagonal", `shrinkage`
towards a multiple of the identity, and `temperature` soften. `density="kde"` takes kernels with the bandwidth of
Scott's rule, or 0.2 and the like for toys (`bandwidth`), and keeps every training feature.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mixwell.core.axes import Label, Need, Step
from mixwell.core.clock import Clock
from mixwell.core.errors import MixwellError, ParameterError, number_in
from mixwell.core.plain import Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.splits import Splits, gathered_over_processes, summed_over_processes
from mixwell.core.targets import Targets
from mixwell.ops.densities import (
    Kernels,
    covariances_of,
    gaussian_log_density,
    kernel_log_density,
    kernels_of,
    moments_of,
    shrunk,
)
from mixwell.probe import Anatomy, Probe, Want
from mixwell.probe.trace import untouched
from mixwell.sample.linear.mixup import Linear

__all__ = ["GenerativeShares", "posterior"]

Density = Literal["gaussian", "kde"]
Covariance = Literal["own", "shared", "diagonal"]


def posterior(
    log_density: Float[Tensor, "r k"], top_k: int | None = None, temperature: float = 1.0
) -> Float[Tensor, "r k"]:
    """The classes' probabilities under equal priors.

    Args:
        log_density: -∞ for classes of which nothing is known.
        top_k: only the likeliest classes, or None for all.
        temperature: by which logarithms are divided.
    """
    if top_k is not None and top_k < log_density.shape[1]:
        kept = log_density.topk(top_k, 1)
        log_density = torch.full_like(log_density, float("-inf")).scatter_(1, kept.indices, kept.values)
    return (log_density / temperature).softmax(1)


class GenerativeShares(Label):
    """The blend of the posterior of the classes' densities and the label of the mix.

    Args:
        gamma: γ in [0, 1], the posterior's part.
        density: "gaussian" or "kde".
        site: whose features: "embedding", "input", a stage's number or a module's name.
        covariance: each class its "own", one "shared" within classes, or each its own "diagonal"; for "gaussian".
        shrinkage: in [0, 1], towards a multiple of the identity.
        ridge: > 0, added to the diagonal.
        bandwidth: of kernels; None for Scott's rule.
        top_k: classes that the posterior speaks of; None for all.
        temperature: by which log-densities are divided.
    """

    breaks = frozenset({Need.PAIR})
    network = True

    def __init__(
        self,
        gamma: float = 0.2,
        density: Density = "gaussian",
        site: int | str = "embedding",
        covariance: Covariance = "own",
        shrinkage: float = 0.0,
        ridge: float = 1e-4,
        bandwidth: float | None = None,
        top_k: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if top_k is not None and top_k < 1:
            raise ParameterError(f"top_k must be a whole number ≥ 1, or none for all classes, got {top_k!r}.")
        self.gamma = number_in("gamma", gamma, 0, 1)
        self.density, self.site, self.covariance, self.top_k = density, site, covariance, top_k
        self.shrinkage = number_in("shrinkage", shrinkage, 0, 1)
        self.ridge = number_in("ridge", ridge, 0, open_low=True)
        self.bandwidth = None if bandwidth is None else number_in("bandwidth", bandwidth, 0, open_low=True)
        self.temperature = number_in("temperature", temperature, 0, open_low=True)
        self.classes = 0
        self.weights: Tensor
        self.means: Tensor
        self.factors: Tensor
        self.samples: Tensor
        self.there: Tensor
        for name in _LEARNT:
            self.register_buffer(name, torch.empty(0))

    def wants(self) -> tuple[Want, ...]:
        return () if self.site == "input" else (Want("features", self.site),)

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        if self.site != "input":
            anatomy.site(self.site)
        if num_classes is None:
            raise ParameterError("genlabel fits a density to each class. Give num_classes to mixwell.create.")
        self.classes = num_classes

    def before_epoch(self, net: nn.Module, data: Splits, clock: Clock) -> None:
        """Fit the densities to the clean training images."""
        probe, totals, features, ids = Probe(net), None, [], []
        # In the modes of training, since the features of mixes will be those of such passes.
        with untouched(net, training=None), torch.no_grad():
            for batch in data.train():
                wants = self.wants()
                maps = probe.run(batch.images, wants=wants)[wants[0]] if wants else batch.images
                found = _flat(maps, pooled=bool(wants))
                if self.density == "kde":
                    features.append(found)
                    ids.append(batch.labels.argmax(1) if batch.labels.is_floating_point() else batch.labels)
                    continue
                sums = self._sums(found, batch.labels)
                totals = sums if totals is None else [old + new for old, new in zip(totals, sums, strict=True)]
            if self.density == "kde":
                every = gathered_over_processes(torch.cat(features)), gathered_over_processes(torch.cat(ids))
                kernels = kernels_of(every[0].double(), every[1], self.classes, self.bandwidth)
                self.means, self.factors = kernels.means, kernels.factors
                self.samples, self.there = kernels.samples, kernels.there
            else:
                if totals is None:
                    raise MixwellError("genlabel fits densities to the training images, but there are none.")
                self._keep([summed_over_processes(part) for part in totals])

    def log_density(self, features: Float[Tensor, "r d"]) -> Float[Tensor, "r k"]:
        """log p(x | class) of each row for each class, in fp64; -∞ for classes without training images."""
        points = features.double()
        with torch.autocast(points.device.type, enabled=False):
            means, factors = self.means.double(), self.factors.double()
            if self.density == "kde":
                return kernel_log_density(points, Kernels(means, factors, self.samples.double(), self.there.bool()))
            return gaussian_log_density(points, means, factors).masked_fill(self.weights == 0, float("-inf"))

    def targets(self, step: Step) -> Targets:
        wants = self.wants()
        maps = step.outputs[wants[0]].detach() if wants else step.mix.images.detach()
        mixed = step.mix.targets()
        told = posterior(self.log_density(_flat(maps, pooled=bool(wants))), self.top_k, self.temperature)
        rows = mixed.dense(self.classes)
        step.notes["intrusion"] = (rows.gather(1, told.argmax(1, keepdim=True)) == 0).float().mean()
        mixed.soft = torch.lerp(rows, told.to(rows), self.gamma)
        return mixed

    def _sums(self, features: Tensor, labels: Tensor) -> list[Tensor]:
        shares = labels if labels.is_floating_point() else F.one_hot(labels.long(), self.classes)
        features = features.double()
        if self.covariance == "diagonal":
            weights = shares.double()
            return [weights.sum(0), weights.T @ features, weights.T @ features.square()]
        return list(moments_of(features, shares.double(), own=self.covariance == "own"))

    def _keep(self, totals: list[Tensor]) -> None:
        weights, sums, products = totals
        if self.covariance == "diagonal":
            count = weights.clamp_min(torch.finfo(weights.dtype).tiny)[:, None]
            means = sums / count
            covariances = torch.diag_embed(products / count - means.square())
        else:
            means, covariances = covariances_of(weights, sums, products)
        self.weights, self.means = weights, means
        self.factors = torch.linalg.cholesky(shrunk(covariances, self.shrinkage, self.ridge))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        """Take densities of whatever size."""
        for name in _LEARNT:
            if (stored := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(stored, device=cast(Tensor, getattr(self, name)).device))
        super()._load_from_state_dict(state_dict, prefix, *args)


_LEARNT = ("weights", "means", "factors", "samples", "there")


def _flat(maps: Float[Tensor, "r ..."], *, pooled: bool) -> Float[Tensor, "r d"]:
    """A row of numbers for each image: channels' means of maps, or every number."""
    return maps.float().mean((2, 3)) if pooled and maps.ndim == 4 else maps.float().flatten(1)


@method("genlabel", section="2.4", paper="2201.02354", venue="ICML 2022")
def genlabel(
    gamma: float = 0.2,
    density: Density = "gaussian",
    site: int | str = "embedding",
    covariance: Covariance = "own",
    shrinkage: float = 0.0,
    ridge: float = 1e-4,
    bandwidth: float | None = None,
    top_k: int | None = None,
    temperature: float = 1.0,
    alpha: float = 1.0,
) -> Pieces:
    """Args:
    gamma: γ, the part of the densities' posterior in the label; the paper tunes it for each data set.
    density: a "gaussian" per class, or kernels ("kde").
    site: whose features: "embedding" (what the classifier is given), "input", a stage's number or a module's name.
    covariance: of the Gaussians: each class its "own", one "shared" by all, or each its own "diagonal".
    shrinkage: of covariances towards a multiple of the identity, in [0, 1].
    ridge: added to the diagonal of covariances.
    bandwidth: of the kernels; Scott's rule if not given.
    top_k: likeliest classes that the posterior speaks of; all if not given.
    temperature: by which log-densities are divided.
    alpha: λ ~ Beta(α, α) of the mix.
    """
    label = GenerativeShares(gamma, density, site, covariance, shrinkage, ridge, bandwidth, top_k, temperature)
    return Pieces(essential=label, suggested=(Linear(), Beta(alpha)))
