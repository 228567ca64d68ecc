"""Attributes that methods of a module set, read from their source."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from bif_lightning.offline.hook_state import TRAINING_HOOKS, attributes_set, other_value

pytestmark = pytest.mark.exact


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.level = 0

    def raise_by(self, much: int) -> None:
        self.level += much


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.part, self.table, self.pair = Part(), [0, 0], None

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.calls = batch_idx

    def on_before_zero_grad(this, optimizer: Any) -> None:  # noqa: N805
        this.named_otherwise: int = 1

    def on_after_backward(self) -> None:
        self.part.raise_by(1)
        self.log("x", 1)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.table[0] += 1
        self.pair, other = 1, 2
        setattr(self, "given", other)  # noqa: B010
        batch.size = 3

    def on_train_epoch_end(self) -> None:
        self.again()

    def again(self) -> None:
        self.rounds = 1
        self.again()

    @property
    def costly(self) -> Any:
        raise RuntimeError("a property is called")

    def on_validation_start(self) -> None:
        self.costly.part.raise_by(1)

    def on_validation_end(self) -> None:
        self.absent.method()
        self.part.level = 3

    def unrelated(self) -> None:
        self.nothing = 1


def test_statements_of_every_form_and_methods_of_parts() -> None:
    assert attributes_set(Module(), TRAINING_HOOKS) == {
        "calls": "training_step",
        "named_otherwise": "on_before_zero_grad",
        "part.level": "on_after_backward",
        "table": "on_train_batch_end",
        "pair": "on_train_batch_end",
        "given": "on_train_batch_end",
        "rounds": "on_train_epoch_end",
    }


def test_methods_of_lightning_set_nothing() -> None:
    assert attributes_set(L.LightningModule(), [*TRAINING_HOOKS, "on_load_checkpoint"]) == {}


def test_methods_without_source_set_nothing() -> None:
    names: dict[str, Any] = {}
    exec("def on_train_batch_end(self, *_): self.kept = 1", names)
    kind = type("Made", (L.LightningModule,), {"on_train_batch_end": names["on_train_batch_end"], "on_train_end": len})
    assert attributes_set(kind(), TRAINING_HOOKS) == {}


VALUES: list[Any] = [0, 3, 0.0, 1.5, True, None, torch.zeros(2), torch.tensor(3), torch.tensor([True, False])]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_another_value_and_back(value: Any) -> None:
    def same(found: Any) -> bool:
        return bool((found == value).all()) if isinstance(value, torch.Tensor) else found == value

    module = Module()
    module.part.level = value
    with other_value(module, "part.level"):
        assert not same(module.part.level)
        assert type(module.part.level) is type(value) or value is None
    assert module.part.level is value


def test_what_a_property_gives_is_left_alone() -> None:
    with pytest.raises(AttributeError, match="Module holds no costly"), other_value(Module(), "costly.level"):
        pass


def test_an_attribute_that_is_not_there_yet() -> None:
    module = Module()
    with other_value(module, "kept"):
        assert module.kept == 1.5
    assert not hasattr(module, "kept")


def test_what_has_no_other_value() -> None:
    with pytest.raises(TypeError, match="list has no other value"), other_value(Module(), "table"):
        pass
