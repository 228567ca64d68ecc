"""Datasets of a dump about single tokens: the tokens with a loss, and the values to compute their influence from."""

from collections.abc import Iterator

import numpy as np

from bif_lightning.archive.examples_file import SIDES
from bif_lightning.archive.schema import Variable, float32, float64, int64, string
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.token_products import CovarianceModel, DrawCovariance, GaussianCovariance
from bif_lightning.results.tokens import TokenAxis, Tokens


def token_variables(estimate: Estimate, tokens: Tokens) -> Iterator[Variable]:
    """All datasets that token influence is computed from."""
    for side, axis in zip(SIDES, (tokens.train, tokens.query), strict=True):
        yield from _axis(side, axis)
    model, errors = tokens.blocks.model, tokens.blocks.errors
    if isinstance(model, DrawCovariance):
        yield int64("tokens/chain", estimate.chain_ids, "id of each chain", ("chain",))
        draws = np.arange(estimate.loss_trace.shape[1])
        yield int64("tokens/draw", draws, "recorded draw within a chain", ("draw",))
    for side, source in zip(SIDES, (tokens.blocks.train, tokens.blocks.query), strict=True):
        if isinstance(model, DrawCovariance):
            words, dims = "loss at the draw minus loss at the snapshot", ("chain", "draw", f"{side}_token")
            yield float32(f"tokens/{side}_change", source.whole(), "nat", words, dims)
        else:
            words, dims = "slope of the loss along each direction at the snapshot", ("direction", f"{side}_token")
            yield float32(f"tokens/{side}_slope", source.whole(), "nat", words, dims)
    yield from _model(model)
    words = "factor on the standard error of batch means, for the standard error of "
    yield float64("tokens/influence_factor", errors.influence.factor, "1", words + "influence")
    yield float64("tokens/correlation_factor", errors.correlation.factor, "1", words + "correlation")
    words = "effective number of independent draws of an influence entry"
    yield float64("tokens/influence_draws", errors.influence.draws, "1", words)
    words = "factor on products of deviations of chain means, for the bias of a covariance centred within chains"
    yield float64("tokens/centre_factor", model.centre_scale, "1", words)


def _axis(side: str, axis: TokenAxis) -> Iterator[Variable]:
    dim = f"{side}_token"
    yield int64(f"tokens/{dim}", np.arange(len(axis)), f"index of each {side} token with a loss", (dim,))
    yield int64(f"tokens/{side}_sequence", axis.sequence, f"{side} example that the token belongs to", (dim,))
    words = "position of the token in its sequence, from 0"
    yield int64(f"tokens/{side}_position", axis.position, words, (dim,))
    yield float64(f"tokens/{side}_snapshot_loss", axis.snapshot_loss, "nat", "loss at the snapshot", (dim,))
    yield float64(f"tokens/{side}_loss", axis.loss, "nat", "mean loss over the draws", (dim,))
    yield float64(f"tokens/{side}_std", axis.std, "nat", "standard deviation of the loss over the draws", (dim,))


def _model(model: CovarianceModel) -> Iterator[Variable]:
    if isinstance(model, DrawCovariance):
        batches = np.arange(len(model.lengths))
        yield int64("tokens/batch", batches, "index of each batch of consecutive draws of a chain", ("batch",))
        words = "draws in each batch; standard errors come from the variance between batches"
        yield int64("tokens/batch_draws", model.lengths, words, ("batch",))
        words = "mean that draws are centred about: of their chain, or of all chains (pooled)"
        text = string(model.centring)
        yield Variable(path="tokens/centring", dims=(), values=text, units=None, long_name=words)
        return
    yield from _gaussian(model)


def _gaussian(model: GaussianCovariance) -> Iterator[Variable]:
    axes = {"direction": model.variances, "other_direction": model.variances, "group": model.changes}
    for name, values in axes.items():
        words = f"index of each {name.replace('_', ' ')}"
        yield int64(f"tokens/{name}", np.arange(len(values)), words, (name,))
    yield float64(
        "tokens/variance", model.variances, "1", "variance of the posterior along each direction", ("direction",)
    )
    words = "curvature of each group of training examples minus the mean curvature, times the inverse temperature"
    yield float64("tokens/group_change", model.changes, "nat", words, ("group", "direction", "other_direction"))
