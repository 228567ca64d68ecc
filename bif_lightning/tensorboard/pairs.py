"""All pairs of a train and a query example, a band of train rows at a time: a matrix may be larger than memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from bif_lightning.results.estimate import Influence
from bif_lightning.results.examples import Samples

BAND_PAIRS = 1 << 22
"""Pairs that are looked at together: 16 MB of float32."""
SORTED_PAIRS = 1 << 24
"""Pairs that are sorted, at most: every pair of 16,000 x 1,000 examples, 64 MB of float32."""


@dataclass(frozen=True)
class Band:
    """Correlation and its standard error, of some train rows with every query."""

    rows: slice
    correlation: Float[np.ndarray, "row query"]
    error: Float[np.ndarray, "row query"]


class Pairs:
    """Correlations of a train and a query example; NaN where both are the same example, by id.

    The correlation of an example with itself is 1 by definition: it says nothing.
    """

    def __init__(self, losses: Influence, train: Samples, query: Samples) -> None:
        self._losses = losses
        self._rows, self._columns = _same(train, query)

    def bands(self) -> Iterator[Band]:
        """All pairs, in bands of at most `BAND_PAIRS`."""
        train, queries = self._losses.correlation.shape
        height = max(1, BAND_PAIRS // queries)
        for start in range(0, train, height):
            rows = slice(start, min(start + height, train))
            error = self._losses.correlation_standard_error[rows]
            yield Band(rows, self._of(np.arange(rows.start, rows.stop)), error)

    def defined(self) -> Iterator[Float[np.ndarray, " pair"]]:
        """The correlations that are defined, band by band; a band may have none."""
        for band in self.bands():
            yield band.correlation[np.isfinite(band.correlation)]

    def sample(self) -> Float[np.ndarray, " pair"]:
        """The correlations that are defined, to be sorted: all, or beyond `SORTED_PAIRS` those of about as many, in
        evenly spaced train rows."""
        train, queries = self._losses.correlation.shape
        rows = np.linspace(0, train - 1, min(train, max(1, SORTED_PAIRS // queries))).round().astype(np.int64)
        values = self._of(rows)
        return values[np.isfinite(values)]

    def _of(self, rows: Int[np.ndarray, " row"]) -> Float[np.ndarray, "row query"]:
        values = self._losses.correlation[rows]
        place = np.searchsorted(rows, self._rows)
        here = (place < len(rows)) & (rows[np.minimum(place, len(rows) - 1)] == self._rows)
        values[place[here], self._columns[here]] = np.nan
        return values


def _same(train: Samples, query: Samples) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
    """Row and column of each pair of an example with itself."""
    place = {id: row for row, id in enumerate(train.ids)}
    same = [(place[id], column) for column, id in enumerate(query.ids) if id in place]
    rows, columns = np.array(same, np.int64).reshape(-1, 2).T
    return rows, columns
