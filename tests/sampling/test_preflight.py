"""What cannot be estimated is refused before the first step, with what to change."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import bif_lightning as bl
import small_models as models
from bif_lightning.config import SGLD, Chains
from bif_lightning.estimation.estimate import estimate
from bif_lightning.losses.observables import GroupMean, MetricValue, PerExample
from small_models import cross_entropy

pytestmark = pytest.mark.exact

SAMPLER = SGLD(step_size=1e-3, inverse_temperature=20.0, localization=10.0)
CHAINS = Chains(num_chains=2, num_draws=3, batch_size=5)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(models.data())


def run(module: nn.Module | None = None, loss: Callable = cross_entropy, train: object = None, **more: object) -> None:
    module = models.seeded(models.mlp) if module is None else module
    train = models.data() if train is None else train
    estimate(module, loss, train, **{"sampler": SAMPLER, "chains": CHAINS, **more})


def bad_rows(value: float) -> TensorDataset:
    x, y = (torch.stack(part) for part in zip(*models.data(), strict=True))
    x[3], x[7] = value, value
    return TensorDataset(x, y)


def bad_row() -> TensorDataset:
    """A row that no check of a few examples reads has no finite loss."""
    x, y = (torch.stack(part).repeat_interleave(10, 0) for part in zip(*models.data(), strict=True))
    x[2] = torch.nan
    return TensorDataset(x, y)


def doubled() -> TensorDataset:
    x, y = (torch.stack(part) for part in zip(*models.data(), strict=True))
    return TensorDataset(x.double(), y)


def coupled_queries(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Losses of examples in float64 depend on each other."""
    x, y = batch
    losses = cross_entropy(module, (x.float(), y))
    return losses if x.dtype == torch.float32 else losses.sort().values


def complex_valued() -> nn.Module:
    module = models.seeded(models.mlp)
    module[0].weight = nn.Parameter(module[0].weight.to(torch.complex64))
    return module


def frozen() -> nn.Module:
    return models.seeded(models.mlp).requires_grad_(False)


@pytest.mark.parametrize(
    ("error", "words", "more"),
    [
        (ValueError, "train is empty", {"train": []}),
        (ValueError, "query is empty", {"query": []}),
        (ValueError, "training_data is empty", {"training_data": []}),
        (TypeError, "train is a Stream, which has no length", {"train": Stream()}),
        (TypeError, "query is a generator", {"query": (x for x in models.data())}),
        (ValueError, r"^loss_fn returned a loss that is not finite for the examples \[3, 7\]",
         {"train": bad_rows(np.nan)}),
        (ValueError, r"of the query examples, .* not finite for the examples \[3, 7\]", {"query": bad_rows(np.nan)}),
        (ValueError, r"train losses: 1 of 120 are not finite.*positions \[2\] \(nan\)", {"train": bad_row()}),
        (ValueError, r"query losses and observables: 1 of 120 .*\[2\]", {"query": bad_row()}),
        (ValueError, r'returned one number for a batch of 8 examples.*reduction="none"',
         {"loss": lambda m, b: cross_entropy(m, b).mean()}),
        (ValueError, r"returned shape \(7,\) for a batch of 8", {"loss": lambda m, b: cross_entropy(m, b)[1:]}),
        (ValueError, "returned float; return a tensor", {"loss": lambda m, b: 1.0}),
        (ValueError, r"returned shape \(8, 3, 1\)", {"loss": lambda m, b: m(b[0])[..., None]}),
        (ValueError, "returned torch.int64; return a loss in floating point", {"loss": lambda m, b: m(b[0]).argmax(1)}),
        (ValueError, "not the loss of each example: .*depends? on the others",
         {"loss": lambda m, b: cross_entropy(m, b) - cross_entropy(m, b).mean()}),
        (ValueError, "of the query examples, .*not the loss of each example",
         {"loss": coupled_queries, "query": doubled()}),
        (ValueError, r"pattern 'body\.\*' matches no parameter; trainable names are 0\.weight", {"params": ["body.*"]}),
        (ValueError, r"pattern 'head' matches no parameter", {"params": ["*.weight", "head"]}),
        (ValueError, "no parameter of the module requires a gradient", {"module": frozen()}),
        (ValueError, r"parameter 0.weight is torch.complex64.*params=\['0.bias', '2.weight', '2.bias'\]",
         {"module": complex_valued()}),
        (ValueError, "no gradient to any weight", {"loss": lambda m, b: b[0].sum(1) + 0 * m(b[0])[:, 0]}),
        (ValueError, "does not depend on the sampled weights",
         {"params": "2.*", "loss": lambda m, b: m[0](b[0])[:, 0]}),
        (ValueError, "store_traces=True .*storage='moments'",
         {"store_traces": True, "chains": Chains(num_chains=2, num_draws=3, storage="moments")}),
        (ValueError, "train_labels has shape", {"train_labels": [0, 1], "query_labels": [0] * 12}),
        (ValueError, "query_labels has .*float64", {"train_labels": [0] * 12, "query_labels": np.zeros(12)}),
        (ValueError, "observable 'group': 2 groups for 12 query examples", {"observables": [GroupMean("group", "ab")]}),
        (ValueError, r"gap: shape \[12, 3, 1\]", {"observables": [PerExample("gap", lambda m, b: m(b[0])[..., None])]}),
        (ValueError, "observable 'each': MulticlassAccuracy computes .*not one number",
         {"observables": [MetricValue("each", MulticlassAccuracy(3, average=None), lambda m, b: (m(b[0]), b[1]))]}),
    ],
)  # fmt: skip
def test_refused(error: type[Exception], words: str, more: dict[str, object]) -> None:
    with pytest.raises(error, match=words):
        run(**more)


