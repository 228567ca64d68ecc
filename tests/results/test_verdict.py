"""Every branch of the verdict, its numbers, its advice, and which of two failures is named."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bif_lightning.config import SGLD, Chains, Pairs, Subspace
from bif_lightning.results.estimate import Cost, Diagnostics, Divergence, Estimate, Influence
from bif_lightning.results.verdict import settling_share as settling
from bif_lightning.sampling.choice import judge

pytestmark = pytest.mark.exact

SAMPLER = SGLD(step_size=1e-4, inverse_temperature=100.0, localization=50.0)
CLOSED = Subspace(num_directions=64, inverse_temperature=1e4, localization=50.0)
FLAT = np.full((4, 100), 2.0)
SOUND = Diagnostics(
    rhat=1.01, ess=300.0, llc=5.0, llc_standard_error=0.1, drift=0.5, score_agreement=0.9,
    group_agreement=0.9, noise_ratio=0.1, llc_ratio=1.1, control_agreement=0.2,
)  # fmt: skip


def estimate(**changes: Any) -> Estimate:
    """A sound snapshot but for some of its diagnostics or fields."""
    own = {name: changes.pop(name) for name in Diagnostics.__dataclass_fields__ if name in changes}
    error = changes.pop("error", 0.1)
    matrix = np.ones((3, 2), np.float32)
    losses = Influence(
        name="loss", unit="nat", columns=None, influence=matrix, influence_standard_error=matrix * np.float32(error),
        correlation=matrix, correlation_standard_error=matrix, mean=np.ones(2), std=np.ones(2),
    )  # fmt: skip
    found = Estimate(
        losses=losses, observables={}, train_loss=np.ones(3), train_std=np.ones(3), snapshot_loss=1.0,
        chain_ids=(0, 1, 2, 3), loss_trace=FLAT, distance_trace=FLAT, divergences=(),
        diagnostics=replace(SOUND, **own), cost=Cost(seconds=1.0, steps=1, workers=1, extra_bytes=1), sampler=SAMPLER,
        chains=Chains(), parameters=("w",), num_weights=7,
    )  # fmt: skip
    return replace(found, **changes)


LOST = (Divergence(chain=4, draw=1, step=2, loss_before=1.0, loss=math.inf, message="chain 4 diverged"),)
MOVING = np.where(np.arange(100) < 50, 1.6, 2.4)[None].repeat(4, 0)  # rises by 1 on average, by 0.8 between halves


def test_a_sound_snapshot_is_good() -> None:
    verdict = judge(estimate())
    assert verdict.word == "good"
    assert verdict.advice == ""
    for part in ("noise ratio 0.1", "LLC ratio 1.1", "drift 0.5", "group agreement 0.9", "noise alone 0.2"):
        assert part in str(verdict)


def test_independent_draws_have_no_drift_to_speak_of() -> None:
    assert "drift" not in str(judge(estimate(sampler=Subspace(inverse_temperature=1e5, localization=50.0))))


def test_what_could_not_be_measured_is_not_held_against_it() -> None:
    unknown = dict.fromkeys(Diagnostics.__dataclass_fields__, math.nan)
    verdict = judge(estimate(**unknown))
    assert str(verdict) == "good: no check failed (none could be made)"


def test_a_lost_chain_is_divergence() -> None:
    verdict = judge(estimate(divergences=LOST))
    assert str(verdict) == (
        "diverged: 1 of 5 chains left the posterior and are left out; halve step_size from 0.0001, or raise "
        "localization"
    )
    assert "step_size" not in judge(estimate(divergences=LOST, sampler=Pairs())).advice


def test_losses_below_the_snapshot_are_drift() -> None:
    verdict = judge(estimate(llc=-1.0, llc_standard_error=0.4))
    assert verdict.word == "drifting"
    assert "LLC -1" in verdict.sentence
    assert "burn_in from 0 to about 100" in verdict.advice
    assert judge(estimate(llc=-1.0, llc_standard_error=0.6)).word == "good"
    assert judge(estimate(llc=-1.0, llc_standard_error=math.nan)).word == "drifting"


def test_drift_of_plain_gradients_is_cured_by_control_variates() -> None:
    plain = replace(SAMPLER, gradient="minibatch")
    assert "control_variate" in judge(estimate(llc=-1.0, sampler=plain)).advice


@pytest.mark.parametrize(("drift", "trace", "word"), [(3.1, MOVING, "drifting"), (2.9, MOVING, "good"),
    (-3.1, MOVING, "drifting"), (9.0, FLAT, "good")])  # fmt: skip
def test_a_loss_that_still_moves_is_drift(drift: float, trace: np.ndarray, word: str) -> None:
    verdict = judge(estimate(drift=drift, loss_trace=trace))
    assert verdict.word == word
    if word == "drifting":
        assert "+80% of its rise" in verdict.sentence


def test_settling_is_a_share_of_the_rise() -> None:
    assert settling(estimate(loss_trace=MOVING)) == pytest.approx(0.8)
    assert math.isnan(settling(estimate(loss_trace=FLAT, snapshot_loss=2.0)))
    assert math.isnan(settling(estimate(loss_trace=FLAT[:, :1], distance_trace=FLAT[:, :1])))


def test_independent_draws_do_not_drift() -> None:
    assert judge(estimate(drift=9.0, loss_trace=MOVING, llc=-5.0, sampler=Pairs())).word == "good"


def test_noise_of_minibatches() -> None:
    verdict = judge(estimate(noise_ratio=5.0))
    assert str(verdict) == (
        "noisy: minibatches move the chains 5 times as much as their own noise; lower step_size from 0.0001 to about "
        "2e-05, or raise batch_size from 64 to about 320"
    )
    assert judge(estimate(noise_ratio=1.0)).word == "good"
    assert judge(estimate(noise_ratio=math.inf)).word == "noisy"
    plain = replace(SAMPLER, gradient="minibatch")
    assert judge(estimate(noise_ratio=5.0, sampler=plain)).advice.startswith('use gradient="control_variate"')


def test_a_loss_that_rises_too_far_is_not_local() -> None:
    verdict = judge(estimate(llc_ratio=4.0))
    assert verdict.word == "not local"
    assert "localization from 50 to about 200" in verdict.advice
    assert judge(estimate(llc_ratio=3.0)).word == "good"


def test_too_few_draws() -> None:
    """Halves that agree at 0.25 make a whole of reliability 0.4; 0.7 takes 3.5 times as many draws."""
    verdict = judge(estimate(group_agreement=0.25))
    assert verdict.word == "noisy"
    assert "only at 0.40" in verdict.sentence
    assert verdict.advice == "raise num_draws from 100 to about 350"
    assert "thinning from 1 to about 4" in judge(estimate(group_agreement=0.25, ess=20.0)).advice
    assert "about 1000" in judge(estimate(group_agreement=0.0)).advice
    assert "about 1000" in judge(estimate(group_agreement=-1.0)).advice
    assert judge(estimate(group_agreement=0.55)).word == "good"


def test_a_chain_too_short_for_an_error() -> None:
    verdict = judge(estimate(error=math.nan, chains=Chains(num_chains=1)))
    assert verdict.word == "noisy"
    assert "num_chains from 1 to 4" in verdict.advice


def test_a_closed_form_that_the_draws_contradict_is_not_local() -> None:
    verdict = judge(estimate(llc_ratio=4.2, sampler=CLOSED))
    assert str(verdict) == (
        "not local: the matrices come from the closed form, but at the draws the loss rises 4.2 times as much as the "
        "curvature at w* explains: influence beyond first order is missing. Kinks of ReLUs and max pooling cause "
        "this at any localization, which has not made scores worse; raise localization from "
        "50 to about 210, or use SGLD(num_directions=64, ...), which samples with the true loss"
    )
    assert judge(estimate(llc_ratio=3.0, sampler=CLOSED)).word == "good"
    assert judge(estimate(llc_ratio=math.nan, sampler=CLOSED)).word == "good"
    unresolved = replace(CLOSED, localization=None)
    assert "set a localization above 0, or use SGLD" in judge(estimate(llc_ratio=4.2, sampler=unresolved)).advice


def test_a_curvature_of_too_few_examples() -> None:
    """Halves that agree at 0.25 make a whole of 0.4: 3.5 times the variance, √3.5 times the pull."""
    verdict = judge(estimate(group_agreement=0.25, ess=20.0, sampler=CLOSED))
    assert str(verdict) == (
        "noisy: an estimate with the curvature of as many other training examples would agree on groups of train "
        "examples only at 0.40; raise localization from 50 to about 94, or lower num_directions from 64"
    )
    single = Subspace(num_directions=1, localization=50.0)
    assert judge(estimate(group_agreement=0.25, sampler=single)).advice == "raise localization from 50 to about 94"
    unresolved = replace(CLOSED, localization=None)
    assert judge(estimate(group_agreement=0.25, sampler=unresolved)).advice == "lower num_directions from 64"
    assert judge(estimate(group_agreement=0.55, sampler=CLOSED)).word == "good"
    assert judge(estimate(group_agreement=math.nan, sampler=CLOSED)).word == "good"


def test_a_curvature_without_an_error() -> None:
    verdict = judge(estimate(error=math.nan, sampler=CLOSED))
    assert verdict.word == "noisy"
    assert verdict.advice == "give more training examples"


def test_no_advice_for_the_closed_form_names_draws_or_steps() -> None:
    for fault in ({"divergences": LOST}, {"drift": 9.0, "loss_trace": MOVING}, {"llc": -5.0}, {"llc_ratio": 9.0},
        {"group_agreement": 0.0}, {"error": math.nan}):  # fmt: skip
        advice = judge(estimate(sampler=CLOSED, **fault)).advice
        assert not any(knob in advice for knob in ("num_draws", "num_chains", "thinning", "burn_in", "step_size"))


FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("diverged", {"divergences": LOST}),
    ("drifting", {"drift": 5.0, "loss_trace": MOVING}),
    ("minibatches", {"noise_ratio": 5.0}),
    ("not local", {"llc_ratio": 9.0}),
    ("another run", {"group_agreement": 0.1}),
]


@pytest.mark.parametrize("first", range(len(FAULTS)))
def test_the_most_harmful_fault_is_named(first: int) -> None:
    together: dict[str, Any] = {}
    for _, fault in FAULTS[first:]:
        together |= fault
    assert FAULTS[first][0] in str(judge(estimate(**together)))
