"""Token by token influence of an estimate: from the losses of tokens at the draws, or from slopes in closed form."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bif_lightning.config import Centring
from bif_lightning.curvature.closed_form import LinearizedPosterior
from bif_lightning.curvature.token_slopes import token_slopes
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.losses.token_losses import TokenValues
from bif_lightning.model.weights import span_along
from bif_lightning.results.token_matrices import InMemoryTokens, Source, TokenBlocks
from bif_lightning.results.token_products import DrawCovariance, GaussianCovariance
from bif_lightning.results.tokens import TokenAxis, Tokens, blocks_of
from bif_lightning.sampling.sampler import ChainContext
from bif_lightning.sampling.token_trace import TokenStore, gathered
from bif_lightning.sampling.trace import ChainTrace, batch_lengths
from bif_lightning.statistics.draws import from_draws
from bif_lightning.statistics.moments import stack
from bif_lightning.statistics.standard_errors import ErrorModel, centre_scale, fit_error_model, independent

IN_SPAN = (
    "influence of single tokens is computed within the span of the sampler's directions, since gradients of tokens are "
    "unknown outside of it: sums over tokens lack the part of the sequences' influence outside the span"
)

_SAMPLED = 64  # tokens of each axis whose draws show the autocorrelation of the chains


def token_store(context: ChainContext, chains: Sequence[int], scratch: Path | None) -> TokenStore | None:
    """Storage for the losses of tokens at the draws of chains; None without `per_token`.

    Raises:
        OSError: the disk has no space for a temporary file.
    """
    if context.token_losses is None:
        return None
    return TokenStore(*context.token_losses, chains, context.chains.num_draws, scratch=scratch)


def drawn_tokens(
    context: ChainContext, traces: Sequence[ChainTrace], ranks: Ranks, everywhere: bool, scratch: Path | None
) -> Tokens | None:
    """Influence of single tokens by the draws of these chains. Collective.

    Returns:
        The tokens; None without `per_token`, or on ranks that do not get the result.

    Raises:
        OSError: the disk has no space for a temporary file.
    """
    if context.tokens is None:
        return None
    chains = [trace.chain for trace in traces]
    store = gathered(context.tokens, chains, ranks, everywhere=everywhere, scratch=scratch)
    return None if store is None else _drawn(context, store)


def closed_form_tokens(
    context: ChainContext, posterior: LinearizedPosterior, span: float, ranks: Ranks
) -> Tokens | None:
    """Influence of single tokens in closed form, within the span of the posterior's directions. Collective.

    Args:
        span: of differences along the directions (`config.Subspace`), where the model has no forward-mode derivatives.
    """
    if context.token_losses is None:
        return None
    directions = posterior.normal.metric.to_weight_space(posterior.normal.directions)
    size = span_along(context.backend, directions, span)
    slopes = token_slopes(context.problem, context.backend, directions, size, ranks)
    train, query = slopes[0].numpy(), slopes[-1].numpy()
    changes = posterior.normal.inverse_temperature * posterior.deviations
    model = GaussianCovariance(posterior.variances.numpy(), changes.numpy())
    errors = independent(posterior.groups)
    return _tokens(*context.token_losses, blocks_of(model, errors, InMemoryTokens(train), InMemoryTokens(query)))


def _drawn(context: ChainContext, store: TokenStore) -> Tokens:
    train, query = store.changes()
    lengths = batch_lengths(context.chains, paired=context.settings.paired)
    precision = _precision(train, query, lengths, context.chains.centring)
    merged = [int(part.sum()) for part in np.array_split(np.array(lengths), precision.parts)]
    scale = centre_scale(len(train), len(merged), context.chains.centring)
    model = DrawCovariance(len(train), tuple(merged), context.chains.centring, scale)
    return _tokens(store.train, store.query, blocks_of(model, precision, InMemoryTokens(train), InMemoryTokens(query)))


def _precision(train: np.ndarray, query: np.ndarray, lengths: Sequence[int], centring: Centring) -> ErrorModel:
    """How errors are made, from evenly spaced tokens of all chains."""
    chains = zip(_spaced(train), _spaced(query), strict=True)
    pairs = [zip(*(side.split(list(lengths)) for side in sides), strict=True) for sides in chains]
    return fit_error_model(stack([stack([from_draws(*pair) for pair in of_chain]) for of_chain in pairs]), centring)


def _spaced(changes: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(changes[..., :: max(1, -(-changes.shape[-1] // _SAMPLED))]))


def _tokens(train: TokenValues, query: TokenValues, blocks: TokenBlocks) -> Tokens:
    rows = _axis(train, blocks, blocks.train)
    columns = rows if query is train else _axis(query, blocks, blocks.query)
    return Tokens(train=rows, query=columns, blocks=blocks)


def _axis(values: TokenValues, blocks: TokenBlocks, source: Source) -> TokenAxis:
    sequence, position = (place.numpy() for place in values.places())
    at_snapshot = values.values.double().cpu().numpy()
    mean, std = at_snapshot.copy(), np.empty_like(at_snapshot)
    for here, side in blocks.sides(source, np.arange(len(at_snapshot))):
        std[here] = np.sqrt(blocks.model.share @ side.variance)
        mean[here] += side.change
    return TokenAxis(
        sequence=sequence,
        position=position,
        num_sequences=len(values.sums),
        snapshot_loss=at_snapshot,
        loss=mean,
        std=std,
    )
