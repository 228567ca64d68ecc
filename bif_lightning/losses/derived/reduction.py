"""The loss of each example alone, from the terms of a batch's loss and the rule of its reduction.

A batch loss fixes Σ_k c_k r_k, but not how c depends on the other examples of the batch: a mean divides by
their number, a masked mean by their tokens, a sum by nothing. Four rules cover these. With S_i = Σ_{k∈i} c_k r_k
and W_i = Σ_{k∈i} c_k z_k, summed over the elements of example i, and W = Σ_i W_i, the loss of example i alone is

    mean      S_i · W / W_i   with z the weights of the function's own mean (class weight, 0 where ignored)
    count     S_i · W / W_i   with z = 1
    example   S_i · B         with B the number of examples
    sum       S_i

That is `per_sample="mean"`: l_i. With `per_sample="sum"` it is l_i · Z_i, the loss of example i times what it was
divided by when it was alone:

    mean, count     Z_i = Σ_{k∈i} z_k   over the elements with a factor c_k: class weights, tokens that count, elements
    example, sum    Z_i = 1

This is the factor of the loss times the sum of the example's (weighted) elements. For a batch whose loss is one mean,
they add up to divisor times loss, Σ_i l_i Z_i = Z·L with Z = Σ_i Z_i: an example with four times the tokens or the
class weight of another counts four times as much, as in training.

`consistent_rules` finds the rule that a training step follows by comparing the coefficients of a batch with those of
its examples alone. The comparison does not involve the network, and is therefore precise in every dtype.
"""

from collections.abc import Sequence
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.losses.derived.intercept import Call, Captured, NotSeparableError, Term

Rule = Literal["mean", "count", "example", "sum"]
RULES: Final[tuple[Rule, ...]] = ("mean", "count", "example", "sum")

PerSample = Literal["mean", "sum"]
"""Whether the loss of an example is what the training step returns for it alone, or this value times its divisor."""

_WEIGHT_TOLERANCE: Final = 1e-4
_ROW_TOLERANCE: Final = 1e-3


def split(
    captured: Captured, size: int, rules: Sequence[Sequence[Rule]], per_sample: PerSample = "mean"
) -> Float[Tensor, " example"]:
    """The loss of each example alone.

    Args:
        captured: the loss of a batch.
        size: the number of examples in the batch.
        rules: for each call, the rules that it may follow.
        per_sample: "mean" for l_i, "sum" for l_i · Z_i.

    Returns:
        Losses in the step's units, shape [size], float32 or float64 like the elementwise losses. An example
        whose elements are all ignored has loss 0.

    Raises:
        NotSeparableError: the calls do not match `rules`, elements cannot be assigned to examples, two rules of a call
            give different losses, or (for "sum") the divisor is ambiguous.
    """
    if len(rules) != len(captured.terms):
        raise NotSeparableError(
            f"training_step called {len(captured.terms)} losses ({_names(captured)}), but {len(rules)} when it was "
            "checked",
            calls_of(captured),
        )
    used = [
        (term, allowed) for term, allowed in zip(captured.terms, rules, strict=True) if term.coefficients is not None
    ]
    alone = torch.stack([_agreed_share(term, size, allowed) for term, allowed in used]).sum(0)
    return alone if per_sample == "mean" else alone * _own_divisor(used, size)


