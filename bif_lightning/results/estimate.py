"""The result of one snapshot: matrices with their errors, traces, diagnostics and cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32

from bif_lightning.config import Chains, Sampler
from bif_lightning.results.settings import ResolvedSettings
from bif_lightning.results.tokens import Tokens
from bif_lightning.statistics.label_means import LabelMeans as LabelMeans

INFLUENCE_SIGN = (
    "influence = -Cov(train loss, observable) over the draws: what happens to the observable when the train "
    "example gets more weight. Of a query's loss, negative = that loss falls = the train example helps."
)
CONDITIONED_SIGN = (
    "conditioned influence = the influence after a Kalman update of the draws on the train losses, a sharper "
    "posterior. Its sign is that of the influence: of a query's loss, negative = the train example helps."
)
CORRELATION_SIGN = (
    "correlation = +Corr(train loss, observable) over the draws, in [-1, 1]. Of a query's loss, positive = "
    "the train example helps, negative = it hurts."
)


@dataclass(frozen=True, kw_only=True)
class Influence:
    """Influence of every train example (rows) on every column of one observable.

    Attributes:
        name: name of the observable; "loss" for the losses of the query examples.
        unit: unit of the observable ("nat" for a loss, "1" for a fraction).
        columns: name of each column (the groups of a group mean, the value of a metric); None if the columns are the
            query examples.
        influence: −Cov(l_i, phi_j), in nat x unit.
        influence_standard_error: Monte Carlo standard error of each entry, same unit.
        correlation: +Corr(l_i, phi_j) in [−1, 1]; NaN if either side does not vary.
        correlation_standard_error: Monte Carlo standard error of each entry.
        mean, std: mean and standard deviation of the observable over the draws, in its unit.
        conditioned: the conditioned influence (`statistics.conditioned`), in the unit of the influence; None if
            switched off, or if the draws do not allow it.
        conditioned_standard_error: Monte Carlo standard error of each entry, same unit.
        influence_draws: −Cov(l_i, phi_j) over the draws of the chains alone, where `influence` contains a closed form
            (`ControlledSGLD`), to compare with it; else None.
        influence_draws_standard_error: Monte Carlo standard error of each entry, same unit.
    """

    name: str
    unit: str
    columns: tuple[str, ...] | None
    influence: Float32[np.ndarray, "train column"]
    influence_standard_error: Float32[np.ndarray, "train column"]
    correlation: Float32[np.ndarray, "train column"]
    correlation_standard_error: Float32[np.ndarray, "train column"]
    mean: Float[np.ndarray, " column"]
    std: Float[np.ndarray, " column"]
    conditioned: Float32[np.ndarray, "train column"] | None = None
    conditioned_standard_error: Float32[np.ndarray, "train column"] | None = None
    influence_draws: Float32[np.ndarray, "train column"] | None = None
    influence_draws_standard_error: Float32[np.ndarray, "train column"] | None = None


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """A chain that diverged. `draw` counts recorded draws from 0; −1 is within burn-in."""

    chain: int
    draw: int
    step: int
    loss_before: float
    loss: float
    message: str


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """Convergence, bias and noise of the chains that did not diverge.

    Attributes:
        rhat: split R-hat of the mean train loss; near 1 = the chains agree on it. It does not certify the influence.
            NaN, like `ess` and `drift`, for independent draws.
        ess: effective sample size of the mean train loss, out of chains x draws.
        llc: local learning coefficient estimate  nβ·(mean loss over draws − loss at w*), in nats.
        llc_standard_error: its standard error, from the variance between chains (for one chain, between batches).
        drift: second-half minus first-half mean loss of the chains, in standard errors of that difference.
        score_agreement: median over queries of the Spearman correlation between the influence columns of one
            half of the chains and the other half; of `Subspace`, between two halves of the training examples that the
            curvature was measured on. It measures noise only, since both halves share any bias.
        group_agreement: median over queries of the correlation of these two columns, which is also the correlation of
            their sums over random groups of train examples (`diagnostics.group_agreement`).
        noise_ratio: minibatch variance of a step of SGLD divided by the variance of its injected noise, in the
            direction where the ratio is largest; above about 1 the draws are hotter than the posterior. NaN if not
            measured.
        llc_ratio: LLC over half the effective dimension of the loss at w*; 1 for a quadratic loss. Below 0 = drift, far
            above 1 = the chains left the neighbourhood that the curvature describes. For `Subspace` it checks the
            closed form, by draws that the matrices do not use. NaN if not measured.
        control_agreement: median over queries of the Spearman correlation of the influence with that of draws from the
            localization prior (nβ = 0), which do not use the data. NaN if not measured.
    """

    rhat: float
    ess: float
    llc: float
    llc_standard_error: float
    drift: float
    score_agreement: float
    group_agreement: float = math.nan
    noise_ratio: float = math.nan
    llc_ratio: float = math.nan
    control_agreement: float = math.nan


@dataclass(frozen=True)
class Verdict:
    """Whether an estimate is reliable; made by `judge`.

    Attributes:
        word: the verdict.
        sentence: the reason, with its numbers.
        advice: the setting to change; empty for "good".

    >>> print(Verdict("noisy", "chains agree at 0.41 only", "raise num_draws from 100 to about 400"))
    noisy: chains agree at 0.41 only; raise num_draws from 100 to about 400
    """

    word: Literal["good", "noisy", "drifting", "not local", "diverged", "not judged"]
    sentence: str
    advice: str

    def __str__(self) -> str:
        return f"{self.word}: {self.sentence}" + (f"; {self.advice}" if self.advice else "")


UNJUDGED = Verdict("not judged", "no check was made", "")
"""The verdict of an estimate that was constructed by hand; `bif_lightning.judge` gives it a verdict."""


@dataclass(frozen=True, kw_only=True)
class Traces:
    """All losses and observables at every recorded draw, to compute other normalisations, ridges or errors later."""

    train: Float32[np.ndarray, "chain draw train"]
    columns: Mapping[str, Float32[np.ndarray, "chain draw column"]]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of an estimate.

    Attributes:
        seconds: wall time.
        steps: sampler steps of all chains.
        workers: chains that each process runs at a time.
        extra_bytes: memory in addition to the model.
    """

    seconds: float
    steps: int
    workers: int
    extra_bytes: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The Bayesian influence at one snapshot, from `estimate` or as `latest` of the callback.

    Attributes:
        losses: influence on the loss of every query example.
        observables: influence on every further observable, by name.
        train_loss, train_std: mean and standard deviation over the draws of the loss of each train example, nats.
        snapshot_loss: mean train loss at w*, nats.
        chain_ids: ids of the chains that did not diverge, from which the matrices are computed.
        loss_trace: mean train loss at each draw of those chains, nats.
        distance_trace: ‖w − w*‖ at each draw of those chains.
        label_means: means over pairs of labels; None unless both sides have labels.
        traces: every draw, with `store_traces`; else None.
        ridge: r of the conditioned influence, nat²; None without it.
        effective_dimension: d_eff of the posterior if the sampler computes it (`Subspace`); else None.
        sampler, chains: the settings in use.
        parameters: names of the sampled parameters.
        num_weights: number of sampled weights, d.
        notes: remarks on the estimate, as sentences.
        top_stability: share of each query's 10 most helpful and 10 most harmful train examples that two halves of the
            draws have in common (for `Subspace`, halves as for `score_agreement`). NaN for queries that were not
            compared (at most 64 are); None if not computed.
        tokens: influence between tokens, with `per_token`; else None.
        alpha: of `ControlledSGLD`, the share α of the chains' correction that the matrices contain, from 0 to 1; else
            None.
        residual_share: of `ControlledSGLD`, the variance of the difference of a chain and its surrogate over that of
            the surrogate, along the train losses: it grows where the loss is not quadratic, at kinks, and with the
            noise of minibatches; else None.
        reasons: how the settings were found, as text; empty for given settings.
        lasting: whether the settings hold for the whole run, or were found for this snapshot only.
        verdict: whether the estimate is reliable.

    >>> snapshot.influence.shape == (len(train), len(query))  # an Estimate, and Samples of its axes
    True
    >>> bool((np.abs(snapshot.correlation) <= 1 + 1e-6).all())
    True
    """

    losses: Influence
    observables: Mapping[str, Influence]
    train_loss: Float[np.ndarray, " train"]
    train_std: Float[np.ndarray, " train"]
    snapshot_loss: float
    chain_ids: tuple[int, ...]
    loss_trace: Float[np.ndarray, "chain draw"]
    distance_trace: Float[np.ndarray, "chain draw"]
    divergences: tuple[Divergence, ...]
    diagnostics: Diagnostics
    cost: Cost
    sampler: Sampler
    chains: Chains
    parameters: tuple[str, ...]
    num_weights: int
    ridge: float | None = None
    effective_dimension: float | None = None
    label_means: LabelMeans | None = None
    traces: Traces | None = None
    notes: tuple[str, ...] = field(default=())
    top_stability: Float[np.ndarray, " query"] | None = None
    tokens: Tokens | None = None
    alpha: float | None = None
    residual_share: float | None = None
    reasons: str = ""
    lasting: bool = True
    verdict: Verdict = UNJUDGED

    @property
    def influence(self) -> Float32[np.ndarray, "train query"]:
        """−Cov of train losses and query losses, nat²; negative = helps."""
        return self.losses.influence

    @property
    def conditioned(self) -> Float32[np.ndarray, "train query"] | None:
        """The influence after a Kalman update of the draws on the train losses, nat²; negative = helps."""
        return self.losses.conditioned

    @property
    def influence_draws(self) -> Float32[np.ndarray, "train query"] | None:
        """−Cov of train losses and query losses over the draws alone (`ControlledSGLD`), nat²; negative = helps."""
        return self.losses.influence_draws

    @property
    def correlation(self) -> Float32[np.ndarray, "train query"]:
        """+Corr of train losses and query losses; positive = helps."""
        return self.losses.correlation

    def settings(self) -> dict[str, Any]:
        """Sampler and chain settings as plain JSON-able values."""
        return ResolvedSettings(self.sampler, self.chains, self.reasons, self.lasting).as_dict()
