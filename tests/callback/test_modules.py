"""Each kind of module trains bitwise as without the callback, and its influence is that of a plain copy."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zoo
from matrix_run import Case, Classifier, check, losses, steps

pytestmark = [pytest.mark.trainer, pytest.mark.bitwise]


def body(make: Callable[[], nn.Module], **case: Any) -> Case:
    """A classifier with the body that `make` makes."""
    return Case(build=lambda: Classifier(make()), **case)


def compiled(backend: str) -> Any:
    """The whole LightningModule compiled, as a user hands it to `fit`."""
    return torch.compile(zoo.Silent(zoo.mlp(nn.BatchNorm1d(8))), backend=backend)


def with_compiled_part(backend: str) -> Classifier:
    module = Classifier(zoo.mlp())
    module.body = torch.compile(module.body, backend=backend)
    return module


def with_part_compiled_in_place(backend: str) -> Classifier:
    module = Classifier(zoo.mlp())
    module.body.compile(backend=backend)
    return module


def count_of_hooks(trainer: Any, module: Any) -> list[str]:
    calls = list(zoo.GRADIENT_CALLS)
    zoo.GRADIENT_CALLS.clear()
    return calls


plain_body = lambda: Classifier(zoo.mlp(nn.BatchNorm1d(8)))  # noqa: E731

MODULES = {
    "plain": Case(),
    "loss given": Case(loss_fn=losses),
    "tied weights": body(zoo.Tied),
    "LSTM": body(lambda: zoo.Recurrent(nn.LSTM)),
    "GRU": body(lambda: zoo.Recurrent(nn.GRU)),
    "attention": body(zoo.Attention),
    "transformer layer": body(zoo.Encoder),
    "dropout": body(lambda: zoo.mlp(nn.Dropout(0.3))),
    "BatchNorm": body(lambda: zoo.mlp(nn.BatchNorm1d(8))),
    "LayerNorm and GroupNorm": body(lambda: zoo.mlp(nn.LayerNorm(8), nn.GroupNorm(2, 8))),
    "weight_norm, hook": body(zoo.weight_norm_of_old),
    "weight_norm": body(zoo.weight_norm),
    "spectral_norm": body(zoo.spectral_norm),
    "TorchScript part": body(zoo.scripted),
    "buffers replaced": body(zoo.Replacing, losses=None),
    "checkpointed": body(lambda: zoo.Checkpointed(False), plain=lambda: Classifier(zoo.Checkpointed(None))),
    "checkpointed, reentrant": body(lambda: zoo.Checkpointed(True), plain=lambda: Classifier(zoo.Checkpointed(None))),
    "compiled": Case(build=lambda: compiled("aot_eager"), plain=plain_body),
    "compiled part": Case(build=lambda: with_compiled_part("aot_eager"), losses=None),
    "part compiled in place": Case(build=lambda: with_part_compiled_in_place("aot_eager"), plain=Classifier),
    "optimization by hand": Case(build=zoo.Manual, loss_fn=losses, snapshot=4),
    "metrics": Case(build=zoo.Measured),
    "lists that grow": Case(build=zoo.Growing),
    "frozen part": Case(build=zoo.Frozen),
    "gradient hooks": Case(build=zoo.Watched, extra=count_of_hooks),
    "hooks on batches": Case(build=zoo.Prepared, losses=None),
}
# The sampler that is taken where none is given, on what second derivatives and gradients of single examples meet.
CLOSED = {"sampler": None, "chains": None}
MODULES |= {
    f"closed form, {name}": replace(MODULES[name], losses=None, bif=CLOSED)
    for name in (
        "plain",
        "tied weights",
        "dropout",
        "BatchNorm",
        "attention",
        "checkpointed",
        "compiled",
        "hooks on batches",
    )
}


SLOW = {"GRU", "LayerNorm and GroupNorm", "weight_norm, hook", "checkpointed, reentrant", "TorchScript part"}
SLOW |= {"compiled part", "attention", "loss given", "BatchNorm", "transformer layer", "weight_norm", "spectral_norm"}
SLOW |= {"buffers replaced", "part compiled in place", "lists that grow", "frozen part", "gradient hooks"}
SLOW |= {f"closed form, {name}" for name in ("tied weights", "BatchNorm", "compiled", "hooks on batches")}
"""Each has a near relative that always runs."""

NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MODULES]


@pytest.mark.parametrize("name", NAMES)
def test_module(tmp_path: Path, name: str) -> None:
    check(MODULES[name], tmp_path)
    assert steps(tmp_path) == ([4, 6, 10, 12] if name == "optimization by hand" else [3, 6])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="inductor needs a C compiler, and there is none")
def test_module_compiled_by_inductor(tmp_path: Path) -> None:
    check(Case(build=lambda: compiled("inductor"), plain=plain_body), tmp_path)
