"""Token by token influence of an estimate: from the losses of tokens at the draws, or from slopes in closed form."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bif_lightning.config import Centring, Subspace
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.estimation.token_slopes import token_slopes
from bif_lightning.losses.token_losses import TokenValues
from bif_lightning.model.weights import span_along
from bif_lightning.results.token_matrices import ErrorScales, InMemoryTokens, Source, TokenBlocks
from bif_lightning.results.token_products import DrawCovariance, GaussianCovariance
from bif_lightning.results.tokens import TokenAxis, Tokens, blocks_of
from bif_lightning.sampling.chain import ChainContext
from bif_lightning.sampling.token_trace import TokenStore, gathered
from bif_lightning.sampling.trace import ChainTrace, batch_lengths, is_paired
from bif_lightning.statistics.moments import from_draws, stack
from bif_lightning.statistics.standard_errors import ErrorModel, centre_scale, fit_error_model, independent

IN_SPAN = (
    "influence of single tokens is that of the posterior within the span of the sampler's directions: a token's "
    "gradient outside of it is not known, so that sums over tokens lack the part of the sequences' influence that the "
    "pull alone makes"
)

_SAMPLED = 64  # tokens of either axis whose draws show how long chains remember


def store_for(plan: ChainContext, chains: Sequence[int], scratch: Path | None) -> TokenStore | None:
    """Where these chains' losses of tokens go; None where they are not asked for, or the closed form has no need of
    them.

    Raises:
        OSError: there is no room for a temporary file.
    """
    if plan.token_losses is None or plan.linear is not None:
        return None
    return TokenStore(*plan.token_losses, chains, plan.chains.num_draws, scratch=scratch)


def tokens_of(
    plan: ChainContext, records: Sequence[ChainTrace], ranks: Ranks, *, everywhere: bool, scratch: Path | None
) -> Tokens | None:
    """Token by token influence of these chains; None where it is not asked for, or another rank gets it. Collective.

    Raises:
        OSError: there is no room for a temporary file.
    """
    if plan.token_losses is None:
        return None
    if plan.linear is not None:
        return _linear(plan, plan.token_losses, ranks)
    if plan.tokens is None:
        return None
    chains = [record.chain for record in records]
    store = gathered(plan.tokens, chains, ranks, everywhere=everywhere, scratch=scratch)
    return None if store is None else _drawn(plan, store)


def _drawn(plan: ChainContext, store: TokenStore) -> Tokens:
    train, query = store.changes()
    lengths = batch_lengths(plan.chains, paired=is_paired(plan.sampler))
    precision = _precision(train, query, lengths, plan.chains.centring)
    merged = [int(part.sum()) for part in np.array_split(np.array(lengths), precision.parts)]
    scale = centre_scale(len(train), len(merged), plan.chains.centring)
    law = DrawCovariance(len(train), tuple(merged), plan.chains.centring, scale)
    return _tokens(
        store.train, store.query, blocks_of(law, _widths(precision), InMemoryTokens(train), InMemoryTokens(query))
    )


def _precision(train: np.ndarray, query: np.ndarray, lengths: Sequence[int], centring: Centring) -> ErrorModel:
    """How errors are made, from evenly spaced tokens of all chains."""
    chains = zip(_spaced(train), _spaced(query), strict=True)
    pairs = [zip(*(side.split(list(lengths)) for side in sides), strict=True) for sides in chains]
    return fit_error_model(stack([stack([from_draws(*pair) for pair in of_chain]) for of_chain in pairs]), centring)


def _spaced(changes: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(changes[..., :: max(1, -(-changes.shape[-1] // _SAMPLED))]))


def _widths(precision: ErrorModel) -> ErrorScales:
    of = precision.influence
    return ErrorScales(influence=of.factor, influence_draws=of.draws, correlation=precision.correlation.factor)


def _linear(plan: ChainContext, losses: tuple[TokenValues, TokenValues], ranks: Ranks) -> Tokens:
    linear, backend, sampler = plan.linear, plan.backend, plan.sampler
    assert linear is not None
    assert isinstance(sampler, Subspace)
    lowered = linear.normal.metric.to_weight_space(linear.normal.directions)
    slopes = token_slopes(plan.problem, backend, lowered, span_along(backend, lowered, sampler.span), ranks)
    train, query = slopes[0].numpy(), slopes[-1].numpy()
    changes = linear.normal.inverse_temperature * linear.deviations
    law = GaussianCovariance(linear.variances.numpy(), changes.numpy())
    return _tokens(
        *losses, blocks_of(law, _widths(independent(linear.groups)), InMemoryTokens(train), InMemoryTokens(query))
    )


def _tokens(train: TokenValues, query: TokenValues, blocks: TokenBlocks) -> Tokens:
    rows = _axis(train, blocks, blocks.train)
    columns = rows if query is train else _axis(query, blocks, blocks.query)
    return Tokens(train=rows, query=columns, blocks=blocks)


def _axis(values: TokenValues, blocks: TokenBlocks, source: Source) -> TokenAxis:
    sequence, position = (place.numpy() for place in values.places())
    at_snapshot = values.values.double().cpu().numpy()
    mean, std = at_snapshot.copy(), np.empty_like(at_snapshot)
    for here, side in blocks.sides(source, np.arange(len(at_snapshot))):
        std[here] = np.sqrt(blocks.law.share @ side.variance)
        mean[here] += side.change
    return TokenAxis(
        sequence=sequence,
        position=position,
        num_sequences=len(values.sums),
        snapshot_loss=at_snapshot,
        loss=mean,
        std=std,
    )
