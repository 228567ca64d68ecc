"""Which parameters a forward pass writes into, as `nn.Embedding(max_norm=...)` and weight clipping do.

Writes into parameters that are not sampled would meet the live module, and other chains: chains then have their own
copies. Writes into sampled ones would move a chain beside its steps: they are refused.
"""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bif_lightning.losses.problem import Minibatch, Problem
from bif_lightning.model.weights import WeightBackend, Weights, sampled_parameters

_COPIED_BYTES = 1 << 28
"""Parameters together no larger than this are compared bit by bit; others by their counters of writes."""


@contextmanager
def live_writes(problem: Problem) -> Generator[list[str]]:
    """Names of the parameters, not sampled, of the live module that are written inside; filled, and undone, at exit."""
    found = list[str]()
    sampled = sampled_parameters(problem.module, problem.params)
    others = [(name, p) for name, p in problem.module.named_parameters() if name not in sampled]
    copied = sum(p.numel() * p.element_size() for _, p in others) <= _COPIED_BYTES
    before = [(name, p, p.detach().clone() if copied else None, p._version) for name, p in others]
    try:
        yield found
    finally:
        for name, parameter, values, version in before:
            changed = False
            if values is not None and not _equal(parameter, values):
                changed = True
                _put(parameter, values)
            if changed or parameter._version != version:
                found.append(name)


def check_no_writes(problem: Problem, backend: WeightBackend, minibatch: Minibatch, version: int, now: int) -> None:
    """Refuse a forward pass that writes into sampled weights.

    Args:
        version, now: counters of writes into a flat vector of weights, before and after a gradient of this minibatch.

    Raises:
        ValueError: they differ; the message names the parameters, and what to give as params.
    """
    if version == now:
        return
    names = _written(problem, backend, minibatch) or list(backend.layout.names)
    kept = [name for name in sampled_parameters(problem.module, problem.params) if name not in names]
    remedy = f"leave them out of params, as in params={kept[:8]}" if kept else "let the model compute without writing"
    raise ValueError(
        f"the forward pass writes into {', '.join(names[:4])}, which are sampled, so that chains would be moved beside "
        f"their steps (nn.Embedding(max_norm=...) and clipped weights do so): {remedy}"
    )


def _written(problem: Problem, backend: WeightBackend, minibatch: Minibatch) -> list[str]:
    weights: Weights = backend.weights()
    # Each with a counter of its own, which views of one vector have not.
    weights.leaves = [leaf.detach().clone().requires_grad_() for leaf in weights.leaves]
    before = [leaf._version for leaf in weights.leaves]
    backend.bind(weights).call(lambda module: _backward(problem, module, minibatch))
    named = zip(backend.layout.names, weights.leaves, before, strict=True)
    return [name for name, leaf, version in named if leaf._version != version]


def _backward(problem: Problem, module: nn.Module, minibatch: Minibatch) -> None:
    problem.objective(module, minibatch.batch).backward()


def _equal(parameter: Tensor, values: Tensor) -> bool:
    # NaN is no write.
    return torch.equal(parameter, values) or bool(torch.allclose(parameter, values, rtol=0, atol=0, equal_nan=True))


def _put(parameter: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(values)
