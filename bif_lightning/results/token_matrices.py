"""Blocks of the token matrices with standard errors, and means over groups of tokens such as all digits.

The equations are those of the example matrices (`statistics`). Since Cov is bilinear, the mean influence over all pairs
of tokens of two groups is the influence of their mean losses. Its standard error is computed from these mean losses,
because entries of a block are far from independent. The mean correlation is that of standardized losses. Its error
comes from the mean of the linearizations of all pairs (`statistics.influence.correlation`),

    ψ_k = mean_k(ū·v̄) − ½·(mean_i mean_k(u_i²)·R_iB + mean_j mean_k(v_j²)·R_Aj),

where R_iB is the mean correlation of token i with group B. The matrix of all pairs is never computed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float, Int

from bif_lightning.results.token_products import (
    CovarianceModel,
    Product,
    TokenBatch,
    Values,
    batch_covariances,
    chain_mean_bias,
)
from bif_lightning.statistics.influence import Estimates, correlation, influence, weighted_sum
from bif_lightning.statistics.standard_errors import ErrorModel, correlation_error, influence_error
from bif_lightning.storage.scratch import ScratchArrays, Spec

Quantity = Literal["correlation", "influence"]

MOST_BYTES = 1 << 30
"""Memory that token traces, or a token matrix, may take: 1 GiB. Larger ones go to a temporary file."""

_TILE_BYTES = 1 << 21  # products of one tile, which stay in cache while they are summed
_VALUE_BYTES = 1 << 26  # draws or slopes of the tokens read at a time
_BAND_BYTES, _LEAST_BAND = 1 << 24, 64  # rows computed at a time, and the fewest of them


class Source(Protocol):
    """Loss changes or slopes of the tokens of one axis, in memory or on disk."""

    def take(self, tokens: Int[np.ndarray, " token"]) -> Values:
        """Values of some tokens."""
        ...

    def whole(self) -> Values:
        """Values of all tokens."""
        ...


@dataclass(frozen=True)
class InMemoryTokens:
    """Loss changes or slopes of the tokens of one axis, in memory or memory-mapped."""

    values: Values

    def take(self, tokens: Int[np.ndarray, " token"]) -> Values:
        """Values of some tokens; a view if they are consecutive."""
        first, last = (int(tokens[0]), int(tokens[-1])) if len(tokens) else (0, -1)
        neighbours = last - first + 1 == len(tokens) and bool((np.diff(tokens) == 1).all())
        return self.values[..., first : last + 1] if neighbours else self.values[..., tokens]

    def whole(self) -> Values:
        """Values of all tokens."""
        return self.values


@dataclass(frozen=True)
class SummedTokens:
    """The sum of the losses of some tokens, as an axis of a single token."""

    source: Source
    tokens: Int[np.ndarray, " token"]

    def take(self, tokens: Int[np.ndarray, " token"]) -> Values:
        """The sum, for each time that it is asked for."""
        return self.whole()[..., tokens]

    def whole(self) -> Values:
        """The sum."""
        return self.source.take(self.tokens).sum(-1, keepdims=True, dtype=np.float64)


@dataclass(frozen=True)
class TokenMatrix:
    """Entries of some train tokens (rows) and query tokens (columns).

    Attributes:
        value: influence in nat² (negative = helps), or correlation in [−1, 1] (positive = helps; NaN where a loss is
            the same at every draw).
        standard_error: Monte Carlo standard error of each entry; None if not requested.
    """

    value: Float[np.ndarray, "row column"]
    standard_error: Float[np.ndarray, "row column"] | None


@dataclass(frozen=True)
class TokenBlocks:
    """Computes blocks of the token matrices, tile by tile.

    Attributes:
        model: computes covariances from loss changes or slopes.
        errors: computes standard errors.
        train, query: loss changes or slopes of the tokens of each axis.
        item: bytes of the values of one token, which set the size of tiles.
    """

    model: CovarianceModel
    errors: ErrorModel
    train: Source
    query: Source
    item: int

    def matrix(
        self,
        rows: Int[np.ndarray, " row"],
        columns: Int[np.ndarray, " column"],
        quantity: Quantity,
        *,
        errors: bool = True,
        budget: int = MOST_BYTES,
        product: Product = np.matmul,
    ) -> TokenMatrix:
        """All entries of some rows and columns.

        Args:
            rows, columns: train and query tokens.
            quantity: "influence" or "correlation".
            errors: whether to compute standard errors.
            budget: bytes that the result may take in memory; a larger one goes to a temporary file.
            product: multiplies matrices if errors are not computed.

        Raises:
            OSError: the disk has no space for the file.
        """
        storage = ScratchArrays([Spec((len(rows), len(columns)), np.float32)] * (1 + errors), budget)
        standardized = quantity == "correlation"
        held, at_once = None, self.width
        if len(columns) <= self.width:
            held = list(self.sides(self.query, columns, standardized=standardized))
            fitting = _BAND_BYTES // (4 * (1 + errors) * max(1, len(columns)))
            at_once = min(at_once, max(_LEAST_BAND, fitting))
        for here, side in self.sides(self.train, rows, standardized=standardized, at_once=at_once):
            band = np.empty((1 + errors, len(side), len(columns)), np.float32)
            for there, other in held or self.sides(self.query, columns, standardized=standardized):
                if errors:
                    self._fill(band[:, :, there], side, other, quantity)
                else:
                    self._fill_values(band[0, :, there], self.model.covariance(side, other, product), quantity)
            for place, part in enumerate(band):
                storage.write(place, here, part)
        storage.close()
        value, *error = storage.arrays
        return TokenMatrix(value, error[0] if error else None)

    @property
    def width(self) -> int:
        """Number of tokens whose values are read at a time."""
        return max(1, _VALUE_BYTES // self.item)

    def sides(
        self,
        source: Source,
        tokens: Int[np.ndarray, " token"],
        *,
        standardized: bool = False,
        at_once: int | None = None,
    ) -> Iterator[tuple[slice, TokenBatch]]:
        """Iterate over batches of tokens, each with its slice of `tokens`.

        Args:
            source: values of one axis.
            tokens: tokens to read.
            standardized: whether to divide each loss by its standard deviation; a constant loss becomes NaN.
            at_once: tokens in a batch; None for `width`.
        """
        for here in _slices(len(tokens), at_once or self.width):
            side = self.model.side(source.take(tokens[here]))
            with np.errstate(divide="ignore", invalid="ignore"):
                yield here, side.scaled(1 / np.sqrt(self.model.share @ side.variance)) if standardized else side

    @staticmethod
    def _fill_values(
        out: Float[np.ndarray, "row column"], covariance: Float[np.ndarray, "row column"], quantity: Quantity
    ) -> None:
        if quantity == "influence":
            np.negative(covariance, out=out, casting="same_kind")
        else:
            np.clip(covariance, -1, 1, out=out, casting="same_kind")

    def _fill(
        self, out: Float[np.ndarray, "kind row column"], train: TokenBatch, query: TokenBatch, quantity: Quantity
    ) -> None:
        side = max(1, int((_TILE_BYTES / (train.values.itemsize * len(self.model.share))) ** 0.5))
        across = [(columns, query.part(columns)) for columns in _slices(len(query), side)]
        for rows in _slices(len(train), side):
            some = train.part(rows)
            for columns, other in across:
                found = _ENTRIES[quantity](self.model, self.errors, some, other)
                out[0, rows, columns], out[1, rows, columns] = found.value, found.standard_error


def _influence(model: CovarianceModel, errors: ErrorModel, train: TokenBatch, query: TokenBatch) -> Estimates:
    """−Cov and its standard error."""
    draws = batch_covariances(model, train, query)
    found, (rows, columns) = influence(draws), draws.stds
    with np.errstate(divide="ignore", invalid="ignore"):
        corr = np.clip(found.value / (rows[:, None] * columns), -1, 1)
    bias = chain_mean_bias(model, train, query).covariance
    return Estimates(found.value, influence_error(found.standard_error, corr, errors.influence, bias))


def _correlation(model: CovarianceModel, errors: ErrorModel, train: TokenBatch, query: TokenBatch) -> Estimates:
    """+Corr of standardized losses, and its standard error by linearization."""
    found, _ = correlation(batch_covariances(model, train, query))
    off = chain_mean_bias(model, train, query)
    bias = off.covariance - 0.5 * found.value * (off.train_variance[:, None] + off.column_variance)
    return Estimates(found.value, correlation_error(found.standard_error, errors.correlation, bias))


_ENTRIES = {"influence": _influence, "correlation": _correlation}


def _slices(size: int, length: int) -> list[slice]:
    return [slice(start, min(start + length, size)) for start in range(0, size, length)]


@dataclass(frozen=True)
class _Group:
    """Mean (standardized) loss of each group of one axis, and the groups' members."""

    mean: TokenBatch
    places: Int[np.ndarray, " token"]
    sizes: Int[np.ndarray, " group"]


