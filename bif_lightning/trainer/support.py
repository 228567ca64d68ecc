"""Supported strategies and precisions, and the Trainer's settings that the engine needs."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from bif_lightning.distributed.ranks import BatchShard

PRECISIONS = ("32-true", "64-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true")
"""Precisions in which training was tested to stay bitwise unchanged."""

STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy")
"""Strategies with the same tests; subclasses count, except for those in `REFUSED`."""

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "FSDPStrategy": "it keeps the weights in flat shards that only its own forward pass assembles",
        "DeepSpeedStrategy": "its engine owns the weights and the backward pass",
        "XLAStrategy": "it was never tested",
    }
)
"""Strategies that do not work, and why."""


def check_trainer(trainer: Any, *, allow_untested: bool) -> None:
    """Check that strategy and precision are among the tested ones.

    Raises:
        MisconfigurationException: one is not.
    """
    if allow_untested:
        return
    kinds = [base.__name__ for base in type(trainer.strategy).__mro__]
    why = next((REFUSED[kind] for kind in kinds if kind in REFUSED), None)
    if why is None and not set(kinds) & set(STRATEGIES):
        why = f"it was tested with {', '.join(STRATEGIES)}"
    if why is not None:
        raise MisconfigurationException(
            f"BIFCallback was not tested to leave training unchanged with {kinds[0]} on {trainer.world_size} ranks: "
            f"{why}. Attribute its checkpoints instead, consolidated or in shards of torch.distributed.checkpoint: "
            "bif_lightning.attribute(module, checkpoints, train, query), or the command bif-lightning attribute. Or "
            "train with strategy='ddp' or ModelParallelStrategy (FSDP2), or pass allow_untested=True, and check the "
            "result"
        )
    if str(trainer.precision) not in PRECISIONS:
        raise MisconfigurationException(
            f"BIFCallback was not tested to leave training unchanged with precision={trainer.precision!r}, "
            f"but with {', '.join(PRECISIONS)}. Use one of those, or pass allow_untested=True and check the result"
        )


def split_of(trainer: Any) -> BatchShard:
    """How the data-parallel ranks of a sharded model divide a batch."""
    mesh = getattr(trainer.strategy, "_device_mesh", None)
    if mesh is None or "data_parallel" not in (mesh.mesh_dim_names or ()):
        return BatchShard()
    own = mesh["data_parallel"]
    return BatchShard(own.get_local_rank(), own.size(), own.get_group())


def loss_scale_of(trainer: Any) -> float:
    """Current loss scale of training in float16, read and never updated; 1 without one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())
