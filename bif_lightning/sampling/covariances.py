"""Covariances of train losses and columns, some train rows at a time: of the draws of chains, or in closed form."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float64

from bif_lightning.config import Centring, Chains, ControlledSGLD
from bif_lightning.curvature.closed_form import LinearizedPosterior
from bif_lightning.sampling.trace import ChainTrace
from bif_lightning.statistics.conditioned import KalmanUpdate
from bif_lightning.statistics.correction import MOST_RESIDUAL, agreement, difference, largest, residual_share
from bif_lightning.statistics.influence import BatchCovariances, products
from bif_lightning.statistics.moments import Moments, merge_batches, stack
from bif_lightning.statistics.standard_errors import (
    ChainMeanCovariance,
    ErrorModel,
    chain_mean_covariance,
    fit_error_model,
    independent,
    no_bias,
)

_SAMPLED = 64  # rows, and columns, whose draws show how long chains remember
_SAMPLE_ENTRIES = 1 << 20  # float64 numbers of all batches of those rows

Halves = tuple[Bool[np.ndarray, " batch"], Bool[np.ndarray, " batch"]]


@dataclass(frozen=True)
class RowCovariances:
    """What is known of some train rows.

    Attributes:
        moments: of their draws, [chain, batch].
        batches: their covariances with all columns, batch by batch.
        chain_means: what the spread of the chain means says of the bias of these.
        drawn: those of the draws alone, where these contain a closed form; else None.
    """

    moments: Moments
    batches: BatchCovariances
    chain_means: ChainMeanCovariance
    drawn: "RowCovariances | None" = None


@dataclass(frozen=True)
class Correction:
    """Weight of a correction that chains measured.

    Attributes:
        alpha: α.
        residual_share: Var(x − x')/Var(x') along the losses.
    """

    alpha: float
    residual_share: float


class Covariances(Protocol):
    """Where the matrices of an estimate come from."""

    @property
    def errors(self) -> ErrorModel:
        """How standard errors are made of the spread of the batches."""
        ...

    @property
    def share(self) -> Float64[np.ndarray, " batch"]:
        """Weight of each batch, n_k/N of the draws."""
        ...

    @property
    def halves(self) -> Halves:
        """Two halves of all batches, which are compared."""
        ...

    @property
    def conditioner(self) -> KalmanUpdate | None:
        """Makes the conditioned influence; None where there is none."""
        ...

    @property
    def correction(self) -> "Correction | None":
        """How much the chains add to a closed form; None where there is none."""
        ...

    @property
    def drawn(self) -> "DrawnCovariances | None":
        """Of the draws alone, beside a closed form with the chains' correction; None elsewhere."""
        ...

    def rows(self, rows: slice) -> RowCovariances:
        """Of these train rows."""
        ...


