"""The same function written in two ways has the same influence, in whole trainings with the callback."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

import bif_lightning as bl

pytestmark = [pytest.mark.trainer, pytest.mark.exact]

G = torch.Generator().manual_seed(0)
CLASSES = TensorDataset(torch.randn(60, 6, generator=G), torch.randint(3, (60,), generator=G))
VECTORS = TensorDataset(torch.randn(60, 6, generator=G), torch.randn(60, 6, generator=G))
SGLD = bl.SGLD(step_size=1e-4, inverse_temperature=100.0, localization=100.0)
FEW = bl.Chains(num_chains=2, num_draws=20)


def estimated(folder: Path, module: L.LightningModule, data: Any, **options: Any) -> bl.Estimate:
    """At the start of a training, of 20 train and 6 query examples."""
    callback = bl.BIFCallback(
        **{"train": range(20), "query": range(30, 36), "at_end": False} | options, dirpath=folder / "bif", at_steps=[0]
    )
    trainer = L.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", callbacks=[callback],
    )  # fmt: skip
    trainer.fit(module, data if isinstance(data, DataLoader) else DataLoader(data, batch_size=8))
    assert callback.latest is not None
    return callback.latest


def apart(found: bl.Estimate, right: bl.Estimate) -> float:
    """Largest difference of the influence, in units of its largest entry."""
    return float(np.abs(found.influence - right.influence).max() / np.abs(right.influence).max())


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lift, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def out(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.lift(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.out(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Forces(Net):
    """Fits the derivative of its output with respect to its input, as models of atoms do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 1, bias=False)

    def forces(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(self.out(x).sum(), x, create_graph=True)[0]

    def losses(self, batch: Any) -> Tensor:
        return (self.forces(batch[0]) - batch[1]).square().mean(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self.forces(batch[0]), batch[1])


class ByFormula(Forces):
    def forces(self, x: Tensor) -> Tensor:
        return (self.head.weight * (1 - torch.tanh(self.lift(x)) ** 2)) @ self.lift.weight


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"sampler": SGLD, "chains": FEW}, {"sampler": bl.Pairs(), "chains": FEW}],
    ids=["default", "SGLD", "Pairs"],
)
def test_losses_that_differentiate_inside(tmp_path: Path, options: Any) -> None:
    right = estimated(tmp_path / "formula", ByFormula(), VECTORS, **options)
    assert apart(estimated(tmp_path / "derived", Forces(), VECTORS, **options), right) < 1e-3
    given = options | {"loss_fn": lambda module, batch: module.losses(batch)}
    assert apart(estimated(tmp_path / "given", Forces(), VECTORS, **given), right) < 1e-3


def test_observables_that_differentiate_inside(tmp_path: Path) -> None:
    size = bl.PerExample("size", lambda module, batch: module.forces(batch[0]).norm(dim=1))
    options: Any = {"sampler": SGLD, "chains": FEW, "observables": [size]}
    loss_fn = lambda module, batch: module.out(batch[0]).square().mean(1)  # noqa: E731
    found = estimated(tmp_path / "found", Forces(), VECTORS, loss_fn=loss_fn, **options)
    right = estimated(tmp_path / "right", ByFormula(), VECTORS, loss_fn=loss_fn, **options)
    np.testing.assert_allclose(found.observables["size"].influence, right.observables["size"].influence, rtol=1e-3)


