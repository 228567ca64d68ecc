"""Tensors of subclasses that carry something along, as MONAI's MetaTensor an affine matrix, and others boxes."""

from typing import Any

from torch import Tensor


def plain_tensor(value: Any) -> Any:
    """A tensor without what its subclass carries along, since such a subclass may refuse to be stacked or sliced.

    Subclasses that compute in their own way, as DTensor does, stay as they are, and so does what is no tensor.
    """
    kind: Any = type(value)
    own: Any = Tensor
    if kind is Tensor or not isinstance(value, Tensor) or kind.__torch_dispatch__ is not own.__torch_dispatch__:
        return value
    return value.as_subclass(Tensor)
