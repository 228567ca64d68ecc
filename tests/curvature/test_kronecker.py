"""The metric of the pull, against the dense matrix that its definition gives."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bif_lightning.curvature import kronecker
from bif_lightning.curvature.kronecker import KroneckerPreconditioner
from bif_lightning.model.weights import layout_of

pytestmark = pytest.mark.exact

SHAPES = {"matrix": (3, 4), "vector": (5,), "kernel": (2, 2, 3), "number": (), "column": (4, 1)}
LAYOUT = layout_of({name: torch.zeros(shape) for name, shape in SHAPES.items()})


def gradients(count: int, seed: int = 0) -> Tensor:
    """Of every parameter, of different sizes along different axes; 0 where the flat vector is padding."""
    rows = torch.zeros(count, LAYOUT.size, dtype=torch.float64)
    made = torch.Generator().manual_seed(seed)
    for at, (start, shape) in enumerate(zip(LAYOUT.starts, LAYOUT.shapes, strict=True)):
        size = shape.numel()
        mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(at), dtype=torch.float64)
        rows[:, start : start + size] = torch.randn(count, size, generator=made, dtype=torch.float64) @ mixing
    return rows


def dense(rows: Tensor, turned: bool = True, split: bool = False) -> np.ndarray:
    """M of these gradients, term by term as the equation has it; 1 on the padding, which no gradient reaches.

    Args:
        split: channels and kernel of a convolution are sides by themselves.
    """
    whole, kept = np.eye(LAYOUT.size), rows.numpy()
    for start, shape in zip(LAYOUT.starts, LAYOUT.shapes, strict=True):
        first = shape[0] if len(shape) > 1 else 1
        own = slice(start, start + shape.numel())
        g = kept[:, own].reshape(len(kept), *(shape if split and len(shape) == 3 else (first, -1)))
        basis = np.ones((1, 1))
        for side in range(1, g.ndim):
            unfolded = np.moveaxis(g, side, 1).reshape(len(g), g.shape[side], -1)
            gram = sum(one @ one.T for one in unfolded)
            basis = np.kron(basis, np.linalg.eigh(gram)[1] if turned else np.eye(len(gram)))
        moments = ((g.reshape(len(g), -1) @ basis) ** 2).mean(0)
        whole[own, own] = basis @ np.diag(moments + moments.mean()) @ basis.T
    inverse = np.linalg.inv(whole)
    return whole * (np.einsum("ia,ab,ib->", kept, inverse, kept) / (kept**2).sum())


def inner(rows: Tensor, others: Tensor, matrix: np.ndarray) -> np.ndarray:
    return rows.numpy() @ np.linalg.inv(matrix) @ others.numpy().T


@pytest.mark.parametrize("longest", [2048, 0])
def test_whitened_gradients_have_the_inner_products_of_the_metric(
    longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(M^(−½)g)·(M^(−½)g') = gᵀM⁻¹g', of the gradients that made M and of others."""
    monkeypatch.setattr(kronecker, "LONGEST_SIDE", longest)
    train, query = gradients(200), gradients(7, seed=1)
    matrix = dense(train, turned=longest > 0)
    own, other = train.clone(), query.clone()
    found = KroneckerPreconditioner.whitening(own, LAYOUT.places)
    found.whiten(other)
    np.testing.assert_allclose(own @ other.mT, inner(train, query, matrix), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(other @ other.mT, inner(query, query, matrix), rtol=1e-9, atol=1e-9)


def test_a_convolution_of_many_channels_has_three_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kronecker, "LONGEST_PATCH", 5)
    train, query = gradients(200), gradients(7, seed=1)
    matrix = dense(train, split=True)
    assert not np.allclose(matrix, dense(train))
    own, other = train.clone(), query.clone()
    found = KroneckerPreconditioner.whitening(own, LAYOUT.places)
    found.whiten(other)
    np.testing.assert_allclose(own @ other.mT, inner(train, query, matrix), rtol=1e-9, atol=1e-9)
    slopes = query @ found.to_weight_space(train).mT
    torch.testing.assert_close(slopes, other @ train.mT, rtol=1e-9, atol=1e-9)
    assert found.squared_length(query[0]) == pytest.approx(float(query[0].numpy() @ matrix @ query[0].numpy()))


