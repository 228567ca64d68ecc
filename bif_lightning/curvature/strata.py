"""Minibatches of examples that are unlike in curvature: drawn from strata of equal curvature, without bias.

A gradient's minibatch noise comes from the examples that are most curved. With the examples sorted by their curvature
c_i and cut into strata of equal Σ p_i, p_i = .1/n + .9·c_i/Σc, a minibatch takes equally many of each, and the mean of
each stratum enters with its share of the examples: more of the curved ones, at the same expectation (stratified
sampling; Cochran 1977, Sec. 5.5). Where examples count unequally (`example_weights`), the share of a stratum is that
of their weights.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

_STRATA = 4
_UNIFORM = 0.1


@dataclass(frozen=True)
class Stratum:
    """Examples that are drawn alike.

    Attributes:
        rows: their positions in the training data.
        batch_size: how many of them are in a minibatch.
        share: of all examples, by their weights.
        weights: of the examples, with mean 1 over all; None for all alike.
    """

    rows: Int[Tensor, " example"]
    batch_size: int
    share: float
    weights: Float[Tensor, " example"] | None = None

    def parts(self, chosen: Int[Tensor, " chosen"], most: int) -> list[tuple[Tensor, float]]:
        """Rows of the examples at these places, in parts of at most so many, and the share of the mean of each."""
        if self.weights is None:
            return [(self.rows[part], self.share * len(part) / len(chosen)) for part in chosen.split(most)]
        whole = float(self.weights[chosen].sum())
        if not whole:
            return []
        found = [(part, float(self.weights[part].sum())) for part in chosen.split(most)]
        return [(self.rows[part], self.share * own / whole) for part, own in found if own]


def strata_of(
    curvature: Float[Tensor, " example"],
    size: int,
    batch_size: int,
    weights: Float[Tensor, " example"] | None = None,
) -> list[Stratum]:
    """Divide `size` examples into strata; a single one where the curvature of some is not known.

    >>> [(len(each.rows), each.batch_size) for each in strata_of(torch.tensor([1.0, 1.0, 1.0, 9.0, 1.0, 1.0]), 6, 4)]
    [(1, 1), (2, 1), (3, 2)]
    """
    rows = torch.arange(size, device="cpu")
    if batch_size >= size or len(curvature) != size or batch_size < _STRATA or not float(curvature.sum()) > 0:
        return [Stratum(rows, min(batch_size, size), 1.0, weights)]
    chance = _UNIFORM / size + (1 - _UNIFORM) * curvature / curvature.sum()
    order = chance.argsort(descending=True, stable=True)
    place = ((chance[order].double().cumsum(0) - chance[order] / 2) * _STRATA).long().clamp(max=_STRATA - 1)
    parts = [order[place == stratum].sort().values for stratum in range(_STRATA)]
    found = _allotted([part for part in parts if len(part)], size, batch_size)
    if weights is None:
        return found
    shares = [float(weights[each.rows].sum() / weights.sum()) for each in found]
    return [
        replace(each, share=share, weights=weights[each.rows])
        for each, share in zip(found, shares, strict=True)
        if share
    ]


@dataclass(frozen=True)
class OfExamples:
    """What is known of single training examples, or of those that the curvature is of.

    Attributes:
        curvature: tr(Q·G_i·Qᵀ), with the weights; empty where it is not known.
        weights: how much each counts in L(w), with mean 1; None for all alike.
    """

    curvature: Float[Tensor, " example"]
    weights: Float[Tensor, " example"] | None = None

    def strata(self, size: int, batch_size: int) -> list[Stratum]:
        """Parts of `size` training examples that minibatches are drawn from."""
        weights = None if self.weights is None or len(self.weights) != size else self.weights
        return strata_of(self.curvature, size, batch_size, weights)


def _allotted(parts: list[Tensor], size: int, batch_size: int) -> list[Stratum]:
    """Equally many of each stratum; what small strata lack goes to the others."""
    found, left = dict[int, int](), batch_size
    for number, part in sorted(enumerate(parts), key=lambda each: len(each[1])):
        found[number] = min(len(part), left // (len(parts) - len(found)))
        left -= found[number]
    return [Stratum(part, found[number], len(part) / size) for number, part in enumerate(parts)]
