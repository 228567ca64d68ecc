"""torchmetrics of influence matrices and of chains."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from bif_lightning.config import SGLD
from bif_lightning.statistics.diagnostics import (
    agreement_per_query,
    effective_sample_size,
    local_learning_coefficient,
    split_rhat,
    standard_ranks,
)


class LinearDatamodelingScore(Metric):
    """Linear datamodeling score: does influence predict retraining (Park et al. 2023, arXiv 2303.14186, Sec. 2)?

    For query j, over subsets S of the train set, with one model retrained on each:

        LDS_j = Spearman_S( Σ_{i in S} B[i, j],  loss of j after training on S )

    B = −Cov is the influence: an example that lowers the query's loss has a negative entry, so that good influences
    score above 0. To score correlations (positive = helps), negate them.

    `compute` returns a dictionary of scalars: "lds", the mean over queries, and "lds_standard_error", for new subsets
    and new queries; with `per_query` also "lds_per_query", [query]. A query whose predictions or losses hold a NaN, or
    are all equal, has no score (NaN) and is left out of the mean.

    The squared standard error is V, the variance of the mean when subsets are drawn again with replacement, plus the
    variance of the scores over queries divided by their number. The share of the subsets' noise in
    the latter is subtracted, since V contains it: resampling both at once would count that noise three times (Owen
    2007, the pigeonhole bootstrap).

    Args:
        influence: B, [train, query].
        resamples: bootstrap resamples of the subsets, the same at every call; 0 for none (NaN standard error).
        per_query: also return the score of every query.
        kwargs: of `torchmetrics.Metric`.

    >>> metric = LinearDatamodelingScore(torch.tensor([[-2.0], [0.0], [1.0]]), resamples=0)
    >>> metric.update(torch.tensor([[True, True, False], [False, True, True]]), torch.tensor([[0.1], [0.7]]))
    >>> metric.compute()["lds"]
    tensor(1., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    predicted: list[Tensor]
    retrained: list[Tensor]
    influence: Tensor

    def __init__(
        self, influence: Float[Tensor, "train query"], *, resamples: int = 200, per_query: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.register_buffer("influence", influence, persistent=False)
        self.resamples = resamples
        self.per_query = per_query
        self.add_state("predicted", default=[], dist_reduce_fx="cat")
        self.add_state("retrained", default=[], dist_reduce_fx="cat")

    def update(self, subsets: Bool[Tensor, "*batch train"], losses: Float[Tensor, "*batch query"]) -> None:
        """Add retrained models.

        Args:
            subsets: which train examples each model was trained on; one subset or several.
            losses: loss of every query under that model; the mean over seeds where several were trained.

        Raises:
            ValueError: the sizes differ from those of the influence.
        """
        train, query = self.influence.shape
        if subsets.shape[-1] != train or losses.shape[-1] != query:
            raise ValueError(
                f"the influence is of {train} train examples and {query} queries, but the subsets are of "
                f"{subsets.shape[-1]} and the losses of {losses.shape[-1]}; pass [..., train] and [..., query]"
            )
        members = subsets.reshape(-1, train).to(self.influence.device, torch.float64)
        self.predicted.append(members @ self.influence.double())
        self.retrained.append(losses.reshape(-1, query).to(self.influence.device, torch.float64))

    def compute(self) -> dict[str, Tensor]:
        """Score, standard error and, with `per_query`, the score of every query."""
        predicted, retrained = dim_zero_cat(self.predicted), dim_zero_cat(self.retrained)
        scores = _spearman(predicted, retrained)
        found = {"lds": scores.nanmean(), "lds_standard_error": self._standard_error(predicted, retrained, scores)}
        return {**found, "lds_per_query": scores} if self.per_query else found

    def _standard_error(self, predicted: Tensor, retrained: Tensor, scores: Tensor) -> Tensor:
        scored = ~scores.isnan()
        if self.resamples < 2 or int(scored.sum()) < 2:
            return predicted.new_tensor(torch.nan)
        again = resampled_scores(predicted[:, scored], retrained[:, scored], self.resamples)
        return two_way_standard_error(scores[scored], again)


def resampled_scores(
    predicted: Float[Tensor, "subset query"], retrained: Float[Tensor, "subset query"], resamples: int
) -> Float[Tensor, "resample query"]:
    """LDS of every query with the subsets resampled with replacement; the same resamples at every call."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(predicted), (resamples, len(predicted)), generator=generator).to(predicted.device)
    return torch.stack([_spearman(predicted[row], retrained[row]) for row in rows])


def two_way_standard_error(scores: Float[Tensor, " query"], again: Float[Tensor, "resample query"]) -> Tensor:
    """Standard error of the mean of finite scores (or of differences of scores), for new subsets and new queries.

    V + max(0, var_j(scores)/q − (v − V)/(q − 1)), V the variance of the mean over the resamples, v the mean variance
    of one query's score over them.
    """
    count = len(scores)
    of_mean, of_one = again.nanmean(1).var(), _nanvar(again).mean()
    counted_twice = (of_one - of_mean) / (count - 1)
    return (of_mean + (scores.var() / count - counted_twice).clamp(min=0)).sqrt()


def _nanvar(x: Tensor) -> Tensor:
    """Variance of each column over its values that are not NaN: a resample may hold only one value."""
    return (x - x.nanmean(0)).square().nansum(0) / (x.isfinite().sum(0) - 1).clamp(min=1)


def _spearman(one: Tensor, other: Tensor) -> Tensor:
    """Rank correlation of each column; NaN where one has a NaN or is constant."""
    scores = (standard_ranks(one) * standard_ranks(other)).mean(0)
    return scores.masked_fill((one + other).isnan().any(0), torch.nan)


class ScoreAgreement(Metric):
    """Spearman correlation of two influence estimates from different draws, median over queries.

    It measures Monte Carlo noise, *not* correctness: a bias is the same in both halves. Queries whose influences are
    all tied are left out. NaN with fewer than 3 train examples.

    >>> metric = ScoreAgreement()
    >>> metric.update(torch.tensor([[-2.0], [0.5], [1.0]]), torch.tensor([[-1.0], [0.2], [0.9]]))
    >>> round(float(metric.compute()), 6)
    1.0
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    agreement: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("agreement", default=[], dist_reduce_fx="cat")

    def update(self, one: Float[Tensor, "train query"], other: Float[Tensor, "train query"]) -> None:
        """Add queries: their influences from one half of the draws and from the other."""
        self.agreement.append(agreement_per_query(one, other))

    def compute(self) -> Tensor:
        """The median, a scalar."""
        return dim_zero_cat(self.agreement).nanmedian()


class _ChainMetric(Metric):
    """Collects traces of whole chains over updates and ranks."""

    is_differentiable = False
    full_state_update = False

    traces: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("traces", default=[], dist_reduce_fx="cat")

    def update(self, trace: Float[Tensor, "chain draw"]) -> None:
        """Add whole chains of one length: the mean loss (or any other scalar) at every draw.

        Raises:
            ValueError: earlier chains have another number of draws.
        """
        if self.traces and self.traces[0].shape[1] != trace.shape[1]:
            raise ValueError(
                f"these chains have {trace.shape[1]} draws and earlier ones {self.traces[0].shape[1]}; "
                "add whole chains of one length"
            )
        self.traces.append(trace.double())

    def _chains(self) -> Tensor:
        return dim_zero_cat(self.traces)


class SplitRHat(_ChainMetric):
    """Split R-hat of a scalar along chains (`diagnostics.split_rhat`); NaN with fewer than 4 draws.

    Near 1 the chains agree with each other and with themselves over time; above 1.01 they do not (Vehtari et al. 2021).

    >>> metric = SplitRHat()
    >>> metric.update(torch.randn(4, 500, generator=torch.Generator().manual_seed(0)))
    >>> float(metric.compute()) < 1.01
    True
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """R-hat over all chains, a scalar."""
        return torch.tensor(split_rhat(self._chains()))


class EffectiveSampleSize(_ChainMetric):
    """Effective sample size of the mean of a scalar (`diagnostics.effective_sample_size`); NaN with fewer than 8 draws.

    >>> metric = EffectiveSampleSize()
    >>> metric.update(torch.randn(4, 500, generator=torch.Generator().manual_seed(0)))
    >>> 1500 < float(metric.compute()) < 2500
    True
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """ESS over all chains, a scalar."""
        return torch.tensor(effective_sample_size(self._chains()))


class LocalLearningCoefficient(_ChainMetric):
    """λ̂ = nβ·(mean loss over draws − loss at w*) (Lau et al. 2025): `diagnostics.local_learning_coefficient`.

    `compute` returns a dictionary of scalars: "llc" and "llc_standard_error", over chains.

    Args:
        sampler: of the chains; λ̂ takes its inverse temperature.
        snapshot_loss: mean loss at w*, in nats.
        kwargs: of `torchmetrics.Metric`.

    >>> from bif_lightning import SGLD
    >>> sampler = SGLD(step_size=1e-4, inverse_temperature=100.0, localization=10.0)
    >>> metric = LocalLearningCoefficient(sampler, snapshot_loss=0.30)
    >>> metric.update(torch.tensor([[0.31, 0.32, 0.33], [0.32, 0.33, 0.34]]))
    >>> round(float(metric.compute()["llc"]), 3)
    2.5
    """

    higher_is_better = None

    def __init__(self, sampler: SGLD, snapshot_loss: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sampler = sampler
        self.snapshot_loss = snapshot_loss

    def compute(self) -> dict[str, Tensor]:
        """λ̂ and its standard error."""
        value, error = local_learning_coefficient(self._chains(), self.snapshot_loss, self.sampler)
        return {"llc": torch.tensor(value), "llc_standard_error": torch.tensor(error)}
