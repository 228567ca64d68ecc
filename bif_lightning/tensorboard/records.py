"""Single values for a TensorBoard event file, each with the description that its card shows.

`SummaryWriter.add_scalar` and `add_image` cannot carry a description, so the same records are built here. They
have the form that those methods write, so every reader of event files reads them alike.
"""

import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from tensorboard.compat.proto import summary_pb2, tensor_pb2, types_pb2
from tensorboard.plugins.histogram import plugin_data_pb2 as histogram_plugin_data_pb2
from tensorboard.plugins.image import plugin_data_pb2 as image_plugin_data_pb2
from tensorboard.plugins.scalar import plugin_data_pb2 as scalar_plugin_data_pb2
from tensorboard.plugins.text.metadata import create_summary_metadata as text_metadata
from torch.utils.tensorboard import SummaryWriter

from bif_lightning.plots import to_png

# The generated protobuf modules fill themselves when imported, which no type checker can follow.
_scalar_plugin: Any = scalar_plugin_data_pb2
_image_plugin: Any = image_plugin_data_pb2
_histogram_plugin: Any = histogram_plugin_data_pb2
_summary: Any = summary_pb2
_tensor: Any = tensor_pb2
_types: Any = types_pb2
_LONGEST = 100

Record = Any
"""One value of an event: a `Summary.Value` of TensorBoard's protocol buffers."""


def scalar(tag: str, value: float, description: str) -> Record:
    """One number."""
    metadata = _metadata("scalars", _scalar_plugin.ScalarPluginData(), _summary.DATA_CLASS_SCALAR, description)
    return _summary.Summary.Value(tag=tag, simple_value=value, metadata=metadata)


def picture(tag: str, figure: Figure, description: str) -> Record:
    """One figure, as a PNG."""
    png, width, height = to_png(figure)
    image = _summary.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    content = _image_plugin.ImagePluginData(converted_to_tensor=True)
    metadata = _metadata("images", content, _summary.DATA_CLASS_BLOB_SEQUENCE, description)
    return _summary.Summary.Value(tag=tag, image=image, metadata=metadata)


def markdown(tag: str, text: str, description: str) -> Record:
    """One text in Markdown. TensorBoard removes scripts and unsafe tags when it shows it."""
    tensor = _tensor.TensorProto(dtype=_types.DT_STRING, string_val=[text.encode()])
    return _summary.Summary.Value(tag=tag, tensor=tensor, metadata=text_metadata("", description))


def histogram(
    tag: str, parts: Iterable[Float[np.ndarray, " value"]], limits: Float[np.ndarray, " edge"], description: str
) -> Record:
    """Counts of finite values, in parts, between fixed, evenly spaced limits; at least one value in all."""
    counts, size, total, squares = np.zeros(limits.size - 1, np.int64), 0, 0.0, 0.0
    low, high = math.inf, -math.inf
    for values in parts:
        if values.size:
            counts += np.histogram(values, bins=limits.size - 1, range=(float(limits[0]), float(limits[-1])))[0]
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            size += values.size
            total += float(values.sum(dtype=np.float64))
            squares += float(np.square(values, dtype=np.float64).sum())
    filled = np.flatnonzero(counts)
    kept = slice(filled[0], filled[-1] + 1) if filled.size else slice(0, 1)
    histo = _summary.HistogramProto(
        min=low,
        max=high,
        num=float(size),
        sum=total,
        sum_squares=squares,
        # The first bucket of the format reaches down to −infinity: an empty one before it keeps its edge.
        bucket_limit=[float(limits[kept.start]), *limits[1:][kept].tolist()],
        bucket=[0.0, *counts[kept].astype(float).tolist()],
    )
    content = _histogram_plugin.HistogramPluginData()
    metadata = _metadata("histograms", content, _summary.DATA_CLASS_TENSOR, description)
    return _summary.Summary.Value(tag=tag, histo=histo, metadata=metadata)


def _metadata(plugin: str, content: Any, data_class: int, description: str) -> Any:
    """What makes a tag's description reach its card.

    TensorBoard's default loader of event files keeps the description only of a record that names its plugin and the
    class of its data; else it makes metadata of its own.
    """
    return _summary.SummaryMetadata(
        plugin_data=_summary.SummaryMetadata.PluginData(plugin_name=plugin, content=content.SerializeToString()),
        data_class=data_class,
        summary_description=description,
    )


def write(writer: SummaryWriter, values: Sequence[Record], step: int) -> None:
    """Write all values at that step as one event, and flush, so that an open TensorBoard shows them."""
    writer._get_file_writer().add_summary(_summary.Summary(value=values), step)
    writer.flush()


def tag_part(text: str) -> str:
    """An id as a part of a tag: printable, of bounded length, and different for different ids.

    >>> tag_part("train-7"), tag_part("a\\nb")
    ('train-7', 'a%0Ab')
    """
    plain = "".join(char if char.isprintable() and char != "%" else f"%{ord(char):02X}" for char in text)
    if len(plain) <= _LONGEST:
        return plain
    return f"{plain[: _LONGEST - 9]}~{zlib.crc32(text.encode()):08x}"
