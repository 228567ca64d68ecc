"""What can go wrong with a module is tried before its first chain, at weights off the snapshot and on a few examples.

Does a twin compute the same bits as the module itself? Do the sampled weights reach the loss, and no others? Does the
gradient agree with finite differences of the loss? Does the module draw random numbers?
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bif_lightning.distributed.ranks import Ranks
from bif_lightning.losses.problem import Minibatch, Problem
from bif_lightning.model.functional import FunctionalBackend
from bif_lightning.model.sharded import ShardedBackend, is_sharded
from bif_lightning.model.weights import WeightBackend, Weights
from bif_lightning.rng import GLOBAL, global_states, seed_global, stream_seed

_EXAMPLES = 8
_RELATIVE_NOISE = 0.01
_RELATIVE_STEPS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Changes of the loss, relative to it, for which finite differences are tried: the best one counts."""
_TOLERANCE = 0.1
"""Of the slope: rounding in half precision stays below it, and a gradient of another function does not."""

_NO_TWIN = (RuntimeError, AttributeError, TypeError, KeyError, AssertionError, NotImplementedError)


def ready_backend(problem: Problem, seed: int, ranks: Ranks) -> WeightBackend:
    """The backend of this snapshot.

    The first time, tries the module as the head of this file says; where a twin of the module does not compute the same
    bits as the module itself, chains run on the module, one at a time.

    Raises:
        ValueError: the loss does not depend on the sampled weights, or its gradient is not that of the loss.
    """
    if is_sharded(problem.module):
        backend: WeightBackend = ShardedBackend(problem.module, problem.params, split=problem.split)
        if problem.twins is None:
            problem.twins, problem.stochastic = False, _tried(problem, backend, seed).drew
        return backend
    if problem.twins is None:
        # The same answer on all ranks, since the bits of what draws random numbers depend on it.
        with ranks.collective("trying the module"):
            found = _probe(problem, seed)
        problem.twins, problem.stochastic = ranks.broadcast(found)
    return FunctionalBackend(problem.module, problem.params, twins=problem.twins, from_first=_from_first(ranks))


def _from_first(ranks: Ranks) -> Callable[[list[Tensor]], list[Tensor]]:
    def share(buffers: list[Tensor]) -> list[Tensor]:
        if ranks.world_size == 1:
            return buffers
        # By way of the CPU: a tensor that travels keeps the device of the rank that sent it.
        first = ranks.broadcast([buffer.cpu() for buffer in buffers])
        return [there.to(here.device) for there, here in zip(first, buffers, strict=True)]

    return share


def _probe(problem: Problem, seed: int) -> tuple[bool, bool]:
    """(twins reproduce the module, the model draws random numbers)."""
    borrowed = FunctionalBackend(problem.module, problem.params, twins=False)
    expected = _tried(problem, borrowed, seed)
    if expected.drew:
        return False, True  # one global generator serves one chain at a time
    try:
        twin = FunctionalBackend(problem.module, problem.params, twins=True)
        found = _Trial.run(problem, twin, seed)
        return not found.reached and torch.equal(found.weights.gradient, expected.weights.gradient), False
    except _NO_TWIN:
        return False, False  # a module that a twin does not reproduce, such as a scripted one


def _tried(problem: Problem, backend: WeightBackend, seed: int) -> "_Trial":
    trial = _Trial.run(problem, backend, seed)
    if trial.reached:
        raise ValueError(
            f"the module computes with its own {trial.reached[0]} whatever weights it is given: it keeps that "
            "parameter in an object of its own besides the attribute; let it use the attribute, or leave it out of "
            "params"
        )
    if backend.norm(trial.weights.gradient) == 0:
        raise ValueError(
            "the loss does not depend on the sampled weights: its gradient is 0 everywhere. Do the params patterns "
            "choose weights that the loss uses, and does the module compute with its own parameters?"
        )
    if problem.check_gradient:
        _check_gradient(problem, backend, trial, seed)
    # A first call may draw what no other does (a lazy initialization), and so may another thread of the process; in
    # shards all ranks have to make as many calls as the others, and none more.
    if trial.drew and not backend.sharded:
        return replace(trial, drew=_Trial.run(problem, backend, seed).drew)
    return trial