def group_means(
    blocks: TokenBlocks,
    train: Int[np.ndarray, " train_token"],
    query: Int[np.ndarray, " query_token"],
    quantity: Quantity,
) -> TokenMatrix:
    """Mean influence or correlation over all pairs of tokens of two groups, for every pair of groups.

    Args:
        blocks: blocks of the token matrices.
        train, query: group of every token of the axis, 0 to G − 1; −1 for none. Every group has at least one member.
        quantity: "influence" or "correlation".
    """
    model, standardized = blocks.model, quantity == "correlation"
    rows = _grouped(blocks, blocks.train, train, standardized=standardized)
    columns = _grouped(blocks, blocks.query, query, standardized=standardized)
    moved = model.products(rows.mean, columns.mean).astype(np.float64)
    bias = chain_mean_bias(model, rows.mean, columns.mean).covariance
    if not standardized:
        found = weighted_sum(moved, model.share)
        one = np.ones_like(found.value)  # the correlation of mean losses is unknown; 1 is its largest value
        return TokenMatrix(-found.value, influence_error(found.standard_error, one, blocks.errors.influence, bias))
    value = moved.sum(0)
    for source, of, other, flip in ((blocks.train, rows, columns, False), (blocks.query, columns, rows, True)):
        own, less = _own_parts(blocks, source, of, other)
        moved -= model.share[:, None, None] * 0.5 * (own.transpose(0, 2, 1) if flip else own)
        bias = bias - 0.5 * (less.T if flip else less)
    spread = weighted_sum(moved, model.share).standard_error
    return TokenMatrix(value, correlation_error(spread, blocks.errors.correlation, bias))