def relative_weights(captured: Captured, size: int, rules: Sequence[Sequence[Rule]]) -> Float[Tensor, " example"]:
    """W_i up to a factor: in the mean that the batch's loss is, the loss of example i alone counts W_i/ΣW.

    All are 1 for "example", and for "sum", of which `intercept.averaged` makes a mean over the examples with a target.

    Args:
        captured, size, rules: as of `split`.

    Returns:
        W_i, with the largest at 1; 0 of an example whose elements are all ignored.

    Raises:
        NotSeparableError: the loss has several terms that weigh the examples in different ways, so that it is no
            weighted mean of losses.
    """
    used = [(t, allowed) for t, allowed in zip(captured.terms, rules, strict=True) if t.coefficients is not None]
    found = [_relative(_weight_of(term, size, rule)) for term, allowed in used for rule in allowed]
    if any(not bool(torch.isclose(found[0], other, rtol=_WEIGHT_TOLERANCE).all()) for other in found[1:]):
        calls = [term.call for term, _ in used]
        raise NotSeparableError(
            f"the terms of the loss ({', '.join(call.name for call in calls)}) weigh the examples in different ways",
            calls,
        )
    return found[0]


def _relative(weights: Tensor) -> Tensor:
    weights = weights.double().abs().cpu()
    largest = weights.max()
    return weights / largest if largest > 0 else weights


def _weight_of(term: Term, size: int, rule: Rule) -> Tensor:
    if rule == "example":
        return torch.ones(size, device="cpu")
    if rule == "sum":
        own = term.call.weights
        return _per_example(term, torch.ones_like(term.call.elements) if own is None else own, size).any(1)
    return _per_example(term, _weighted(term, rule == "mean"), size).sum(1)


def consistent_rules(batch: Captured, singles: Sequence[Captured]) -> tuple[tuple[Rule, ...], ...]:
    """For each call, the rules under which the batch's coefficients give those of its examples alone.

    Args:
        batch: the loss of a batch.
        singles: the loss of each of its examples in a batch of one, in the same order.

    Returns:
        One tuple for each call. A call with the reduction "mean" that follows it has only that rule; otherwise
        several rules remain where the examples do not distinguish them.

    Raises:
        NotSeparableError: the calls of the examples differ from those of the batch, or a call does not follow any
            rule.
    """
    called = [call.name for call in calls_of(batch)]
    for single in singles:
        if [call.name for call in calls_of(single)] != called:
            raise NotSeparableError(
                f"training_step called {_names(batch)} on a batch of {len(singles)}, but {_names(single)} on one of "
                "its examples alone",
                calls_of(batch),
            )
    return tuple(_rules_of(term, [single.terms[k] for single in singles]) for k, term in enumerate(batch.terms))


def calls_of(captured: Captured) -> tuple[Call, ...]:
    """The calls behind a captured loss, in their order."""
    return tuple(term.call for term in captured.terms)


def _rules_of(term: Term, singles: Sequence[Term]) -> tuple[Rule, ...]:
    if term.coefficients is None:
        return RULES
    size = len(singles)
    found: tuple[Rule, ...] = tuple(rule for rule in RULES if _follows(rule, term, singles, size))
    if not found:
        call = term.call
        raise NotSeparableError(
            f"the factor that training_step gives to {call.name}(reduction={call.reduction!r}) in a batch of {size} "
            "is not explained by the factor in a batch of one: neither a mean nor a sum over examples",
            (call,),
        )
    if term.call.reduction == "batchmean" and "example" in found:
        return ("example",)
    if "mean" not in found:
        return found
    if term.call.reduction == "mean":
        return ("mean",)
    if term.call.weights is not None:
        return found
    distinct: tuple[Rule, ...] = tuple(rule for rule in found if rule != "count")  # without z it is "mean"
    return distinct


def _follows(rule: Rule, term: Term, singles: Sequence[Term], size: int) -> bool:
    # A sum does not use z, but ignored padding depends on the batch, so that only weighting by z compares.
    kinds = {"mean": (True,), "count": (False,)}.get(rule, (True, False))
    return any(_same_weights(rule, term, singles, size, own) for own in kinds)


