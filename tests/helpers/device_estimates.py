"""Estimates on any device: of each sampler, and of what a device may compute in another way than a CPU."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

import bif_lightning as bl
import small_language as language
import small_models as models

SGLD = bl.SGLD(step_size=1e-3, inverse_temperature=20.0, localization=10.0)
RMSPROP = replace(SGLD, step_size=1e-4, preconditioner="rmsprop")
PAIRS = bl.Pairs(scale=0.05)
SUBSPACE = bl.Subspace(num_directions=4)
CONTROLLED = bl.ControlledSGLD(num_directions=4)
SKETCHED = bl.ControlledSGLD(num_directions=4, gradient_bytes=3_000)  # less than the gradients take
CHAINS = bl.Chains(num_chains=2, num_draws=8, thinning=2, batch_size=5)
CONTROLLED_CHAINS = bl.Chains(num_chains=2, num_draws=4, thinning=2, batch_size=8)
IN_PAIRS = bl.Chains(num_chains=2, num_draws=8)
LONG = bl.Chains(num_chains=4, num_draws=40, batch_size=5)
"""So long that a control without data is drawn, too."""

Result = tuple[bl.Estimate, np.ndarray | None]
"""An estimate without its tokens, and the influence between these."""


@dataclass(frozen=True)
class Case:
    """What is estimated.

    Attributes:
        options: of `estimate`.
        make: makes the module, on the CPU.
        loss: of each example.
        data: makes train and query examples, on the CPU.
        moves: whether the examples lie on the device, too.
    """

    options: Mapping[str, Any]
    make: Callable[[], nn.Module] = models.mlp
    loss: Callable[[nn.Module, Any], Any] = models.cross_entropy
    data: Callable[[], tuple[Any, Any]] = lambda: (models.data(), models.data(1, 4))
    moves: bool = False


class GradientFirst(torch.autograd.Function):
    """Half of a square that makes its gradient in the forward pass, as fused losses do: it has no second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.clone())
        return x.square() / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0]


def fused(module: nn.Module, batch: Any) -> Tensor:
    target = nn.functional.one_hot(batch[1], 3).float()
    return GradientFirst.apply(module(batch[0]).softmax(1) - target).sum(1)


def margin(module: nn.Module, batch: Any) -> Tensor:
    logits = module(batch[0])
    return logits.gather(1, batch[1][:, None])[:, 0] - logits.mean(1)


def cast(dtype: torch.dtype) -> Callable[[nn.Module, Any], Tensor]:
    """Cross entropy of a module of this dtype."""

    def loss(module: nn.Module, batch: Any) -> Tensor:
        logits = module(batch[0].to(dtype))
        wide = logits if dtype == torch.float64 else logits.float()
        return nn.functional.cross_entropy(wide, batch[1], reduction="none")

    return loss


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.GELU(), nn.Flatten(), nn.Linear(16, 3)
    )


def sequences() -> tuple[Any, Any]:
    return language.sequences(9), language.sequences(4, 1)


TOKENS: dict[str, Any] = {"per_token": True, "collate_fn": language.padded, "eval_batch_size": 5}
GROUPS = [0, 1, 1, 0]
OBSERVABLES = [
    bl.PerExample("margin", margin),
    bl.GroupMean("loss_by_group", groups=GROUPS),
    bl.GroupMean("margin_by_group", groups=GROUPS, function=margin),
]
ACCURACY = bl.MetricValue("accuracy", MulticlassAccuracy(3), lambda module, batch: (module(batch[0]), batch[1]))
BY_SGLD: dict[str, Any] = {"sampler": SGLD, "chains": CHAINS}
BY_SUBSPACE: dict[str, Any] = {"sampler": SUBSPACE}

SAMPLERS: dict[str, Case] = {
    "SGLD": Case(BY_SGLD),
    "SGLD with RMSprop": Case({"sampler": RMSPROP, "chains": CHAINS}),
    "Pairs": Case({"sampler": PAIRS, "chains": IN_PAIRS}),
    "Subspace": Case(BY_SUBSPACE),
    "controlled": Case({"sampler": CONTROLLED, "chains": CONTROLLED_CHAINS}),
    "auto": Case({"sampler": "auto", "chains": CHAINS}),
}
CASES: dict[str, Case] = SAMPLERS | {
    "the default": Case({}),
    "SGLD by minibatches": Case({"sampler": replace(SGLD, gradient="minibatch"), "chains": CHAINS}),
    "SGLD in directions": Case({"sampler": replace(SGLD, num_directions=4), "chains": CHAINS}),
    "SGLD, moments": Case({"sampler": SGLD, "chains": replace(CHAINS, storage="moments")}),
    "SGLD, traces and a control": Case({"sampler": SGLD, "chains": LONG, "store_traces": True}),
    "Subspace, Euclidean": Case({"sampler": replace(SUBSPACE, metric="euclidean")}),
    "Subspace, a fused loss": Case(BY_SUBSPACE, loss=fused),
    "controlled, sketched": Case({"sampler": SKETCHED, "chains": CONTROLLED_CHAINS, "observables": OBSERVABLES}),
    "controlled convolutions, sketched": Case({"sampler": SKETCHED, "chains": CONTROLLED_CHAINS}, convolutional),
    "some parameters": Case(BY_SGLD | {"params": ["2.*"]}),
    "labels": Case(BY_SGLD | {"train_labels": [0, 1] * 6, "query_labels": GROUPS}),
    "observables": Case(BY_SGLD | {"observables": OBSERVABLES}),
    "observables in closed form": Case(BY_SUBSPACE | {"observables": OBSERVABLES}),
    "a metric": Case(BY_SGLD | {"observables": [ACCURACY]}),
    "tokens": Case(BY_SGLD | TOKENS, language.language, bl.causal_lm_loss, sequences),
    "tokens in closed form": Case(BY_SUBSPACE | TOKENS, language.language, bl.causal_lm_loss, sequences),
    "convolutions": Case(BY_SUBSPACE, convolutional),
    "attention": Case(BY_SGLD, models.Attention),
    "random in evaluation": Case(BY_SGLD, models.RandomInEvaluation),
    "bfloat16": Case(BY_SGLD, lambda: models.mlp().bfloat16(), cast(torch.bfloat16)),
    "float64": Case(BY_SGLD, lambda: models.mlp().double(), cast(torch.float64)),
    "data on the device": Case(BY_SGLD, moves=True),
}


def inputs(name: str, device: str) -> dict[str, Any]:
    """The arguments of `estimate`, with the module on a device."""
    case = CASES[name]
    train, query = ([tuple(part.to(device) for part in each) for each in side] if case.moves else side
                    for side in case.data())  # fmt: skip
    module = models.seeded(case.make).to(device)
    return {"model": module, "loss_fn": case.loss, "train": train, "query": query, **case.options}


def estimated(name: str, device: str) -> Result:
    return without_tokens(bl.estimate(**inputs(name, device)))


def without_tokens(found: bl.Estimate) -> Result:
    tokens = None if found.tokens is None else np.asarray(found.tokens.influence().value)
    return replace(found, tokens=None), tokens
