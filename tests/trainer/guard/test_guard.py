"""The guard in real runs: failures, interrupts, nesting, identity, and what each part forbids."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bif_lightning.exceptions import TrainingDisturbedError
from bif_lightning.trainer.guard.fingerprint import difference, fingerprint, named_difference
from bif_lightning.trainer.guard.guard import PARTS, Scope, _undo_all, iterators, training_guard

pytestmark = [pytest.mark.trainer, pytest.mark.bitwise]

Action = Callable[[Any, Any], None]


def small_module(base: Any) -> Any:
    """A LightningModule of either package."""

    class Small(base):
        def __init__(self) -> None:
            super().__init__()
            self.inner = base()
            self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
            self.seen: dict[str, list[float]] = {"losses": []}
            self.teachers = [nn.Linear(3, 1)]

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            (x,) = batch
            loss = (self.layers(x) - self.teachers[0](x)).square().mean()
            self.log("loss", loss, on_epoch=True)
            self.seen["losses"].append(float(loss.detach()))
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.layers.parameters(), lr=0.01)

    return Small()


def during_fit(action: Action, *, package: Any = L, steps: int = 2, logger: Any = False) -> Any:
    """Train a few batches and run `action(trainer, module)` after each; the Trainer."""

    class Act(package.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            action(trainer, pl_module)

    torch.manual_seed(0)
    trainer = package.Trainer(
        max_steps=steps, accelerator="cpu", callbacks=[Act()], logger=logger,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(small_module(package.LightningModule), DataLoader(TensorDataset(torch.randn(8, 3)), batch_size=4))
    return trainer


def disturb(trainer: Any, module: Any) -> None:
    """Call the user's step on the live module with buffers, weights and gradients of its own."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    substitutes = {name: value.detach().clone() for name, value in state.items()}
    frame = Frame(module)
    torch.func.functional_call(frame, {f"module.{k}": v for k, v in substitutes.items()}, (torch.randn(4, 3),))


class Frame(nn.Module):
    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module.training_step((x,), 0)


def test_an_unguarded_disturbance_is_seen_and_a_guarded_one_is_not() -> None:
    def action(trainer: Any, module: Any) -> None:
        before = fingerprint(trainer, module)
        with training_guard(trainer, module):
            disturb(trainer, module)
        assert difference(before, fingerprint(trainer, module)) == []
        disturb(trainer, module)
        assert {"attributes", "logged values"} <= set(difference(before, fingerprint(trainer, module)))

    during_fit(action)


def test_pytorch_lightning_is_guarded_too() -> None:
    def action(trainer: Any, module: Any) -> None:
        before = fingerprint(trainer, module)
        with training_guard(trainer, module):
            disturb(trainer, module)
        assert difference(before, fingerprint(trainer, module)) == []

    during_fit(action, package=pytorch_lightning)


def test_written_parameters_are_restored_or_stop_the_training() -> None:
    """Also those written by way of `.data`, which torch does not count; sampled ones are only watched."""

    def action(trainer: Any, module: Any) -> None:
        names, written = zip(*module.layers.named_parameters(prefix="layers"), strict=True)
        before = fingerprint(trainer, module)
        with training_guard(trainer, module), torch.no_grad():
            written[0].mul_(2)
        with training_guard(trainer, module):
            written[0].data.mul_(2)
        assert difference(before, fingerprint(trainer, module)) == []
        stops = pytest.raises(TrainingDisturbedError, match=rf"a snapshot wrote into {names[0]}, {names[1]}, and so")
        with stops, training_guard(trainer, module, sampled=names), torch.no_grad():
            written[0].mul_(2)
            written[1].mul_(2)

    during_fit(action)


@pytest.mark.parametrize("error", [RuntimeError("half-way"), KeyboardInterrupt()])
def test_training_is_restored_after_an_error_and_the_error_goes_on(error: BaseException) -> None:
    def action(trainer: Any, module: Any) -> None:
        before = fingerprint(trainer, module)
        with pytest.raises(type(error)), training_guard(trainer, module):  # noqa: PT012
            disturb(trainer, module)
            module.eval()
            raise error
        assert difference(before, fingerprint(trainer, module)) == []

    during_fit(action)


