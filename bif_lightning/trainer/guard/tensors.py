"""Saving and restoring the values of tensors and arrays, within a budget of bytes."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

Undo = Callable[[], None]

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class CopyBudget:
    """Limit of the bytes of tensors and arrays to copy: at most `item` of one, and `total` of all."""

    def __init__(self, *, item: int, total: int) -> None:
        self._item = item
        self._left = total

    def spend(self, size: int) -> bool:
        """Take `size` bytes from the budget; return False, and take nothing, where it does not suffice."""
        if size > min(self._item, self._left):
            return False
        self._left -= size
        return True


def nothing() -> None:
    """Undo nothing."""


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense and not of a subclass with its own dispatch."""
    return tensor.layout is torch.strided and type(tensor) in (Tensor, nn.Parameter, nn.Buffer)


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor has memory to read, and is neither on the meta device nor a lazy module's placeholder."""
    return not is_lazy(tensor) and not tensor.is_meta


def bits(tensor: Tensor) -> Tensor:
    """The values of a plain tensor as integers of the same width: NaN equals itself and −0 is not 0."""
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    values = tensor.detach().resolve_conj().resolve_neg().contiguous()
    values = torch.view_as_real(values) if values.is_complex() else values
    return values.view(_INTEGERS[values.element_size()])


def keep_tensor(tensor: Tensor, budget: CopyBudget) -> Undo:
    """Save values, gradient reference and `requires_grad`; beyond the budget, only watch for a write."""
    if not has_values(tensor):
        return nothing
    keep_values = _copy if budget.spend(tensor.numel() * tensor.element_size()) else _watch
    undo_values = keep_values(tensor)
    if not tensor.is_leaf:
        return undo_values
    gradient, flag = tensor.grad, tensor.requires_grad

    def undo() -> None:
        undo_values()
        restore_gradient(tensor, gradient, flag)

    return undo


def keep_values(tensor: Tensor, budget: CopyBudget) -> Undo | None:
    """Save values alone; None beyond the budget."""
    return _copy(tensor) if budget.spend(tensor.numel() * tensor.element_size()) else None


def restore_gradient(tensor: Tensor, gradient: Tensor | None, requires_grad: bool) -> None:
    """Restore the gradient object and the `requires_grad` flag of a leaf."""
    if tensor.requires_grad is not requires_grad:
        tensor.requires_grad_(requires_grad)
    if tensor.grad is not gradient:
        tensor.grad = gradient


def writes_of(tensor: Tensor) -> int:
    """Torch's counter of writes into a tensor."""
    return 0 if tensor.is_inference() else tensor._version  # tensors of inference mode do not count writes


def _watch(tensor: Tensor) -> Undo:
    version = writes_of(tensor)

    def undo() -> None:
        if writes_of(tensor) != version:
            raise RuntimeError(
                f"a tensor of shape {tuple(tensor.shape)} was written during a snapshot and is too large to "
                "be restored: register it as a buffer, of which every chain has its own copy, or do not "
                "write it in training_step or the dataset"
            )

    return undo


def _copy(tensor: Tensor) -> Undo:
    before, version = tensor.detach().clone(), writes_of(tensor)

    def undo() -> None:
        if not _is_same(tensor, before, version):
            _write(tensor, before)

    return undo


def _is_same(now: Tensor, before: Tensor, version: int) -> bool:
    if (now.shape, now.dtype, now.device) != (before.shape, before.dtype, before.device):
        return False
    # Bits, not only the version: writes through .data and through NumPy are not counted.
    return torch.equal(bits(now), bits(before)) if is_plain(now) else writes_of(now) == version


def _write(tensor: Tensor, before: Tensor) -> None:
    fits = (tensor.shape, tensor.dtype, tensor.device) == (before.shape, before.dtype, before.device)
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        if fits:
            tensor.copy_(before)
        else:
            tensor.data = before


def keep_array(array: np.ndarray, budget: CopyBudget) -> Undo:
    """Save the elements of an array, unless it is read-only, a memory map or beyond the budget."""
    if isinstance(array, np.memmap) or not array.flags.writeable or not budget.spend(array.nbytes):
        return nothing
    before = array.copy()

    def undo() -> None:
        if not _is_same_array(array, before):
            np.copyto(array, before)

    return undo


def _is_same_array(now: np.ndarray, before: np.ndarray) -> bool:
    if now.shape != before.shape or now.dtype != before.dtype:
        return False
    if now.dtype.hasobject:
        return all(a is b for a, b in zip(now.flat, before.flat, strict=True))
    return np.array_equal(_as_bytes(now), _as_bytes(before))


def _as_bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
