"""The weights of the calls in a loss stay what they were when a batch was first evaluated, or it is an error."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bif_lightning.exceptions import LossChangedError
from bif_lightning.losses.derived import separable
from bif_lightning.losses.derived.derive import derive_loss
from bif_lightning.losses.derived.intercept import NotSeparableError, capture
from bif_lightning.losses.derived.separable import KeptCoefficients

pytestmark = pytest.mark.exact

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(30, 4, generator=G), torch.arange(30) * 7 % 5
ROWS = [0, 3, 5, 8]


class Model(nn.Module):
    def __init__(self, objective: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net = nn.Linear(4, 5)
        self.objective = objective

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def step(module: nn.Module, batch: Any) -> Tensor:
    return module.objective(module(batch[0]), batch[1])


def batch_of(rows: Sequence[int]) -> Any:
    return X[list(rows)], Y[list(rows)]


def larger(o: Tensor, y: Tensor) -> Tensor:
    """Cross entropy while the weights are small; at outputs of size 1e5 the square is larger."""
    return torch.maximum(F.cross_entropy(o, y), 1e-3 * F.mse_loss(o, F.one_hot(y, 5).float()))


def either(o: Tensor, y: Tensor) -> Tensor:
    return max(F.cross_entropy(o, y), 1e-3 * F.mse_loss(o, F.one_hot(y, 5).float()))


def confident(o: Tensor, y: Tensor) -> Tensor:
    """Leaves out what is large: an element gets another weight while the others keep theirs."""
    losses = F.cross_entropy(o, y, reduction="none")
    return (losses * (o.detach().abs().amax(1) < 50)).mean()


@pytest.mark.parametrize("objective", [larger, confident])
def test_a_loss_that_switches_at_a_draw_is_an_error(objective: Any) -> None:
    torch.manual_seed(0)
    module = Model(objective)
    loss = derive_loss(step, module, batch_of, ROWS)
    assert loss.method == "captured from training_step"
    batch, small = batch_of(range(9)), module.net.weight.detach().clone()
    loss.reset_coefficients()
    loss(module, batch)
    module.net.weight.data = 3 * small
    loss(module, batch)
    module.net.weight.data = 1e5 * small
    with pytest.raises(LossChangedError, match=r"cross_entropy\(reduction=.*depends on the network.*Pass loss_fn"):
        loss(module, batch)
    loss.reset_coefficients()
    assert loss(module, batch).isfinite().all()  # the first evaluation again: of what it is there
    module.net.weight.data = small
    with pytest.raises(LossChangedError, match="depends on the network"):
        loss(module, batch)


def test_a_call_that_was_never_in_the_loss_and_now_is_is_an_error() -> None:
    torch.manual_seed(0)
    loss = derive_loss(step, module := Model(either), batch_of, ROWS)
    module.net.weight.data *= 1e5
    with pytest.raises(LossChangedError, match=r"mse_loss.*is ambiguous"):
        loss(module, batch_of(range(9)))


def test_the_sum_alone_does_not_see_the_switch() -> None:
    torch.manual_seed(0)
    module = Model(larger)
    module.net.weight.data *= 1e5
    loss = derive_loss(step, module, batch_of, ROWS)
    loss.reset_coefficients()
    assert loss(module, batch_of(ROWS)).isfinite().all()


def test_another_batch_has_its_own_coefficients() -> None:
    weights = torch.tensor([0.5, 2.0, 1.0, 4.0, 0.1])
    loss = derive_loss(step, module := Model(lambda o, y: F.cross_entropy(o, y, weights)), batch_of, ROWS)
    batches = [batch_of(range(k, k + 5)) for k in range(6)]
    for _ in range(3):
        module.net.weight.data += 0.1
        for batch in batches:
            loss(module, batch)


def test_a_batch_of_a_diverged_chain_is_not_kept_and_not_compared() -> None:
    module = Model(lambda o, y: F.cross_entropy(o, y) * (2 if bool(o.isfinite().all()) else 1))
    loss, batch = derive_loss(step, module, batch_of, ROWS), batch_of(ROWS)
    good = module.net.weight.detach().clone()
    for weight in (good * torch.inf, good, good * torch.inf, good):
        module.net.weight.data = weight
        assert loss(module, batch).isfinite().all() == weight.isfinite().all()


def test_kept_batches_are_held_until_they_are_cleared() -> None:
    kept = KeptCoefficients()
    module = Model(lambda o, y: F.cross_entropy(o, y))
    for k in range(5):
        batch = batch_of(range(k, k + 3))
        kept.check(batch, capture(step, module, batch))
        kept.check(batch, capture(step, module, batch))
    assert len(kept) == 5
    kept.clear()
    assert len(kept) == 0


def test_other_elements_of_the_same_batch_are_other_weights() -> None:
    module = Model(lambda o, y: F.cross_entropy(o, y))
    kept, batch = KeptCoefficients(), batch_of(ROWS)
    kept.check(batch, capture(step, module, batch))
    with pytest.raises(NotSeparableError, match="moves inf"):
        kept.check(batch, capture(step, module, batch_of(range(7))))


def test_coefficients_of_a_mean_take_no_memory() -> None:
    module = Model(lambda o, y: 0.3 * F.cross_entropy(o, y))
    (term,) = capture(step, module, batch_of(range(30))).terms
    assert term.coefficients.untyped_storage().nbytes() == 4


def test_chains_that_evaluate_a_batch_at_the_same_time_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have looked before either keeps anything; the one that comes second is compared all the same."""
    torch.manual_seed(0)
    small, large = Model(larger), Model(larger)
    large.net.weight.data *= 1e5
    loss, batch = derive_loss(step, small, batch_of, ROWS), batch_of(ROWS)
    together, errors = threading.Barrier(2), list[Exception]()

    def check_sum(captured: Any, kept: Any = None) -> bool:
        if kept is None:
            together.wait(10)
        return plain_check(captured, kept)

    plain_check = separable.check_sum
    monkeypatch.setattr(separable, "check_sum", check_sum)

    def chain(module: nn.Module) -> None:
        try:
            loss(module, batch)
        except LossChangedError as error:
            errors.append(error)

    threads = [threading.Thread(target=chain, args=(module,)) for module in (small, large)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 1