class Spectral(L.LightningModule):
    """A Fourier layer, whose weights are complex, before a real head."""

    frozen = False

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.modes = nn.Parameter(torch.randn(4, dtype=torch.cfloat), requires_grad=not self.frozen)
        self.head = nn.Linear(6, 3)

    def losses(self, batch: Any) -> Tensor:
        mixed = torch.fft.irfft(torch.fft.rfft(batch[0]) * self.modes, n=6)
        return F.cross_entropy(self.head(torch.tanh(mixed)), batch[1], reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.losses(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class FrozenSpectral(Spectral):
    frozen = True


@pytest.mark.slow
def test_complex_weights_left_out_are_as_frozen_ones(tmp_path: Path) -> None:
    right = estimated(tmp_path / "frozen", FrozenSpectral(), CLASSES)
    with pytest.raises(ValueError, match=r"modes is torch.complex64.*params=\['head.weight', 'head.bias'\]"):
        estimated(tmp_path / "all", Spectral(), CLASSES)
    for name, options in {"params": {}, "given": {"loss_fn": lambda module, batch: module.losses(batch)}}.items():
        found = estimated(tmp_path / name, Spectral(), CLASSES, params=["head.weight", "head.bias"], **options)
        assert apart(found, right) < 1e-5


class Summed(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.out(batch[0]), batch[1], reduction="sum")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampler": SGLD, "chains": bl.Chains(num_chains=2, num_draws=50, batch_size=8)},
        {"sampler": SGLD, "chains": bl.Chains(num_chains=2, num_draws=50, batch_size=32)},
        {"sampler": bl.Subspace(metric="euclidean", inverse_temperature=1e4, localization=1e3)},
    ],
    ids=["default", "SGLD, minibatches of 8", "SGLD, minibatches of 32", "Subspace"],
)
def test_a_sum_and_a_mean_over_a_batch(tmp_path: Path, options: Any) -> None:
    right = estimated(tmp_path / "mean", Net(), CLASSES, **options)
    assert apart(estimated(tmp_path / "sum", Summed(), CLASSES, **options), right) < 1e-3


class Letters(Net):
    """An embedding that shortens its rows in every look-up: while it trains, some steps after the first."""

    def __init__(self) -> None:
        super().__init__()
        self.letter, self.head = nn.Embedding(15, 5, max_norm=1.0), nn.Linear(5, 3)
        nn.init.uniform_(self.letter.weight, -0.3, 0.3)

    def losses(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.head(torch.tanh(self.letter(batch[0]).mean(1))), batch[1], reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.losses(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def trained_weights(*callbacks: L.Callback) -> Tensor:
    data = TensorDataset(torch.arange(240).view(60, 4) * 7 % 15, torch.arange(60) % 3)
    module = Letters()
    trainer = L.Trainer(
        max_epochs=4, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size=8))
    assert float(module.letter.weight.detach().norm(dim=1).max()) > 0.99
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, {"loss_fn": lambda m, batch: m.losses(batch)}], ids=["step", "loss_fn"])
@pytest.mark.parametrize("steps", [[1, 10, 20, 23], [20, 23]], ids=["before it writes", "after it writes"])
def test_weights_that_a_forward_pass_writes_train_as_without_the_callback(
    tmp_path: Path, steps: list[int], given: Any
) -> None:
    callback = bl.BIFCallback(
        range(20), range(30, 60), params="head.*", dirpath=tmp_path / "bif", at_steps=steps, at_end=False, **given
    )
    assert torch.equal(trained_weights(callback), trained_weights())


def everything() -> tuple[TensorDataset, range]:
    """Rows of another distribution, without labels, after those that are drawn."""
    x, y = (part.clone() for part in CLASSES.tensors)
    x[40:] *= 5
    y[40:] = -1
    return TensorDataset(x, y), range(40)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"sampler": SGLD, "chains": FEW}], ids=["default", "SGLD"])
@pytest.mark.parametrize("sampler", [SubsetRandomSampler, list], ids=["SubsetRandomSampler", "list"])
def test_rows_that_are_never_drawn(tmp_path: Path, sampler: Any, options: Any) -> None:
    data, rows = everything()
    right = estimated(tmp_path / "subset", Net(), DataLoader(Subset(data, rows), batch_size=8, shuffle=True), **options)
    found = estimated(tmp_path / "sampler", Net(), DataLoader(data, batch_size=8, sampler=sampler(rows)), **options)
    assert np.array_equal(found.influence, right.influence) if options else apart(found, right) < 1e-5
    assert any("40 of 60 rows that the sampler" in note for note in found.notes)


