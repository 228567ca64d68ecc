"""Influence of single tokens: the tokens, and blocks of their matrices computed on demand. Without torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from bif_lightning.results.token_matrices import (
    MOST_BYTES,
    Quantity,
    Source,
    SummedTokens,
    TokenBlocks,
    TokenMatrix,
    group_means,
)
from bif_lightning.results.token_products import CovarianceModel, DrawCovariance, product_on
from bif_lightning.statistics.standard_errors import ErrorModel

SideName = Literal["train", "query"]


@dataclass(frozen=True, kw_only=True)
class TokenAxis:
    """The tokens of one set that have a loss, in the order of sequences.

    Attributes:
        sequence: example that each token belongs to, ascending.
        position: position of each token in its sequence, from 0.
        num_sequences: number of examples in the set; some may have no token with a loss.
        snapshot_loss: loss of each token at w*, nats.
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
        """Rows of the tokens of one sequence, of several in the given order, or of all (None).

        Raises:
            ValueError: a sequence number is out of range.
        """
        if sequences is None:
            return np.arange(len(self))
        wanted = np.atleast_1d(np.asarray(sequences, np.int64))
        outside = wanted[(wanted < 0) | (wanted >= self.num_sequences)]
        if len(outside):
            raise ValueError(
                f"sequence {outside[0]} does not exist; use numbers from 0 to {self.num_sequences - 1}, or None for all"
            )
        starts = np.searchsorted(self.sequence, wanted)
        ends = np.searchsorted(self.sequence, wanted, side="right")
        rows = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
        return np.concatenate(rows) if rows else np.arange(0)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Influence between single tokens at one snapshot; matrices are computed on demand.

    With l_{i,s} the loss of token s of train sequence i, influence is B[(i,s), (j,s')] = −Cov(l_{i,s}, l_{j,s'}), and
    correlation is +Corr of the same losses (arXiv 2509.26544, Sec. 3). The loss of a sequence is the sum of its tokens'
    losses, so the sum of token influences over two sequences is the influence of the sequences.

    Attributes:
        train, query: the tokens of each axis.
        blocks: changes of losses at the draws or, with `Subspace`, slopes along its directions.

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
        """Influence −Cov, in nat², between all tokens of the given train and query sequences; negative = helps.

        Args:
            train, query: sequence numbers; None for all.
            errors: whether to compute standard errors, which take many times as long.
            device: torch device for the matrix product, such as "cuda"; None for NumPy on the CPU. Standard errors are
                computed on the CPU only.

        Raises:
            ValueError: a sequence or device does not exist, or errors are requested on a device.
            OSError: the matrix takes more than 1 GiB, and the disk has no space for a temporary file.
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
        """Correlation +Corr, in [−1, 1], between the same tokens; positive = helps. Arguments as in `influence`."""
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
        """Influence or correlation between single tokens.

        Args:
            train, query: rows of the token axes.
            quantity: "influence" or "correlation".
            errors: whether to compute standard errors.
            budget: bytes that the result may take in memory; a larger one goes to a temporary file.
            device: see `influence`.

        Raises:
            ValueError, OSError: see `influence`.
        """
        if device is not None and errors:
            raise ValueError(
                f"standard errors are computed on the CPU only; give errors=False to multiply on {device!r}"
            )
        product = np.matmul if device is None else product_on(device)
        return self.blocks.matrix(train, query, quantity, errors=errors, budget=budget, product=product)

    def with_sequences(
        self, train: Int[np.ndarray, " row"], query: Int[np.ndarray, " column"], quantity: Quantity
    ) -> tuple[TokenMatrix, TokenMatrix]:
        """Influence or correlation between single tokens and the sum of the losses of tokens of the other axis.

        Args:
            train, query: rows of the token axes, such as those of two sequences.
            quantity: "influence", which is the sum over the other axis, or "correlation".

        Returns:
            The train tokens with the sum over the query tokens, of shape (token, 1), and the query tokens with the sum
            over the train tokens, of shape (1, token).

        >>> rows, columns = tokens.train.rows_of(1), tokens.query.rows_of(0)  # `tokens` of an Estimate
        >>> on_query, on_train = tokens.with_sequences(rows, columns, "influence")
        >>> on_query.value.shape, on_train.value.shape
        ((2, 1), (1, 2))
        """
        one = np.zeros(1, np.int64)
        train_sum, query_sum = SummedTokens(self.blocks.train, train), SummedTokens(self.blocks.query, query)
        on_query = replace(self.blocks, query=query_sum).matrix(train, one, quantity)
        on_train = replace(self.blocks, train=train_sum).matrix(one, query, quantity)
        return on_query, on_train

    def group_means(
        self, train: Sequence[str | None], query: Sequence[str | None], quantity: Quantity = "correlation"
    ) -> tuple[TokenMatrix, list[str], list[str]]:
        """Mean over all pairs of tokens of two groups, with the standard errors of these means.

        Args:
            train, query: group name of every token of the axis; None for tokens in no group.
            quantity: "influence" or "correlation".

        Returns:
            The matrix, the names of its rows, and the names of its columns, sorted.

        Raises:
            ValueError: the number of names is not that of the tokens, or all are None.
        """
        (rows, row_names), (columns, column_names) = (
            _numbered(names, len(axis), side)
            for names, axis, side in ((train, self.train, "train"), (query, self.query, "query"))
        )
        return group_means(self.blocks, rows, columns, quantity), row_names, column_names


def blocks_of(model: CovarianceModel, errors: ErrorModel, train: Source, query: Source) -> TokenBlocks:
    """Build the blocks of the token matrices from the values of both axes."""
    drawn = isinstance(model, DrawCovariance)
    item = 8 * (model.chains * sum(model.lengths) if drawn else len(model.variances))
    return TokenBlocks(model, errors, train, query, item)


def _numbered(names: Sequence[str | None], size: int, side: str) -> tuple[Int[np.ndarray, " token"], list[str]]:
    if len(names) != size:
        raise ValueError(f"got {len(names)} {side} groups for {size} {side} tokens; give one name, or None, for each")
    known = sorted({name for name in names if name is not None})
    place = {name: number for number, name in enumerate(known)}
    return np.array([-1 if name is None else place[name] for name in names], np.int64), known
