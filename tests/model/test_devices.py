"""Memory that runs out is told as that, in every place where another way to compute could hide it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import small_models as models
from bif_lightning.config import SGLD, Chains, Subspace
from bif_lightning.curvature.hessian import Hessian
from bif_lightning.estimation.estimate import estimate
from bif_lightning.losses.problem import eval_mode
from bif_lightning.model.devices import is_out_of_memory, now
from bif_lightning.model.functional import FunctionalBackend

pytestmark = pytest.mark.exact

CHAINS = Chains(num_chains=2, num_draws=4, batch_size=4)
SAMPLER = SGLD(step_size=1e-4, inverse_temperature=10.0, localization=10.0)


class RunsOut(torch.autograd.Function):
    """The identity, whose second derivative finds no memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Second.apply(grads[0])  # type: ignore[no-any-return]


class _Second(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate 34 GB")


class Hungry(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = models.mlp()

    def forward(self, x: Tensor) -> Tensor:
        return RunsOut.apply(self.net(x))  # type: ignore[no-any-return]


def hungry() -> nn.Module:
    return models.seeded(Hungry)


def test_words_of_both_allocators() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("element 0 of tensors does not require grad"))


def test_curvature_that_finds_no_memory_is_not_by_differences() -> None:
    """Else the same call would give another matrix on a smaller machine, and say nothing of it."""
    with pytest.raises(torch.OutOfMemoryError, match="34 GB"):
        estimate(hungry(), models.cross_entropy, models.data(), sampler=Subspace(num_directions=4), chains=CHAINS)


def test_an_estimate_stands_without_the_ratio_that_found_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def runs_out(*_: object, **__: object) -> float:
        raise torch.OutOfMemoryError("tried to allocate 34 GB")

    run: Callable[[], Any] = lambda: estimate(  # noqa: E731
        models.seeded(models.mlp), models.cross_entropy, models.data(), sampler=SAMPLER, chains=CHAINS
    )
    whole = run()
    monkeypatch.setattr("bif_lightning.sampling.bias.hessian_spectrum", runs_out)
    found = run()
    assert np.isnan(found.diagnostics.llc_ratio)
    assert found.diagnostics.noise_ratio == whole.diagnostics.noise_ratio
    assert "the LLC ratio was not measured, since memory ran out" in found.notes
    np.testing.assert_array_equal(found.influence, whole.influence)


def test_weights_on_several_devices_are_refused() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, device="meta"))
    with pytest.raises(ValueError, match=r"0\.weight on cpu, 1\.weight on meta\. .*without device_map"):
        FunctionalBackend(module)
    FunctionalBackend(module, ["0.*"])  # the remedy


@pytest.mark.parametrize(("module", "inside"), [(nn.GRU(3, 3), False), (nn.Conv1d(3, 3, 1), True)])
@pytest.mark.parametrize("before", [True, False])
def test_recurrent_layers_compute_without_cudnn(module: nn.Module, inside: bool, before: bool) -> None:
    was = torch.backends.cudnn.enabled
    try:
        torch.backends.cudnn.enabled = before
        with eval_mode(nn.Sequential(module)):
            assert torch.backends.cudnn.enabled is (inside and before)
        assert torch.backends.cudnn.enabled is before
    finally:
        torch.backends.cudnn.enabled = was


def test_the_clock_goes_on() -> None:
    assert now() < now()


def test_products_of_several_passes_are_those_of_one() -> None:
    module = models.seeded(models.mlp)
    problem = models.problem_of(module)
    backend = FunctionalBackend(module)
    rows, q = torch.arange(12), torch.zeros(2, backend.layout.size)
    for row, piece in zip(q, backend.layout.pieces(torch.arange(backend.layout.size)), strict=False):
        row[piece.flatten()[0]] = 1
    with eval_mode(module), torch.enable_grad():
        whole, parts = (Hessian.of_training(problem, backend, rows=rows, chunk=chunk).times(q) for chunk in (12, 5))
    torch.testing.assert_close(whole, parts)
