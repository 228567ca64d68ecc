"""chemprop: message passing on molecules. Its criterion is a metric of torchmetrics that keeps the network's output."""

from collections.abc import Callable
from typing import Any

import pytest
from chemprop import data, featurizers, models, nn
from lightning import pytorch as pl

pytestmark = [pytest.mark.clients, pytest.mark.trainer, pytest.mark.bitwise]

SMILES = (
    "CCO CCN CCC c1ccccc1 CC(=O)O CCCl C1CCCCC1 CC(C)O CCOC CNC c1ccccc1O CC#N CCS C=CC CCBr CC(=O)N OCCO c1ccncc1 "
    "CCCC CC(C)C NCCN O=C=O CCF COC"
)


def molecules() -> data.MoleculeDataset:
    """Their target is how often carbon occurs, beside other atoms."""
    points = [data.MoleculeDatapoint.from_smi(each, [each.upper().count("C") / 3]) for each in SMILES.split()]
    return data.MoleculeDataset(points, featurizers.SimpleMoleculeMolGraphFeaturizer())


def regression(callbacks: list[Any], settings: dict[str, Any]) -> models.MPNN:
    net = models.MPNN(
        nn.BondMessagePassing(d_h=16), nn.MeanAggregation(), nn.RegressionFFN(input_dim=16, hidden_dim=16),
        batch_norm=True, metrics=[nn.metrics.RMSE()],
    )  # fmt: skip
    loader = data.build_dataloader(molecules(), batch_size=6, num_workers=0)
    pl.Trainer(max_epochs=2, callbacks=callbacks, **settings).fit(net, loader)
    return net


def test_regression_on_molecules(compare: Callable[..., None]) -> None:
    compare(regression, train=range(16), query=range(4))
