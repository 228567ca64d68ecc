"""The flat vector of sampled weights, its layout, and the protocol of a backend of chains.

The sampled parameters of a module are concatenated in one vector. A chain owns such a vector and its gradient; the
module computes with one leaf for each parameter.
"""

import fnmatch
import glob
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

T = TypeVar("T")

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_ALIGN = 16  # elements: views start on cache lines, as separately allocated tensors do
_LEAST_NORM = 1e-3  # so that a model of zeros has a scale
_SHOWN = 8  # names in a message


@dataclass(frozen=True)
class FlatLayout:
    """The sampled parameters and their places in the flat vector.

    Attributes:
        names: of the sampled parameters, in the module's order; a tied parameter appears once.
        shapes: shape of each parameter.
        dtypes: dtype of each in the module. The flat vector is float64 if any is, else float32: steps of SGLD vanish
            below the resolution of half precision.
        starts: index of the first element of each in the flat vector.
        size: length of the flat vector, including padding.
        num_weights: number of sampled weights, d, without padding (of the whole model, where this is a shard of it).
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    starts: tuple[int, ...]
    size: int
    num_weights: int

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the flat vector."""
        return torch.float64 if torch.float64 in self.dtypes else torch.float32

    @property
    def places(self) -> list[tuple[int, torch.Size]]:
        """Start and shape of each parameter."""
        return list(zip(self.starts, self.shapes, strict=True))

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """Views of the flat vector in the shapes of the parameters."""
        return [
            flat.narrow(0, start, shape.numel()).view(shape)
            for start, shape in zip(self.starts, self.shapes, strict=True)
        ]