def test_train_gradients_keep_their_mean_square_norm() -> None:
    train = gradients(30)
    own = train.clone()
    KroneckerPreconditioner.whitening(own, LAYOUT.places)
    assert float(own.square().sum()) == pytest.approx(float(train.square().sum()), rel=1e-12)


def test_a_direction_in_the_weights_has_the_slope_that_it_has_in_the_coordinates() -> None:
    """g·(M^(−½)q) = (M^(−½)g)·q: lowering is the transpose of whitening."""
    train, query, q = gradients(30), gradients(4, seed=1), gradients(3, seed=2)
    found = KroneckerPreconditioner.whitening(train, LAYOUT.places)
    kept = q.clone()
    slopes = query @ found.to_weight_space(q).mT
    assert torch.equal(q, kept)
    found.whiten(query)
    torch.testing.assert_close(slopes, query @ q.mT, rtol=1e-10, atol=1e-10)


def test_the_length_of_a_displacement_is_that_of_the_metric() -> None:
    """δᵀMδ, and |q|² of δ = M^(−½)q."""
    train, moves = gradients(200), gradients(3, seed=2)
    matrix, found = dense(train), KroneckerPreconditioner.whitening(train, LAYOUT.places)
    for move in moves:
        assert found.squared_length(move) == pytest.approx(float(move.numpy() @ matrix @ move.numpy()), rel=1e-9)
        in_weights = found.to_weight_space(move[None])[0]
        assert found.squared_length(in_weights) == pytest.approx(float(move @ move), rel=1e-9)
        assert KroneckerPreconditioner().squared_length(move) == pytest.approx(float(move @ move), rel=1e-12)


def test_turning_the_inputs_and_outputs_of_a_layer_changes_nothing() -> None:
    """For W → A·W·B with A and B orthogonal: M turns along, and no inner product changes."""
    layout = layout_of({"weight": torch.zeros(8, 6)})
    made = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 8, 6, generator=made, dtype=torch.float64)
    a, b = (torch.linalg.qr(torch.randn(n, n, generator=made, dtype=torch.float64)).Q for n in (8, 6))
    products = list[Tensor]()
    for some in (rows, a @ rows @ b):
        padded = torch.zeros(40, layout.size, dtype=torch.float64)
        padded[:, :48] = some.flatten(1)
        KroneckerPreconditioner.whitening(padded, layout.places)
        products.append(padded @ padded.mT)
    torch.testing.assert_close(*products, rtol=1e-9, atol=1e-9)


def test_parameters_without_any_gradient_stay_finite() -> None:
    train, query = gradients(30), gradients(4, seed=1)
    train[:, LAYOUT.starts[1] : LAYOUT.starts[2]] = 0
    found = KroneckerPreconditioner.whitening(train, LAYOUT.places)
    found.whiten(query)
    assert bool(query.isfinite().all())
    assert bool(found.to_weight_space(query).isfinite().all())
    nothing = torch.zeros(3, LAYOUT.size)
    KroneckerPreconditioner.whitening(nothing, LAYOUT.places)
    assert torch.equal(nothing, torch.zeros_like(nothing))


def test_no_metric_is_the_isotropic_pull() -> None:
    query = gradients(4)
    kept, none = query.clone(), KroneckerPreconditioner()
    none.whiten(query)
    assert torch.equal(query, kept)
    assert none.to_weight_space(query) is query


def test_threads_change_no_bit() -> None:
    def whitened(workers: int) -> Tensor:
        rows = gradients(150).float()
        KroneckerPreconditioner.whitening(rows, LAYOUT.places, workers)
        return rows

    assert torch.equal(whitened(1), whitened(3))


def test_a_parameter_without_elements_is_left_out() -> None:
    layout = layout_of({"empty": torch.zeros(0, 3), "weight": torch.zeros(2, 2)})
    rows = torch.randn(5, layout.size, generator=torch.Generator().manual_seed(0))
    assert len(KroneckerPreconditioner.whitening(rows, layout.places).factors) == 1
    assert bool(rows.isfinite().all())
