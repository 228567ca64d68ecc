"""The overview and the chunks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bif_lightning.archive.schema import CHUNK_VALUES, chunk_shape
from bif_lightning.archive.write.matrices import mean_pooled

pytestmark = pytest.mark.law


def test_overview_is_the_mean_of_neighbours_without_nan(rng):
    matrix = rng.normal(size=(601, 5)).astype(np.float32)
    matrix[:40] = np.nan
    matrix[100, 2] = np.nan
    block, rows, columns = mean_pooled(matrix, 20)
    assert block.shape == (20, 5)
    assert columns.tolist() == [0, 1, 2, 3, 4]
    bands = np.split(matrix, (np.arange(1, 20) * 601) // 20)
    sizes = [len(band) for band in bands]
    assert min(sizes) >= 30
    assert np.isnan(block[0]).all()
    for band, mean in zip(bands[1:], block[1:], strict=True):
        np.testing.assert_allclose(mean, np.nanmean(band, axis=0), rtol=1e-5)
    np.testing.assert_allclose(rows, np.cumsum([0, *sizes[:-1]]) + (np.array(sizes) - 1) / 2)


def test_a_small_matrix_is_its_own_overview(rng):
    matrix = rng.normal(size=(3, 256)).astype(np.float32)
    np.testing.assert_array_equal(mean_pooled(matrix, 256)[0], matrix)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=3).map(tuple))
def test_chunks_fit_and_are_as_large_as_they_may_be(shape):
    chunk = chunk_shape(shape)
    assert all(1 <= part <= size for part, size in zip(chunk, shape, strict=True))
    plane = shape[-2:]
    # Cutting both axes down to whole numbers may lose some, never half.
    assert min(np.prod(plane), CHUNK_VALUES) / 2 < np.prod(chunk) <= CHUNK_VALUES