def test_every_part_restores_when_one_cannot() -> None:
    @contextmanager
    def broken(scope: Scope) -> Iterator[None]:
        yield
        raise KeyboardInterrupt("while putting back")

    def action(trainer: Any, module: Any) -> None:
        before = fingerprint(trainer, module)
        for place in range(len(PARTS) + 1):
            names = list(PARTS.items())
            parts = dict([*names[:place], ("broken", broken), *names[place:]])
            with pytest.raises(KeyboardInterrupt), training_guard(trainer, module, parts=parts):
                disturb(trainer, module)
            assert difference(before, fingerprint(trainer, module)) == []

    during_fit(action, steps=1)


def test_one_failure_inside_a_part_names_the_place_and_spares_the_rest() -> None:
    def action(trainer: Any, module: Any) -> None:
        module.huge = torch.zeros(1).expand(3)  # cannot be written as a whole
        before = fingerprint(trainer, module)
        with pytest.raises(RuntimeError) as caught, training_guard(trainer, module):  # noqa: PT012
            disturb(trainer, module)
            module.huge.data.as_strided((1,), (1,)).add_(1)
        assert any("restoring module.huge after a snapshot" in note for note in caught.value.__notes__)
        assert difference(before, fingerprint(trainer, module)) == ["attributes"]
        module.huge = None

    during_fit(action, steps=1)


def test_interrupts_while_putting_back_wait_for_the_rest() -> None:
    done: list[str] = []

    def interrupted() -> None:
        raise KeyboardInterrupt

    undos = [("a", interrupted), ("b", lambda: done.append("b")), ("c", interrupted), ("d", lambda: done.append("d"))]
    with pytest.raises(BaseExceptionGroup) as caught:
        _undo_all(undos)
    assert done == ["b", "d"]
    assert [type(error) for error in caught.value.exceptions] == [KeyboardInterrupt] * 2


def test_nested_guards_restore_to_their_own_beginnings() -> None:
    def action(trainer: Any, module: Any) -> None:
        before = fingerprint(trainer, module)
        with training_guard(trainer, module):
            disturb(trainer, module)
            losses = list(module.seen["losses"])
            with training_guard(trainer, module):
                disturb(trainer, module)
                assert len(module.seen["losses"]) == len(losses) + 1
            assert module.seen["losses"] == losses
            module.log("silent", 1.0)
        assert difference(before, fingerprint(trainer, module)) == []
        assert "silent" not in trainer.callback_metrics

    during_fit(action)


def test_containers_and_gradients_keep_their_identity() -> None:
    def action(trainer: Any, module: Any) -> None:
        alias, inner = module.seen, module.seen["losses"]
        gradients = [parameter.grad for parameter in module.parameters()]
        assert any(gradient is not None for gradient in gradients)
        with training_guard(trainer, module):
            module.seen = {}
            module.added = 1
            inner.append(1.0)
            assert all(parameter.grad is None for parameter in module.parameters())
        assert module.seen is alias
        assert alias["losses"] is inner
        assert "added" not in vars(module)
        now = [parameter.grad for parameter in module.parameters()]
        assert all(a is b for a, b in zip(now, gradients, strict=True))

    during_fit(action)


def test_train_flags_are_restored_module_by_module() -> None:
    def action(trainer: Any, module: Any) -> None:
        module.layers[1].eval()
        flags = [child.training for child in module.modules()]
        with training_guard(trainer, module):
            module.train()
            module.layers[2].eval()
        assert [child.training for child in module.modules()] == flags

    during_fit(action)


def test_modules_outside_the_tree_are_kept_with_weights_and_gradients() -> None:
    def action(trainer: Any, module: Any) -> None:
        teacher = module.teachers[0]
        before = [teacher.weight.detach().clone(), teacher.weight.grad]
        with training_guard(trainer, module):
            teacher(torch.ones(1, 3)).sum().backward()
            teacher.weight.data.mul_(2)
        assert torch.equal(teacher.weight, before[0])
        assert teacher.weight.grad is before[1]

    during_fit(action)


