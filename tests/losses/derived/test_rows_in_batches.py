"""Losses that hold for usual examples only: rare lengths and masks, and queries, are checked before the first chain."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import formulations as ways
from bif_lightning.losses.derived.derive import check_rows, derive_loss
from formulations import Lit, Way, loader, matrices

pytestmark = [pytest.mark.trainer, pytest.mark.exact]

ALIKE, UNLIKE = [0, 7, 14, 21], range(1, 6)
"""Sequences of one length, and of others that are in no order."""

RARE = 17
"""Of forty examples, one that is not among eight evenly spread ones."""


def longest_first(items: Sequence[Any]) -> list[Tensor]:
    """As packed sequences had to be."""
    return ways.padded(sorted(items, key=lambda item: -len(item[0])))


def sorting(**options: Any) -> Way:
    return ways.sequences(collate=longest_first, train=ALIKE, query=UNLIKE, options=options)


def test_a_collate_function_that_sorts_queries_is_refused_and_the_remedy_works() -> None:
    with pytest.raises(ValueError, match=r"but not for the query examples: example .*collate_fn that keeps the ord"):
        matrices(sorting(), ["SGLD"])
    with pytest.raises(ValueError, match=r"of the query examples, loss_fn is not the loss of each.*in the order of"):
        matrices(sorting(loss_fn=ways.token_means), ["SGLD"])
    right = matrices(ways.sequences(train=ALIKE, query=UNLIKE), ["SGLD"])["SGLD"]
    found = matrices(sorting(collate_fn=ways.padded), ["SGLD"])["SGLD"]
    assert np.abs(found - right).max() < 1e-6 * np.abs(right).max()


def test_a_single_query_needs_no_order() -> None:
    way = ways.sequences(collate=longest_first, train=ALIKE, query=[3])
    assert matrices(way, ["SGLD"])["SGLD"].shape == (4, 1)


def masked(rare: int | None) -> list[Any]:
    """Forty examples with six targets each, of which one may lack the last."""
    generator = torch.Generator().manual_seed(0)
    items = [
        {"x": torch.randn(4, generator=generator).double(), "y": torch.randn(6, generator=generator).double()}
        for _ in range(40)
    ]
    return [item | {"mask": torch.arange(6) < (5 if row == rare else 6)} for row, item in enumerate(items)]


class Masked(Lit):
    """Leaves out by indices: elements are no more in rows."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self.net(batch["x"])[batch["mask"]], batch["y"][batch["mask"]])


def test_elements_that_are_left_out_by_indices() -> None:
    way = Way(module=partial(Masked, net=partial(ways.mlp, outputs=6)), data=loader(masked(None)), train=range(40))
    assert matrices(way, ["SGLD"])["SGLD"].shape == (40, 5)
    rare = Way(module=way.module, data=loader(masked(RARE)), train=range(40))
    with pytest.raises(ValueError, match="means over all tokens"):
        matrices(rare, ["SGLD"])


def pooled() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 4), nn.Tanh(), Pool(), nn.Linear(4, 3))


class Pool(nn.Module):
    """Its mean counts padding too."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def in_classes(items: Sequence[Any]) -> list[Tensor]:
    x, _ = ways.padded(items)
    return [x, torch.tensor([len(each) % 3 for each, _ in items])]


@pytest.mark.parametrize("given", [{}, {"loss_fn": ways.per_example}], ids=["training_step", "loss_fn"])
def test_padding_that_the_network_sees(given: Any) -> None:
    data = [ways.SEQUENCES[3 if row == RARE else 1] for row in range(40)]
    data = [((x + row) % 7, y) for row, (x, y) in enumerate(data)]
    way = Way(module=partial(Lit, net=pooled), data=loader(data, collate_fn=in_classes), train=range(40), options=given)
    with pytest.raises(ValueError, match=rf"example {RARE}|couples the examples"):
        matrices(way, ["SGLD"])


def test_small_losses_of_further_examples_are_no_difference() -> None:
    """Of memorized examples only rounding is left."""
    module = nn.Linear(5, 5, bias=False)
    module.weight.data = 16 * torch.eye(5)
    batch_of = lambda rows: (torch.eye(5)[list(rows)], torch.tensor(list(rows)))  # noqa: E731
    step = lambda m, batch: F.cross_entropy(m(batch[0]), batch[1])  # noqa: E731
    check_rows(derive_loss(step, module, batch_of, [0, 1, 2]), module, batch_of, [3, 4, 1], "query")