def sampled_parameters(module: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """The trainable parameters whose names match any pattern (shell style; None: all), in the module's order.

    Raises:
        ValueError: a pattern matches nothing, no parameter is trainable, or a dtype is not supported.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    chosen = trainable if patterns is None else _matching(trainable, patterns, module)
    if not chosen:
        raise ValueError("no parameter of the module requires a gradient, so that there is nothing to sample")
    strange = [name for name, parameter in chosen.items() if parameter.dtype not in _DTYPES]
    if strange:
        raise ValueError(
            f"parameter {strange[0]} is {chosen[strange[0]].dtype}; chains support "
            f"{', '.join(map(str, _DTYPES))}: convert it, or leave it out of params, as in "
            f"params={_names(list(supported_parameters(module)))}"
        )
    return chosen


def supported_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters of a dtype that chains can sample, by name, in the module's order."""
    return {n: p for n, p in module.named_parameters() if p.requires_grad and p.dtype in _DTYPES}


def every_supported(module: nn.Module) -> list[str]:
    """Patterns of exactly the `supported_parameters`."""
    return [glob.escape(name) for name in supported_parameters(module)]


def _names(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return f"[{shown}{', ...' if len(names) > _SHOWN else ''}]"


def layout_of(parameters: Mapping[str, Tensor], num_weights: int | None = None) -> FlatLayout:
    """Layout of tensors one after the other; give `num_weights` where they are shards of larger ones."""
    starts, end = list[int](), 0
    for parameter in parameters.values():
        starts.append(end)
        end += -(-parameter.numel() // _ALIGN) * _ALIGN
    shapes = tuple(p.shape for p in parameters.values())
    dtypes = tuple(p.dtype for p in parameters.values())
    count = sum(shape.numel() for shape in shapes) if num_weights is None else num_weights
    return FlatLayout(tuple(parameters), shapes, dtypes, tuple(starts), end, count)


def norm_of_snapshot(backend: "WeightBackend") -> float:
    """‖w*‖, at least 1e-3."""
    return max(backend.norm(backend.center), _LEAST_NORM)


def span_along(backend: "WeightBackend", in_weights: Float[Tensor, "direction weight"], fraction: float) -> float:
    """Step h of finite differences along directions: a fraction of ‖w*‖ over their root mean square length."""
    return fraction * norm_of_snapshot(backend) / float(in_weights.norm(dim=1).square().mean().sqrt())


def _matching(
    trainable: dict[str, nn.Parameter], patterns: Sequence[str], module: nn.Module
) -> dict[str, nn.Parameter]:
    for pattern in patterns:
        if not fnmatch.filter(trainable, pattern):
            frozen = fnmatch.filter([n for n, p in module.named_parameters() if not p.requires_grad], pattern)
            why = f"only frozen parameters ({frozen[0]}, ...)" if frozen else "no parameter"
            raise ValueError(
                f"params pattern {pattern!r} matches {why}; trainable names are "
                f"{', '.join(list(trainable)[:8])}{', ...' if len(trainable) > 8 else ''}"
            )
    return {n: p for n, p in trainable.items() if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns)}


@contextmanager
def gradients_aside(module: nn.Module) -> Generator[None]:
    """Set the gradients of all parameters aside, and put them back at exit: they belong to the training."""
    kept = [(parameter, parameter.grad) for parameter in module.parameters()]
    try:
        for parameter, _ in kept:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


class Weights:
    """The weights of one chain (or of the snapshot): a flat vector, its gradient, and a leaf for each parameter.

    A leaf is a view of the flat vector where the parameter has its dtype. Where the module computes in a lower
    precision, a leaf is a rounded copy, which `cast_weights` updates.
    """

    def __init__(self, layout: FlatLayout, flat: Float[Tensor, " weight"], gradient: Tensor | None = None) -> None:
        self.layout = layout
        self.flat = flat
        self.gradient = torch.zeros_like(flat) if gradient is None else gradient
        self.gradients = layout.pieces(self.gradient)
        pieces = layout.pieces(flat)
        self.leaves = [p.detach().to(dtype) for p, dtype in zip(pieces, layout.dtypes, strict=True)]
        pairs = zip(self.gradients, self.leaves, strict=True)
        own = [gradient if gradient.dtype == leaf.dtype else torch.zeros_like(leaf) for gradient, leaf in pairs]
        self._leaf_gradients = own
        self._rounded = [
            (leaf, piece, gradient, grad)
            for leaf, piece, gradient, grad in zip(self.leaves, pieces, self.gradients, own, strict=True)
            if leaf.dtype != piece.dtype
        ]
        self.track(True)

    def track(self, on: bool) -> None:
        """Set whether the module's computations record a graph for these weights."""
        self.tracked = on
        for leaf, gradient in zip(self.leaves, self._leaf_gradients, strict=True):
            leaf.requires_grad_(on)
            leaf.grad = gradient if on else None

    def cast_weights(self) -> None:
        """Round the current weights into the leaves that the module computes with."""
        with torch.no_grad():
            for leaf, piece, _, _ in self._rounded:
                leaf.copy_(piece)

    def accumulate_gradients(self) -> None:
        """Add the gradients of rounded leaves to the gradient, in full precision."""
        with torch.no_grad():
            for _, _, gradient, own in self._rounded:
                gradient.add_(own)
                own.zero_()


class BoundModule(Protocol):
    """A module that computes with given weights."""

    def call(self, function: Callable[[nn.Module], T]) -> T:
        """Return `function(module)`, run forward and backward with the weights of the module replaced."""
        ...


class WeightBackend(Protocol):
    """The snapshot `center`, w* as a flat vector in `layout`, and storage for the weights of chains around it."""

    module: nn.Module
    layout: FlatLayout
    center: Tensor
    device: torch.device
    parallel: bool
    """Whether several chains may run at once, on threads."""
    sharded: bool
    """Whether other ranks hold the rest of the module, so that all make the same calls."""

    def weights(self, *, tracked: bool = True) -> Weights:
        """Fresh weights of a chain, starting at the snapshot."""
        ...

    def anchor(self, gradient: Tensor) -> Weights:
        """The snapshot's own weights (shared, not copied), whose gradients add up in `gradient`."""
        ...

    def bind(self, weights: Weights) -> BoundModule:
        """The module computing with `weights`."""
        ...

    def fill_normal(self, out: Tensor, parameter: int, generator: torch.Generator) -> None:
        """Fill the piece of one parameter with N(0, 1) numbers, the same for any division of the model over ranks."""
        ...

    def inner(self, left: Tensor, right: Tensor) -> float:
        """Inner product of two flat vectors, over the whole model."""
        ...

    def norm(self, vector: Tensor) -> float:
        """Euclidean norm of a flat vector, over the whole model."""
        ...

    def distance(self, flat: Tensor) -> float:
        """‖w − w*‖, over the whole model."""
        ...
