"""Releases of pytorch_lightning whose Trainer takes only callbacks of their own class."""

import sys
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest

from bif_lightning import BIFCallback
from bif_lightning.trainer.packages import served_by_both


class Other:
    """The Callback of another package: as that of lightning, but not a class of its family."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        raise AssertionError("the callback's own comes first")


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a release."""
    return lambda number: monkeypatch.setitem(
        sys.modules, "pytorch_lightning", SimpleNamespace(Callback=Other, __version__=number)
    )


@pytest.mark.parametrize("number", ["2.5.6", "2.0.9.post0", "1.9.5", "2.5.0rc1"])
def test_an_earlier_release_takes_it_as_its_own(release: Any, number: str) -> None:
    release(number)
    made = BIFCallback(train=range(3))
    assert isinstance(made, Other)
    assert isinstance(made, pl.Callback)
    assert type(made).setup is BIFCallback.setup
    assert (type(made).__name__, type(made).__module__) == ("BIFCallback", "bif_lightning.callback")
    again = BIFCallback(train=range(3))
    assert again.state_key == made.state_key == BIFCallback(train=range(3)).state_key


@pytest.mark.parametrize("number", ["2.6.0", "2.10.1", "3.0"])
def test_a_later_one_takes_any(release: Any, number: str) -> None:
    release(number)
    assert type(BIFCallback(train=range(3))) is BIFCallback


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pytorch_lightning", raising=False)
    assert served_by_both(BIFCallback) is BIFCallback


def test_the_class_that_people_write_by_hand_stays(release: Any) -> None:
    release("2.5.6")

    class Both(BIFCallback, Other):
        pass

    assert type(Both(train=range(3))) is Both
