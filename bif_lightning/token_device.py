"""Matrix products of token losses on a device. What reads dumps does without torch until a device is asked for."""

import numpy as np

from bif_lightning.token_products import Product


def product_on(device: str) -> Product:
    """Matrix products on a device, of arrays that come from the CPU and go back there.

    Raises:
        ValueError: PyTorch has no such device here.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the second of a PyTorch that was built without CUDA
        raise ValueError(
            f"device {device!r} is not there: {error}; leave `device` out to multiply on the CPU"
        ) from error

    def product(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        first, second = (torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in (rows, columns))
        return (first @ second).cpu().numpy()

    return product
