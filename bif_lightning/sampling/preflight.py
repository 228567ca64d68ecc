"""What can go wrong with a module is tried before its first chain, at weights off the snapshot and on a few examples.

Does a twin compute the same bits as the module itself? Do the sampled weights reach the loss, and no others? Does the
gradient agree with finite differences of the loss? Does the loss differentiate inside, or draw random numbers? Are
second derivatives those of the gradient? May several twins run at once?
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from bif_lightning.curvature.first_derivatives import MOST_ERROR, gradient_error
from bif_lightning.curvature.second_derivatives import DIFFERENCES, second_derivatives_hold
from bif_lightning.data.dataset import spread_rows
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.losses.graph import needs_graph
from bif_lightning.losses.problem import Minibatch, Problem
from bif_lightning.model.devices import raise_unrelated
from bif_lightning.model.functional import FunctionalBackend
from bif_lightning.model.sharded import ShardedBackend, is_sharded
from bif_lightning.model.weights import BoundModule, WeightBackend, Weights, gradients_aside
from bif_lightning.rng import GLOBAL, global_states, seed_global, stream_seed
from bif_lightning.sampling.shared_state import Run, shares_state
from bif_lightning.sampling.writes import check_no_writes, live_writes

_EXAMPLES, _FEW = 8, 3
_RELATIVE_NOISE = 0.01
_RELATIVE_STEPS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Changes of the loss, relative to it, for which finite differences are tried: the best one counts."""
_FARTHEST = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
"""Longest steps, in units of the distance from the snapshot: beside a minimum no step changes the loss so much."""
_TOLERANCE = 0.1
"""Of the slope: rounding in half precision stays below it, and a gradient of another function does not."""
_TOLD = 0.02
"""Rounding of the loss, in units of the slope, up to which a difference tells something: beside a minimum none may."""
_LEAST_LOSS, _LEAST_MOVE = 1e-3, 1e-9

_NO_GRADIENT = (
    "something in the model gives a gradient that is not that of the loss (a straight-through estimator, a .detach() "
    "inside the loss, reversed gradients), and chains would sample from no posterior. Pass a loss_fn with a true "
    "gradient, restrict params to weights that have one, or switch this check off: check_gradient=False, in the "
    "callback allow_untested=True"
)

NO_TWIN = "a second tree of this module does not reproduce it"
SHARED = "the forward pass keeps state, such as activations that a hook stores, which copies of this module share"
FROM_CALL_TO_CALL = (
    "the loss of the same examples at the same weights changes from call to call, since it keeps state; draws differ "
    "for that, too. Pass a loss_fn without that state"
)
"""Why chains run one after the other, in the notes of an estimate."""

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
        with ranks.collective("trying the module"), live_writes(problem) as written:
            found = _probe(problem, seed)
        (problem.twins, problem.stochastic, why), problem.written = ranks.broadcast((found, tuple(written)))
        if why:
            problem.remarks["twins"] = f"chains ran one after the other: {why}"
        with ranks.collective("comparing second derivatives"):
            holds = second_derivatives_hold(problem, _functional(problem, ranks), seed)
        if not ranks.broadcast(holds):
            problem.by_differences, problem.remarks["curvature"] = True, DIFFERENCES
    return _functional(problem, ranks)


def _functional(problem: Problem, ranks: Ranks) -> FunctionalBackend:
    return FunctionalBackend(
        problem.module,
        problem.params,
        twins=bool(problem.twins),
        copied=problem.written,
        from_first=_from_first(ranks),
    )


def _from_first(ranks: Ranks) -> Callable[[list[Tensor]], list[Tensor]]:
    def share(buffers: list[Tensor]) -> list[Tensor]:
        if ranks.world_size == 1:
            return buffers
        # By way of the CPU: a tensor that travels keeps the device of the rank that sent it.
        first = ranks.broadcast([buffer.cpu() for buffer in buffers])
        return [there.to(here.device) for there, here in zip(first, buffers, strict=True)]

    return share


def _probe(problem: Problem, seed: int) -> tuple[bool, bool, str]:
    """(twins reproduce the module, the model draws random numbers, why chains must not run at once)."""
    borrowed = FunctionalBackend(problem.module, problem.params, twins=False)
    expected = _tried(problem, borrowed, seed)
    if expected.drew:
        return False, True, ""  # one global generator serves one chain at a time
    try:
        twin = FunctionalBackend(problem.module, problem.params, twins=True)
        found = _Trial.run(problem, twin, seed)
        if found.reached or not torch.equal(found.weights.gradient, expected.weights.gradient):
            again = _Trial.run(problem, borrowed, seed)
            return False, False, NO_TWIN if again.same(expected) else FROM_CALL_TO_CALL
        if twin.parallel and _disturb(problem, twin, found):
            return False, False, SHARED
        return True, False, ""
    except _NO_TWIN as error:
        raise_unrelated(error)
        return False, False, NO_TWIN  # such as a scripted one


def _disturb(problem: Problem, twin: FunctionalBackend, trial: "_Trial") -> bool:
    """Whether twins of the module disturb each other where they run at once."""
    few = problem.minibatch(torch.arange(min(_FEW, len(problem.training)), device="cpu"))

    def gradient(minibatch: Minibatch) -> Run:
        def run(bound: BoundModule, weights: Weights) -> Tensor:
            problem.gradient(twin, weights, bound, minibatch)
            return weights.gradient.clone()

        return run

    return shares_state(twin, trial.weights, twin.weights(), gradient(trial.minibatch), gradient(few))


