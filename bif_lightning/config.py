"""Settings of a sampler and of its chains: frozen, and checked when they are made."""

import math
from dataclasses import dataclass
from typing import Literal

Gradient = Literal["control_variate", "minibatch"]
Preconditioner = Literal["rmsprop"]
Centring = Literal["chain", "pooled"]
Storage = Literal["auto", "traces", "moments"]


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
        value = getattr(settings, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        _check(whole and value >= least, name, value, f"a whole number, {least} or above")


@dataclass(frozen=True, kw_only=True)
class SGLD:
    """Settings of stochastic gradient Langevin dynamics (Welling & Teh 2011; arXiv 2509.26544, App. A).

    One step is  w ← w − (ε/2)·(nβ·g + γ·(w − w*)) + √ε·ξ,  ξ ~ N(0, I),  with g an estimate of the gradient
    of the *mean* loss. Mind the ½: other libraries write ε∇U and √(2ε).

    Args:
        step_size: ε, in squared weight units per nat.
        inverse_temperature: nβ, multiplies the mean loss. 0 samples the pull alone, a control without data.
        localization: γ, the strength of the pull to the snapshot w*, in nats per squared weight unit.
        preconditioner: None, or "rmsprop" (Hitchcock & Hoogland 2025, arXiv 2507.21449, Alg. 3), where ε
            becomes elementwise ε / (√v̂ + δ).
        gradient: "control_variate" uses g_B(w) − g_B(w*) on the same minibatch, so that w* is the exact mode
            and minibatch noise vanishes with the distance to it: two gradients a step. "minibatch" is the
            paper's plain form: one gradient, its noise and its drift included.
        rmsprop_decay: a, the memory of the running mean of squared gradients.
        rmsprop_stability: δ, added to √v̂.

    Raises:
        ValueError: a value out of range, or ε·γ ≥ 4, where the pull alone makes every chain diverge.

    >>> SGLD(step_size=1e-5, inverse_temperature=1000.0, localization=100.0).gradient
    'control_variate'
    """

    step_size: float
    inverse_temperature: float
    localization: float
    preconditioner: Preconditioner | None = None
    gradient: Gradient = "control_variate"
    rmsprop_decay: float = 0.99
    rmsprop_stability: float = 0.1

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
        pull = self.step_size * self.localization
        if self.preconditioner is None and pull >= 4:
            raise ValueError(
                f"step_size {self.step_size:g} x localization {self.localization:g} = {pull:g}: the pull alone "
                f"overshoots and every chain diverges (it must be below 4); lower step_size to "
                f"{1 / self.localization:.2g} or less"
            )


@dataclass(frozen=True, kw_only=True)
class Chains:
    """How many chains, how long, on which minibatches, and what is made of their draws.

    Args:
        num_chains: C, independent chains.
        num_draws: T, recorded draws a chain.
        burn_in: B, steps dropped first.
        thinning: k, steps from one recorded draw to the next (1 records every step).
        batch_size: m, examples in a gradient minibatch (the whole set where it is smaller).
        num_threads: cores that one chain uses on a CPU. Chains run side by side on the rest; with 1, the bits of a
            chain do not depend on the machine's cores, so give as many chains as there are, or more threads.
        seed: all randomness of all chains derives from it (see `bif_lightning.noise`).
        common_random_numbers: every snapshot of a run uses the same minibatch order and noise, so that a
            difference between snapshots is not a difference of noise. False gives each its own.
        centring: "chain" centres the draws within each chain; "pooled" is the paper's form, where a
            difference between chains counts as covariance.
        storage: "traces" keeps every draw (memory C·T·(n+q)), "moments" accumulates co-moments as draws come
            (memory n·q); both give the same numbers up to rounding. "auto" takes the smaller.

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
