"""Can this snapshot be trusted: one word, a sentence with the numbers, and the knob to turn. Pure; no torch.

Each sampler yields its checks in the order of harm (`sampling.sampler.Sampler.checks`), and the first that fails is the
verdict: what a later one measures means little where an earlier one fails. Here are the checks that samplers share.
Thresholds are judgements; the reason for each stands beside it.
"""

import math
from collections.abc import Iterator

import numpy as np

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


def first_of(checks: Iterator[Verdict], estimate: Estimate) -> Verdict:
    """The verdict on one snapshot: what the first failing check of its sampler says, or that none failed.

    diverged    a chain left the posterior, so that the step is at the edge for the others too
    drifting    the chains had not settled: the loss still moves, or lies below that at w*
    noisy       minibatch noise, or too few draws: Monte Carlo error; in closed form, too few examples for its curvature
    not local   the loss rises far more than the curvature at w* explains
    good        none of these. A measure that could not be taken (NaN) is not held against the snapshot.

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
    lost, kept = len(estimate.divergences), len(estimate.chain_ids)
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
    """Another estimate of as many draws would be another one."""
    draws = estimate.chains.num_draws
    if bool(np.isnan(estimate.losses.influence_standard_error).all()):
        advice = f"raise num_chains from {estimate.chains.num_chains} to 4, or num_draws from {draws} tenfold"
        sentence = "the draws are too few, for how long the chain remembers, to tell their error"
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
        advice += f", or thinning from {thinning} to about {math.ceil(thinning * more)}, as draws repeat one another"
    yield Verdict("noisy", sentence, advice)


def reliability(agreement: float) -> float:
    """Of an estimate, from the agreement r of its halves: 2r/(1 + r) (Spearman 1910; Brown 1910), 0 where r is below 0.

    How far another estimate of the same length would agree with it; NaN where r is.
    """
    return math.nan if math.isnan(agreement) else 2 * max(agreement, 0.0) / (1 + max(agreement, 0.0))


def times_more(reliability: float) -> float:
    """How many times as many draws or examples make it reliable."""
    needed = LEAST_RELIABILITY * (1 - reliability) / (max(reliability, 1e-9) * (1 - LEAST_RELIABILITY))
    return min(needed, _MOST_DRAWS)


def rounded(value: float) -> str:
    """To two digits."""
    return f"{float(f'{value:.2g}'):g}"