def _known(side: TokenBatch) -> TokenBatch:
    """Replace NaN of constant losses by 0, which adds nothing to sums."""
    return TokenBatch(*(np.nan_to_num(each, nan=0.0) for each in (side.values, side.variance, side.means, side.change)))


def _grouped(blocks: TokenBlocks, source: Source, places: Int[np.ndarray, " token"], *, standardized: bool) -> _Group:
    sizes = np.bincount(places[places >= 0])
    known = np.flatnonzero(places >= 0)
    values = means = None
    for here, side in blocks.sides(source, known, standardized=standardized):
        side = _known(side)
        member = (places[known[here]][:, None] == np.arange(len(sizes))) / sizes
        some = side.values.astype(np.float64) @ member, side.means @ member
        values, means = some if values is None or means is None else (values + some[0], means + some[1])
    if values is None or means is None:
        raise ValueError("no token is in a group; give at least one token a group")
    mean = TokenBatch(values, np.empty((len(blocks.model.share), len(sizes))), means, np.empty(len(sizes)))
    return _Group(mean, places, sizes)


def _own_parts(
    blocks: TokenBlocks, source: Source, of: _Group, other: _Group
) -> tuple[Float[np.ndarray, "batch group other"], Float[np.ndarray, "group other"]]:
    """mean_i mean_k(u_i²)·R_iB of every pair of groups, and the same of the variances' correction for chain means."""
    model, known = blocks.model, np.flatnonzero(of.places >= 0)
    own = np.zeros((len(model.share), len(of.sizes), len(other.sizes)))
    less = np.zeros(own.shape[1:])
    for here, side in blocks.sides(source, known, standardized=True):
        side = _known(side)
        member = (of.places[known[here]][:, None] == np.arange(len(of.sizes))) / of.sizes
        with_other = model.covariance(side, other.mean)
        own += np.einsum("bi,ig,io->bgo", side.variance, member, with_other, optimize=True)
        less += model.centre_scale * np.einsum(
            "i,ig,io->go", np.square(side.means).sum(0), member, with_other, optimize=True
        )
    return own, less
