"""Influence of single tokens: the tokens, and any block of their matrices, computed on demand. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from bif_lightning.results.token_matrices import (
    MOST_BYTES,
    Quantity,
    Source,
    TokenBlocks,
    TokenMatrix,
    group_means,
)
from bif_lightning.results.token_products import CovarianceModel, DrawCovariance, product_on
from bif_lightning.statistics.standard_errors import ErrorModel

SideName = Literal["train", "query"]


@dataclass(frozen=True, kw_only=True)
class TokenAxis:
    """The tokens of one set that have a loss, one sequence after the other.

    Attributes:
        sequence: the example that each token belongs to, ascending.
        position: its place in that sequence, from 0.
        num_sequences: examples of the set; some may have no token with a loss.
        snapshot_loss: of each token at w*, nats.
        loss, std: mean and standard deviation of each token's loss over the draws, nats.

    >>> tokens.train.position.tolist()  # `tokens` of an Estimate: three texts of three tokens, the first without a loss
    [1, 2, 1, 2, 1, 2]
    >>> tokens.train.rows_of(1).tolist()
    [2, 3]
    """

    sequence: Int[np.ndarray, " token"]
    position: Int[np.ndarray, " token"]
    num_sequences: int
    snapshot_loss: Float[np.ndarray, " token"]
    loss: Float[np.ndarray, " token"]
    std: Float[np.ndarray, " token"]

    def __len__(self) -> int:
        return len(self.sequence)

    def rows_of(self, sequences: int | Sequence[int] | None) -> Int[np.ndarray, " token"]:
        """Rows of the tokens of one sequence, of some in the order given, or (None) of all.

        Raises:
            ValueError: there is no such sequence.
        """
        if sequences is None:
            return np.arange(len(self))
        wanted = np.atleast_1d(np.asarray(sequences, np.int64))
        outside = wanted[(wanted < 0) | (wanted >= self.num_sequences)]
        if len(outside):
            raise ValueError(
                f"there is no sequence {outside[0]}; give numbers from 0 to {self.num_sequences - 1}, or None for all"
            )
        starts = np.searchsorted(self.sequence, wanted)
        ends = np.searchsorted(self.sequence, wanted, side="right")
        rows = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
        return np.concatenate(rows) if rows else np.arange(0)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Token by token influence at one snapshot, kept as what it is made of; matrices are made when asked for.

    With l_{i,s} the loss of token s of train sequence i, influence is B[(i,s), (j,s')] = −Cov(l_{i,s}, l_{j,s'}) and
    correlation +Corr of the same (arXiv 2509.26544, Sec. 3). Summed over the tokens of two sequences, influence is that
    of the sequences, whose loss is the sum of its tokens'.

    Attributes:
        train, query: the tokens of either axis.
        blocks: the changes of losses at the draws or, of `Subspace`, slopes along its directions.

    >>> block = tokens.correlation(train=1, query=0)  # `tokens` of an Estimate, with per_token=True
    >>> block.value.shape
    (2, 2)
    """

    train: TokenAxis
    query: TokenAxis
    blocks: TokenBlocks

    def influence(
        self,
        train: int | Sequence[int] | None = None,
        query: int | Sequence[int] | None = None,
        *,
        errors: bool = True,
        device: str | None = None,
    ) -> TokenMatrix:
        """−Cov in nat² of all tokens of some train sequences with all tokens of some queries; negative = helps.

        Args:
            train, query: sequences, by number; None for all.
            errors: standard errors too, which take many times as long.
            device: where draws are multiplied, such as "cuda"; None for NumPy on the CPU, as for errors in any case.

        Raises:
            ValueError: there is no such sequence, or no such device; errors cannot be computed on a device.
            OSError: the matrix takes more than 1 GiB, and there is no room for a temporary file.
        """
        rows, columns = self.train.rows_of(train), self.query.rows_of(query)
        return self.matrix(rows, columns, "influence", errors=errors, device=device)

    def correlation(
        self,
        train: int | Sequence[int] | None = None,
        query: int | Sequence[int] | None = None,
        *,
        errors: bool = True,
        device: str | None = None,
    ) -> TokenMatrix:
        """+Corr of the same tokens, in [−1, 1]; positive = helps. See `influence`."""
        rows, columns = self.train.rows_of(train), self.query.rows_of(query)
        return self.matrix(rows, columns, "correlation", errors=errors, device=device)

    def matrix(
        self,
        train: Int[np.ndarray, " row"],
        query: Int[np.ndarray, " column"],
        quantity: Quantity,
        *,
        errors: bool = True,
        budget: int = MOST_BYTES,
        device: str | None = None,
    ) -> TokenMatrix:
        """Influence or correlation of single tokens.

        Args:
            train, query: rows of the token axes.
            quantity: "influence" or "correlation".
            errors: standard errors too.
            budget: bytes that the result may take in memory; beyond, it lies in a temporary file.
            device: see `influence`.

        Raises:
            ValueError, OSError: see `influence`.
        """
        if device is not None and errors:
            raise ValueError(f"standard errors are made on the CPU; give errors=False to multiply on {device!r}")
        product = np.matmul if device is None else product_on(device)
        return self.blocks.matrix(train, query, quantity, errors=errors, budget=budget, product=product)

    def group_means(
        self, train: Sequence[str | None], query: Sequence[str | None], quantity: Quantity = "correlation"
    ) -> tuple[TokenMatrix, list[str], list[str]]:
        """Mean over all pairs of tokens of two groups, with standard errors computed as of a mean.

        Args:
            train, query: name of the group of every token of the axis; None for none.
            quantity: "influence" or "correlation".

        Returns:
            the matrix, names of its rows, and of its columns, sorted.

        Raises:
            ValueError: not one name for each token, or no group at all.
        """
        (rows, row_names), (columns, column_names) = (
            _numbered(names, len(axis), side)
            for names, axis, side in ((train, self.train, "train"), (query, self.query, "query"))
        )
        return group_means(self.blocks, rows, columns, quantity), row_names, column_names


def blocks_of(law: CovarianceModel, errors: ErrorModel, train: Source, query: Source) -> TokenBlocks:
    """Blocks of tokens whose changes or slopes these are."""
    drawn = isinstance(law, DrawCovariance)
    item = 8 * (law.chains * sum(law.lengths) if drawn else len(law.variances))
    return TokenBlocks(law, errors, train, query, item)


def _numbered(names: Sequence[str | None], size: int, side: str) -> tuple[Int[np.ndarray, " token"], list[str]]:
    if len(names) != size:
        raise ValueError(f"{len(names)} {side} groups are given for {size} {side} tokens; give one, or None, for each")
    known = sorted({name for name in names if name is not None})
    place = {name: number for number, name in enumerate(known)}
    return np.array([-1 if name is None else place[name] for name in names], np.int64), known
