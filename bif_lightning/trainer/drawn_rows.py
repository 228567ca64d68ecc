"""Which rows of its dataset a training loader draws, and how often: L(w) is the mean loss over these."""

import copy
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

_COPIES = 32
_MOST_ROWS = 1 << 17


@dataclass(frozen=True)
class DrawnRows:
    """What a loader draws.

    Attributes:
        rows: positions in the dataset, each as often as it counts; None for all of them, each once.
        words: for the notes of an estimate, where it is not simply all rows; else "".
    """

    rows: Sequence[int] | None = None
    words: str = ""


def drawn_rows(loader: DataLoader[Any], batches: float = math.inf, ranks: int = 1) -> DrawnRows:
    """What this loader draws over a training.

    Args:
        loader: of a map-style dataset.
        batches: that an epoch takes of it at most, on each rank.
        ranks: that divide it.
    """
    size = len(cast(Any, loader.dataset))
    batching: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    plain = type(batching) is BatchSampler
    # Beside a BatchSampler that it was given, a loader has a sampler of its own, which draws nothing.
    sampler = batching.sampler if plain else batching
    divides = isinstance(sampler, DistributedSampler) and (sampler.shuffle or sampler.num_replicas == ranks)
    shuffles = isinstance(sampler, DistributedSampler) and sampler.shuffle
    if isinstance(sampler, DistributedSampler) and divides:
        wraps = type(sampler.dataset).__name__ == "_DatasetSamplerWrapper"  # Lightning's, around the user's sampler
        sampler = cast(Any, sampler.dataset)._sampler if wraps else SequentialSampler(range(size))
    known = _known(sampler)
    if known is None:
        known = _listed(sampler, loader.dataset, size, math.inf if plain else batches * ranks)
    rows, in_order, words = known
    if plain and in_order and not shuffles:
        rows, words = _within(rows, words, batching, batches, ranks, size)
    if rows is not None and sorted(rows) == list(range(size)):
        rows = None
    if rows is not None and not words:
        words = f"L(w) is over the {len(set(rows))} of {size} rows that the sampler of the training loader draws"
    return DrawnRows(rows, words)


Known = tuple[Sequence[int] | None, bool, str]
"""Rows, whether they come in this order in every epoch, and words."""


def _known(sampler: Any) -> Known | None:
    """Of torch's own samplers."""
    if type(sampler) is RandomSampler:
        return range(len(sampler.data_source)), False, ""
    if type(sampler) is SequentialSampler:
        return range(len(sampler.data_source)), True, ""
    if type(sampler) is SubsetRandomSampler:
        return [int(i) for i in sampler.indices], False, ""
    if type(sampler) is WeightedRandomSampler:
        weights = torch.as_tensor(sampler.weights)
        if not sampler.replacement:
            weights = shares_without_replacement(weights, sampler.num_samples)
            if bool((weights[weights > 0] == 1).all()):
                return cast(list[int], weights.nonzero().flatten().tolist()), False, ""
        words = "L(w) weighs the rows as the WeightedRandomSampler of the training loader does"
        return weighted_rows(weights), False, words
    return None


def weighted_rows(weights: Tensor) -> list[int]:
    """Rows, each as often as its weight says, to about 1 part in 64: position k of N is where the weights add up to
    (k + ½)/N of their sum.

    >>> weighted_rows(torch.tensor([1.0, 0.0, 3.0]))[::16]
    [0, 2, 2, 2]
    """
    sums = weights.double().cumsum(0)
    count = int(min(_COPIES * int((weights > 0).sum()), max(_MOST_ROWS, len(weights))))
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count * sums[-1]
    return cast(list[int], torch.searchsorted(sums, places, right=True).tolist())


def shares_without_replacement(weights: Tensor, count: int) -> Tensor:
    """In which share of the epochs each row is among `count` rows drawn one after the other without replacement.

    The rows are those whose exponential clocks of rates w_i ring first. Up to O(1/n), these ring before the time t at
    which `count` of them have rung on average, so that the shares are 1 − exp(−w_i·t) (Rosén 1972).

    >>> shares_without_replacement(torch.tensor([1.0, 0.0, 3.0]), 2).tolist()
    [1.0, 0.0, 1.0]
    """
    weights = weights.double()
    positive = int((weights > 0).sum())
    if count >= positive:
        return (weights > 0).double()
    weights = weights / weights.max()

    def excess(log_time: float) -> float:
        return float(-torch.expm1(-weights * math.exp(log_time)).sum()) - count

    latest = math.log(-math.log(0.5 / positive) / float(weights[weights > 0].min()))
    found = cast(float, brentq(excess, math.log(0.5 / positive), latest))
    return -torch.expm1(-weights * math.exp(found))


def _listed(sampler: Any, dataset: Any, size: int, batches: float) -> Known:
    """Of any other sampler: what a copy of it gives in two epochs.

    Args:
        batches: of a sampler of batches, how many an epoch takes at most.
    """
    name = type(sampler).__name__
    unknown = (
        f"L(w) is over all {size} rows of the training data, since which rows a {name} draws cannot be told: it draws "
        "others in each epoch, or cannot be asked. Where it draws some rows only, give the loader a Subset of them"
    )
    try:
        copied = copied_sampler(sampler, dataset)
        first, second = (_epoch(copied, epoch, 16 * size + 1024) for epoch in range(2))
    except Exception:
        return None, False, unknown
    if first is None or second is None or Counter(_flat(first)) != Counter(_flat(second)):
        return None, False, unknown
    if first != second:
        return sorted(_flat(first)), False, ""
    if batches < len(first):
        rows = _flat(first[: int(batches)])
        return rows, True, _first_rows(len(rows), len(_flat(first)))
    return _flat(first), True, ""


def copied_sampler(sampler: Any, dataset: Any) -> Any:
    """A copy that shares the dataset, so that the state of the sampler stays."""
    return copy.deepcopy(sampler, {id(dataset): dataset})


def _epoch(sampler: Any, epoch: int, most: int) -> list[list[int]] | None:
    """Rows of one epoch, as they are drawn: one by one or in batches; None of one that does not end, or is no sampler
    of rows."""
    for part in (sampler, getattr(sampler, "sampler", None)):  # as Lightning does at the start of an epoch
        if callable(set_epoch := getattr(part, "set_epoch", None)):
            set_epoch(epoch)
    found, count = list[list[int]](), 0
    for drawn in sampler:
        value: Any = drawn
        several = isinstance(value, Iterable) and getattr(cast(Any, value), "ndim", 1) > 0
        found.append([int(i) for i in cast(Any, value)] if several else [int(cast(Any, value))])
        count += len(found[-1])
        if count > most:
            return None
    return found or None


def _flat(drawn: Iterable[Sequence[int]]) -> list[int]:
    return [row for rows in drawn for row in rows]


def _within(
    rows: Sequence[int] | None, words: str, batching: BatchSampler, batches: float, ranks: int, size: int
) -> tuple[Sequence[int] | None, str]:
    """The rows of the batches that an epoch takes, where they are the same in every epoch."""
    order = range(size) if rows is None else rows
    each = batching.batch_size * ranks
    taken = min(float(len(order)), batches * each)
    if batching.drop_last:
        taken = min(taken, float(len(order) // each * each))
    count = int(taken)
    if count == len(order) or not count:
        return rows, words
    return list(order[:count]), _first_rows(count, len(order))


def _first_rows(count: int, size: int) -> str:
    return f"L(w) is over the first {count} of {size} rows, since every epoch takes these alone, in the same order"