@dataclass(frozen=True)
class DrawnCovariances:
    """Of the draws of all chains: their products, centred, in batches of consecutive draws.

    Attributes:
        traces: of the chains, in their order.
        centring: of the draws.
    """

    traces: Sequence[ChainTrace]
    centring: Centring
    errors: ErrorModel
    conditioner: KalmanUpdate | None = None
    correction: None = None
    drawn: "DrawnCovariances | None" = None

    @classmethod
    def of(
        cls, traces: Sequence[ChainTrace], shape: Sequence[int], chains: Chains, *, paired: bool = False
    ) -> "DrawnCovariances":
        """Fit the error model, and prepare the conditioned influence where draws are kept.

        Args:
            shape: train rows and columns, whatever follows.
            chains: centring, and the ridge of the conditioned influence.
            paired: draws are antithetic pairs.
        """
        # On one thread, as blocks are: bits must not depend on how many there are.
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            errors = pool.submit(_error_model, traces, shape, chains.centring).result()
            conditioner = pool.submit(_conditioner, traces, chains, paired).result()
        return cls(traces, chains.centring, errors, conditioner)

    @property
    def share(self) -> Float64[np.ndarray, " batch"]:
        """n_k/N, each batch's share of all draws."""
        lengths = np.array([list(trace.lengths) for trace in self.traces], np.float64)
        merged = np.stack([chunk.sum(1) for chunk in np.array_split(lengths, self.errors.parts, 1)], 1)
        return merged.ravel() / merged.sum()

    @property
    def halves(self) -> Halves:
        """Even and odd chains, or early and late batches of a single chain (maybe none)."""
        chains, batches = len(self.traces), self.errors.parts
        if chains > 1:
            return _split((np.arange(chains) % 2 == 1).repeat(batches))
        return _split(np.arange(batches) >= (batches + 1) // 2)

    def rows(self, rows: slice) -> RowCovariances:
        """Of these train rows."""
        return self.of_moments(stack([trace.moments(rows) for trace in self.traces]))

    def of_moments(self, moments: Moments) -> RowCovariances:
        """Of the train rows that have these moments, [chain, batch]."""
        merged = merge_batches(moments, self.errors.parts)
        return RowCovariances(merged, products(merged, self.centring), chain_mean_covariance(merged, self.centring))


@dataclass(frozen=True)
class ClosedFormCovariances:
    """Of the linearized losses under a Gaussian posterior; batches are groups of examples behind its curvature.

    Attributes:
        posterior: with the losses' gradients.
        traces: independent draws, which give the means of the losses and nothing else.
        centring: of the draws.
    """

    posterior: LinearizedPosterior
    traces: Sequence[ChainTrace]
    centring: Centring
    conditioner: None = None
    correction: None = None
    drawn: None = None

    @property
    def errors(self) -> ErrorModel:
        """Groups are independent."""
        return independent(self.posterior.groups)

    @property
    def share(self) -> Float64[np.ndarray, " batch"]:
        """The same for every group."""
        return np.full(self.posterior.groups, 1 / self.posterior.groups)

    @property
    def halves(self) -> Halves:
        """The first groups and the others."""
        groups = self.posterior.groups
        return _split(np.arange(groups) >= (groups + 1) // 2)

    def rows(self, rows: slice) -> RowCovariances:
        """Of these train rows."""
        moments = stack([trace.moments(rows) for trace in self.traces])
        none = no_bias(chain_mean_covariance(moments, self.centring))
        return RowCovariances(moments, self.posterior.products(rows), none)


@dataclass(frozen=True)
class ControlledCovariances:
    """Those in closed form, and a correction by chains beside their surrogates (`sampling.controlled`).

    Attributes:
        closed: of the surrogate.
        corrections: α·Δ that is added in each group of examples: their mean is that of the chains, and their spread
            makes the standard error of the mean over groups that of the chains too.
        correction: α, and by how much chains and surrogates part.
        drawn: of the draws of the chains alone, for everybody to compare with; None if all diverged.
    """

    closed: ClosedFormCovariances
    corrections: Float64[np.ndarray, "group direction direction"]
    correction: Correction
    drawn: DrawnCovariances | None
    conditioner: None = None

    @classmethod
    def of(
        cls, posterior: LinearizedPosterior, traces: Sequence[ChainTrace], chains: Chains, settings: ControlledSGLD
    ) -> "ControlledCovariances":
        """Weigh the correction that these chains measured."""
        closed = ClosedFormCovariances(posterior, traces, chains.centring)
        if not traces[0].coordinates:  # no chain is left
            return cls(closed, np.zeros((posterior.groups, 1, 1)), Correction(0.0, np.nan), None)
        coordinates = torch.stack([torch.stack(trace.coordinates) for trace in traces]).numpy()
        count = coordinates.shape[-1]
        train, columns = (along[:, -count:].numpy() for along in (posterior.train_along, posterior.columns_along))
        differences = np.stack([difference(each) for each in coordinates])
        share = residual_share(coordinates, train)
        alpha = settings.alpha
        if alpha == "agreement":
            alpha = agreement(differences, train, columns) if share <= MOST_RESIDUAL else 0.0
        alpha = float(min(alpha, largest(differences.mean(0), posterior.variances[-count:].numpy())))
        spread = _spread(differences, posterior.groups)
        shape = len(posterior.train_along), len(posterior.columns_along)
        drawn = DrawnCovariances.of(traces, shape, replace(chains, ridge=None))
        return cls(closed, alpha * spread, Correction(alpha, share), drawn)

    @property
    def errors(self) -> ErrorModel:
        """Groups are independent."""
        return self.closed.errors

    @property
    def share(self) -> Float64[np.ndarray, " batch"]:
        """The same for every group."""
        return self.closed.share

    @property
    def halves(self) -> Halves:
        """The first groups and the others."""
        return self.closed.halves

    def rows(self, rows: slice) -> RowCovariances:
        """Of these train rows."""
        found, posterior = self.closed.rows(rows), self.closed.posterior
        count, of = self.corrections.shape[-1], found.batches
        train, columns = posterior.train_along[rows, -count:].numpy(), posterior.columns_along[:, -count:].numpy()
        along, across = train @ self.corrections, columns @ self.corrections
        batches = BatchCovariances(
            of.share,
            of.covariance + (along @ columns.T) * of.share[:, None, None],
            of.train_variance + (along * train).sum(-1),
            of.column_variance + (across * columns).sum(-1),
        )
        drawn = self.drawn.of_moments(found.moments) if self.drawn else None
        return RowCovariances(found.moments, batches, found.chain_means, drawn)


def _spread(
    differences: Float64[np.ndarray, "chain direction direction"], groups: int
) -> Float64[np.ndarray, "group direction direction"]:
    """The mean over chains for each group, and the deviation of one of the chains, group by group in turn.

    The deviations are scaled so that the variance of the mean over groups is that of the mean over chains, to which
    that of the groups themselves adds up.
    """
    mean, chains = differences.mean(0), len(differences)
    if chains < 2 or groups < 2:
        return np.broadcast_to(mean, (groups, *mean.shape)).copy()
    deviations = (differences - mean)[np.arange(groups) % chains]
    return mean + (deviations - deviations.mean(0)) * np.sqrt((groups - 1) / (chains - 1))


def _split(late: Bool[np.ndarray, " batch"]) -> Halves:
    return ~late, late


def _conditioner(traces: Sequence[ChainTrace], chains: Chains, paired: bool) -> KalmanUpdate | None:
    if chains.ridge is None or not traces[0].traces:
        return None
    train, columns = [trace.train[0] for trace in traces], [trace.columns[0] for trace in traces]
    return KalmanUpdate.of(train, columns, chains.ridge, paired=paired)


def _error_model(traces: Sequence[ChainTrace], shape: Sequence[int], centring: Centring) -> ErrorModel:
    """From evenly spaced rows and columns."""
    batches = sum(len(trace.lengths) for trace in traces)
    rows = max(1, min(_SAMPLED, _SAMPLE_ENTRIES // (batches * shape[1])))
    sample = stack([trace.moments(slice(0, shape[0], -(-shape[0] // rows))) for trace in traces])
    columns = slice(0, shape[1], -(-shape[1] // _SAMPLED))
    return fit_error_model(sample.rows(slice(None), columns), centring)
