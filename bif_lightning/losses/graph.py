"""Whether a loss differentiates inside, as forces and gradient penalties do: it is then measured with a graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bif_lightning.model.devices import raise_unrelated

_TOLERANCE = 1e-3


def needs_graph(call: Callable[[], Any]) -> bool:
    """Whether a call fails, or gives another tensor, where no graph is recorded.

    Raises:
        Exception: what the call raises with a graph.
    """
    with torch.enable_grad():
        recorded = call()
    try:
        with torch.no_grad():
            plain = call()
    except Exception as error:
        raise_unrelated(error)
        return True
    if not (isinstance(recorded, Tensor) and isinstance(plain, Tensor) and recorded.shape == plain.shape):
        return False
    return not torch.allclose(recorded.detach(), plain, rtol=_TOLERANCE, atol=1e-6, equal_nan=True)
