"""Datasets of a dump with train or query axes: example ids and labels, matrices, label means, the overview."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np

from bif_lightning.archive.examples_file import SIDES
from bif_lightning.archive.schema import OVERVIEW_SIDE, Variable, class_name, float32, float64, int64, text_column
from bif_lightning.results.estimate import (
    CONDITIONED_SIGN,
    CORRELATION_SIGN,
    INFLUENCE_SIGN,
    Estimate,
    Influence,
    LabelMeans,
)
from bif_lightning.results.examples import Samples


def axes(train: Samples, query: Samples) -> Iterator[Variable]:
    """Row numbers, ids, dataset indices and labels of both axes."""
    for side, samples in zip(SIDES, (train, query), strict=True):
        yield int64(side, np.arange(len(samples)), f"row of the {side} axis", (side,))
        yield text_column(f"{side}_id", samples.ids, "unique id of each example", side)
        yield int64(f"{side}_index", samples.index, "index of the example in its dataset", (side,))
        if samples.labels is not None:
            yield int64(f"{side}_label", samples.labels, "class index, -1 for none", (side,))


def losses(estimate: Estimate) -> Iterator[Variable]:
    """The matrices of the query losses, and mean and standard deviation of every loss."""
    yield from _matrices("", estimate.losses, ("train", "query"), "query loss")
    mean, std = (
        "mean loss of each example over the draws",
        "standard deviation of the loss of each example over the draws",
    )
    yield float64("train_loss", estimate.train_loss, "nat", mean, ("train",))
    yield float64("train_std", estimate.train_std, "nat", std, ("train",))
    yield float64("query_loss", estimate.losses.mean, "nat", mean, ("query",))
    yield float64("query_std", estimate.losses.std, "nat", std, ("query",))


def observable(name: str, influence: Influence) -> Iterator[Variable]:
    """The matrices of one further observable, their columns, and its mean and standard deviation."""
    column = "query"
    if influence.columns is not None:
        column = f"{name}_column"
        yield text_column(column, influence.columns, f"columns of the observable {name}", column)
    yield from _matrices(f"{name}_", influence, ("train", column), f"the observable {name}")
    yield float64(f"{name}_mean", influence.mean, influence.unit, f"mean of {name} over the draws", (column,))
    words = f"standard deviation of {name} over the draws"
    yield float64(f"{name}_std", influence.std, influence.unit, words, (column,))


def _matrices(prefix: str, influence: Influence, dims: tuple[str, ...], what: str) -> Iterator[Variable]:
    quantities = (
        ("influence", product_unit(influence.unit), INFLUENCE_SIGN, "-Cov"),
        ("correlation", "1", CORRELATION_SIGN, "+Corr"),
    )
    if influence.conditioned is not None:
        words = f"-Cov(train loss, {what}) after a Kalman update of the draws on the train losses"
        quantities = (*quantities, ("conditioned", quantities[0][1], CONDITIONED_SIGN, words))
    if influence.influence_draws is not None:
        words = f"-Cov(train loss, {what}) over the draws of the chains alone"
        quantities = (*quantities, ("influence_draws", quantities[0][1], INFLUENCE_SIGN, words))
    for name, units, sign, formula in quantities:
        words = formula if " " in formula else f"{formula}(train loss, {what}) over the draws"
        yield float32(f"{prefix}{name}", getattr(influence, name), units, words, dims, sign)
        error = getattr(influence, f"{name}_standard_error")
        words = f"Monte Carlo standard error of {prefix}{name}"
        yield float32(f"{prefix}{name}_standard_error", error, units, words, dims)


def product_unit(unit: str) -> str:
    """Unit of the product of a loss in nat and a quantity in `unit`.

    >>> product_unit("nat"), product_unit("1"), product_unit("m")
    ('nat^2', 'nat', 'nat m')
    """
    return {"nat": "nat^2", "1": "nat", "": "nat"}.get(unit, f"nat {unit}")


def overview(correlation: np.ndarray) -> Iterator[Variable]:
    """The correlation matrix averaged down to at most 256 x 256 blocks, to show the whole of it."""
    block, rows, columns = mean_pooled(correlation, OVERVIEW_SIDE)
    dims = ("train_block", "query_block")
    for dim, values in zip(dims, (rows, columns), strict=True):
        yield float64(
            f"overview/{dim}", values, "1", f"centre of each block on the {dim.removesuffix('_block')} axis", (dim,)
        )
    words = "mean correlation of each block of neighbouring rows and columns"
    yield float32("overview/block", block, "1", words, dims, CORRELATION_SIGN)


def mean_pooled(matrix: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of at most side x side blocks of nearly equal size; NaN entries are left out, blocks of only NaN are NaN.

    Returns:
        Block means (float32), and the centres of the blocks along both axes, in rows and columns of `matrix`.
    """
    edges = [np.linspace(0, size, min(size, side) + 1).astype(np.int64) for size in matrix.shape]
    total, count = (np.zeros([len(edge) - 1 for edge in edges]) for _ in range(2))
    # Work in bands, without a second copy of a matrix that may fill most of the memory.
    for band, (start, end) in enumerate(pairwise(edges[0])):
        known = np.isfinite(matrix[start:end])
        by_column = np.where(known, matrix[start:end], 0).sum(axis=0, dtype=np.float64)
        total[band] = np.add.reduceat(by_column, edges[1][:-1])
        count[band] = np.add.reduceat(known.sum(axis=0), edges[1][:-1])
    block = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    rows, columns = ((edge[:-1] + edge[1:] - 1) / 2 for edge in edges)
    return block.astype(np.float32), rows, columns


def labels(means: LabelMeans, train: Samples, query: Samples) -> Iterator[Variable]:
    """Means over pairs of labels, with their standard errors and the names of the labels."""
    sides = ((train, means.train_labels), (query, means.query_labels))
    for side, (samples, present) in zip(SIDES, sides, strict=True):
        dim = f"{side}_label"
        yield int64(f"labels/{dim}", present, "class index", (dim,))
        if samples.label_names:
            names = [class_name(samples.label_names, int(label)) for label in present]
            yield text_column(f"labels/{dim}_name", names, "name of each class", dim)
    dims = ("train_label", "query_label")
    for name, units, sign in (("influence", "nat^2", INFLUENCE_SIGN), ("correlation", "1", CORRELATION_SIGN)):
        words = f"mean {name} of train examples with one label on queries with one label"
        mean = float64(f"labels/{name}", getattr(means, name), units, words, dims)
        yield replace(mean, attrs={"sign": sign})
        error = getattr(means, f"{name}_standard_error")
        yield float64(f"labels/{name}_standard_error", error, units, "Monte Carlo standard error of the mean", dims)
