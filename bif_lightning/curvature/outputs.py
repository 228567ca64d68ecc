"""The outputs of a network as its loss sees them, and random vectors whose second moment is the loss's curvature there.

A loss L(w) = Σ_k c_k·r_k(z_k) of outputs z = z(w), with known convex functions r, has the Gauss-Newton matrix

    G = Σ_k c_k·J_kᵀ·R_k·J_k,   J_k = ∂z_k/∂w,   R_k = ∂²r_k/∂z_k²   (Schraudolph 2002; Martens 2020, Sec. 8).

With random signs σ there is for each r a vector v(σ) with E[v·vᵀ] = R: for cross-entropy, with p = softmax(z),
v = σ√p − p·Σ_c σ_c√p_c. So s = Σ_k √c_k·J_kᵀ·v_k, one backward pass, has E[s·sᵀ] = G.

Which calls these are is found while the loss is computed: losses of `torch.nn.functional`, and log-softmax, logarithms
of sigmoids, softplus and squares, as in losses that are written by hand. A call counts if L is linear in its result, so
that those inside the network do not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bif_lightning.data.tensors import plain_tensor
from bif_lightning.losses.derived.intercept import Step, arguments_of, at_least_float32, scalar_loss, unreduced

_SAME = 1e-3  # relative difference of two gradients that are equal but for rounding
_LEAST = 1e-12

Arguments = Mapping[str, Any]
Root = Callable[[Tensor], Tensor]
"""From signs of the shape of z: the vector √c·v of the equations above."""


class NoOutputsError(ValueError):
    """The loss was not shown to be a sum of known convex functions of outputs; the message says why."""


@dataclass(frozen=True)
class Output:
    """The outputs z of one call.

    Attributes:
        values: z, with the graph of the network.
        root: v(σ)·√c.
    """

    values: Tensor
    root: Root

    def slopes(self, generator: torch.Generator) -> Tensor:
        """√c·v of random signs."""
        signs = torch.randint(0, 2, self.values.shape, generator=generator, device=generator.device)
        return self.root(signs.to(self.values.device) * 2.0 - 1).to(self.values)


def outputs_of(
    step: Step, module: nn.Module, batch: Any, weights: Sequence[Tensor], *, check: bool = False
) -> list[Output]:
    """The outputs that enter the loss of a step.

    Args:
        step: (module, batch) -> the loss L, a scalar.
        weights: with respect to which the curvature is wanted.
        check: compare the gradient through the outputs with that of the loss, which costs two backward passes.

    Raises:
        NoOutputsError: L is not shown to be a sum of known convex functions of outputs.
    """
    mode = _Record()
    with torch.enable_grad():
        with mode:
            loss = scalar_loss(step(module, batch))
        calls = [call for call in mode.calls if call.result.requires_grad]
        slopes = _slopes(loss, calls)
    outer = [(call, slope) for call, slope in zip(calls, slopes, strict=True) if slope is not None]
    if check:
        _check_complete(loss, outer, weights)
    return [Output(call.values, call.root(call, slope.detach())) for call, slope in outer]


def _slopes(loss: Tensor, calls: "Sequence[_Call]") -> list[Tensor | None]:
    """∂L/∂r of each call; None where L does not depend on it, or not linearly: then it is part of the network."""
    if not calls or not loss.requires_grad:
        return [None] * len(calls)
    results = [call.result for call in calls]
    found = torch.autograd.grad(loss, results, create_graph=True, allow_unused=True)
    return [None if slope is None or slope.requires_grad else slope for slope in cast("list[Tensor | None]", found)]


def _check_complete(loss: Tensor, outer: "Sequence[tuple[_Call, Tensor]]", weights: Sequence[Tensor]) -> None:
    """Check that the weights enter L through these calls alone."""
    if not loss.requires_grad:
        return
    whole = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
    parts = [torch.zeros_like(weight) for weight in weights]
    if outer:
        results, slopes = [call.result for call, _ in outer], [slope for _, slope in outer]
        found = torch.autograd.grad(results, weights, slopes, retain_graph=True, materialize_grads=True)
        parts = list(found)
    apart = sum(float((one - other).double().square().sum()) for one, other in zip(whole, parts, strict=True))
    if apart > _SAME**2 * sum(float(one.double().square().sum()) for one in whole):
        raise NoOutputsError("it is not shown to be a weighted sum of convex functions of the outputs")


@dataclass(frozen=True)
class _Call:
    """One call of a known function.

    Attributes:
        values: z, what its curvature is with respect to.
        result: r(z), elementwise.
        arguments: all arguments.
        root: (call, c) -> v(σ)·√c, with c = ∂L/∂r.
    """

    values: Tensor
    result: Tensor
    arguments: Arguments
    root: "Callable[[_Call, Tensor], Root]"


class _Record(TorchFunctionMode):
    """Records the calls of known functions, those of losses without their reduction."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        arguments = arguments_of(func, args, kwargs)
        if arguments is not None and func.__name__ in _LOSSES:
            call = unreduced(func, args, kwargs, leaf=False)
            values = plain_tensor(arguments["input"])
            if func is F.mse_loss:
                values = values - plain_tensor(arguments.pop("target"))
            self.calls.append(_Call(values, call.elements, arguments, _LOSSES[func.__name__]))
            return call.reduced()
        result = func(*args, **kwargs)
        if func in _FUNCTIONS and isinstance(result, Tensor):
            self._record(func, args, kwargs, result)
        return result

    def _record(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor
    ) -> None:
        first, second, *_ = (*args, kwargs.get("exponent", kwargs.get("dim")), None)
        if isinstance(first, Tensor) and not (func in _POWERS and second != 2):
            call = _Call(plain_tensor(first), plain_tensor(result), {"dim": second}, _FUNCTIONS[func])
            self.calls.append(call)