def test_loggers_are_silent_inside_and_back_outside(tmp_path: Any) -> None:
    logger = CSVLogger(str(tmp_path))

    def action(trainer: Any, module: Any) -> None:
        with training_guard(trainer, module):
            assert [type(each) for each in trainer.loggers] == [DummyLogger]
            module.logger.log_metrics({"leak": 1.0})
            module.logger.experiment.add_scalar("leak", 1.0)
            module.inner.log_dict({"leak": 1.0})
        assert trainer.loggers == [logger]
        assert "log" not in vars(module)
        assert "log_dict" not in vars(module.inner)

    trainer = during_fit(action, logger=logger)
    assert "leak" not in trainer.callback_metrics
    assert "leak" not in str(logger.experiment.metrics)


def test_an_optimizer_cannot_step_inside() -> None:
    def action(trainer: Any, module: Any) -> None:
        step = trainer.optimizers[0].step
        before = fingerprint(trainer, module)
        with pytest.raises(RuntimeError, match="give the callback a loss_fn"), training_guard(trainer, module):
            trainer.optimizers[0].step()
        assert difference(before, fingerprint(trainer, module)) == []
        assert trainer.optimizers[0].step == step

    during_fit(action)


class Drawing(Dataset[torch.Tensor]):
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self.large = np.zeros(2**20)
        self.small = np.zeros(4)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        self.large[0] += 1
        self.small[0] += 1
        return torch.rand(3, generator=self.generator)


def test_datasets_keep_generators_and_small_arrays_but_bulk_data_is_not_copied() -> None:
    dataset = Drawing()

    def action(trainer: Any, module: Any) -> None:
        state = dataset.generator.get_state()
        for given, held in (([dataset], None), ([], DataLoader(dataset))):
            module.data = held
            with training_guard(trainer, module, given):
                dataset[0]
            assert torch.equal(dataset.generator.get_state(), state)
            assert dataset.small[0] == 0
        assert dataset.large[0] == 2

    during_fit(action, steps=1)


def test_what_changed_is_named() -> None:
    def action(trainer: Any, module: Any) -> None:
        before = fingerprint(trainer, module)
        assert named_difference(before, fingerprint(trainer, module)) == []
        module.seen["losses"].append(1.0)
        module.calls = {"a": 0}
        changed = "attributes (module.seen.losses, module.calls, module.calls.a)"
        assert named_difference(before, fingerprint(trainer, module)) == [changed]
        module.calls |= dict.fromkeys("bcdef", 0)
        assert "module.calls.b and 4 more)" in named_difference(before, fingerprint(trainer, module))[0]
        del module.calls
        module.seen["losses"].pop()
        torch.rand(1)
        assert named_difference(before, fingerprint(trainer, module)) == ["random numbers (torch)"]

    during_fit(action, steps=1)


def test_fingerprint_sees_one_bit_and_draws_nothing() -> None:
    def action(trainer: Any, module: Any) -> None:
        before = fingerprint(trainer, module)
        assert fingerprint(trainer, module) == before
        weight = module.layers[0].weight.data
        bits = weight.view(torch.int32)
        bits[1, 2] ^= 1
        assert difference(before, fingerprint(trainer, module)) == ["parameters"]
        bits[1, 2] ^= 1
        trainer.optimizers[0].state[module.layers[0].weight]["exp_avg"].view(torch.int32)[0, 0] ^= 1
        assert difference(before, fingerprint(trainer, module)) == ["optimizers"]
        trainer.optimizers[0].state[module.layers[0].weight]["exp_avg"].view(torch.int32)[0, 0] ^= 1
        module.layers[0].eval()
        assert "train flags" in difference(before, fingerprint(trainer, module))
        module.layers[0].train()
        assert difference(before, fingerprint(trainer, module)) == []
        torch.rand(1)
        assert difference(before, fingerprint(trainer, module)) == ["random numbers (torch)"]

    during_fit(action)


def test_iterators_are_named_since_they_cannot_be_rewound() -> None:
    def action(trainer: Any, module: Any) -> None:
        assert iterators(trainer, module) == []
        module.streams = {"unlabelled": iter([1, 2]), "made": (i for i in range(3))}
        assert iterators(trainer, module) == ["module.streams.unlabelled", "module.streams.made"]

    during_fit(action, steps=1)
