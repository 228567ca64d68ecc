"""Read token influence from a dump; blocks are computed on demand. Without torch."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import xarray as xr
from jaxtyping import Int

from bif_lightning.archive.examples_file import SIDES
from bif_lightning.archive.read.examples import read_samples
from bif_lightning.archive.read.untrusted import find, open_file, require
from bif_lightning.archive.schema import DUMP, SAMPLES_FILE
from bif_lightning.config import Centring
from bif_lightning.exceptions import UnreadableFileError
from bif_lightning.results.estimate import CORRELATION_SIGN, INFLUENCE_SIGN
from bif_lightning.results.examples import Samples
from bif_lightning.results.token_matrices import Quantity, TokenMatrix
from bif_lightning.results.token_products import CovarianceModel, DrawCovariance, GaussianCovariance, Values
from bif_lightning.results.tokens import SideName, TokenAxis, Tokens, blocks_of
from bif_lightning.statistics.standard_errors import ErrorModel, ErrorScale
from bif_lightning.storage.places import local_path

Which = int | Sequence[int] | None

_FAR = 256  # largest gap between tokens that is read through: a chunk of most dumps


@dataclass(frozen=True)
class StoredValues:
    """Loss changes or slopes of the tokens of one axis in a dump; the file is open only during reads."""

    path: Path
    name: str

    def take(self, tokens: Int[np.ndarray, " token"]) -> Values:
        """Values of some tokens. Neighbours are read together, since HDF5 reads ranges far faster than lists."""
        order = np.argsort(tokens, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(tokens[order]) > _FAR) + 1) if len(order) else []
        with open_file(self.path, DUMP) as file:
            dataset = require(file, self.name)
            out = np.empty((*dataset.shape[:-1], len(tokens)), np.float32)
            for group in groups:
                first, last = int(tokens[group[0]]), int(tokens[group[-1]])
                out[..., group] = dataset[..., first : last + 1][..., tokens[group] - first]
        return out

    def whole(self) -> Values:
        """Values of all tokens."""
        with open_file(self.path, DUMP) as file:
            return np.asarray(require(file, self.name)[...], np.float32)


@dataclass(frozen=True)
class StoredTokens:
    """Influence between single tokens in one dump.

    Attributes:
        tokens: the tokens and their matrices.
        samples: train and query samples with the texts of their tokens; None without a samples file in the folder.
    """

    tokens: Tokens
    samples: tuple[Samples, Samples] | None

    @property
    def train(self) -> TokenAxis:
        """The train tokens with a loss."""
        return self.tokens.train

    @property
    def query(self) -> TokenAxis:
        """The query tokens with a loss."""
        return self.tokens.query

    def influence(
        self, train: Which = None, query: Which = None, *, errors: bool = True, device: str | None = None
    ) -> xr.Dataset:
        """Influence −Cov, in nat², between all tokens of the given train and query sequences; negative = helps.

        Args:
            train, query: sequences, as rows of the dump's `train` and `query`; None for all.
            errors: whether to compute standard errors, which take many times as long.
            device: torch device for the matrix product, such as "cuda"; None for NumPy on the CPU. Standard errors are
                computed on the CPU only.

        Returns:
            `value` and `standard_error` (train_token, query_token), and for each axis the coordinates
            `<side>_sequence`, `<side>_position`, `<side>_text` (if texts are known) and `<side>_loss` in nat.

        Raises:
            ValueError: the sequence or the device does not exist, or errors are requested on a device.
            UnreadableFileError: the dump can no longer be read.
        """
        return self._dataset(train, query, "influence", errors=errors, device=device)

    def correlation(
        self, train: Which = None, query: Which = None, *, errors: bool = True, device: str | None = None
    ) -> xr.Dataset:
        """Correlation +Corr, in [−1, 1], between the same tokens; positive = helps. Arguments as in `influence`."""
        return self._dataset(train, query, "correlation", errors=errors, device=device)

    def texts(self, side: SideName, sequence: int) -> list[str] | None:
        """Texts of all tokens of one sequence, including those without a loss; None if unknown.

        Raises:
            ValueError: the sequence does not exist.
        """
        axis = self.train if side == "train" else self.query
        axis.rows_of(sequence)
        found = None if self.samples is None else self.samples[SIDES.index(side)].tokens
        return None if found is None else list(found[sequence])

    def _dataset(
        self, train: Which, query: Which, quantity: Quantity, *, errors: bool, device: str | None
    ) -> xr.Dataset:
        rows, columns = self.train.rows_of(train), self.query.rows_of(query)
        found: TokenMatrix = self.tokens.matrix(rows, columns, quantity, errors=errors, device=device)
        units, sign = ("1", CORRELATION_SIGN) if quantity == "correlation" else ("nat^2", INFLUENCE_SIGN)
        dims, attrs = (
            ("train_token", "query_token"),
            {"units": units, "sign": sign, "long_name": f"{quantity} of tokens"},
        )
        values: dict[str, Any] = {"value": (dims, found.value, attrs)}
        if found.standard_error is not None:
            values["standard_error"] = (dims, found.standard_error, {"units": units})
        coordinates = self._coordinates("train", rows) | self._coordinates("query", columns)
        return xr.Dataset(values, coords=coordinates)

    def _coordinates(self, side: SideName, rows: Int[np.ndarray, " token"]) -> dict[str, Any]:
        axis, dim = (self.train if side == "train" else self.query), f"{side}_token"
        sequence, position = axis.sequence[rows], axis.position[rows]
        found = {
            dim: rows,
            f"{side}_sequence": (dim, sequence),
            f"{side}_position": (dim, position),
            f"{side}_loss": (dim, axis.loss[rows], {"units": "nat"}),
        }
        known = None if self.samples is None else self.samples[SIDES.index(side)].tokens
        if known is not None:
            texts = [known[i][s] if s < len(known[i]) else "" for i, s in zip(sequence, position, strict=True)]
            found[f"{side}_text"] = (dim, np.array(texts, dtype=object))
        return found


def open_tokens(dump: str | os.PathLike[str]) -> StoredTokens:
    """Open the token influence of one dump; any block of it can then be computed.

    Texts come from the samples file in the same folder.

    Args:
        dump: the file, such as `step=000006000.h5`.

    Raises:
        ValueError: the dump has no tokens, since the callback did not have `per_token=True`.
        UnreadableFileError: the file is damaged, has another format, or has a later version.
        FileNotFoundError: the file does not exist.

    >>> from bif_lightning import open_tokens
    >>> block = open_tokens(token_dump).correlation(train=1, query=0)  # a dump of per_token=True
    >>> block["value"].dims, block.train_position.values.tolist()
    (('train_token', 'query_token'), [1, 2])
    """
    path = local_path(dump, "the dump", access="read")
    with open_file(path, DUMP) as file:
        if find(file, "tokens/train_token") is None:
            raise ValueError(f"{path} has no tokens; give the callback per_token=True, which keeps their losses")
        try:
            model, name = _covariance_model(file)
            errors = _errors(file, len(model.share))
            axes = {side: _axis(file, side) for side in SIDES}
        except (OSError, RuntimeError, TypeError) as error:
            raise UnreadableFileError(f"{path} is damaged ({error})") from error
    sources = (StoredValues(path, f"tokens/{side}_{name}") for side in SIDES)
    beside = path.with_name(SAMPLES_FILE)
    samples = read_samples(beside, thumbnails=False) if beside.exists() else None
    return StoredTokens(Tokens(**axes, blocks=blocks_of(model, errors, *sources)), samples)


def _covariance_model(file: h5py.File) -> tuple[CovarianceModel, str]:
    if find(file, "tokens/train_change") is None:
        return GaussianCovariance(_array(file, "variance"), _array(file, "group_change")), "slope"
    chains = require(file, "tokens/train_change").shape[0]
    lengths = tuple(int(length) for length in _array(file, "batch_draws"))
    draws = require(file, "tokens/train_change").shape[1]
    if sum(lengths) != draws:
        raise UnreadableFileError(
            f"{file.filename}: its batches have {sum(lengths)} draws a chain, but its tokens {draws}"
        )
    centring: Any = require(file, "tokens/centring").asstr()[()]
    if centring not in get_args(Centring):
        raise UnreadableFileError(f"{file.filename}: the centring of its tokens, {centring!r}, is unknown")
    return DrawCovariance(chains, lengths, centring, _number(file, "centre_factor")), "change"


def _errors(file: h5py.File, batches: int) -> ErrorModel:
    influence = ErrorScale(_number(file, "influence_factor"), _number(file, "influence_draws"))
    return ErrorModel(batches, influence, ErrorScale(_number(file, "correlation_factor"), math.nan))


def _axis(file: h5py.File, side: str) -> TokenAxis:
    sequence = _array(file, f"{side}_sequence")
    size = len(require(file, side))
    if len(sequence) and (sequence.min() < 0 or sequence.max() >= size or (np.diff(sequence) < 0).any()):
        raise UnreadableFileError(f"{file.filename}: tokens of {side} belong to sequences that it does not have")
    parts = ("position", "snapshot_loss", "loss", "std")
    return TokenAxis(sequence=sequence, num_sequences=size, **{part: _array(file, f"{side}_{part}") for part in parts})


def _array(file: h5py.File, name: str) -> np.ndarray:
    return np.asarray(require(file, f"tokens/{name}")[...])


def _number(file: h5py.File, name: str) -> float:
    return float(require(file, f"tokens/{name}")[()])
