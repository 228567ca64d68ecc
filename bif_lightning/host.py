"""Where the weights of a chain live: beside the module, never in it.

The sampled parameters of a module lie one after the other in one flat vector. A chain owns such a vector; the
module computes with views of it. Two ways to make it do so, with one contract: a function given to `Bound.call`
sees the module with those weights, and runs its backward pass inside, where activation checkpointing recomputes
with the same weights.

- a *twin*: a second module tree that shares everything but its tensors. Many may run at once, on threads.
- the module itself, its fields exchanged for the time of a call, one at a time: for modules that a twin does not
  reproduce (compiled ones, or those that hold references to their own parts). `workers` compares both before the
  first chain and falls back to this one. (`torch.func.functional_call` does less: it misses the lists of weights
  that recurrent layers keep, leaves a module that stands under two names with the wrong weights, and keeps what a
  forward pass stores.)
"""

import copy
import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric

T = TypeVar("T")

_ALIGN = 16  # elements: views start on cache lines, as separately allocated tensors do


@dataclass(frozen=True)
class Layout:
    """Which parameters are sampled, and where each lies in the flat vector.

    Attributes:
        names: of the sampled parameters, in the module's order; a tied parameter stands once.
        shapes: of each.
        starts: first element of each in the flat vector.
        size: length of the flat vector, padding included.
        num_weights: number of sampled weights, d, without padding.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    starts: tuple[int, ...]
    size: int
    num_weights: int

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """Views of the flat vector, one a parameter, each in its shape."""
        return [
            flat.narrow(0, start, shape.numel()).view(shape)
            for start, shape in zip(self.starts, self.shapes, strict=True)
        ]


def layout_of(module: nn.Module, patterns: Sequence[str] | None) -> Layout:
    """Lay out the trainable parameters whose names match any pattern (shell style; None: all).

    Raises:
        ValueError: a pattern that matches nothing, nothing to sample, or a dtype that cannot carry a chain.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    chosen = trainable if patterns is None else _matching(trainable, patterns, module)
    if not chosen:
        raise ValueError("the module has no parameter that requires a gradient; there is nothing to sample")
    dtypes = {p.dtype for p in chosen.values()}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        raise ValueError(
            f"the sampled parameters are {', '.join(sorted(str(d) for d in dtypes))}; a chain needs one dtype of "
            "float32 or float64 (steps of SGLD vanish below the resolution of half precision): convert the "
            "model, or restrict params"
        )
    starts, end = list[int](), 0
    for parameter in chosen.values():
        starts.append(end)
        end += -(-parameter.numel() // _ALIGN) * _ALIGN
    shapes = tuple(p.shape for p in chosen.values())
    return Layout(tuple(chosen), shapes, tuple(starts), end, sum(shape.numel() for shape in shapes))


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


class Weights:
    """The weights of one chain (or of the snapshot): a flat vector, its gradient, and views for the module."""

    def __init__(self, layout: Layout, flat: Float[Tensor, " weight"], gradient: Tensor | None = None) -> None:
        self.layout = layout
        self.flat = flat
        self.gradient = torch.zeros_like(flat) if gradient is None else gradient
        self.leaves = [piece.detach() for piece in layout.pieces(flat)]
        self.gradients = layout.pieces(self.gradient)
        self.track(True)

    def track(self, on: bool) -> None:
        """Whether the module's computations record a graph for these weights."""
        for leaf, gradient in zip(self.leaves, self.gradients, strict=True):
            leaf.requires_grad_(on)
            leaf.grad = gradient if on else None


class Bound(Protocol):
    """A module that computes with given weights."""

    def call(self, function: Callable[[nn.Module], T]) -> T:
        """Run `function(module)`, forward and backward, with the module's weights replaced."""
        ...


class _Twin:
    """A module tree of its own, with its own tensors; everything else is shared with the original."""

    def __init__(self, module: nn.Module, tensors: dict[int, Tensor]) -> None:
        self.module = _twin(module, tensors, {})

    def call(self, function: Callable[[nn.Module], T]) -> T:
        return function(self.module)


class _Borrowed:
    """The original module, which wears the fields of a twin for the time of each call.

    Whole `__dict__` objects are exchanged, so that nothing that a forward pass stores in a module stays there.
    """

    def __init__(self, module: nn.Module, tensors: dict[int, Tensor]) -> None:
        self.module = module
        metrics: dict[int, nn.Module] = {}
        parts = list(module.modules())
        self.fields = [
            (part, _fields(part, tensors, {k: _own(m, metrics) for k, m in part._modules.items()}))
            for part in parts
            if not isinstance(part, Metric | torch.jit.ScriptModule)
        ]
        # A scripted module keeps its tensors out of Python's reach; its dictionaries write through.
        self.slots = [
            (owner, name, tensors[id(tensor)])
            for part in parts
            if isinstance(part, torch.jit.ScriptModule)
            for owner in (cast(dict[str, Tensor], part._parameters), cast(dict[str, Tensor], part._buffers))
            for name, tensor in owner.items()
        ]

    def call(self, function: Callable[[nn.Module], T]) -> T:
        worn = [(part, part.__dict__) for part, _ in self.fields]
        held = [(owner, name, owner[name]) for owner, name, _ in self.slots]
        try:
            for part, fields in self.fields:
                object.__setattr__(part, "__dict__", fields)
            for owner, name, tensor in self.slots:
                owner[name] = tensor
            return function(self.module)
        finally:
            for part, fields in worn:
                object.__setattr__(part, "__dict__", fields)
            for owner, name, tensor in held:
                owner[name] = tensor


class FunctionalHost:
    """Runs chains around the present weights of a module without ever writing to it.

    Buffers are copied for every chain; parameters that are not sampled are shared, detached, so that no gradient
    reaches the module's own. The module should be in evaluation mode while chains run: then every example has a
    loss of its own, and U(w) is a function of the weights alone.

    Args:
        module: whose present weights are the snapshot w*.
        params: name patterns of the parameters to sample; None for all trainable ones.
        twins: run chains on twins of the module, as many at once as there are threads.
    """

    def __init__(self, module: nn.Module, params: Sequence[str] | None = None, *, twins: bool = True) -> None:
        self.module = module
        self.layout = layout_of(module, params)
        self.twins = twins
        self._sampled = {name: p for name, p in module.named_parameters() if name in set(self.layout.names)}
        first = next(iter(self._sampled.values()))
        self.device, self.dtype = first.device, first.dtype
        self.center = torch.zeros(self.layout.size, dtype=self.dtype, device=self.device)
        for piece, parameter in zip(self.layout.pieces(self.center), self._sampled.values(), strict=True):
            piece.copy_(parameter.detach())

    def weights(self, *, tracked: bool = True) -> Weights:
        """Fresh weights of a chain, starting at the snapshot."""
        weights = Weights(self.layout, self.center.clone())
        weights.track(tracked)
        return weights

    def anchor(self, gradient: Tensor) -> Weights:
        """The snapshot's own weights (shared, not copied), whose gradients add up in `gradient`."""
        return Weights(self.layout, self.center, gradient)

    def bind(self, weights: Weights) -> Bound:
        """The module computing with `weights`."""
        tensors = {id(p): p.detach() for p in self.module.parameters()}
        tensors.update({id(b): b.detach().clone() for b in self.module.buffers()})
        tensors.update({id(p): leaf for p, leaf in zip(self._sampled.values(), weights.leaves, strict=True)})
        return _Twin(self.module, tensors) if self.twins else _Borrowed(self.module, tensors)


def _twin(module: nn.Module, tensors: dict[int, Tensor], made: dict[int, nn.Module]) -> nn.Module:
    if id(module) in made:
        return made[id(module)]
    if isinstance(module, Metric):
        return cast(nn.Module, _own(module, made))
    twin = object.__new__(type(module))
    made[id(module)] = twin
    children = {k: None if m is None else _twin(m, tensors, made) for k, m in module._modules.items()}
    object.__setattr__(twin, "__dict__", _fields(module, tensors, children))
    return twin


def _own(module: nn.Module | None, made: dict[int, nn.Module]) -> nn.Module | None:
    """A copy of a metric, since a forward pass may update it; any other module itself."""
    if not isinstance(module, Metric):
        return module
    # Its methods are bound to itself at construction; deepcopy knows how to rebind them.
    return made.setdefault(id(module), copy.deepcopy(module))


def _fields(part: nn.Module, tensors: dict[int, Tensor], children: dict[str, nn.Module | None]) -> dict[str, Any]:
    """The `__dict__` of one module with its tensors replaced, also in lists of them (as recurrent layers keep)."""
    fields = {name: _replaced(value, tensors) for name, value in part.__dict__.items()}
    return {**fields, "_modules": children}


def _replaced(value: Any, tensors: dict[int, Tensor]) -> Any:
    if type(value) is dict:
        entries = cast(dict[Any, Any], value)
        return {k: tensors.get(id(v), v) for k, v in entries.items()} if _holds(entries.values(), tensors) else entries
    if type(value) in (list, tuple):
        items = cast(Sequence[Any], value)
        return type(value)(tensors.get(id(v), v) for v in items) if _holds(items, tensors) else items
    return value


def _holds(values: Iterable[Any], tensors: dict[int, Tensor]) -> bool:
    return any(id(value) in tensors for value in values)