def test_weights_of_a_sampler(tmp_path: Path) -> None:
    """Whole numbers as weights are so many copies of the rows."""
    weights = torch.ones(40).index_fill(0, torch.arange(20), 3.0)
    copies = Subset(CLASSES, [row for row in range(40) for _ in range(int(weights[row]))])
    rows: Any = {"train": Subset(CLASSES, range(10)), "query": Subset(CLASSES, range(50, 56)), "sampler": SGLD}
    rows["chains"] = bl.Chains(num_chains=2, num_draws=40, batch_size=4000)  # the full batch
    right = estimated(tmp_path / "copies", Net(), copies, **rows)
    sampler = WeightedRandomSampler([*weights.tolist(), *[0.0] * 20], 80)
    found = estimated(tmp_path / "weights", Net(), DataLoader(CLASSES, batch_size=8, sampler=sampler), **rows)
    assert apart(found, right) < 1e-3


class Reloaded(L.LightningDataModule):
    """Gives other data in each epoch, as active learning does."""

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        start = 20 * self.trainer.current_epoch
        return DataLoader(Subset(CLASSES, range(start, start + 20)), batch_size=20)


class Growing(Dataset[Any]):
    """Gets further examples while the loader of a training stays, which goes on with as many batches an epoch."""

    size = 16

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return CLASSES[index]


class Resting(Net):
    """Keeps its weights, so that two snapshots differ by their data alone."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.slow
def test_data_that_is_loaded_anew_is_that_of_the_snapshot(tmp_path: Path) -> None:
    rows: Any = {"train": Subset(CLASSES, range(10)), "query": Subset(CLASSES, range(50, 56)), "at_end": False}
    rows |= {"sampler": SGLD, "chains": FEW, "every_n_epochs": 1}
    trained: Any = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "accelerator": "cpu",
    }  # fmt: skip
    bif = bl.BIFCallback(**rows, dirpath=tmp_path / "bif")
    L.Trainer(**trained, max_epochs=2, reload_dataloaders_every_n_epochs=1, callbacks=[bif]).fit(Resting(), Reloaded())
    assert bif.latest is not None
    right = estimated(tmp_path / "right", Net(), Subset(CLASSES, range(20, 40)), **{**rows, "every_n_epochs": None})
    assert np.array_equal(bif.latest.influence, right.influence)


class Hooked(Net):
    """Its loss uses an activation that a hook keeps in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Tensor] = {}
        self.lift.register_forward_hook(self.keep)

    def keep(self, part: nn.Module, inputs: Any, output: Tensor) -> None:
        self.kept["hidden"] = output

    def out(self, x: Tensor) -> Tensor:
        self.lift(x)
        return self.head(torch.tanh(self.kept["hidden"]))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"sampler": SGLD, "chains": FEW}], ids=["default", "SGLD"])
def test_activations_that_a_hook_keeps(tmp_path: Path, options: Any) -> None:
    torch.set_num_threads(2)
    right = estimated(tmp_path / "plain", Net(), CLASSES, **options)
    found = estimated(tmp_path / "hook", Hooked(), CLASSES, **options)
    assert np.array_equal(found.influence, right.influence)
    assert any("chains ran one after the other: the forward pass keeps state" in note for note in found.notes)


def test_data_that_grows_is_the_part_that_is_drawn(tmp_path: Path) -> None:
    data, seen = Growing(), dict[int, bl.Estimate]()

    class Grows(L.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            if callback.latest is not None:
                seen[args[0].global_step] = callback.latest

        def on_train_epoch_end(self, *args: Any) -> None:
            data.size += 8

    rows: Any = {"train": Subset(CLASSES, range(12)), "query": Subset(CLASSES, range(50, 56))}
    callback = bl.BIFCallback(**rows, sampler=SGLD, chains=FEW, at_steps=[1, 3], at_end=False, dirpath=tmp_path / "bif")
    trainer = L.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", callbacks=[callback, Grows()],
    )  # fmt: skip
    module = Resting()
    trainer.fit(module, DataLoader(data, batch_size=8))
    right = estimated(tmp_path / "right", Resting(), Subset(CLASSES, range(16)), sampler=SGLD, chains=FEW, **rows)
    assert [note for note in seen[1].notes if "rows" in note] == []
    assert any("first 16 of 24 rows" in note for note in seen[3].notes)
    assert apart(seen[3], right) < 1e-3