def _detached(call: _Call) -> Tensor:
    return at_least_float32(call.values.detach())


def _width(mass: Tensor) -> Tensor:
    """√c, for c of the curvature itself."""
    if bool((mass < 0).any()):
        raise NoOutputsError("it is not convex in its outputs")
    return mass.sqrt()


def _softmax_root(values: Tensor, classes: int, mass: Tensor) -> Root:
    """Of the log-sum-exp over classes: v = σ√p − p·Σσ√p."""
    probability, width = values.softmax(classes), _width(mass).unsqueeze(classes)

    def root(signs: Tensor) -> Tensor:
        scaled = signs * probability.sqrt()
        return width * (scaled - probability * scaled.sum(classes, keepdim=True))

    return root


def _cross_entropy(call: _Call, slope: Tensor) -> Root:
    classes = 1 if call.values.ndim > 1 else 0
    return _softmax_root(_detached(call), classes, slope * _target_mass(call.arguments, classes))


def _nll(call: _Call, slope: Tensor) -> Root:
    """With respect to log-probabilities, whose curvature is that of their softmax: E[v·vᵀ] = diag(p), as of Fisher."""
    values = _detached(call)
    classes = 1 if values.ndim > 1 else 0
    probability = values.exp()
    if bool(((probability.sum(classes) - 1).abs() > _SAME).any()):
        raise NoOutputsError("the inputs of nll_loss are no logarithms of probabilities")
    width = _width(slope * _target_mass(call.arguments, classes)).unsqueeze(classes)
    return lambda signs: width * signs * probability.sqrt()


