"""Observables carry the right numbers, and a metric that was passed is not touched."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

import small_models as models
from bif_lightning.config import SGLD, Chains
from bif_lightning.estimation.estimate import estimate
from bif_lightning.losses.observables import GroupMean, MetricValue, PerExample
from small_models import cross_entropy

pytestmark = pytest.mark.exact

SAMPLER = SGLD(step_size=1e-3, inverse_temperature=20.0, localization=10.0)
CHAINS = Chains(num_chains=2, num_draws=4, batch_size=5)


def test_observables_carry_the_right_numbers() -> None:
    module, query = models.seeded(models.mlp), models.data(1, 4)

    def gap(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = module(batch[0])
        return logits[:, 0] - logits[:, 1]

    accuracy = MulticlassAccuracy(3, average="micro")
    accuracy.update(torch.tensor([0]), torch.tensor([0]))
    found = estimate(
        module, cross_entropy, models.data(), query, sampler=SAMPLER, chains=CHAINS,
        store_traces=True, eval_batch_size=3,
        observables=[
            PerExample("gap", gap),
            GroupMean("class", [1, 0, 1, 1], function=gap, unit="1"),
            MetricValue("accuracy", accuracy, lambda m, b: (m(b[0]), b[1])),
        ],
    )  # fmt: skip
    traces = found.traces
    assert traces is not None
    widths = {name: values.shape[2] for name, values in traces.columns.items()}
    assert widths == {
        "loss": 4,
        "gap": 4,
        "class": 2,
        "accuracy": 1,
    }
    gaps = traces.columns["gap"]
    np.testing.assert_allclose(traces.columns["class"][..., 0], gaps[..., 1], rtol=1e-6)
    np.testing.assert_allclose(traces.columns["class"][..., 1], gaps[..., [0, 2, 3]].mean(-1), rtol=1e-5)
    assert set(np.unique(traces.columns["accuracy"])) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert found.observables["accuracy"].columns == ("MulticlassAccuracy",)
    assert found.observables["class"].columns == ("0", "1")
    assert int(accuracy.update_count) == 1, "the metric that was passed is not touched"
    for name, part in found.observables.items():
        values = traces.columns[name].astype(np.float64)
        expected = -np.mean([np.cov(traces.train[c].T.astype(float), values[c].T)[:12, 12:] for c in range(2)], axis=0)
        np.testing.assert_allclose(part.influence, expected, rtol=1e-3, atol=1e-7, err_msg=name)


def test_a_metric_that_stands_still_has_no_correlation() -> None:
    still = MetricValue("still", MulticlassAccuracy(3), lambda m, b: (nn.functional.one_hot(b[1], 3).float(), b[1]))
    found = estimate(
        models.seeded(models.mlp), cross_entropy, models.data(), sampler=SAMPLER, chains=CHAINS, observables=[still]
    )
    assert np.isnan(found.observables["still"].correlation).all()
    assert (found.observables["still"].influence == 0).all()
    assert (found.observables["still"].mean == 1).all()
