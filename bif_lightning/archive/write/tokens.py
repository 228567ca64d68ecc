"""The datasets of a dump about single tokens: which have a loss, and what their influence is made of."""

from collections.abc import Iterator

import numpy as np

from bif_lightning.archive.examples_file import SIDES
from bif_lightning.archive.schema import Variable, float32, float64, int64, string
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.token_products import CovarianceModel, DrawCovariance, GaussianCovariance
from bif_lightning.results.tokens import TokenAxis, Tokens


def token_variables(estimate: Estimate, tokens: Tokens) -> Iterator[Variable]:
    """Everything that token by token influence is made of."""
    for side, axis in zip(SIDES, (tokens.train, tokens.query), strict=True):
        yield from _axis(side, axis)
    law, errors = tokens.blocks.law, tokens.blocks.errors
    if isinstance(law, DrawCovariance):
        yield int64("tokens/chain", estimate.chain_ids, "id of each chain", ("chain",))
        draws = np.arange(estimate.loss_trace.shape[1])
        yield int64("tokens/draw", draws, "recorded draw within a chain", ("draw",))
    for side, source in zip(SIDES, (tokens.blocks.train, tokens.blocks.query), strict=True):
        if isinstance(law, DrawCovariance):
            words, dims = "loss at the draw less that at the snapshot", ("chain", "draw", f"{side}_token")
            yield float32(f"tokens/{side}_change", source.whole(), "nat", words, dims)
        else:
            words, dims = "slope of the loss along each direction at the snapshot", ("direction", f"{side}_token")
            yield float32(f"tokens/{side}_slope", source.whole(), "nat", words, dims)
    yield from _law(law)
    words = "factor on the spread of batches, for the standard error of "
    yield float64("tokens/influence_factor", errors.influence.factor, "1", words + "influence")
    yield float64("tokens/correlation_factor", errors.correlation.factor, "1", words + "correlation")
    words = "independent draws that an entry of the influence is worth"
    yield float64("tokens/influence_draws", errors.influence.draws, "1", words)
    words = "factor on products of deviations of chain means, for what a covariance lacks"
    yield float64("tokens/centre_factor", law.centre_scale, "1", words)


def _axis(side: str, axis: TokenAxis) -> Iterator[Variable]:
    dim = f"{side}_token"
    yield int64(f"tokens/{dim}", np.arange(len(axis)), f"token of the {side} axis that has a loss", (dim,))
    yield int64(f"tokens/{side}_sequence", axis.sequence, f"row of {side} that the token belongs to", (dim,))
    words = "place in its sequence, from 0"
    yield int64(f"tokens/{side}_position", axis.position, words, (dim,))
    yield float64(f"tokens/{side}_snapshot_loss", axis.snapshot_loss, "nat", "loss at the snapshot", (dim,))
    yield float64(f"tokens/{side}_loss", axis.loss, "nat", "mean loss over the draws", (dim,))
    yield float64(f"tokens/{side}_std", axis.std, "nat", "standard deviation of the loss over the draws", (dim,))


def _law(law: CovarianceModel) -> Iterator[Variable]:
    if isinstance(law, DrawCovariance):
        batches = np.arange(len(law.lengths))
        yield int64("tokens/batch", batches, "batch of consecutive draws of a chain", ("batch",))
        words = "draws in each batch, whose spread gives standard errors"
        yield int64("tokens/batch_draws", law.lengths, words, ("batch",))
        words = "draws are centred about the mean of their chain, or of all chains (pooled)"
        text = string(law.centring)
        yield Variable(path="tokens/centring", dims=(), values=text, units=None, long_name=words)
        return
    yield from _gaussian(law)


def _gaussian(law: GaussianCovariance) -> Iterator[Variable]:
    axes = {"direction": law.variances, "other_direction": law.variances, "group": law.changes}
    for name, values in axes.items():
        words = f"number of the {name.replace('_', ' ')}"
        yield int64(f"tokens/{name}", np.arange(len(values)), words, (name,))
    yield float64(
        "tokens/variance", law.variances, "1", "variance of the posterior along each direction", ("direction",)
    )
    words = "what each group of training examples adds to the curvature, times the inverse temperature"
    yield float64("tokens/group_change", law.changes, "nat", words, ("group", "direction", "other_direction"))
