"""torchvision beside a torch without CUDA: the one on PyPI cannot load its compiled operators then."""

import importlib.util
from pathlib import Path

import torch


def define_operators() -> None:
    """Declare what torchvision looks for while it is imported, where its own library does not load.

    Without it every import of torchvision fails, and that of Lightning with it. Nearly all else of torchvision has
    Python code that needs no operator.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return
    try:
        for path in Path(spec.submodule_search_locations[0]).glob("_C*.so"):
            torch.ops.load_library(str(path))
            return
    except OSError:
        pass  # a library of CUDA is missing
    _kept.append(library := torch.library.Library("torchvision", "DEF"))
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_kept: list[torch.library.Library] = []
"""Operators vanish with the library that defined them."""