def _tried(problem: Problem, backend: WeightBackend, seed: int) -> "_Trial":
    trial = _Trial.run(problem, backend, seed)
    if trial.reached:
        raise ValueError(
            f"the module computes with its own {trial.reached[0]} whatever weights it is given: it keeps that "
            "parameter in an object of its own besides the attribute; let it use the attribute, or leave it out of "
            "params"
        )
    check_no_writes(problem, backend, trial.minibatch, *trial.versions)
    if backend.norm(trial.weights.gradient) == 0:
        raise ValueError(
            "the loss does not depend on the sampled weights: its gradient is 0 everywhere. Do the params patterns "
            "choose weights that the loss uses, and does the module compute with its own parameters?"
        )
    problem.differentiates = not backend.sharded and _differentiates(problem, backend, trial, seed)
    if problem.check_gradient:
        _check_gradient(problem, backend, trial, seed)
        if isinstance(backend, FunctionalBackend):
            _check_other_directions(problem, backend, trial, seed)
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
        versions: counters of writes into the weights, before and after.
    """

    weights: Weights
    minibatch: Minibatch
    reached: list[str]
    drew: bool
    versions: tuple[int, int]

    def same(self, other: "_Trial") -> bool:
        """Whether both have the same gradient, bit by bit."""
        return torch.equal(self.weights.gradient, other.weights.gradient)

    @classmethod
    def run(cls, problem: Problem, backend: WeightBackend, seed: int) -> "_Trial":
        weights = backend.weights()
        generator = torch.Generator(backend.device).manual_seed(stream_seed(seed))
        with torch.no_grad():
            for parameter, piece in enumerate(backend.layout.pieces(weights.flat)):
                noise = torch.empty_like(piece)
                backend.fill_normal(noise, parameter, generator)
                piece.add_(noise, alpha=_RELATIVE_NOISE * (_mean_size(piece) + 1e-3))
        rows = spread_rows(len(problem.training), _EXAMPLES)
        named = list(problem.module.named_parameters())
        seed_global(backend.device, stream_seed(seed, GLOBAL))
        before = global_states(backend.device)
        with gradients_aside(problem.module):
            minibatch, version = problem.minibatch(rows), weights.flat._version
            problem.gradient(backend, weights, backend.bind(weights), minibatch)
            reached = [name for name, parameter in named if parameter.grad is not None]
            drew = before != global_states(backend.device) or not problem.training.repeats
            return cls(weights, minibatch, reached, drew, (version, weights.flat._version))


def _differentiates(problem: Problem, backend: WeightBackend, trial: _Trial, seed: int) -> bool:
    """Whether losses or observables differentiate inside, so that they have to be measured with a graph."""
    weights = backend.weights(tracked=False)
    weights.flat.copy_(trial.weights.flat)
    bound = backend.bind(weights)

    def loss() -> Tensor:
        seed_global(backend.device, stream_seed(seed, GLOBAL))
        return bound.call(lambda module: problem.objective(module, trial.minibatch.batch))

    if needs_graph(loss):
        return True
    return bool(problem.observables) and needs_graph(lambda: bound.call(problem.measure_observables))


def _mean_size(piece: Tensor) -> float:
    return float(piece.abs().mean()) if piece.numel() else 0.0  # a rank may have no share of a small parameter


def _check_gradient(problem: Problem, backend: WeightBackend, trial: _Trial, seed: int) -> None:
    """Compare the slope |g| along the gradient with (L(w + h·g/|g|) − L(w − h·g/|g|)) / 2h.

    It is not compared where rounding of L hides the differences, as of a model that stands exactly at a minimum.
    """
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

    size, moved_by = max(abs(loss(0.0)), _LEAST_LOSS), max(backend.distance(start), _LEAST_MOVE)
    steps = [min(r * size / slope, far * moved_by) for r, far in zip(_RELATIVE_STEPS, _FARTHEST, strict=True)]
    resolution = _resolution(problem, trial)
    found, told = list[float](), list[float]()
    for h in steps:
        ends = loss(h), loss(-h)
        difference = (ends[0] - ends[1]) / (2 * h)
        if math.isfinite(difference):
            found.append(difference)
            if resolution * max(map(abs, ends)) / (2 * h) <= _TOLD * slope:
                told.append(difference)
    best = min(found, key=lambda difference: abs(difference - slope), default=slope)
    # Steps that part from each other are too long for a loss that is bent so much.
    alike = len(told) == 1 or any(_near(one, other, slope) for one, other in pairwise(told))
    if not _near(best, slope, slope) and alike:
        raise ValueError(
            f"the gradient of the loss has length {slope:.4g}, but the loss changes by {best:.4g} a unit along it: "
            f"{_NO_GRADIENT}"
        )


def _near(one: float, other: float, slope: float) -> bool:
    return abs(one - other) <= _TOLERANCE * max(slope, min(abs(one), abs(other)))


def _resolution(problem: Problem, trial: _Trial) -> float:
    """Relative resolution of the loss, in the coarsest dtype of the weights."""
    types = {p.dtype for p in problem.module.parameters() if p.is_floating_point()} | {trial.weights.flat.dtype}
    return max(torch.finfo(dtype).eps for dtype in types)


def _check_other_directions(problem: Problem, backend: FunctionalBackend, trial: _Trial, seed: int) -> None:
    """Compare slopes along random directions, which a part that is missing from the gradient changes too."""
    error = gradient_error(problem, backend, trial.minibatch, seed)
    if error > MOST_ERROR:
        raise ValueError(
            f"along random directions the slopes of the loss differ by {error:.0%} from those of its gradient: "
            f"{_NO_GRADIENT}"
        )
