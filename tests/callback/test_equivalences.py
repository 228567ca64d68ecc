"""Two formulations of one problem have one matrix: a table, estimated as the callback does at the start of a fit.

Each row has two ways to write the same module, loss and data, how the entries correspond, and the largest difference in
units of the largest entry: 0 where the arithmetic is the same, else what rounding in float64 explains.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

import formulations as ways
from formulations import DATA, ITEMS, QUERY, SETS, TRAIN, Lit, Way, X, Y, in_form, labelled, loader, matrices, mlp

pytestmark = [pytest.mark.trainer, pytest.mark.exact]

PLAIN = Way()
BOTH, FULL, EUCLIDEAN = ("closed form", "SGLD"), ("closed form", "SGLD, full batch"), ("closed form, euclidean",)
CHAINS_ALONE, FULL_CHAINS_ALONE = ("SGLD",), ("SGLD, full batch",)
CONTROLLED = ("controlled, full batch",)
ROUNDING = 1e-6
"""The matrices are float32."""


@dataclass(frozen=True)
class Equivalence:
    """Two formulations of one problem.

    Attributes:
        one, other: the formulations.
        tolerance: largest difference in units of the largest entry; 0 for bitwise.
        samplers: those whose matrices are compared.
        rows, columns: places in the second matrix of the rows and columns of the first.
    """

    one: Way
    other: Way
    tolerance: float = 0.0
    samplers: Sequence[str] = BOTH
    rows: Sequence[int] | None = None
    columns: Sequence[int] | None = None


def of_step(step: Callable[..., Any]) -> Equivalence:
    return Equivalence(PLAIN, Way(module=ways.with_step(step)))


def of_loss(loss: Any, tolerance: float = ROUNDING, samplers: Sequence[str] = BOTH) -> Equivalence:
    return Equivalence(PLAIN, Way(module=partial(Lit, loss)), tolerance, samplers)


def of_data(make: Callable[[], Any], **more: Any) -> Equivalence:
    return Equivalence(PLAIN, Way(data=make, **more))


EVALUATION = {
    "losses are measured five at a time": Equivalence(PLAIN, Way(options={"eval_batch_size": 5}), ROUNDING),
    "losses are measured one by one": Equivalence(PLAIN, Way(options={"eval_batch_size": 1}), ROUNDING),
    "train examples in another order": Equivalence(
        PLAIN, Way(train=ways.ROWS), ROUNDING, rows=np.argsort(ways.ROWS).tolist()
    ),
    "queries in another order": Equivalence(
        PLAIN, Way(query=[QUERY[j] for j in ways.COLUMNS]), ROUNDING, columns=np.argsort(ways.COLUMNS).tolist()
    ),
    "training data in another order": Equivalence(
        Way(**SETS), Way(data=loader(Subset(DATA, ways.ORDER)), **SETS), ROUNDING, FULL
    ),
    "a train example that is there twice": Equivalence(
        Way(**SETS), Way(train=Subset(DATA, [*TRAIN, 3]), query=SETS["query"]), ROUNDING, CHAINS_ALONE, rows=TRAIN
    ),
    "the second of two that are the same": Equivalence(
        Way(train=Subset(DATA, [0, 1, 2, 3]), query=SETS["query"]),
        Way(train=Subset(DATA, [0, 3, 1, 2, 3]), query=SETS["query"]),
        ROUNDING, CHAINS_ALONE, rows=[0, 2, 3, 4],
    ),
    "queries that are the train examples": Equivalence(
        Way(query=None), Way(query=TRAIN), ROUNDING
    ),
}  # fmt: skip

LABELS = {
    "labels of uint8": Equivalence(labelled(ways.MANY), labelled(ways.MANY.to(torch.uint8))),
    "labels of uint8 with class weights": Equivalence(
        labelled(ways.MANY, partial(F.cross_entropy, weight=ways.MANY_WEIGHTS)),
        labelled(ways.MANY.to(torch.uint8), partial(F.cross_entropy, weight=ways.MANY_WEIGHTS)),
    ),
    "labels of uint8, an ignored class": Equivalence(
        labelled(ways.MANY, partial(F.cross_entropy, ignore_index=78)),
        labelled(ways.MANY.to(torch.uint8), partial(F.cross_entropy, ignore_index=78)),
    ),
    "labels of int32 that the step converts": Equivalence(
        labelled(ways.MANY), labelled(ways.MANY.int(), lambda o, y: F.cross_entropy(o, y.long()))
    ),
    "labels as chances of classes": Equivalence(
        PLAIN, Way(data=loader(TensorDataset(X, F.one_hot(Y).double()))), ROUNDING
    ),
    "labels as numbers of Python": of_data(loader([(x, int(y)) for x, y in ITEMS])),
}

PADDING = {
    "sequences in another order, where each counts by its tokens": Equivalence(
        ways.sequences(**ways.OF_SEQUENCES), ways.sequences(order=ways.ORDER, **ways.OF_SEQUENCES),
        ROUNDING, ("SGLD, full batch", "closed form"),
    ),
    "more padding": Equivalence(ways.sequences(), ways.sequences(collate=partial(ways.padded, length=9)), ROUNDING),
    "no padding where losses are measured": Equivalence(
        ways.sequences(), ways.sequences(options={"eval_batch_size": 1}), ROUNDING
    ),
    "a mask by hand": Equivalence(ways.sequences(), ways.sequences(ways.masked_by_hand), ROUNDING),
    "losses of tokens": Equivalence(
        ways.sequences(ways.token_sums), ways.sequences(options={"loss_fn": ways.by_token}), ROUNDING
    ),
    "losses of tokens with a mask": Equivalence(
        ways.sequences(ways.token_sums), ways.sequences(options={"loss_fn": ways.with_mask}), ROUNDING
    ),
    "means over the tokens of each sequence": Equivalence(
        ways.sequences(ways.mean_of_means), ways.sequences(options={"loss_fn": ways.token_means}), ROUNDING
    ),
}  # fmt: skip

LOSSES = {
    "sum": of_loss(partial(F.cross_entropy, reduction="sum")),
    "sum by the length of the batch": of_loss(lambda o, y: F.cross_entropy(o, y, reduction="sum") / len(y)),
    "a mask of examples, and labels that are ignored": Equivalence(
        Way(data=loader(ways.IGNORED)),
        Way(module=partial(Lit, ways.masked, unpack=ways.with_weight), data=loader(ways.MASKED)), ROUNDING, FULL,
    ),
    "mean by hand": of_loss(lambda o, y: F.cross_entropy(o, y, reduction="none").mean()),
    "a weight decay": Equivalence(Way(module=ways.Decaying), Way(options={"loss_fn": ways.decayed}), ROUNDING),
    "focal": Equivalence(
        Way(module=partial(Lit, ways.focal)), Way(options={"loss_fn": ways.focal_per_example}), ROUNDING
    ),
    "a module as loss": of_loss(nn.CrossEntropyLoss(), 0.0),
    "log_softmax and nll_loss": of_loss(lambda o, y: F.nll_loss(o.log_softmax(1), y)),
    "formula, vmapped": of_loss(ways.by_hand),
    "formula, one by one": of_loss(ways.one_at_a_time),
    "a loop over examples": of_loss(ways.looped),
    "two halves": of_loss(lambda o, y: 0.4 * F.cross_entropy(o, y) + 0.6 * F.nll_loss(o.log_softmax(1), y)),
    "two terms and a loss_fn": Equivalence(
        Way(module=partial(Lit, ways.two_terms)), Way(options={"loss_fn": ways.two_terms_per_example}), ROUNDING
    ),
    "loss_fn": Equivalence(PLAIN, Way(options={"loss_fn": ways.per_example}), ROUNDING),
    "weights of classes, and examples that are there so many times": Equivalence(
        Way(module=partial(Lit, partial(F.cross_entropy, weight=ways.CLASS_WEIGHTS)), **SETS),
        Way(data=loader(Subset(DATA, ways.REPEATED)), **SETS), ROUNDING, ("SGLD, full batch", *EUCLIDEAN),
    ),
    "weights of classes, and the same by hand": Equivalence(
        Way(module=partial(Lit, partial(F.cross_entropy, weight=ways.CLASS_WEIGHTS))),
        Way(module=partial(Lit, ways.weighted_by_hand)), ROUNDING,
    ),
    "weights of classes, training data in another order": Equivalence(
        Way(module=partial(Lit, partial(F.cross_entropy, weight=ways.CLASS_WEIGHTS)), **SETS),
        Way(
            module=partial(Lit, partial(F.cross_entropy, weight=ways.CLASS_WEIGHTS)),
            data=loader(Subset(DATA, ways.ORDER)), **SETS,
        ), ROUNDING, ("SGLD, full batch", "closed form"),
    ),
    "weights of examples, and examples that are there so many times": Equivalence(
        Way(
            module=partial(Lit, ways.weighted_squares, ways.one_output, ways.with_weight),
            data=loader(ways.WEIGHTED), **ways.OF_WEIGHTED,
        ),
        Way(module=partial(Lit, ways.squares, net=ways.one_output), data=loader(ways.COPIES), **ways.OF_COPIES),
        ROUNDING, ("SGLD, full batch", *EUCLIDEAN, *CONTROLLED),
    ),
    "weights of classes that are all the same": of_loss(
        partial(F.cross_entropy, weight=2 * torch.ones(3, dtype=torch.float64))
    ),
}  # fmt: skip

RETURNED = {
    "in a dictionary": of_loss(lambda o, y: {"loss": F.cross_entropy(o, y)}, 0.0),
    "in a dictionary with others": of_loss(lambda o, y: {"logits": o, "loss": F.cross_entropy(o, y), "n": len(y)}, 0.0),
    "in a vector of one": of_loss(lambda o, y: F.cross_entropy(o, y).reshape(1), 0.0),
    "a step without the number of the batch": of_step(ways.without_index),
    "a step of any arguments": of_step(ways.any_arguments),
    "a step that logs": of_step(ways.logging),
    "manual optimization, with a loss_fn": Equivalence(
        PLAIN, Way(module=ways.Manual, options={"loss_fn": ways.per_example}), ROUNDING
    ),
    "the step of a part": Equivalence(PLAIN, Way(module=ways.Nested)),
}


def in_keys(module: Any = Lit, **more: Any) -> Way:
    """Batches that are dictionaries."""
    collate = lambda items: dict(zip("xy", default_collate(items), strict=True))  # noqa: E731
    return Way(module=module, data=loader(DATA, collate_fn=collate), **more)


BATCHES = {
    "tuple": Equivalence(PLAIN, in_form(lambda x, y: (x, y), tuple)),
    "dictionary": Equivalence(PLAIN, in_form(lambda x, y: {"x": x, "y": y}, ways.keyed)),
    "dictionary in a dictionary": Equivalence(
        PLAIN, in_form(lambda x, y: {"in": {"x": x}, "y": y}, lambda b: (b["in"]["x"], b["y"]))
    ),
    "namedtuple": Equivalence(PLAIN, in_form(ways.Named, ways.fields_of)),
    "dataclass": Equivalence(PLAIN, in_form(ways.Fields, ways.fields_of)),
    "a collate function that stacks": of_data(
        loader(DATA, collate_fn=lambda items: [torch.stack(part) for part in zip(*items, strict=True)])
    ),
    "a step that writes into its batch": Equivalence(
        Way(data=loader(TensorDataset(2 * X, Y))), Way(module=ways.Writing)
    ),
    "a step that takes the labels out of its batch": Equivalence(PLAIN, in_keys(ways.Popping)),
    "a loss_fn that writes into its batch": Equivalence(
        Way(data=loader(TensorDataset(2 * X, Y))), Way(options={"loss_fn": ways.writing}), ROUNDING
    ),
    "a loss_fn that takes the labels out of its batch": Equivalence(
        PLAIN, in_keys(options={"loss_fn": ways.popping}), ROUNDING
    ),
    "items that are dictionaries": Equivalence(
        PLAIN, Way(module=partial(Lit, unpack=ways.keyed), data=loader([{"x": x, "y": y} for x, y in ITEMS]))
    ),
    "a hook that prepares batches": Equivalence(
        Way(data=loader(TensorDataset(2 * X, Y))), Way(module=ways.Doubling)
    ),
}  # fmt: skip

SOURCES = {
    "list of examples": of_data(loader(ITEMS)),
    "own dataset": of_data(loader(ways.Own())),
    "Subset of all": of_data(loader(Subset(DATA, range(26)))),
    "ConcatDataset": of_data(loader(ConcatDataset([Subset(DATA, range(10)), Subset(DATA, range(10, 26))]))),
    "Hugging Face": Equivalence(PLAIN, Way(module=partial(Lit, unpack=ways.columns_of), data=loader(ways.HUB))),
    "sets in place of rows": Equivalence(PLAIN, Way(**SETS)),
    "lists in place of rows": Equivalence(
        PLAIN, Way(train=[ITEMS[i] for i in TRAIN], query=[ITEMS[i] for i in QUERY])
    ),
    "masks in place of rows": Equivalence(PLAIN, Way(train=np.arange(26) < 12, query=np.isin(np.arange(26), QUERY))),
    "workers": of_data(loader(DATA, num_workers=1)),
    "data module": of_data(ways.Loading),
    "batches of another size": of_data(loader(DATA, batch_size=26)),
    "shuffled": of_data(loader(DATA, shuffle=True)),
    "a stream": Equivalence(
        Way(data=loader(Subset(DATA, TRAIN)), **SETS), Way(data=loader(ways.Stream()), **SETS)
    ),
    "gradients of several batches": Equivalence(PLAIN, Way(trainer={"accumulate_grad_batches": 4})),
}  # fmt: skip

DRAWN = {
    "SubsetRandomSampler": Equivalence(
        Way(data=loader(Subset(DATA, ways.FIRST)), **SETS),
        Way(data=loader(DATA, sampler=SubsetRandomSampler(ways.FIRST)), **SETS),
    ),
    "a BatchSampler of some rows": Equivalence(
        Way(data=loader(Subset(DATA, ways.FIRST)), **SETS),
        Way(
            data=lambda: DataLoader(DATA, batch_sampler=BatchSampler(SubsetRandomSampler(ways.FIRST), 5, False)), **SETS
        ),
    ),
    "batches of a BatchSampler that is not used up": Equivalence(
        Way(data=loader(Subset(DATA, range(10))), **SETS),
        Way(
            data=lambda: DataLoader(DATA, batch_sampler=BatchSampler(list(range(26)), 5, False)),
            trainer={"limit_train_batches": 2}, **SETS,
        ),
    ),
    "overfit_batches": Equivalence(
        Way(data=loader(Subset(DATA, range(10))), **SETS),
        Way(data=loader(DATA, shuffle=True), trainer={"overfit_batches": 2}, **SETS),
    ),
    "a share of the batches": Equivalence(
        Way(data=loader(Subset(DATA, range(15))), **SETS), Way(trainer={"limit_train_batches": 0.5}, **SETS)
    ),
    "a DistributedSampler of one rank": Equivalence(
        PLAIN, Way(data=loader(DATA, sampler=DistributedSampler(DATA, 1, 0, shuffle=False)))
    ),
    "a DistributedSampler of more ranks than there are": Equivalence(
        Way(data=loader(Subset(DATA, range(0, 26, 2))), **SETS),
        Way(
            data=loader(DATA, sampler=DistributedSampler(DATA, 2, 0, shuffle=False)),
            trainer={"use_distributed_sampler": False}, **SETS,
        ),
    ),
    "weights that are all drawn": Equivalence(
        PLAIN, Way(data=loader(DATA, sampler=WeightedRandomSampler(torch.arange(1.0, 27), 26, replacement=False)))
    ),
    "weights that are drawn, or not": Equivalence(
        Way(data=loader(Subset(DATA, ways.FIRST)), **SETS),
        Way(
            data=loader(DATA, sampler=WeightedRandomSampler([1.0] * 18 + [0.0] * 8, 9, replacement=False)), **SETS
        ),
        1e-5, FULL_CHAINS_ALONE,
    ),
    "some rows, others in each epoch": of_data(loader(DATA, sampler=ways.Drawing())),
    "some rows by chance": of_data(loader(DATA, sampler=RandomSampler(DATA, num_samples=7))),
}  # fmt: skip

NETWORKS = {
    "one weight under two names": Equivalence(
        Way(module=partial(Lit, net=partial(ways.Tied, True))), Way(module=partial(Lit, net=partial(ways.Tied, False)))
    ),
    "a network within another": Equivalence(PLAIN, Way(module=partial(Lit, net=lambda: nn.Sequential(mlp())))),
    "a weight that is kept transposed": Equivalence(
        PLAIN, Way(module=partial(Lit, net=ways.parametrized)), ROUNDING, EUCLIDEAN
    ),
    "BatchNorm": Equivalence(
        Way(module=partial(Lit, net=lambda: mlp(ways.Affine()))),
        Way(module=partial(Lit, net=ways.normalized)), ROUNDING,
    ),
    "BatchNorm in the layer before it": Equivalence(
        Way(module=partial(Lit, net=ways.folded)), Way(module=partial(Lit, net=ways.frozen_before_norm)), ROUNDING
    ),
    "compiled": Equivalence(PLAIN, Way(module=ways.Compiled)),
    "buffers that change in training, and that no loss uses": Equivalence(PLAIN, Way(module=ways.Centred)),
    "dropout": Equivalence(PLAIN, Way(module=partial(Lit, net=lambda: mlp(nn.Dropout(0.5))))),
    "frozen weights, and params": Equivalence(
        Way(module=partial(Lit, net=ways.frozen)), Way(options={"params": ["net.2.*"]})
    ),
    "channels last": Equivalence(
        Way(module=partial(Lit, net=ways.convolution), data=loader(ways.IMAGES)),
        Way(module=ways.ChannelsLast, data=loader(ways.IMAGES)), ROUNDING,
    ),
    "inputs that are not contiguous": Equivalence(
        Way(module=partial(Lit, net=ways.convolution), data=loader(ways.IMAGES)),
        Way(module=partial(Lit, net=ways.convolution), data=loader(ways.STRIDED, collate_fn=lambda items: [
            torch.stack([x.mT for x, _ in items]).mT, torch.stack([y for _, y in items])
        ])), ROUNDING,
    ),
}  # fmt: skip

TABLE: dict[str, Equivalence] = {
    f"{kind}: {name}": row
    for kind, rows in {
        "evaluation": EVALUATION, "labels": LABELS, "padding": PADDING, "losses": LOSSES, "returned": RETURNED,
        "batches": BATCHES, "sources": SOURCES, "drawn": DRAWN, "networks": NETWORKS,
    }.items()
    for name, row in rows.items()
}  # fmt: skip


SLOW = {
    "labels: labels of int32 that the step converts", "labels: labels as numbers of Python",
    "padding: losses of tokens", "padding: a mask by hand", "losses: mean by hand", "losses: a module as loss",
    "losses: log_softmax and nll_loss", "losses: two halves", "losses: weights of classes that are all the same",
    "returned: in a dictionary", "returned: in a vector of one", "returned: the step of a part", "batches: tuple",
    "batches: dictionary in a dictionary", "batches: a collate function that stacks", "sources: list of examples",
    "sources: own dataset", "sources: Subset of all", "sources: lists in place of rows", "sources: workers",
    "sources: batches of another size", "sources: shuffled", "drawn: some rows by chance", "networks: dropout",
    "networks: a network within another", "networks: channels last",
}  # fmt: skip
"""Each has a near relative that always runs."""

NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in TABLE]


def test_slow_rows_are_in_the_table() -> None:
    assert set(TABLE) >= SLOW


@pytest.mark.parametrize("name", NAMES)
def test_both_ways_have_one_matrix(name: str) -> None:
    row = TABLE[name]
    one, other = matrices(row.one, row.samplers), matrices(row.other, row.samplers)
    for sampler in row.samplers:
        right, found = one[sampler], other[sampler]
        found = found[list(row.rows) if row.rows is not None else slice(None)]
        found = found[:, list(row.columns) if row.columns is not None else slice(None)]
        assert np.abs(right).max() > 0
        apart = np.abs(found - right).max() / np.abs(right).max()
        assert apart <= row.tolerance, f"{sampler}: {apart:.3g}"


def test_the_matrices_are_of_their_problem() -> None:
    """Another loss, another set or other training data has another matrix: the comparison can fail."""
    right = matrices(PLAIN, BOTH)
    others = {
        "loss": Way(module=partial(Lit, ways.two_terms)),
        "train": Way(train=range(1, 13)),
        "training data": Way(data=loader(Subset(DATA, ways.FIRST)), **SETS),
    }
    for name, way in others.items():
        for sampler, found in matrices(way, BOTH).items():
            assert np.abs(found - right[sampler]).max() > 1e-3 * np.abs(right[sampler]).max(), (name, sampler)