def _same_weights(rule: Rule, term: Term, singles: Sequence[Term], size: int, own: bool) -> bool:
    weights = _per_example(term, _weighted(term, own), size).sum(1)
    alone = torch.stack([_weighted(single, own).sum() for single in singles]).to(weights)
    expected = weights if rule == "sum" else weights * size if rule == "example" else weights.sum().expand(size)
    close = (expected - alone).abs() <= _WEIGHT_TOLERANCE * torch.maximum(expected.abs(), alone.abs())
    # An example whose elements are all ignored fits every rule.
    return bool((close | (weights == 0) | (alone == 0)).all())


def _agreed_share(term: Term, size: int, rules: Sequence[Rule]) -> Tensor:
    shares = torch.stack([_share(term, size, rule) for rule in rules])
    first = shares[0]
    if len(rules) > 1:
        apart = (shares - first).abs().amax(0) > _ROW_TOLERANCE * first.abs()
        if bool((apart & first.isfinite()).any()):
            raise NotSeparableError(
                f"the divisor of {term.call.name}(reduction={term.call.reduction!r}) in training_step is ambiguous: on "
                f"the checked examples the rules {', '.join(rules)} agreed, but they differ on this batch, whose "
                "examples have different numbers of elements or different weights",
                (term.call,),
            )
    return first


def _share(term: Term, size: int, rule: Rule) -> Tensor:
    values = _coefficients(term) * term.call.elements.detach()
    sums = _per_example(term, values, size).sum(1)
    if rule == "sum":
        return sums
    if rule == "example":
        return sums * size
    weights = _per_example(term, _weighted(term, rule == "mean"), size).sum(1)
    return torch.where(weights == 0, 0.0, sums * weights.sum() / torch.where(weights == 0, 1.0, weights))


def _own_divisor(used: Sequence[tuple[Term, Sequence[Rule]]], size: int) -> Tensor:
    """Z_i, if every call and every rule that it may follow has the same."""
    found: list[Tensor] = []
    right: list[Tensor] = []
    for term, rules in used:
        for rule in rules:
            divisor = _divisor(term, size, rule)
            found.append(divisor)
            if rule in ("mean", "count"):
                # Elements with unequal factors (weights by position) were divided by something else than Z_i.
                weights = _per_example(term, _weighted(term, rule == "mean"), size).sum(1)
                right.append(_close(weights * divisor.sum(), divisor * weights.sum()))
    right += [_close(found[0], other) for other in found[1:]]
    if right and not bool(torch.stack(right).all()):
        calls = [term.call for term, _ in used]
        raise NotSeparableError(
            f"the divisor of the loss of a single example ({', '.join(call.name for call in calls)}) is ambiguous, "
            'but per_sample="sum" needs it: the losses have different divisors, or the step divides by hand',
            calls,
        )
    return found[0]


def _close(one: Tensor, other: Tensor) -> Tensor:
    return ((one - other).abs() <= _WEIGHT_TOLERANCE * torch.maximum(one.abs(), other.abs())).all()


def _divisor(term: Term, size: int, rule: Rule) -> Tensor:
    coefficients = _coefficients(term)
    if rule not in ("mean", "count"):
        return coefficients.new_ones(size)
    weights = term.call.weights
    own = torch.ones_like(coefficients) if rule == "count" or weights is None else weights
    return _per_example(term, own * (coefficients != 0), size).sum(1)


def _weighted(term: Term, own: bool) -> Tensor:
    coefficients = _coefficients(term)
    weights = term.call.weights
    return coefficients * weights if own and weights is not None else coefficients


def _coefficients(term: Term) -> Tensor:
    return torch.zeros_like(term.call.elements) if term.coefficients is None else term.coefficients


def _per_example(term: Term, values: Tensor, size: int) -> Tensor:
    if size < 1 or values.numel() % size:
        raise NotSeparableError(
            f"{term.call.name} has {values.numel()} elements of shape {tuple(values.shape)}, which cannot be divided "
            f"evenly among {size} examples",
            (term.call,),
        )
    return values.reshape(size, -1)


def _names(captured: Captured) -> str:
    return ", ".join(call.name for call in calls_of(captured)) or "none"
