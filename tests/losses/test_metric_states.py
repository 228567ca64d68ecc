"""Metrics in a loss that is called many times: states stay, graphs go, and a failure is no failure of the loss."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import CatMetric, MeanMetric, MeanSquaredError, MetricCollection, R2Score, SpearmanCorrCoef

from bif_lightning.losses.derived.derive import derive_loss
from bif_lightning.losses.metric_states import MetricsKept, detach_metrics, has_metrics

pytestmark = pytest.mark.exact

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(12, 4, generator=G), torch.randn(12, generator=G)
METRICS: dict[str, Any] = {
    "mean squared error": MeanSquaredError,
    "R2": R2Score,
    "list of values": SpearmanCorrCoef,
    "collection": lambda: MetricCollection([MeanSquaredError(), R2Score()]),
}


class Net(nn.Module):
    """Feeds a metric with the network's output."""

    def __init__(self, metric: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.metric = nn.Linear(4, 1), metric

    def out(self, batch: Any) -> Tensor:
        return self.body(batch[0])[:, 0]

    def step(self, batch: Any) -> Tensor:
        out = self.out(batch)
        self.metric(out, batch[1])
        return F.mse_loss(out, batch[1])


def batch_of(rows: Any) -> Any:
    return X[list(rows)], Y[list(rows)]


def states(module: nn.Module) -> list[Any]:
    return [metric.metric_state for metric in module.modules() if hasattr(metric, "add_state")]


@pytest.mark.parametrize("name", METRICS)
def test_states_with_a_graph_are_detached_and_then_stay(name: str) -> None:
    module = Net(METRICS[name]())
    module.step(batch_of(range(6)))
    with pytest.raises(RuntimeError, match="deepcopy protocol"):
        copy.deepcopy(module)
    detach_metrics(module.modules())
    copy.deepcopy(module)
    before, identities = copy.deepcopy(states(module)), [{k: id(v) for k, v in s.items()} for s in states(module)]
    MetricsKept(Net.step)(module, batch_of(range(3)))
    torch.testing.assert_close(states(module), before, rtol=0, atol=0)
    assert [{k: id(v) for k, v in s.items()} for s in states(module)] == identities
    copy.deepcopy(module)
    assert "forward" not in vars(module.metric)


@pytest.mark.parametrize("name", METRICS)
def test_losses_are_those_without_the_metric(name: str) -> None:
    """R2 and Spearman fail on a batch of one, and all under vmap."""
    loss = derive_loss(MetricsKept(Net.step), Net(METRICS[name]()), batch_of, [0, 3, 5, 8])
    assert loss.method == "captured from training_step"
    module = Net(METRICS[name]()).eval()
    expected = F.mse_loss(module.out(batch_of(range(12))), Y, reduction="none").detach()
    torch.testing.assert_close(loss(module, batch_of(range(12))), expected)

    def by_hand(module: Net, batch: Any) -> Tensor:
        module.step(batch)
        return (module.out(batch) - batch[1]).abs().sqrt().mean()

    loss = derive_loss(MetricsKept(by_hand), module, batch_of, [0, 3, 5, 8])
    assert loss.method == "training_step vmapped over examples"
    expected = (module.out(batch_of(range(12))) - Y).abs().sqrt().detach()
    torch.testing.assert_close(loss(module, batch_of(range(12))), expected)


def test_a_metric_may_be_the_loss() -> None:
    module = Net(MeanSquaredError()).eval()
    step = MetricsKept(lambda module, batch: module.metric(module.out(batch), batch[1]))
    loss = derive_loss(step, module, batch_of, [0, 3, 5, 8])
    found = torch.cat([loss(module, batch_of([row])) for row in range(12)])
    torch.testing.assert_close(found, (module.out(batch_of(range(12))) - Y).square().detach())
    loss.objective(module, batch_of(range(12))).backward()
    assert float(module.body.weight.grad.abs().sum()) > 0


def test_update_and_compute_are_of_one_call() -> None:
    def step(module: Net, batch: Any) -> Tensor:
        loss = F.mse_loss(module.out(batch), batch[1])
        module.metric.update(loss)
        return module.metric.compute()

    module, kept = Net(MeanMetric()), MetricsKept(step)
    losses = [float(kept(module, batch_of([row]))) for row in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_what_fails_gives_nan_and_is_named() -> None:
    def as_loss(module: Net, batch: Any) -> Tensor:
        return module.metric(module.out(batch), batch[1])

    kept = MetricsKept(as_loss)
    assert kept(Net(R2Score()), batch_of([0])).isnan()
    assert kept.failure.startswith("R2Score raised ValueError: Needs at least two samples")

    def updated(module: Net, batch: Any) -> Tensor:
        module.metric.update(torch.zeros(3), torch.zeros(2))
        return module.metric.compute()

    assert MetricsKept(updated)(Net(MeanSquaredError()), batch_of([0])).isnan()


def test_a_step_that_needs_the_value_fails_with_the_error_of_the_metric() -> None:
    def needs(module: Net, batch: Any) -> Tensor:
        return F.mse_loss(module.out(batch), batch[1]) * int(module.metric(module.out(batch), batch[1]))

    with pytest.raises(ValueError, match="Needs at least two samples"):
        MetricsKept(needs)(Net(R2Score()), batch_of([0]))
    with pytest.raises(ZeroDivisionError):
        MetricsKept(lambda module, batch: 1 / 0)(Net(R2Score()), batch_of([0]))


def test_lists_do_not_grow() -> None:
    module = Net(CatMetric())
    kept = MetricsKept(lambda module, batch: module.metric(module.out(batch)).sum())
    for _ in range(3):
        kept(module, batch_of(range(4)))
    assert module.metric.metric_state == {"value": []}
    assert has_metrics(module)
    assert not has_metrics(module.body)
