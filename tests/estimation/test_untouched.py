"""An estimate leaves no trace in the module or the process, whichever way it ends."""

import contextlib
import random
from collections.abc import Callable, Generator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import small_models as models
from bif_lightning.config import SGLD, Chains, Subspace
from bif_lightning.estimation.estimate import estimate
from bif_lightning.estimation.estimator import estimate_problem
from bif_lightning.exceptions import ChainsDivergedError
from small_models import cross_entropy

pytestmark = pytest.mark.bitwise

SAMPLER = SGLD(step_size=1e-3, inverse_temperature=20.0, localization=10.0)
CHAINS = Chains(num_chains=3, num_draws=3, batch_size=5)
ALL = {**models.PLAIN, "bound method": models.BoundMethod, "ScriptModule": models.scripted,
       "torch.compile": models.compiled, "random": models.RandomInEvaluation}  # fmt: skip


def everything(module: nn.Module) -> dict[str, object]:
    """Every value that an estimate might disturb."""
    state: dict[str, object] = {}
    for name, part in module.named_modules():
        state[f"{name} training"] = part.training
        for key, value in vars(part).items():
            if isinstance(value, torch.Tensor):
                state[f"{name} attribute {key}"] = (id(value), value.detach().clone())
    for name, parameter in module.named_parameters(remove_duplicate=False):
        grad = parameter.grad
        state[f"{name} grad"] = (id(grad), None if grad is None else grad.clone())
        state[f"{name} value"] = (
            id(parameter),
            parameter.data_ptr(),
            parameter.detach().clone(),
            parameter.requires_grad,
        )
        state[f"{name} version"] = parameter._version
    for name, buffer in module.named_buffers(remove_duplicate=False):
        state[f"{name} buffer"] = (id(buffer), buffer.clone())
    for name, part in module.named_modules():
        if isinstance(part, models.MulticlassAccuracy):
            state[f"{name} metric"] = (
                part._update_count,
                part.tp.clone() if isinstance(part.tp, torch.Tensor) else None,
            )
    state["torch"], state["threads"] = torch.get_rng_state(), torch.get_num_threads()
    state["numpy"], state["python"] = np.random.get_state()[1].copy(), random.getstate()
    state["modes"] = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype())
    return state


def equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return one == other


@contextlib.contextmanager
def untouched(module: nn.Module) -> Generator[None]:
    before = everything(module)
    try:
        yield
    finally:
        after = everything(module)
        assert before.keys() == after.keys()
        assert [key for key in before if not equal(before[key], after[key])] == []


@pytest.mark.parametrize("name", ALL)
def test_after_a_result(name: str) -> None:
    module = models.seeded(ALL[name])
    next(module.modules()).training = False  # parts may differ in their flags
    torch.set_num_threads(2)  # chains side by side share what is not copied
    with untouched(module):
        estimate(module, cross_entropy, models.data(), models.data(1), sampler=SAMPLER, chains=CHAINS)


class Interrupt:
    """Raises at the seventh step."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error, self.calls = error, 0

    def __call__(self, done: int, total: int) -> None:
        self.calls += 1
        if done == 7:
            raise self.error("from progress")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("mlp", KeyboardInterrupt), ("mlp", RuntimeError), ("mlp", SystemExit), ("old weight_norm", KeyboardInterrupt),
        ("bound method", RuntimeError), ("torchmetrics", SystemExit),
    ],
)  # fmt: skip
@pytest.mark.parametrize("threads", [1, 2])
def test_after_an_error_from_progress(name: str, error: type[BaseException], threads: int) -> None:
    module, progress, threads_before = models.seeded(ALL[name]), Interrupt(error), torch.get_num_threads()
    torch.set_num_threads(threads)
    chains = replace(CHAINS, num_draws=100)  # on a busy machine another thread makes some steps before it hears
    try:
        with untouched(module), pytest.raises(error, match="from progress"):
            estimate(module, cross_entropy, models.data(), sampler=SAMPLER, chains=chains, progress=progress)
    finally:
        torch.set_num_threads(threads_before)
    assert progress.calls < 150, "the other chains stop soon, and not after all of their 300 steps"


@pytest.mark.parametrize("step", [3, 15, 20, 51])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_after_an_error_from_progress_before_the_first_draw(step: int, error: type[BaseException]) -> None:
    """Among the gradients of train examples and queries, among products with a Hessian, and in a chain."""
    module, seen = models.seeded(models.mlp), list[int]()

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done >= step:
            raise error("from progress")

    data = models.data()
    with untouched(module), pytest.raises(error, match="from progress"):
        estimate(
            module, cross_entropy, data, data[:6],
            sampler=Subspace(num_directions=4), chains=Chains(num_chains=2, num_draws=4), progress=progress,
        )  # fmt: skip
    assert step <= seen[-1] < step + 4, "products are made and counted in fours"
    assert all(done < step for done in seen[:-1]), "it is asked once"


class Failing:
    """A loss that raises at its thirteenth batch."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        self.calls += 1
        if self.calls > 12:
            raise RuntimeError("from the loss")
        return cross_entropy(module, batch)


def test_after_an_error_of_the_loss_and_after_divergence() -> None:
    module = models.seeded(models.mlp)
    with untouched(module), pytest.raises(RuntimeError, match="from the loss"):
        estimate(module, Failing(), models.data(), sampler=SAMPLER, chains=CHAINS)
    wild = SGLD(step_size=1.0, inverse_temperature=1e6, localization=1.0)
    with untouched(module), pytest.raises(ChainsDivergedError):
        estimate_problem(models.problem_of(module), wild, CHAINS)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_within_modes_without_gradients(mode: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    module = models.seeded(models.mlp)
    expected = estimate(module, cross_entropy, models.data(), sampler=SAMPLER, chains=CHAINS)
    with mode():
        got = estimate(module, cross_entropy, models.data(), sampler=SAMPLER, chains=CHAINS)
    assert np.array_equal(got.influence, expected.influence)


@pytest.mark.parametrize("threads", [1, 2])
def test_within_autocast_the_answer_does_not_depend_on_the_number_of_threads(threads: int) -> None:
    """Autocast belongs to the thread that entered it; chains run on others."""
    module, before = models.seeded(models.mlp), torch.get_num_threads()
    expected = estimate(module, cross_entropy, models.data(), sampler=SAMPLER, chains=CHAINS)
    torch.set_num_threads(threads)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = estimate(module, cross_entropy, models.data(), sampler=SAMPLER, chains=CHAINS)
            assert torch.is_autocast_enabled("cpu")
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(got.influence, expected.influence)
    assert got.snapshot_loss == expected.snapshot_loss
