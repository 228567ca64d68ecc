"""The verdict on a snapshot: one word, a sentence with the numbers, and the setting to change. Without torch.

Each sampler yields its checks in the order of harm (`sampling.sampler.Sampler.checks`). The first that fails is the
verdict, since later measures mean little if an earlier check fails. This module has the checks that samplers share.
Thresholds are judgements, each with its reason.
"""

import math
from collections.abc import Iterator

import numpy as np

from bif_lightning.results.estimate import Estimate, Verdict

MOST_NOISE = 1.0
"""Largest noise ratio: above 1, minibatch noise exceeds the injected noise and heats the chains. Over 69 runs on three
models, the ratio was the best label-free predictor of how well scores predict retraining (Spearman 0.79), and plain
SGLD needed about 1 or less."""

MOST_DRIFT = 3.0
"""Largest change from the first to the second half of the draws, in standard errors: chance rarely exceeds it."""

MOST_CHANGE = 0.2
"""Largest change as a share of the rise above the loss at w*: smaller ones do not matter for a covariance about chain
means."""

MOST_LLC = 3.0
"""Largest LLC ratio. It is 1 if the loss is quadratic over the range of the chains. Networks are not: values up to 2
are common in good runs; much larger ones mean that chains left the neighbourhood that the curvature describes."""

LEAST_RELIABILITY = 0.7
"""Smallest expected correlation with a second estimate of the same length, on random groups of train examples. The
score against retraining is that of infinitely long chains times its root: this predicted scores within 0.02 on three
tasks, from 100 to 1600 draws (benchmarks/reliability.py)."""

_MOST_DRAWS = 10.0  # larger factors would be guesses


def first_of(checks: Iterator[Verdict], estimate: Estimate) -> Verdict:
    """The verdict on one snapshot, from the first failing check of its sampler.

    diverged    a chain left the posterior, so the step size is near the limit for the others too
    drifting    the chains have not converged: the loss still changes, or is below that at w*
    noisy       minibatch noise, or too few draws; in closed form, too few examples for the curvature
    not local   the loss rises far more than the curvature at w* explains
    good        none of these; measures that are NaN do not count

    >>> from bif_lightning import judge
    >>> judge(snapshot).word in ("good", "noisy", "drifting", "not local", "diverged")  # of an Estimate
    True
    """
    for found in checks:
        return found
    of = estimate.diagnostics
    known = [
        f"{name} {value:.2g}"
        for name, value in (
            ("noise ratio", of.noise_ratio),
            ("LLC ratio", of.llc_ratio),
            ("drift", math.nan if estimate.sampler.paired else of.drift),
            ("group agreement", of.group_agreement),
            ("agreement with noise alone", of.control_agreement),
        )
        if not math.isnan(value)
    ]
    return Verdict("good", f"no check failed ({', '.join(known) or 'none could be made'})", "")


def diverged(estimate: Estimate, advice: str) -> Iterator[Verdict]:
    """Some chains left the posterior."""
    lost = len(estimate.divergences)
    kept = len(set(estimate.chain_ids) - {each.chain for each in estimate.divergences})
    if lost:
        yield Verdict("diverged", f"{lost} of {lost + kept} chains left the posterior and are left out", advice)


def settling_share(estimate: Estimate) -> float:
    """Second-half minus first-half mean loss, as a share of the rise of the mean loss above w*; NaN without a rise."""
    loss = np.asarray(estimate.loss_trace, np.float64)
    half, rise = loss.shape[1] // 2, loss.mean() - estimate.snapshot_loss
    if half < 1 or not abs(rise) > 0:
        return math.nan
    return float((loss[:, -half:].mean() - loss[:, :half].mean()) / abs(rise))


def not_local(estimate: Estimate) -> Iterator[Verdict]:
    """The loss rises far more than its curvature at w* explains."""
    ratio = estimate.diagnostics.llc_ratio
    if ratio > MOST_LLC:
        sentence = f"the loss rises {ratio:.2g} times as much as the curvature at w* explains"
        yield Verdict("not local", sentence, raise_localization(estimate.sampler.localization, ratio))


def raise_localization(pull: float | None, factor: float) -> str:
    """Advice to raise γ by this factor."""
    if not pull:
        return "set a localization above 0"
    return f"raise localization from {pull:g} to about {rounded(pull * factor)}"


def too_few_draws(estimate: Estimate) -> Iterator[Verdict]:
    """A second estimate with as many draws would differ too much."""
    draws = estimate.chains.num_draws
    if bool(np.isnan(estimate.losses.influence_standard_error).all()):
        advice = f"raise num_chains from {estimate.chains.num_chains} to 4, or num_draws from {draws} tenfold"
        sentence = "there are too few draws, given their autocorrelation, to estimate the standard error"
        yield Verdict("noisy", sentence, advice)
        return
    found = reliability(estimate.diagnostics.group_agreement)
    if not found < LEAST_RELIABILITY:
        return
    more = times_more(found)
    sentence = f"another run of this length would agree on groups of train examples only at {found:.2f}"
    advice = f"raise num_draws from {draws} to about {rounded(draws * more)}"
    if estimate.diagnostics.ess < estimate.loss_trace.size / 4:  # NaN of independent draws
        thinning = estimate.chains.thinning
        advice += f", or thinning from {thinning} to about {math.ceil(thinning * more)}, as draws are correlated"
    yield Verdict("noisy", sentence, advice)


def too_few_examples(estimate: Estimate, num_directions: int) -> Iterator[Verdict]:
    """The error of a closed form comes from the examples that the curvature is measured on, not from draws."""
    if bool(np.isnan(estimate.losses.influence_standard_error).all()):
        sentence = "there are too few training examples to estimate the error of the curvature"
        yield Verdict("noisy", sentence, "give more training examples")
        return
    found = reliability(estimate.diagnostics.group_agreement)
    if not found < LEAST_RELIABILITY:
        return
    sentence = (
        "an estimate with the curvature of as many other training examples would agree on groups of train examples "
        f"only at {found:.2f}"
    )
    # A relative error of H changes the influence by about its share in h + γ/nβ.
    knobs, factor = list[str](), math.sqrt(times_more(found))
    if pull := estimate.sampler.localization:
        knobs.append(f"raise localization from {pull:g} to about {rounded(pull * factor)}")
    if num_directions > 1:
        knobs.append(f"lower num_directions from {num_directions}")
    yield Verdict("noisy", sentence, ", or ".join(knobs))


def reliability(agreement: float) -> float:
    """Expected agreement with a second estimate of the same length, from the agreement r of two halves.

    It is 2r/(1 + r) (Spearman 1910; Brown 1910), 0 for negative r, NaN if r is NaN.
    """
    return math.nan if math.isnan(agreement) else 2 * max(agreement, 0.0) / (1 + max(agreement, 0.0))


def times_more(reliability: float) -> float:
    """Factor on the number of draws or examples that makes an estimate reliable."""
    needed = LEAST_RELIABILITY * (1 - reliability) / (max(reliability, 1e-9) * (1 - LEAST_RELIABILITY))
    return min(needed, _MOST_DRAWS)


def rounded(value: float) -> str:
    """Round to two digits."""
    return f"{float(f'{value:.2g}'):g}"
