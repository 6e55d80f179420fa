"""Replays Co-Mixup from given saliency and draws, with the authors' labels of every cut.

The authors' labels are given, since their α-β swap may miss the minimum, and each cut decides what all later ones cost:
ours must be of no more energy, or the replay fails.
"""

import numpy as np

from mixwell.conformance import Case, close, equal
from mixwell.core.criteria import criterion_of
from mixwell.ops.labelling import least_labels, table_energy
from mixwell.sample.saliency.comixup import Comix, ComixDraws, Settings, mix_of, peak_distances, peaks
from mixwell.sample.saliency.puzzlemix import block_saliency, block_side

SOURCE = "official code"
INPUTS = (
    *("images_norm", "labels", "saliency", "*/param_*", "*/dirichlet", "*/init_idx", "*/cut_label"),
    *("logits", "loss_target_key"),
)
COMPARE = {
    "peak_xy": equal(),
    "A_dist": equal(),
    "*/cut_n_labels": equal(),
    "*/cut_pairwise": equal(),
    "*/cut_unary": close(2e-6),
    "*/mask_*": equal(),
    "*/add_cost": equal(),
    "*/objective": close(1e-4),
    "*": close(1e-6),
}


def replay(case: Case) -> dict[str, np.ndarray]:
    answers, targets = {}, {}
    for name in sorted({key.partition("/")[0] for key in case if "/param_" in key}):
        config = Config(case, name)
        answers |= {f"{name}/{key}": value for key, value in config.answers().items()}
        targets[name] = config.mixture.targets()
    answers |= {"peak_xy": config.found.astype(np.float32), "A_dist": config.distances.astype(np.float32)}
    wanted = targets[str(case["loss_target_key"]).partition("/")[0]]
    for key, criterion in (("loss_bce_softmax", "softmax_bce"), ("loss_soft_ce", "cross_entropy")):
        answers[key] = criterion_of(criterion)(case.tensor("logits"), wanted).numpy()
    return {key: value for key, value in answers.items() if key in case.wanted}


class Config:
    """One of the golden's settings, solved with the authors' labels."""

    def __init__(self, case: Case, name: str) -> None:
        self.case, self.name = case, name
        self.cuts: list[tuple[np.ndarray, np.ndarray]] = []
        self.rounds: list[np.ndarray] = []
        saliency = case.tensor("saliency")
        blocks, rows = int(self.param("m_block_num")), len(saliency)
        settings = Settings(
            beta=float(self.param("m_beta")),
            gamma=float(self.param("m_gamma")),
            tau=float(self.param("m_thres")),
            penalty=str(self.param("m_thres_type")),
            rule="code",
            niter=int(self.param("m_niter")),
            resolve=bool(self.param("set_resolve")),
        )
        eta, omega = float(self.param("m_eta")), float(self.param("m_omega"))
        comix = Comix(rows, blocks, settings, eta, float(self.param("mixup_alpha")), omega)
        draws = ComixDraws(blocks, self.of("dirichlet"), (self.of("init_idx") + 0.5) / rows)
        self.found = peaks(saliency).double().numpy()
        self.distances = peak_distances(self.found[None], np.array([rows]))[0]
        per_block = block_saliency(saliency, block_side(tuple(saliency.shape[1:]), blocks))
        self.arrangement = comix.arrangement(per_block.double().numpy(), self.found, draws)
        self.arrangement.run(self.label)
        self.rounds.append(self.arrangement.shares[0].copy())
        self.mixture = mix_of(case.tensor("images_norm"), self.arrangement.shares, case.tensor("labels"))

    def of(self, key: str) -> np.ndarray:
        return self.case[f"{self.name}/{key}"]

    def param(self, key: str) -> np.ndarray:
        return self.of(f"param_{key}")

    def label(self, costs: np.ndarray, table: np.ndarray, beta: float) -> np.ndarray:
        """The authors' next labels, which must not cost less than ours."""
        if len(self.cuts) % len(self.found) == 0:
            self.rounds.append(self.arrangement.shares[0].copy())
        cut = len(self.cuts)
        known = np.flatnonzero(costs.max((0, 1, 2)) < 1e5)  # the golden leaves out pairs that are no labels
        theirs = known[self.of("cut_label")[cut].astype(int)][None]
        self.cuts.append((costs[0][..., known], table[0][np.ix_(known, known)]))
        own, golden = (
            table_energy(costs, table, beta, labels)[0] for labels in (least_labels(costs, table, beta), theirs)
        )
        if own > golden + 1e-6:
            raise AssertionError(f"{self.name}: cut {cut} has energy {own}, the authors' has {golden}")
        return theirs

    def answers(self) -> dict[str, np.ndarray]:
        arrangement, shape = self.arrangement, self.case.wanted.get(f"{self.name}/cut_unary", (0,))
        unary = np.full((len(self.cuts), *arrangement.costs.shape[1:3], shape[-1]), np.nan)
        pairwise = np.full((len(self.cuts), shape[-1], shape[-1]), np.nan)
        for cut, (costs, table) in enumerate(self.cuts if any(shape) else ()):
            count = len(table)
            unary[cut, ..., :count], pairwise[cut, :count, :count] = costs, table
        return {
            "beta_scaled": np.array(arrangement.beta),
            "gamma_scaled": np.array(arrangement.gamma),
            "cost_matrix": np.moveaxis(arrangement.costs[0], 2, 0),
            "cut_n_labels": np.array([len(table) for _, table in self.cuts]),
            "cut_unary": unary,
            "cut_pairwise": pairwise,
            "objective": np.concatenate(arrangement.objectives),
            "mask_iters": np.stack(self.rounds),
            "mask_onehot": self.rounds[-1],
            "add_cost": arrangement.discouraged[0],
            "target": self.mixture.targets().dense(self.case["logits"].shape[1]).numpy(),
            "mixed": self.mixture.images.numpy(),
        }