def test_frozen_parameters_that_a_pattern_names_are_pointed_out() -> None:
    module = models.seeded(models.mlp)
    module[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"'0\.\*' matches only frozen parameters \(0\.weight"):
        run(module, params="0.*")


def test_a_gradient_that_is_not_that_of_the_loss_is_refused() -> None:
    """A straight-through estimator: its gradient says 1 where the loss is a staircase."""

    def rounded(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        exact = module(batch[0]).square().sum(1)
        return exact * 2.0 - exact.detach()

    with pytest.raises(ValueError, match=r"gradient of the loss has length .* changes by .* straight-through"):
        run(models.seeded(models.mlp), loss=rounded)
    run(models.seeded(models.mlp), loss=rounded, check_gradient=False)


def test_a_stopped_gradient_that_is_orthogonal_to_the_rest_is_refused() -> None:
    """As in self-supervised learning: along the gradient itself the loss changes as it says."""
    torch.manual_seed(0)
    encoder, predictor = nn.Linear(6, 4), nn.Linear(4, 4)
    module = nn.ModuleDict({"encoder": encoder, "predictor": predictor})

    def alike(module: Any, batch: Any, stop: bool = True) -> torch.Tensor:
        first, second = module.encoder(batch[0]), module.encoder(batch[0] + 0.1)
        held = second.detach() if stop else second
        return -nn.functional.cosine_similarity(module.predictor(first), held)

    with pytest.raises(ValueError, match=r"along random directions .* differ by .*\.detach\(\) inside the loss"):
        run(module, loss=alike)
    run(module, loss=alike, check_gradient=False)
    run(module, loss=partial(alike, stop=False))


class AtMinimum(nn.Module):
    """Stands at the minimum of every example's loss, where a loss of 100 rounds to 1e-5 and its gradient is 1e-6."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6))

    def losses(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 100 - (batch[0] @ self.weight).cos()


def test_a_model_at_a_minimum_is_taken() -> None:
    """Differences of the loss are its rounding there, and say nothing of the gradient."""
    run(AtMinimum(), loss=lambda module, batch: module.losses(batch))
    exact = [(x, x[0]) for x, _ in models.data()]
    line = nn.Linear(6, 1, bias=False)
    line.weight.data = torch.eye(6)[:1]  # fits every example
    run(line, loss=lambda module, batch: (module(batch[0])[:, 0] - batch[1]).square(), train=exact)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lower step_size to 0\.1 or less"):
        SGLD(step_size=0.4, inverse_temperature=1.0, localization=10.0)
    SGLD(step_size=0.39, inverse_temperature=1.0, localization=10.0)
    SGLD(step_size=0.4, inverse_temperature=1.0, localization=10.0, preconditioner="rmsprop")
    with pytest.raises(ValueError, match="no degree of freedom"):
        Chains(num_chains=8, num_draws=1)
    with pytest.raises(ValueError, match="no degree of freedom"):
        Chains(num_chains=1, num_draws=1, centring="pooled")
    Chains(num_chains=2, num_draws=1, centring="pooled")


@pytest.mark.parametrize("sampler", ["sgld", SGLD, 3])
def test_what_is_no_sampler_is_refused(sampler: object) -> None:
    with pytest.raises(ValueError, match="it must be 'auto', None, or settings such as"):
        estimate(models.seeded(models.mlp), models.cross_entropy, models.data(), sampler=sampler)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="it must be 'auto', None, or settings such as"):
        bl.BIFCallback(train=[0, 1], sampler=sampler)  # type: ignore[arg-type]
