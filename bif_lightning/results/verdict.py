"""Can this snapshot be trusted: one word, a sentence with the numbers, and the knob to turn. Pure; no torch.

The checks are asked in the order of harm, and the first that fails is the verdict: what a later one measures means
little where an earlier one fails. Thresholds are judgements; the reason for each stands beside it.
"""

import math
from collections.abc import Callable

import numpy as np

from bif_lightning.config import SGLD, Subspace
from bif_lightning.results.estimate import Estimate, Verdict

MOST_NOISE = 1.0
"""Of the noise ratio: above it minibatches heat the chains more than the sampler's own noise does. Over 69 runs on
three models the ratio was the best predictor without labels of how well scores predict retraining (Spearman 0.79), and
plain SGLD had to be at or below about 1."""

MOST_DRIFT = 3.0
"""Of the change from the first to the second half of the draws, in standard errors: chance alone rarely gets there."""

MOST_CHANGE = 0.2
"""Of that change, as a share of the rise above the loss at w*: less is no matter for a covariance about chain means."""

MOST_LLC = 3.0
"""Of the LLC ratio. It is 1 where the loss is quadratic over the reach of the chains. Networks are not: values up to 2
are common in sound runs, far larger ones mean that chains left the neighbourhood that the curvature describes."""

LEAST_RELIABILITY = 0.7
"""Of the correlation that a second estimate of the same length would have with this one, on random groups of train
examples. The score against retraining is that of endless chains times its root: that foretold it within 0.02 on three
tasks, from 100 to 1600 draws (benchmarks/reliability.py)."""

_MOST_DRAWS = 10.0  # an extrapolation further than this is a guess
_MOST_COOLED = 1000.0


def judge(estimate: Estimate) -> Verdict:
    """The verdict on one snapshot.

    diverged    a chain left the posterior, so that the step is at the edge for the others too
    drifting    the chains had not settled: the loss still moves, or lies below that at w*
    noisy       minibatch noise, or too few draws: Monte Carlo error; of `Subspace`, too few examples for its curvature
    not local   the loss rises far more than the curvature at w* explains
    good        none of these. A measure that could not be taken (NaN) is not held against the snapshot.

    >>> from bif_lightning import judge
    >>> judge(snapshot).word in ("good", "noisy", "drifting", "not local", "diverged")  # of an Estimate
    True
    """
    for check in _CHECKS:
        if found := check(estimate):
            return found
    of = estimate.diagnostics
    known = [
        f"{name} {value:.2g}"
        for name, value in (
            ("noise ratio", of.noise_ratio),
            ("LLC ratio", of.llc_ratio),
            ("drift", of.drift if isinstance(estimate.sampler, SGLD) else math.nan),  # independent draws have none
            ("group agreement", of.group_agreement),
            ("agreement with noise alone", of.control_agreement),
        )
        if not math.isnan(value)
    ]
    return Verdict("good", f"no check failed ({', '.join(known) or 'none could be made'})", "")


def _diverged(estimate: Estimate) -> Verdict | None:
    lost, kept = len(estimate.divergences), len(estimate.chain_ids)
    if not lost:
        return None
    advice = "raise localization"
    if isinstance(estimate.sampler, SGLD):
        advice = f"halve step_size from {estimate.sampler.step_size:g}, or raise localization"
    return Verdict("diverged", f"{lost} of {lost + kept} chains left the posterior and are left out", advice)


def _drifting(estimate: Estimate) -> Verdict | None:
    sampler, of = estimate.sampler, estimate.diagnostics
    if not isinstance(sampler, SGLD):
        return None  # independent draws
    steps = estimate.chains.num_steps
    advice = f"raise burn_in from {estimate.chains.burn_in} to about {steps}, or localization"
    if sampler.gradient == "minibatch":
        advice = 'use gradient="control_variate", which makes w* the mode'
    if of.llc < -2 * np.nan_to_num(of.llc_standard_error):
        return Verdict("drifting", f"the mean loss over the draws lies below that at w* (LLC {of.llc:.3g})", advice)
    change = settling(estimate)
    if abs(of.drift) > MOST_DRIFT and abs(change) > MOST_CHANGE:
        sentence = (
            f"the mean loss changes by {change:+.0%} of its rise above w* from the first to the second half of the "
            f"draws ({of.drift:+.1f} standard errors)"
        )
        return Verdict("drifting", sentence, advice)
    return None


def settling(estimate: Estimate) -> float:
    """Second-half minus first-half mean loss, as a share of the rise of the mean loss above w*; NaN without a rise."""
    loss = np.asarray(estimate.loss_trace, np.float64)
    half, rise = loss.shape[1] // 2, loss.mean() - estimate.snapshot_loss
    if half < 1 or not abs(rise) > 0:
        return math.nan
    return float((loss[:, -half:].mean() - loss[:, :half].mean()) / abs(rise))


