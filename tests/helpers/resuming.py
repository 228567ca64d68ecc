"""Resume a training from a checkpoint, in any version of Lightning that is supported."""

import inspect
from pathlib import Path
from typing import Any

import lightning as L


def resuming(checkpoint: Path | str | None) -> dict[str, Any]:
    """Arguments of `Trainer.fit`; before Lightning 2.6 it could not be told to read tensors only."""
    if not checkpoint:
        return {}
    safely = {"weights_only": True} if "weights_only" in inspect.signature(L.Trainer.fit).parameters else {}
    return {"ckpt_path": checkpoint, **safely}
