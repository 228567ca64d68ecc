"""Memory of chains under way, in bytes."""

from collections.abc import Iterable

from torch import Tensor

from bif_lightning.model.weights import FlatLayout, WeightBackend


def chain_bytes(backend: WeightBackend, workers: int, *, vectors: int, bound: int = 1, afterwards: int = 0) -> int:
    """Of chains under way beyond the snapshot: vectors of the size of the weights, and the gradient of one parameter
    before it is added.

    Args:
        workers: chains at once.
        vectors: of each chain: weights, gradient, preconditioner.
        bound: modules that each chain computes with, itself and its anchor, which hold rounded weights and gradients
            where the module computes in less precision than the chain.
        afterwards: vectors that measurements hold when no chain runs any more, in the place of the chains'.
    """
    item, layout = backend.center.element_size(), backend.layout
    largest = max(shape.numel() for shape in layout.shapes)
    held = max(workers * vectors, afterwards)
    return (held * layout.size + workers * largest) * item + rounded_bytes(layout, workers, bound)


def rounded_bytes(layout: FlatLayout, workers: int, bound: int) -> int:
    """Of weights in the precision of a module that computes in less than its chains, and of their gradients.

    Args:
        workers: chains at once.
        bound: modules that each of them computes with.
    """
    rounded = sum(
        shape.numel() * dtype.itemsize
        for shape, dtype in zip(layout.shapes, layout.dtypes, strict=True)
        if dtype != layout.dtype
    )
    return 2 * rounded * workers * bound


def nbytes_of(tensors: Iterable[Tensor]) -> int:
    """Of these tensors, each counted once."""
    return sum(each.nbytes for each in {id(each): each for each in tensors}.values())