@dataclass(frozen=True)
class _Trial:
    """A gradient of the mean loss of a few examples, at weights 1 % off the snapshot.

    Attributes:
        weights: there, with their gradient.
        minibatch: of the examples.
        reached: names of the module's own parameters that got a gradient, which none may.
        drew: whether the model, or the training data, drew random numbers.
    """

    weights: Weights
    minibatch: Minibatch
    reached: list[str]
    drew: bool

    @classmethod
    def run(cls, problem: Problem, backend: WeightBackend, seed: int) -> "_Trial":
        weights = backend.weights()
        generator = torch.Generator(backend.device).manual_seed(stream_seed(seed))
        with torch.no_grad():
            for parameter, piece in enumerate(backend.layout.pieces(weights.flat)):
                noise = torch.empty_like(piece)
                backend.fill_normal(noise, parameter, generator)
                piece.add_(noise, alpha=_RELATIVE_NOISE * (_mean_size(piece) + 1e-3))
        rows = torch.linspace(0, len(problem.training) - 1, min(_EXAMPLES, len(problem.training))).long()
        rows = rows.unique()
        named = list(problem.module.named_parameters())
        gradients = [parameter.grad for _, parameter in named]
        seed_global(backend.device, stream_seed(seed, GLOBAL))
        before = global_states(backend.device)
        try:
            for _, parameter in named:
                parameter.grad = None
            minibatch = problem.minibatch(rows)
            problem.gradient(backend, weights, backend.bind(weights), minibatch)
            reached = [name for name, parameter in named if parameter.grad is not None]
            drew = before != global_states(backend.device) or not problem.training.repeats
            return cls(weights, minibatch, reached, drew)
        finally:
            for (_, parameter), gradient in zip(named, gradients, strict=True):
                parameter.grad = gradient


def _mean_size(piece: Tensor) -> float:
    return float(piece.abs().mean()) if piece.numel() else 0.0  # a rank may have no share of a small parameter


def _check_gradient(problem: Problem, backend: WeightBackend, trial: _Trial, seed: int) -> None:
    """Compare the slope |g| along the gradient with (L(w + h·g/|g|) − L(w − h·g/|g|)) / 2h."""
    slope = backend.norm(trial.weights.gradient)
    if not math.isfinite(slope):
        return  # losses that are not finite are named where they are measured, or as a chain that diverged
    direction = trial.weights.gradient / slope
    start, moved = trial.weights.flat.clone(), backend.weights(tracked=False)
    bound = backend.bind(moved)

    def loss(step: float) -> float:
        with torch.no_grad():
            torch.add(start, direction, alpha=step, out=moved.flat)
        seed_global(backend.device, stream_seed(seed, GLOBAL))
        return problem.mean_loss(bound, trial.minibatch)

    size = max(abs(loss(0.0)), 1e-3)
    found = [(loss(h) - loss(-h)) / (2 * h) for h in (r * size / slope for r in _RELATIVE_STEPS)]
    best = min(filter(math.isfinite, found), key=lambda difference: abs(difference - slope), default=slope)
    if abs(best - slope) > _TOLERANCE * slope:
        raise ValueError(
            f"the gradient of the loss has length {slope:.4g}, but the loss changes by {best:.4g} a unit along it: "
            "something in the model gives a gradient that is not that of the loss (a straight-through estimator, a "
            ".detach() inside the loss, reversed gradients), and chains would sample from no posterior. Pass a loss_fn "
            "with a true gradient, restrict params to weights that have one, or switch this check off: "
            "check_gradient=False, in the callback allow_untested=True"
        )
