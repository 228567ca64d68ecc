"""Collectives in a loss, in which chains of different ranks would meet: found, and refused."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from bif_lightning.distributed.ranks import current_ranks
from bif_lightning.exceptions import LossRefusedError
from bif_lightning.model.sharded import is_sharded

_NAMESPACES: Final = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "c10d_functional")
_LOCAL: Final = ("wait_tensor",)


def check_collectives(function: Callable[[nn.Module, Any], object], module: nn.Module, batch: Any, name: str) -> None:
    """Refuse collectives where ranks run different chains; sharded models need them. Collective.

    Args:
        function: of a module and a batch.
        name: of the function, for the message.

    Raises:
        LossRefusedError: see `refuse_collectives`.
    """
    if current_ranks().world_size > 1 and not is_sharded(module):
        with torch.enable_grad():  # a loss may differentiate inside
            refuse_collectives(collectives_in(lambda: function(module, batch)), name)


def collectives_in(call: Callable[[], object]) -> list[str]:
    """Run a call and name the operations of torch.distributed in it.

    Every rank must make the same call at the same time, as without this function. It detects operations on process
    groups and functional ones (also of DTensor), in the forward pass and in a backward pass inside the call, but not
    those of other libraries or of compiled code.

    Args:
        call: a function, such as a training step on a batch.

    Returns:
        Names of the operations, each once, in the order of their first use; empty without a process group.
    """
    with _Collectives() as seen:
        call()
    return list(seen.names)


def refuse_collectives(names: Sequence[str], function: str = "training_step") -> None:
    """Refuse a loss with collectives.

    Args:
        names: what `collectives_in` found.
        function: name of what computes the loss.

    Raises:
        LossRefusedError: there are some. The message names them and says what to pass.
    """
    if names:
        raise LossRefusedError(
            f"{function} runs collectives of torch.distributed ({', '.join(names)}). During a snapshot each rank "
            "runs other chains, at its own pace and with other weights: in a collective they would wait for each "
            "other, or mix what they compute. Pass a loss without them (no self.all_gather, dist_sync_on_step or "
            "barrier), to the callback by BIFCallback(..., loss_fn=loss_fn):\n\n"
            "def loss_fn(module, batch):\n"
            "    x, y = batch\n"
            '    return F.cross_entropy(module(x), y, reduction="none")'
        )


class _Collectives(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, None] = {}

    def __torch_dispatch__(
        self,
        func: OpOverload[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        namespace, _, name = func.name().partition("::")
        plain = name.partition(".")[0].rstrip("_")
        if namespace in _NAMESPACES and plain not in _LOCAL:
            self.names[plain] = None
        return func(*args, **(kwargs or {}))