def _noisy_gradients(estimate: Estimate) -> Verdict | None:
    sampler, ratio = estimate.sampler, estimate.diagnostics.noise_ratio
    if not isinstance(sampler, SGLD) or not ratio > MOST_NOISE:
        return None
    batch, factor = estimate.chains.batch_size, min(ratio, _MOST_COOLED)
    advice = (
        f"lower step_size from {sampler.step_size:g} to about {_round(sampler.step_size / factor)}, or raise "
        f"batch_size from {batch} to about {math.ceil(batch * factor)}"
    )
    if sampler.gradient == "minibatch":
        advice = f'use gradient="control_variate", or {advice}'
    return Verdict("noisy", f"minibatches move the chains {ratio:.2g} times as much as their own noise", advice)


def _not_local(estimate: Estimate) -> Verdict | None:
    ratio, sampler = estimate.diagnostics.llc_ratio, estimate.sampler
    if not ratio > MOST_LLC:
        return None
    sentence = f"the loss rises {ratio:.2g} times as much as the curvature at w* explains"
    advice = "set a localization above 0"
    if pull := sampler.localization:
        advice = f"raise localization from {pull:g} to about {_round(pull * ratio)}"
    if isinstance(sampler, Subspace):
        sentence = (
            f"the matrices are the closed form, but by the draws {sentence}, so that influence beyond first order is "
            "left out. Kinks of ReLUs and of max pooling do that at any localization, which has not made scores worse"
        )
        advice += f", or take SGLD(num_directions={sampler.num_directions}, ...), whose draws meet the loss as it is"
    return Verdict("not local", sentence, advice)


def _too_few_draws(estimate: Estimate) -> Verdict | None:
    if isinstance(estimate.sampler, Subspace):
        return _too_few_examples(estimate, estimate.sampler)
    draws = estimate.chains.num_draws
    if bool(np.isnan(estimate.losses.influence_standard_error).all()):
        advice = f"raise num_chains from {estimate.chains.num_chains} to 4, or num_draws from {draws} tenfold"
        return Verdict("noisy", "the draws are too few, for how long the chain remembers, to tell their error", advice)
    found = reliability(estimate.diagnostics.group_agreement)
    if not found < LEAST_RELIABILITY:
        return None
    more = _times_more(found)
    sentence = f"another run of this length would agree on groups of train examples only at {found:.2f}"
    advice = f"raise num_draws from {draws} to about {_round(draws * more)}"
    total = estimate.loss_trace.size
    if isinstance(estimate.sampler, SGLD) and estimate.diagnostics.ess < total / 4:
        thinning = estimate.chains.thinning
        advice += f", or thinning from {thinning} to about {math.ceil(thinning * more)}, as draws repeat one another"
    return Verdict("noisy", sentence, advice)


def _too_few_examples(estimate: Estimate, sampler: Subspace) -> Verdict | None:
    """The same of the closed form, whose error is that of a curvature measured on some examples, not of draws."""
    if bool(np.isnan(estimate.losses.influence_standard_error).all()):
        advice = "give more training examples"
        return Verdict("noisy", "the training examples are too few to tell the error of the curvature", advice)
    found = reliability(estimate.diagnostics.group_agreement)
    if not found < LEAST_RELIABILITY:
        return None
    sentence = (
        f"the curvature, measured on as many other training examples, would agree on groups of train examples only at "
        f"{found:.2f}"
    )
    # An error of H moves the influence by about its share in h + γ/nβ.
    knobs, factor = list[str](), math.sqrt(_times_more(found))
    if pull := sampler.localization:
        knobs.append(f"raise localization from {pull:g} to about {_round(pull * factor)}")
    if sampler.num_directions > 1:
        knobs.append(f"lower num_directions from {sampler.num_directions}")
    return Verdict("noisy", sentence, ", or ".join(knobs))


def reliability(agreement: float) -> float:
    """Of an estimate, from the agreement r of its halves: 2r/(1 + r) (Spearman 1910; Brown 1910), 0 where r is below 0.

    How far another estimate of the same length would agree with it; NaN where r is.
    """
    return math.nan if math.isnan(agreement) else 2 * max(agreement, 0.0) / (1 + max(agreement, 0.0))


def _times_more(reliability: float) -> float:
    """How many times as many draws or examples make it reliable."""
    needed = LEAST_RELIABILITY * (1 - reliability) / (max(reliability, 1e-9) * (1 - LEAST_RELIABILITY))
    return min(needed, _MOST_DRAWS)


def _round(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"


# Gradient noise heats the chains, so it is asked before what the heat does to the loss.
_CHECKS: tuple[Callable[[Estimate], Verdict | None], ...] = (
    _diverged,
    _drifting,
    _noisy_gradients,
    _not_local,
    _too_few_draws,
)
