"""scvi-tools: SCVI on counts of genes. Its step draws latent variables; the loss of a cell is that at their mean."""

from collections.abc import Callable
from typing import Any

import pytest
import scvi
from torch import Tensor

pytestmark = [pytest.mark.clients, pytest.mark.trainer, pytest.mark.bitwise]


def autoencoder(callbacks: list[Any], settings: dict[str, Any]) -> Any:
    scvi.settings.seed = 3
    cells = scvi.data.synthetic_iid(batch_size=30, n_genes=20)
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(cells, n_hidden=16, n_latent=4)
    model.train(max_epochs=2, batch_size=20, train_size=1.0, callbacks=callbacks, **settings)
    return model.module


def loss_of_cells(plan: Any, batch: Any) -> Tensor:
    module = plan.module
    latent = module.inference(**module._get_inference_input(batch))
    latent["z"] = latent["qz"].loc
    loss = module.loss(batch, latent, module.generative(**module._get_generative_input(batch, latent)))
    return sum(loss.reconstruction_loss.values()) + sum(loss.kl_local.values())


def test_scvi(compare: Callable[..., None]) -> None:
    compare(autoencoder, train=range(20), query=range(5), loss_fn=loss_of_cells)
