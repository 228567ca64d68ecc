"""PNG thumbnails of examples."""

import io
from typing import Any

import numpy as np
from PIL import Image

LONGEST = 64
"""Longest side of a thumbnail, in pixels: larger pictures shrink to it, keeping their aspect."""
SHOWN = 32
"""Pictures of at most half this side grow by whole pixels towards it, so that an 8 x 8 digit can be seen."""
LARGEST_ARRAY = 512
"""Arrays with a longer side do not count as pictures."""


def png(picture: Image.Image) -> bytes:
    """Bytes of a PNG thumbnail, longest side at most 64 pixels.

    A larger picture shrinks, keeping its aspect; a tiny one (longest side at most 16) grows by a whole factor
    towards 32, with sharp pixels. Pictures with a palette or with transparency stay transparent; depths
    beyond 8 bits are scaled from their least to their greatest value. `picture` itself is not changed.

    >>> Image.open(io.BytesIO(png(Image.new("L", (8, 4))))).size
    (32, 16)
    """
    small = _eight_bit(picture)
    longest = max(small.size)
    if longest > LONGEST:
        small.thumbnail((LONGEST, LONGEST))
    elif SHOWN // longest > 1:
        factor = SHOWN // longest
        small = small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST)
    file = io.BytesIO()
    small.save(file, format="png")
    return file.getvalue()


def decode(encoded: bytes | str) -> Image.Image:
    """The picture in the bytes of an image file, or in the file of that path, decoded no larger than needed.

    Raises:
        OSError: the file does not exist, or Pillow cannot read it.
    """
    picture = Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)
    # JPEG can decode at a fraction of the size: several times faster for photographs.
    picture.draft(None, (2 * LONGEST, 2 * LONGEST))
    picture.load()
    return picture


def is_picture(array: np.ndarray[Any, Any]) -> bool:
    """Whether an array looks like one picture: [H, W], [1 or 3, H, W] or [H, W, 1 or 3], float or uint8 values,
    sides of 2 to 512. Integers other than uint8 are more likely to be tokens or counts.

    >>> is_picture(np.zeros((3, 28, 28))), is_picture(np.zeros((28, 28), dtype=np.int64))
    (True, False)
    """
    if not (array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)):
        return False
    sides = _height_width(array.shape)
    return sides is not None and all(2 <= side <= LARGEST_ARRAY for side in sides)


def from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    """Picture of an array that `is_picture`: its least value black, its greatest white, over all channels.

    Values that are not finite show as black.

    >>> np.asarray(from_array(np.array([[0.0, 1.0], [0.5, 1.0]]))).tolist()
    [[0, 255], [128, 255]]
    """
    values = array.astype(np.float64)
    if values.ndim == 3:
        if not _is_channel_last(array.shape):
            values = np.moveaxis(values, 0, -1)
        if values.shape[-1] == 1:
            values = values[..., 0]
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    # Divided before the difference is taken: high - low can overflow where neither value does.
    scale = max(abs(low), abs(high)) or 1.0
    span = (high / scale - low / scale) or 1.0
    level = np.where(finite, values / scale - low / scale, 0.0) / span
    return Image.fromarray(np.rint(np.clip(level, 0.0, 1.0) * 255).astype(np.uint8))


def _height_width(shape: tuple[int, ...]) -> tuple[int, int] | None:
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) != 3:
        return None
    if shape[0] in (1, 3):
        return shape[1], shape[2]
    return (shape[0], shape[1]) if _is_channel_last(shape) else None


def _is_channel_last(shape: tuple[int, ...]) -> bool:
    # [3, H, 3] is read as torch writes it, channels first.
    return shape[0] not in (1, 3) and shape[2] in (1, 3)


def _eight_bit(picture: Image.Image) -> Image.Image:
    """A copy of `picture` in a mode that PNG and every viewer has: L, RGB or RGBA."""
    if picture.mode in ("L", "RGB", "RGBA"):
        return picture.copy()
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return from_array(np.asarray(picture))
    if picture.mode == "1":
        return picture.convert("L")
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
