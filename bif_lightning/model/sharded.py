"""The backend of chains of a model that several ranks hold in shards (FSDP2, tensor parallel), in place.

Hooks of such a module gather its original weights, so that neither a twin nor substitutes reach its forward pass. The
weights of a chain are copied into the local shards for the duration of a call, and those of the snapshot are restored,
bit for bit, at its end. All ranks make the same calls.

Each rank takes its shard of the noise of the whole parameter, so that a chain is the same on any number of ranks, up to
the rounding of sums.
"""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from bif_lightning.distributed.ranks import BatchShard
from bif_lightning.model.weights import BoundModule, Weights, gradients_aside, layout_of, sampled_parameters

T = TypeVar("T")


def is_sharded(module: nn.Module) -> bool:
    """Whether ranks hold the weights of this module in shards."""
    return any(isinstance(part, FSDPModule) for part in module.modules()) or any(
        isinstance(parameter, DTensor) for parameter in module.parameters()
    )


def reshard(module: nn.Module) -> None:
    """Free the gathered weights that a forward pass without a backward pass leaves behind, so that `parameters()` are
    the shards again, and reset the state of a pass that an exception interrupted."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            if cast(Any, part)._get_fsdp_state()._is_root:
                part.reset_iter_state()
            else:
                part.reshard()


class ShardedBackend:
    """Runs chains around the current weights of a sharded module, which every call leaves unchanged.

    Args:
        module: its current weights are the snapshot w*.
        params: name patterns of the parameters to sample; None for all trainable ones.
        split: how data-parallel ranks, which average their gradients, divide a batch.

    Raises:
        RuntimeError: the module holds gradients that were not reduced over the ranks.
    """

    twins = False
    parallel = False
    sharded = True

    def __init__(
        self, module: nn.Module, params: Sequence[str] | None = None, *, split: BatchShard | None = None
    ) -> None:
        _check_synchronized(module)
        reshard(module)
        self.module = module
        self._split = split or BatchShard()
        sampled = sampled_parameters(module, params)
        self._parameters: list[Tensor] = list(sampled.values())
        with torch.no_grad():
            self._shards = [_shard(parameter) for parameter in self._parameters]
        count = sum(parameter.numel() for parameter in self._parameters)
        layout = layout_of(dict(zip(sampled, self._shards, strict=True)), count)
        # Copying into a shard rounds to its dtype, so that no rounded leaves are needed.
        self.layout = replace(layout, dtypes=(layout.dtype,) * len(layout.dtypes))
        self.device = self._shards[0].device
        self.center = torch.zeros(self.layout.size, dtype=self.layout.dtype, device=self.device)
        for piece, shard in zip(self.layout.pieces(self.center), self._shards, strict=True):
            piece.copy_(shard)
        self._copies = [_copies(parameter) for parameter in self._parameters]
        self._ranks = BatchShard(dist.get_rank(), dist.get_world_size())

    def weights(self, *, tracked: bool = True) -> Weights:
        """Fresh weights of a chain, starting at the snapshot."""
        weights = Weights(self.layout, self.center.clone())
        weights.track(tracked)
        return weights

    def anchor(self, gradient: Tensor) -> Weights:
        """The snapshot's own weights (shared, not copied), whose gradients add up in `gradient`."""
        return Weights(self.layout, self.center, gradient)

    def bind(self, weights: Weights) -> BoundModule:
        """The module computing with `weights`. Every call is collective."""
        return _Placed(self, weights)

    def fill_normal(self, out: Tensor, parameter: int, generator: torch.Generator) -> None:
        """Fill the shard of one parameter with its part of N(0, 1) numbers for the whole parameter."""
        whole = self._parameters[parameter]
        if not isinstance(whole, DTensor):
            out.normal_(generator=generator)
            return
        numbers = torch.empty(whole.shape, dtype=out.dtype, device=out.device).normal_(generator=generator)
        placed = distribute_tensor(numbers, whole.device_mesh, whole.placements, src_data_rank=None)
        out.copy_(placed.to_local())

    def inner(self, left: Tensor, right: Tensor) -> float:
        """Inner product of two flat vectors, over the whole model. Collective."""
        pieces = zip(self.layout.pieces(left), self.layout.pieces(right), self._copies, strict=True)
        own = [(a.double() * b.double()).sum() / copies for a, b, copies in pieces]
        # Added in the order of ranks, so that all ranks have the same bits and take the same branches.
        return sum(float(part) for part in self._ranks.gathered(torch.stack(own).sum()))

    def norm(self, vector: Tensor) -> float:
        """Euclidean norm of a flat vector, over the whole model. Collective."""
        return math.sqrt(self.inner(vector, vector))

    def distance(self, flat: Tensor) -> float:
        """‖w − w*‖, over the whole model. Collective."""
        return self.norm(flat - self.center)

    @contextmanager
    def with_weights(self, weights: Weights) -> Generator[None]:
        """Put these weights into the shards of the module and set its gradients aside; restore both at exit."""
        with _stashed(self.module), torch.no_grad():
            self._put(weights.flat)
            try:
                with torch.enable_grad() if weights.tracked else torch.no_grad():
                    yield
                self._collect(weights)
            finally:
                reshard(self.module)
                self._put(self.center)

    def _put(self, flat: Tensor) -> None:
        for shard, piece in zip(self._shards, self.layout.pieces(flat), strict=True):
            shard.copy_(piece)

    def _collect(self, weights: Weights) -> None:
        for parameter, out in zip(self._parameters, weights.gradients, strict=True):
            if parameter.grad is not None:
                out.add_(self._gradient(parameter, parameter.grad))

    def _gradient(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        if isinstance(parameter, DTensor):
            found = cast(DTensor, gradient)
            if found.placements != parameter.placements:  # with sequence parallelism they are partial sums
                found = found.redistribute(parameter.device_mesh, parameter.placements)
            return found.to_local()
        # Nothing else reduces the gradients of unsharded parameters.
        return torch.stack(self._split.gathered(gradient)).mean(0) if self._split.parts > 1 else gradient


class _Placed:
    """The sharded module, with the weights of a chain during each call."""

    def __init__(self, backend: ShardedBackend, weights: Weights) -> None:
        self.backend, self.weights = backend, weights

    def call(self, function: Callable[[nn.Module], T]) -> T:
        with self.backend.with_weights(self.weights):
            return function(self.backend.module)


@contextmanager
def _stashed(module: nn.Module) -> Generator[None]:
    """Set gradients aside and copy buffers; restore both at exit."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    with gradients_aside(module):
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.detach().copy_(before)


def _shard(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter.detach()


def _copies(parameter: Tensor) -> int:
    """How many ranks hold the same elements."""
    if not isinstance(parameter, DTensor):
        return dist.get_world_size()
    mesh = parameter.device_mesh
    replicated = [mesh.size(i) for i, ranks in enumerate(parameter.placements) if ranks.is_replicate()]
    return math.prod(replicated) * (dist.get_world_size() // mesh.size())


def _check_synchronized(module: nn.Module) -> None:
    for part in module.modules():
        if not isinstance(part, FSDPModule):
            continue
        for group in cast(Any, part)._get_fsdp_state()._fsdp_param_groups:
            if not group.reduce_grads or any(p.unsharded_accumulated_grad is not None for p in group.fsdp_params):
                raise RuntimeError(
                    "the module accumulates gradients without reducing them over the ranks "
                    "(set_requires_gradient_sync(False)), so that gradients of a chain would mix with them; take "
                    "snapshots where synchronization is on"
                )
