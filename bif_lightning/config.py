"""Settings of samplers and chains: frozen dataclasses that check their values."""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, Literal, cast

Gradient = Literal["control_variate", "minibatch"]
Preconditioner = Literal["rmsprop"]
Centring = Literal["chain", "pooled"]
Storage = Literal["auto", "traces", "moments"]
Ridge = float | Literal["auto"] | None
PullMetric = Literal["kronecker", "euclidean"]


def _check(ok: bool, name: str, value: object, need: str) -> None:
    if not ok:
        raise ValueError(f"{name} is {value!r}; it must be {need}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_positive(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _check(_is_number(value) and value > 0, name, value, "a finite number above 0")


def _check_non_negative(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _check(_is_number(value) and value >= 0, name, value, "a finite number, 0 or above")


def _check_whole(settings: object, least: int, *names: str) -> None:
    for name in names:
        value: Any = getattr(settings, name)
        whole = isinstance(value, Integral) and type(cast(object, value)) is not bool
        _check(whole and int(cast(Any, value)) >= least, name, value, f"a whole number, {least} or above")
        object.__setattr__(settings, name, int(cast(Any, value)))  # of NumPy too, which JSON does not know


@dataclass(frozen=True, kw_only=True)
class SGLD:
    """Settings of stochastic gradient Langevin dynamics (Welling & Teh 2011; arXiv 2509.26544, App. A).

    One step is  w ← w − (ε/2)·(nβ·g + γ·(w − w*)) + √ε·ξ,  ξ ~ N(0, I),  with g an estimate of the gradient
    of the *mean* loss. Mind the ½: other libraries write ε∇U and √(2ε).

    Args:
        step_size: ε, in squared weight units per nat.
        inverse_temperature: nβ, multiplies the mean loss. 0 samples from the pull alone, a control without data.
        localization: γ, the strength of the pull to the snapshot w*, in nats per squared weight unit.
        preconditioner: None, or "rmsprop" (Hitchcock & Hoogland 2025, arXiv 2507.21449, Alg. 3), where ε
            becomes elementwise ε / (√v̂ + δ).
        gradient: "control_variate" uses g_B(w) − g_B(w*) on the same minibatch, so that w* is the exact mode
            and minibatch noise vanishes with the distance to it: two gradients a step. "minibatch" is the
            paper's plain form: one gradient, its noise and its drift included.
        num_directions: K, chains stay in the span of the K strongest directions of the examples' gradients (see
            `Subspace`), a posterior restricted to it; None for all weights.
        rmsprop_decay: a, the memory of the running mean of squared gradients.
        rmsprop_stability: δ, added to √v̂.

    Raises:
        ValueError: a value out of range, ε·γ ≥ 4, where the pull alone makes every chain diverge, or directions
            together with a preconditioner, whose elementwise steps would leave them.

    >>> SGLD(step_size=1e-5, inverse_temperature=1000.0, localization=100.0).gradient
    'control_variate'
    """

    step_size: float
    inverse_temperature: float
    localization: float
    preconditioner: Preconditioner | None = None
    gradient: Gradient = "control_variate"
    num_directions: int | None = None
    rmsprop_decay: float = 0.99
    rmsprop_stability: float = 0.1

    paired: ClassVar[bool] = False
    """Whether draws are independent, as antithetic pairs, and no chains."""

    def __post_init__(self) -> None:
        _check_positive(self, "step_size", "rmsprop_stability")
        _check_non_negative(self, "inverse_temperature", "localization")
        _check(
            self.preconditioner in (None, "rmsprop"),
            "preconditioner",
            self.preconditioner,
            "None or 'rmsprop'",
        )
        _check(
            self.gradient in ("control_variate", "minibatch"),
            "gradient", self.gradient, "'control_variate' or 'minibatch'",
        )  # fmt: skip
        decay = self.rmsprop_decay
        _check(_is_number(decay) and 0 <= decay < 1, "rmsprop_decay", decay, "a number in [0, 1)")
        _check_directions(self.num_directions)
        if self.num_directions is not None and self.preconditioner is not None:
            raise ValueError(
                f"num_directions is {self.num_directions} and preconditioner {self.preconditioner!r}: elementwise "
                "steps would leave the span of the directions; leave one of them out"
            )
        pull = self.step_size * self.localization
        if self.preconditioner is None and pull >= 4:
            raise ValueError(
                f"step_size {self.step_size:g} x localization {self.localization:g} = {pull:g}: the pull alone "
                f"overshoots and every chain diverges (it must be below 4); lower step_size to "
                f"{1 / self.localization:.2g} or less"
            )

    def describe(self, chains: "Chains") -> str:
        """What is run, in words."""
        return f"{chains.num_chains} chains of {chains.num_steps} SGLD steps"


def _check_directions(value: int | None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    _check(value is None or (whole and value >= 1), "num_directions", value, "None or a whole number, 1 or above")


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Settings of antithetic draws w* ± σ·z, z ~ N(0, I): independent, by forward passes only.

    Draws 2k and 2k + 1 of a chain are a pair. The posterior is that of the pull alone, N(w*, σ²·I), with nβ = 0 and
    γ = 1/σ²: no gradient is used, so it serves models that have none. What the losses say of the data enters by the
    conditioned influence (`bif_lightning.statistics.conditioned`), which is the one to rank train examples by.

    Args:
        scale: σ, in weight units. Choose it small relative to the weights, so that the losses are nearly linear between
            draws.

    Raises:
        ValueError: a value out of range.

    >>> Pairs(scale=0.01).localization
    10000.0
    """

    scale: float = 0.01

    paired: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_positive(self, "scale")

    @property
    def inverse_temperature(self) -> float:
        """nβ = 0: the losses do not shape these draws."""
        return 0.0

    @property
    def localization(self) -> float:
        """γ = 1/σ², in nats per squared weight unit."""
        return 1 / self.scale**2

    def describe(self, chains: "Chains") -> str:
        """What is run, in words."""
        return f"{chains.num_chains * chains.num_draws} antithetic draws"


@dataclass(frozen=True, kw_only=True)
class Subspace:
    """Settings of the Gaussian posterior with the loss's curvature in K gradient directions, in closed form.

    The pull is γ/2·(w − w*)ᵀM(w − w*), isotropic in the coordinates u = M^½·w, which are used from here on. There
    q_1 ... q_K are the strongest directions of the train examples' gradients at w* (orthonormal), H the Hessian of
    the mean training loss in their span; all other directions feel the pull alone:

        p(u) = N(u*, Σ),  Σ = (nβ·Qᵀ·H·Q + γ·I)⁻¹,  influence = −g_iᵀΣg_j,

    with g the gradients of single examples' losses (`curvature.closed_form`, `curvature.kronecker`). No chain runs:
    the draws are independent antithetic draws from p within the span of Q. The matrices do not use them; their losses
    check the closed form (LLC against d_eff/2).

    Args:
        num_directions: K; the smallest of K, n and d is used.
        inverse_temperature: nβ, multiplies the mean loss; it scales influence and leaves rankings unchanged. None takes
            1e5, or more where the draws would otherwise leave a ball of radius 2 % of ‖w*‖ around the snapshot, as they
            do where a fitted model is nearly flat.
        localization: γ, in nats per squared weight unit; None takes, at each snapshot, the γ for which
            d_eff = Σ h_k/(h_k + γ/nβ) over the eigenvalues of H is the smaller of n/10 and 0.3·K (0.7·K with the
            Euclidean metric). This keeps the number of directions that the data determines constant over training,
            while the curvature changes by orders of magnitude.
        metric: M. "kronecker" pulls each direction in proportion to the train gradients' second moment in it, an
            estimate of the curvature beyond the K directions; "euclidean" is the isotropic pull, M = I.
        span: h as a fraction of ‖w*‖, for differences between w* + h·d_k and w* − h·d_k along the directions d_k of
            the weights, in units of their root mean square length: of further observables, and of gradients where the
            model cannot be differentiated twice.

    Raises:
        ValueError: a value out of range.

    >>> Subspace(num_directions=64).metric
    'kronecker'
    """

    num_directions: int = 128
    inverse_temperature: float | None = None
    localization: float | None = None
    metric: PullMetric = "kronecker"
    span: float = 0.005

    paired: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_whole(self, 1, "num_directions")
        _check_positive(self, "span")
        known = "kronecker", "euclidean"
        _check(self.metric in known, "metric", self.metric, " or ".join(map(repr, known)))
        for name in ("inverse_temperature", "localization"):
            if getattr(self, name) is not None:
                _check_positive(self, name)

    def describe(self, chains: "Chains") -> str:
        """What is run, in words."""
        draws = chains.num_chains * chains.num_draws
        return f"closed form in {self.num_directions} directions, checked by {draws} draws"


@dataclass(frozen=True, kw_only=True)
class ControlledSGLD:
    """Settings of SGLD chains whose covariance is controlled by that of their quadratic approximation.

    In the coordinates u = M^½·w, in which the pull γ/2·|u − u*|² is isotropic (see `Subspace`), let H be the curvature
    of the mean training loss along the K strongest directions of the train gradients g. Beside each chain of the true
    loss runs its *surrogate*, the chain of nβ·½·δᵀHδ + γ/2·|δ|² with the same start and noise, whose covariance is
    known. With x and x' the coordinates of both along the r most curved directions, and a, b those of gradients,

        influence = −[g_iᵀ(nβ·H + γ)⁻¹g_j + α·a_iᵀ(Cov x − Cov x')b_j]   (`sampling.controlled`).

    H is a Gauss-Newton matrix, from a few random backward passes for each training example, where the loss is one of
    `torch.nn.functional` that has one (cross-entropy, squares, ...); in the directions where that differs from the
    Hessian, and for other losses, it is the Hessian.

    Args:
        num_directions: K; the smallest of K, n and d is used.
        num_probes: m, random backward passes for each training example.
        num_corrected: r; the smaller of r and K is used.
        alpha: α in [0, 1], or "agreement": the share of the correction that the chains agree on, and 0 where chain
            and surrogate part, as at the kinks of ReLUs (`statistics.correction`). 1 gives the chains' own covariance.
        step_size: ε, squared weight units per nat in the metric; None takes 1/(nβ·h₁ + γ), with h₁ the largest
            eigenvalue of H.
        inverse_temperature: nβ; None as for `Subspace`.
        localization: γ; None as for `Subspace`.
        metric: M, as for `Subspace`.
        span: as for `Subspace`.
        gradient_bytes: memory for gradients. Where those of all examples take more, sketches of them are kept, and the
            most curved directions, as many of each as there is room for (`curvature.sketched`).

    Raises:
        ValueError: a value out of range.

    >>> ControlledSGLD(num_directions=64).alpha
    'agreement'
    """

    num_directions: int = 128
    num_probes: int = 4
    num_corrected: int = 32
    alpha: float | Literal["agreement"] = "agreement"
    step_size: float | None = None
    inverse_temperature: float | None = None
    localization: float | None = None
    metric: PullMetric = "kronecker"
    span: float = 0.005
    gradient_bytes: int = 1 << 31

    paired: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_whole(self, 1, "num_directions", "num_probes", "num_corrected", "gradient_bytes")
        _check_positive(self, "span")
        known = "kronecker", "euclidean"
        _check(self.metric in known, "metric", self.metric, " or ".join(map(repr, known)))
        alpha = self.alpha
        within = alpha == "agreement" or (_is_number(alpha) and 0 <= float(alpha) <= 1)
        _check(within, "alpha", alpha, "'agreement' or a number from 0 to 1")
        for name in ("step_size", "inverse_temperature", "localization"):
            if getattr(self, name) is not None:
                _check_positive(self, name)

    def describe(self, chains: "Chains") -> str:
        """What is run, in words."""
        return f"{chains.num_chains} controlled chains of {chains.num_steps} SGLD steps"


Sampler = SGLD | Pairs | Subspace | ControlledSGLD
"""Settings of one way to draw from a posterior around the snapshot."""


@dataclass(frozen=True, kw_only=True)
class Chains:
    """Settings of the chains: their number, length, minibatches, seed, and how their draws are used.

    Args:
        num_chains: C, independent chains.
        num_draws: T, recorded draws a chain.
        burn_in: B, steps dropped first.
        thinning: k, steps from one recorded draw to the next (1 records every step).
        batch_size: m, examples in a gradient minibatch (the whole set where it is smaller).
        num_threads: cores that one chain uses on a CPU. Other chains run in parallel on the remaining cores. With 1,
            the bits of a chain do not depend on the number of cores; to use all cores, run at least as many chains as
            cores, or raise this.
        seed: of all random numbers of all chains (see `bif_lightning.rng`).
        common_random_numbers: use the same minibatch order and noise at every snapshot of a run, so that
            differences between snapshots are not differences of noise. False draws new numbers at each.
        centring: "chain" centres the draws within each chain; "pooled" is the paper's form, where a
            difference between chains counts as covariance.
        storage: "traces" keeps every draw (memory C·T·(n+q)), "moments" accumulates co-moments as draws come
            (memory n·q); both give the same numbers up to rounding. "auto" takes traces up to 64 MB, and above that
            the smaller.
        ridge: r of the conditioned influence, in nat² (`statistics.conditioned`): "auto" by the label-free rule,
            None for no conditioned influence. It needs traces.

    Raises:
        ValueError: a value out of range, or too few draws for a covariance.

    >>> Chains(num_chains=4, num_draws=100).num_steps
    100
    """

    num_chains: int = 4
    num_draws: int = 100
    burn_in: int = 0
    thinning: int = 1
    batch_size: int = 64
    num_threads: int = 1
    seed: int = 0
    common_random_numbers: bool = True
    centring: Centring = "chain"
    storage: Storage = "auto"
    ridge: Ridge = "auto"

    def __post_init__(self) -> None:
        _check_whole(self, 1, "num_chains", "num_draws", "thinning", "batch_size", "num_threads")
        _check_whole(self, 0, "burn_in", "seed")
        _check(self.centring in ("chain", "pooled"), "centring", self.centring, "'chain' or 'pooled'")
        _check(
            self.storage in ("auto", "traces", "moments"),
            "storage",
            self.storage,
            "'auto', 'traces' or 'moments'",
        )
        ridge = self.ridge
        _check(
            ridge is None or ridge == "auto" or (_is_number(ridge) and float(ridge) > 0),
            "ridge", ridge, "'auto', None or a finite number above 0",
        )  # fmt: skip
        per_chain = self.num_draws if self.centring == "chain" else self.num_draws * self.num_chains
        if per_chain < 2:
            raise ValueError(
                f"num_draws {self.num_draws} with num_chains {self.num_chains} and centring {self.centring!r} "
                "leaves no degree of freedom for a covariance; record at least 2 draws a chain"
            )

    @property
    def num_steps(self) -> int:
        """Steps of one chain: B + k·T."""
        return self.burn_in + self.thinning * self.num_draws


def check_sampler(sampler: object) -> None:
    """Check that a value is settings of a sampler, "auto" or None, and not, for example, a class.

    Raises:
        ValueError: it is something else.
    """
    if sampler is not None and sampler != "auto" and not isinstance(sampler, Sampler):
        raise ValueError(
            f"sampler is {sampler!r}; it must be 'auto', None, or settings such as Subspace(), Pairs(scale=0.01) or "
            "SGLD(step_size=..., inverse_temperature=..., localization=...)"
        )


def check_together(sampler: Sampler, chains: Chains) -> None:
    """Check that a sampler can run such chains.

    Raises:
        ValueError: burn-in, thinning or an odd number of draws with antithetic pairs, or chains of one draw beside
            their quadratic approximations.
    """
    if isinstance(sampler, ControlledSGLD) and chains.num_draws < 2:
        raise ValueError(
            f"num_draws is {chains.num_draws}: each chain of ControlledSGLD is compared with its own quadratic "
            "approximation, by the covariance of its draws; record at least 2 draws a chain"
        )
    if not sampler.paired:
        return
    name = type(sampler).__name__
    if chains.burn_in or chains.thinning != 1 or chains.num_draws % 2:
        raise ValueError(
            f"burn_in is {chains.burn_in}, thinning {chains.thinning} and num_draws {chains.num_draws}: {name} makes "
            "independent draws in pairs; set burn_in=0, thinning=1 and an even num_draws"
        )
