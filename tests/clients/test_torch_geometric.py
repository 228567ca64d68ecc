"""Graph networks of PyTorch Geometric with its data modules: many small graphs, and the nodes of a single one."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate
from torch_geometric.data.lightning import LightningDataset, LightningNodeData
from torch_geometric.datasets import FakeDataset
from torch_geometric.nn import GCN, GIN, global_mean_pool

pytestmark = [pytest.mark.clients, pytest.mark.trainer, pytest.mark.bitwise]


class Graphs(L.LightningModule):
    """Classifies graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.gnn = GIN(8, 16, 2, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = global_mean_pool(self.gnn(batch.x, batch.edge_index), batch.batch, batch.num_graphs)
        loss = F.cross_entropy(out, batch.y)
        self.log("loss", loss, batch_size=batch.num_graphs)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


class Nodes(L.LightningModule):
    """Classifies the nodes of the graph that is each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gnn = GCN(8, 16, 2, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self.gnn(batch.x, batch.edge_index)
        return F.cross_entropy(out[batch.train_mask], batch.y[batch.train_mask])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def many() -> FakeDataset:
    torch.manual_seed(0)
    return FakeDataset(num_graphs=40, avg_num_nodes=10, avg_degree=3, num_channels=8, num_classes=3, task="graph")


def one() -> Any:
    torch.manual_seed(0)
    graph = FakeDataset(num_graphs=1, avg_num_nodes=80, avg_degree=3, num_channels=8, num_classes=3, task="node")[0]
    graph.train_mask = torch.arange(graph.num_nodes) < 48
    return graph


def graphs(callbacks: list[Any], settings: dict[str, Any]) -> Graphs:
    module = Graphs()
    data = LightningDataset(many(), batch_size=8, num_workers=0)
    L.Trainer(max_epochs=2, callbacks=callbacks, **settings).fit(module, datamodule=data)
    return module


def nodes(callbacks: list[Any], settings: dict[str, Any]) -> Nodes:
    module, graph = Nodes(), one()
    data = LightningNodeData(graph, input_train_nodes=graph.train_mask, loader="full")
    L.Trainer(max_epochs=8, callbacks=callbacks, **settings).fit(module, datamodule=data)
    return module


GRAPH = one()


def loss_of_nodes(module: Any, batch: list[Tensor]) -> Tensor:
    out = module.gnn(GRAPH.x, GRAPH.edge_index)
    return F.cross_entropy(out[batch[0]], GRAPH.y[batch[0]], reduction="none")


def test_graphs_by_row_number(compare: Callable[..., None]) -> None:
    compare(graphs, train=range(24), query=range(6), labels=[int(graph.y) for graph in many()[:24]])


def test_nodes_of_a_graph(compare: Callable[..., None]) -> None:
    chosen = TensorDataset(torch.arange(48))
    compare(
        nodes, train=chosen, query=TensorDataset(torch.arange(6)), labels=GRAPH.y[:48].tolist(),
        loss_fn=loss_of_nodes, training_data=chosen, collate_fn=default_collate,
    )  # fmt: skip
