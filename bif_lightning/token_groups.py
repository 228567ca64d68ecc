"""Means of token influence over groups of tokens, such as all digits or all brackets, with standard errors.

Cov is bilinear: a mean over pairs of tokens is itself an influence, of the mean losses of two groups, and its error is
computed as such, since entries of a block are far from independent. A mean correlation is that of the standardized
losses, and its error that of the mean of the linearizations of all pairs (`influence.correlation`):

    ψ_k = mean_k(ū·v̄) − ½·(mean_i mean_k(u_i²)·R_iB + mean_j mean_k(v_j²)·R_Aj),

with R_iB the mean correlation of token i with group B: no matrix of pairs is ever made.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from bif_lightning.token_matrices import Quantity, Source, TokenBlocks, TokenMatrix, skewed, spread_of
from bif_lightning.token_products import Side


@dataclass(frozen=True)
class _Group:
    """Mean of the (standardized) losses of each group of one axis, and its members."""

    mean: Side
    places: Int[np.ndarray, " token"]
    sizes: Int[np.ndarray, " group"]


def group_means(
    blocks: TokenBlocks,
    train: Int[np.ndarray, " train_token"],
    query: Int[np.ndarray, " query_token"],
    quantity: Quantity,
) -> TokenMatrix:
    """Mean over all pairs of tokens of two groups.

    Args:
        blocks: of the tokens.
        train, query: group of every token of the axis, 0 to G − 1; −1 for none. Every group has a member.
    """
    law, standardized = blocks.law, quantity == "correlation"
    rows = _grouped(blocks, blocks.train, train, standardized=standardized)
    columns = _grouped(blocks, blocks.query, query, standardized=standardized)
    moved = law.products(rows.mean, columns.mean).astype(np.float64)
    bias = law.centre_scale * (rows.mean.means.T @ columns.mean.means)
    value = moved.sum(0)
    if not standardized:
        spread = spread_of(moved, value, law.share)
        one = skewed(np.ones_like(value), blocks.widths)  # mean losses of groups may be as correlated as can be
        return TokenMatrix(-value, np.hypot(spread * one * blocks.widths.influence, bias))
    for source, of, other, flip in ((blocks.train, rows, columns, False), (blocks.query, columns, rows, True)):
        own, lacking = _own_parts(blocks, source, of, other)
        moved -= law.share[:, None, None] * 0.5 * (own.transpose(0, 2, 1) if flip else own)
        bias = bias - 0.5 * (lacking.T if flip else lacking)
    return TokenMatrix(value, np.hypot(spread_of(moved, moved.sum(0), law.share) * blocks.widths.correlation, bias))


def _known(side: Side) -> Side:
    """The same, a loss that never varied 0, which adds nothing."""
    return Side(*(np.nan_to_num(each, nan=0.0) for each in (side.values, side.variance, side.means, side.change)))


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
        raise ValueError("no token is in any group; give each token its group, and -1 to those in none")
    mean = Side(values, np.empty((len(blocks.law.share), len(sizes))), means, np.empty(len(sizes)))
    return _Group(mean, places, sizes)


def _own_parts(
    blocks: TokenBlocks, source: Source, of: _Group, other: _Group
) -> tuple[Float[np.ndarray, "batch group other"], Float[np.ndarray, "group other"]]:
    """mean_i mean_k(u_i²)·R_iB of every pair of groups, and the same of what the variances lack."""
    law, known = blocks.law, np.flatnonzero(of.places >= 0)
    own = np.zeros((len(law.share), len(of.sizes), len(other.sizes)))
    lacking = np.zeros(own.shape[1:])
    for here, side in blocks.sides(source, known, standardized=True):
        side = _known(side)
        member = (of.places[known[here]][:, None] == np.arange(len(of.sizes))) / of.sizes
        with_other = law.covariance(side, other.mean)
        own += np.einsum("bi,ig,io->bgo", side.variance, member, with_other, optimize=True)
        lacking += law.centre_scale * np.einsum(
            "i,ig,io->go", np.square(side.means).sum(0), member, with_other, optimize=True
        )
    return own, lacking
