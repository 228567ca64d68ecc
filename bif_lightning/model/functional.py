"""The backend of chains that keeps their weights beside the module and never writes to it.

A chain owns a flat vector (`weights`), and the module computes with views of it. A function passed to
`BoundModule.call` sees the module with those weights, and runs its backward pass inside, where activation
checkpointing recomputes with the same weights. Two implementations:

- a *twin*: a second module tree that shares everything but its tensors. Many twins may run at once, on threads.
- the module itself, with its fields exchanged during the call, one call at a time: for modules that a twin does not
  reproduce, such as compiled ones and those that hold references to their own parts. `preflight` compares both before
  the first chain and falls back to this one.

`torch.func.functional_call` does not suffice: it misses the lists of weights in recurrent layers, leaves a module that
is registered under two names with the wrong weights, and keeps what a forward pass stores.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from bif_lightning.model.devices import check_one_device
from bif_lightning.model.weights import BoundModule, Weights, layout_of, sampled_parameters

T = TypeVar("T")


class _ShadowModule:
    """A second module tree with its own tensors; it shares everything else with the original."""

    def __init__(self, module: nn.Module, weights: Weights, tensors: dict[int, Tensor]) -> None:
        self.weights = weights
        self.module = _twin(module, tensors, {})

    def call(self, function: Callable[[nn.Module], T]) -> T:
        self.weights.cast_weights()
        result = function(self.module)
        self.weights.accumulate_gradients()
        return result


class _SwappedModule:
    """The original module, with the fields of a twin during each call.

    It exchanges whole `__dict__` objects, so that nothing that a forward pass stores in a module remains.
    """

    def __init__(self, module: nn.Module, weights: Weights, tensors: dict[int, Tensor]) -> None:
        self.module, self.weights = module, weights
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
        self.weights.cast_weights()
        originals = [(part, part.__dict__) for part, _ in self.fields]
        held = [(owner, name, owner[name]) for owner, name, _ in self.slots]
        try:
            for part, fields in self.fields:
                object.__setattr__(part, "__dict__", fields)
            for owner, name, tensor in self.slots:
                owner[name] = tensor
            result = function(self.module)
        finally:
            for part, fields in originals:
                object.__setattr__(part, "__dict__", fields)
            for owner, name, tensor in held:
                owner[name] = tensor
        self.weights.accumulate_gradients()
        return result


class FunctionalBackend:
    """Runs chains around the current weights of a module without ever writing to it.

    Buffers are copied for every chain. Parameters that are not sampled are shared, detached, so that no gradient
    reaches those of the module; those that a forward pass writes into are copied too. The module should be in
    evaluation mode while chains run, so that the loss of an example does not depend on others, and U(w) is a function
    of the weights alone.

    Args:
        module: its current weights are the snapshot w*.
        params: name patterns of the parameters to sample; None for all trainable ones.
        twins: run chains on twins of the module, one on each thread.
        copied: names of the parameters, not sampled, of which every chain has a copy.
        from_first: broadcasts the buffers of rank 0, where several ranks estimate together (running statistics
            differ between the ranks of DDP).
    """

    sharded = False

    def __init__(
        self,
        module: nn.Module,
        params: Sequence[str] | None = None,
        *,
        twins: bool = True,
        copied: Collection[str] = (),
        from_first: Callable[[list[Tensor]], list[Tensor]] = list,
    ) -> None:
        self.module = module
        self._sampled = sampled_parameters(module, params)
        check_one_device(self._sampled)
        self.layout = layout_of(self._sampled)
        self.twins, self._copied = twins, frozenset(copied)
        first = next(iter(self._sampled.values()))
        self.device = first.device
        self.parallel = twins and self.device.type == "cpu"
        self.center = torch.zeros(self.layout.size, dtype=self.layout.dtype, device=self.device)
        for piece, parameter in zip(self.layout.pieces(self.center), self._sampled.values(), strict=True):
            piece.copy_(parameter.detach())
        buffers = list(module.buffers())
        self._buffers = dict(zip(map(id, buffers), from_first([b.detach() for b in buffers]), strict=True))

    def weights(self, *, tracked: bool = True) -> Weights:
        """Fresh weights of a chain, starting at the snapshot."""
        weights = Weights(self.layout, self.center.clone())
        weights.track(tracked)
        return weights

    def anchor(self, gradient: Tensor) -> Weights:
        """The snapshot's own weights (shared, not copied), whose gradients add up in `gradient`."""
        return Weights(self.layout, self.center, gradient)

    def bind(self, weights: Weights) -> BoundModule:
        """The module computing with `weights`."""
        named = self.module.named_parameters()
        tensors = {id(p): p.detach().clone() if name in self._copied else p.detach() for name, p in named}
        tensors.update({key: buffer.clone() for key, buffer in self._buffers.items()})
        tensors.update({id(p): leaf for p, leaf in zip(self._sampled.values(), weights.leaves, strict=True)})
        return (_ShadowModule if self.twins else _SwappedModule)(self.module, weights, tensors)

    def in_dtype(self, dtype: torch.dtype) -> tuple[nn.Module, list[Tensor]]:
        """A twin at the snapshot, with weights and buffers in another floating dtype, and its sampled weights."""
        tensors = {id(each): _converted(each, dtype) for each in (*self.module.parameters(), *self.module.buffers())}
        leaves = [tensors[id(p)].requires_grad_() for p in self._sampled.values()]
        return _twin(self.module, tensors, {}), leaves

    def fill_normal(self, out: Tensor, parameter: int, generator: torch.Generator) -> None:
        """Fill the piece of one parameter with N(0, 1) numbers."""
        out.normal_(generator=generator)

    def inner(self, left: Tensor, right: Tensor) -> float:
        """Inner product of two flat vectors."""
        return float(left @ right)

    def norm(self, vector: Tensor) -> float:
        """Euclidean norm of a flat vector."""
        return float(vector.norm())

    def distance(self, flat: Tensor) -> float:
        """‖w − w*‖."""
        return float(torch.dist(flat, self.center))


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    found = tensor.detach().clone()
    return found.to(dtype) if found.is_floating_point() else found


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
    if id(module) not in made:
        # Its methods are bound to it at construction, and deepcopy rebinds them.
        made[id(module)] = copy.deepcopy(module, _without_graphs(module))
    return made[id(module)]


def _without_graphs(metric: Metric) -> dict[int, Any]:
    """Copies of what a metric keeps with the graph of a loss, which deepcopy refuses: its memo."""
    memo = dict[int, Any]()
    for part in metric.modules():
        for value in part.__dict__.values():
            for each in cast(Sequence[Any], value) if isinstance(value, list | tuple) else [value]:
                if isinstance(each, Tensor) and not each.is_leaf:
                    memo[id(each)] = each.detach().clone()
    return memo


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