def _target_mass(arguments: Arguments, classes: int) -> Tensor:
    """Sum over classes of the target's weight: 1 but for class weights, ignored labels and soft targets."""
    target, weight = plain_tensor(arguments["target"]), cast("Tensor | None", arguments["weight"])
    smooth, count = float(arguments.get("label_smoothing", 0.0)), arguments["input"].shape[classes]
    if target.is_floating_point():
        if target.requires_grad:
            raise NoOutputsError("its targets depend on the weights")
        target = target * (1 - smooth) + smooth / count
        if weight is not None:
            target = target * weight.view([-1 if axis == classes else 1 for axis in range(target.ndim)])
        return target.sum(classes)
    target = target.long()
    counted = target != arguments["ignore_index"]
    if weight is None:
        return counted.float()
    own = weight[torch.where(counted, target, 0)]
    return torch.where(counted, (1 - smooth) * own + smooth * weight.mean(), 0.0)


def _log_softmax(call: _Call, slope: Tensor) -> Root:
    dim = call.arguments["dim"]
    classes = (0 if call.values.ndim in (0, 1, 3) else 1) if dim is None else int(dim) % call.values.ndim
    return _softmax_root(_detached(call), classes, -slope.sum(classes))


def _elementwise(curvature: Callable[[Arguments, Tensor], Tensor]) -> Callable[[_Call, Tensor], Root]:
    """Of a function of single outputs: v = σ·√r''(z)."""

    def root(call: _Call, slope: Tensor) -> Root:
        target = call.arguments.get("target")
        if isinstance(target, Tensor) and target.requires_grad:
            raise NoOutputsError("its targets depend on the weights")
        weight = cast("Tensor | None", call.arguments.get("weight"))
        second = curvature(call.arguments, _detached(call)) * slope
        width = _width(second if weight is None else second * weight)
        if width.shape != call.values.shape:
            raise NoOutputsError("the target has another shape than the outputs")
        return lambda signs: width * signs

    return root


def _two(arguments: Arguments, values: Tensor) -> Tensor:
    return torch.full_like(values, 2.0)


def _sigmoid_slope(arguments: Arguments, values: Tensor) -> Tensor:
    probability = values.sigmoid()
    return probability * (1 - probability)


def _log_sigmoid(arguments: Arguments, values: Tensor) -> Tensor:
    return -_sigmoid_slope(arguments, values)


def _logistic(arguments: Arguments, values: Tensor) -> Tensor:
    weight = cast("Tensor | None", arguments["pos_weight"])
    mass = 1.0 if weight is None else 1 + (weight - 1) * arguments["target"]
    return _sigmoid_slope(arguments, values) * mass


def _bernoulli(arguments: Arguments, values: Tensor) -> Tensor:
    """With respect to probabilities, of which the logits are convex: the Fisher matrix."""
    return 1 / (values * (1 - values)).clamp(min=_LEAST)


def _huber(arguments: Arguments, values: Tensor) -> Tensor:
    return ((values - arguments["target"]).abs() <= arguments["delta"]).to(values)


def _smooth_l1(arguments: Arguments, values: Tensor) -> Tensor:
    beta = float(arguments["beta"])
    return ((values - arguments["target"]).abs() < beta).to(values) / max(beta, _LEAST)


_LOSSES: Final[dict[str, Callable[[_Call, Tensor], Root]]] = {
    "cross_entropy": _cross_entropy,
    "nll_loss": _nll,
    "mse_loss": _elementwise(_two),
    "binary_cross_entropy_with_logits": _elementwise(_logistic),
    "binary_cross_entropy": _elementwise(_bernoulli),
    "huber_loss": _elementwise(_huber),
    "smooth_l1_loss": _elementwise(_smooth_l1),
}
_POWERS: Final = (torch.pow, Tensor.pow, Tensor.__pow__)
_FUNCTIONS: Final[dict[Callable[..., Any], Callable[[_Call, Tensor], Root]]] = {
    **dict.fromkeys((torch.log_softmax, Tensor.log_softmax, F.log_softmax), _log_softmax),
    F.logsigmoid: _elementwise(_log_sigmoid),
    **dict.fromkeys((torch.square, Tensor.square, *_POWERS), _elementwise(_two)),
}
