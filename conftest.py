"""The small run that examples in docstrings read: names that they use without defining them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def _small_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A classifier with 24 points of two classes, an estimate of it, and a folder with dumps of two steps."""
    import lightning as L
    import torch
    from torch import nn
    from torch.nn import functional as F

    from bif_lightning import SGLD, Chains, Samples, causal_lm_loss, estimate, write_dump, write_samples

    class Classifier(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(3, 2)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    def loss_fn(module: Any, batch: Any) -> torch.Tensor:
        return F.cross_entropy(module.model(batch[0]), batch[1], reduction="none")

    torch.manual_seed(0)
    module = Classifier()
    points = torch.randn(24, 3)
    labels = (points[:, 0] + 0.5 * points[:, 1] > 0).long().numpy()
    data = [(point, int(label)) for point, label in zip(points, labels, strict=True)]
    train = Samples(
        ids=tuple(f"train-{row}" for row in range(24)), index=np.arange(24), labels=labels, label_names=("cat", "dog")
    )
    query = Samples(
        ids=tuple(f"query-{row}" for row in range(6)), index=np.arange(6), labels=labels[:6], label_names=("cat", "dog")
    )
    sampler = SGLD(step_size=1e-3, inverse_temperature=100.0, localization=10.0)
    chains = Chains(num_chains=4, num_draws=20)
    snapshot = estimate(
        module, loss_fn, data, data[:6], sampler=sampler, chains=chains, train_labels=labels, query_labels=labels[:6],
        store_traces=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("run") / "bif"
    write_samples(folder, train, query)
    for step in (100, 200):
        write_dump(folder, snapshot, step=step, epoch=0, train=train, query=query)

    language, texts = (
        nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)),
        torch.tensor([[1, 4, 2], [3, 3, 0], [2, 1, 1]]),
    )
    who = Samples(ids=("a", "b", "c"), index=np.arange(3))
    per_token = estimate(language, causal_lm_loss, list(texts), sampler=sampler, chains=chains, per_token=True)
    tokens = tmp_path_factory.mktemp("tokens")
    write_samples(tokens, who, who)
    token_dump = write_dump(tokens, per_token, step=100, epoch=0, train=who, query=who)

    checkpoint = tmp_path_factory.mktemp("checkpoints") / "step=200.pt"
    torch.save(module.state_dict(), checkpoint)
    return {
        "module": module, "loss_fn": loss_fn, "data": data, "sampler": sampler, "chains": chains, "snapshot": snapshot,
        "train": train, "query": query, "folder": folder, "tokens": per_token.tokens, "token_dump": token_dump,
        "checkpoint": checkpoint,
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _names_in_examples(
    request: pytest.FixtureRequest, doctest_namespace: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give examples the run, quiet Lightning, and a folder of their own to write to."""
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path)
        doctest_namespace |= request.getfixturevalue("_small_run")
        doctest_namespace["new_folder"] = tmp_path / "bif"
