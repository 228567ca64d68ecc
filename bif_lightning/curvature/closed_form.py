"""The closed form: influence under a Gaussian posterior with losses linearized at the snapshot.

The coordinates are u = M^½·w, with M the metric of the pull (`curvature.kronecker`); gradients there are
g = M^(−½)·∇l. With l_i(u) ≈ l_i(u*) + g_i·(u − u*) and p = N(u*, Σ), Σ = (nβ·Qᵀ·H·Q + γ·I)⁻¹,

    Cov(l_i, φ_j) = g_iᵀΣg_j = g_i·g_j/γ + Σ_k (v_k − 1/γ)·(q_k·g_i)(q_k·g_j),   v_k = 1/(nβ·h_k + γ),

in the eigenvectors q_k of H. The closed form has no Monte Carlo error. Its error comes from H, a mean over training
examples. It is measured on G groups of examples; to first order, group g gives the covariance

    Z_g = Cov − nβ·(Σg_i)ᵀ·Qᵀ(H_g − H)Q·(Σg_j),

and the standard error is that of the mean of Z_g over groups.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.curvature.gaussian import SubspaceGaussian
from bif_lightning.statistics.influence import BatchCovariances


@dataclass(frozen=True)
class LinearizedPosterior:
    """Gradients of all losses and observables at the snapshot, and the posterior of the weights.

    Vectors of weights are those of the flat vector, or sketches of them (`curvature.sketched`).

    Attributes:
        normal: the posterior.
        train: gradients of the train losses, whitened by its metric, nats per weight unit.
        columns: gradients of the columns (queries, then further observables), likewise.
        train_along, columns_along: q_k·g, float64, on the CPU.
        variances: v_k.
        column_variances: g_jᵀΣg_j of all columns, under the Hessian of each group.
        deviations: H_g − H in the basis of the eigenvectors, nats per squared weight unit.
    """

    normal: SubspaceGaussian
    train: Float[Tensor, "train weight"]
    columns: Float[Tensor, "column weight"]
    train_along: Float[Tensor, "train direction"]
    columns_along: Float[Tensor, "column direction"]
    variances: Float[Tensor, " direction"]
    deviations: Float[Tensor, "group direction direction"]
    column_variances: Float[Tensor, "group column"]

    @classmethod
    def of(
        cls,
        normal: SubspaceGaussian,
        hessians: Float[Tensor, "group direction direction"],
        train: Float[Tensor, "train weight"],
        columns: Float[Tensor, "column weight"],
    ) -> "LinearizedPosterior":
        """Build it from the Hessian of each group in the basis of the posterior's directions."""
        along = (train @ normal.directions.mT).double().cpu()
        across = (columns @ normal.directions.mT).double().cpu()
        deviations = (hessians - hessians.mean(0)).double().cpu()
        # Negative curvature is clipped at 0, so that small deviations do not change it.
        cut = (normal.curvature == 0).cpu()
        deviations[:, cut] = 0
        deviations[:, :, cut] = 0
        variances = normal.variances.double().cpu()
        of_columns = _variances(normal, columns, across, variances, deviations)
        return cls(normal, train, columns, along, across, variances, deviations, of_columns)

    @property
    def groups(self) -> int:
        """Number of groups of training examples that the curvature was measured on."""
        return len(self.deviations)

    def tensors(self) -> list[Tensor]:
        """The tensors that take most of the memory."""
        bases = [basis for each in self.normal.metric.factors for basis in each.bases if basis is not None]
        return [self.train, self.columns, self.normal.directions, *bases]

    def products(self, rows: slice) -> BatchCovariances:
        """Covariances of some train rows with all columns under the Hessian of each group, to first order.

        Their mean over groups is the covariance under the mean Hessian, exactly.
        """
        pull = 1 / self.normal.localization
        train, along = self.train[rows], self.train_along[rows]
        whole = (train @ self.columns.mT).double().cpu() * pull
        whole += (along * (self.variances - pull)) @ self.columns_along.mT
        moved = along * self.variances, self.columns_along * self.variances
        each = whole - self.normal.inverse_temperature * (moved[0] @ self.deviations @ moved[1].mT)
        return BatchCovariances(
            np.full(self.groups, 1 / self.groups),
            (each / self.groups).numpy(),
            _variances(self.normal, train, along, self.variances, self.deviations).numpy(),
            self.column_variances.numpy(),
        )


def _variances(
    normal: SubspaceGaussian, gradients: Tensor, along: Tensor, variances: Tensor, deviations: Tensor
) -> Float[Tensor, "group row"]:
    """gᵀΣg of each row under the Hessian of each group, to first order."""
    pull, moved = 1 / normal.localization, along * variances
    whole = gradients.square().sum(1, dtype=torch.float64).cpu() * pull + (along.square() * (variances - pull)).sum(1)
    return whole - normal.inverse_temperature * ((moved @ deviations) * moved).sum(-1)
