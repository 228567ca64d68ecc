"""Sketches of vectors, against the inner products that they keep."""

import pytest
import torch

from bif_lightning.curvature.count_sketch import CountSketch

V, W = torch.randn(2, 97, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.exact
@pytest.mark.parametrize("size", [97, 200])
def test_a_sketch_with_room_for_all_keeps_them_exactly(size: int) -> None:
    one, other = CountSketch.of(V, size)(torch.stack([V, W]))
    assert float(one @ other) == pytest.approx(float(V @ W), rel=1e-12)
    assert float(one @ one) == pytest.approx(float(V @ V), rel=1e-12)


@pytest.mark.exact
@pytest.mark.parametrize("size", [10, 48, 96])
def test_a_sketch_is_linear_and_adds_signed_coordinates(size: int) -> None:
    sketch = CountSketch.of(V, size, seed=3)
    torch.testing.assert_close(sketch((2 * V - W)[None])[0], 2 * sketch(V[None])[0] - sketch(W[None])[0])
    columns = sketch(torch.eye(97, dtype=torch.float64))
    assert columns.abs().sum(1).tolist() == [1.0] * 97
    assert torch.equal(columns.sum(1), sketch.signs.double())


@pytest.mark.statistical
def test_inner_products_of_sketches_have_their_mean_and_variance() -> None:
    seeds, size = 4000, 20
    products = torch.tensor([_product(CountSketch.of(V, size, seed)) for seed in range(seeds)], dtype=torch.float64)
    bound = (V.square().sum() * W.square().sum() + (V @ W) ** 2) / size
    variance = products.var()
    assert abs(float((products.mean() - V @ W) / (variance / seeds).sqrt())) < 5
    # Coordinates of one block never meet, so that the variance lies a little below the bound.
    assert 0.7 < float(variance / bound) < 1 + 5 * (2 / seeds) ** 0.5


def _product(sketch: CountSketch) -> float:
    one, other = sketch(torch.stack([V, W]))
    return float(one @ other)


@pytest.mark.exact
def test_seeds_give_different_sketches_and_one_seed_the_same() -> None:
    assert torch.equal(CountSketch.of(V, 10, seed=1)(V[None]), CountSketch.of(V, 10, seed=1)(V[None]))
    assert not torch.equal(CountSketch.of(V, 10, seed=1)(V[None]), CountSketch.of(V, 10, seed=2)(V[None]))
