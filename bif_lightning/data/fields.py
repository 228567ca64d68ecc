"""Id, label, text and picture of examples, read from the columns or the items of a dataset."""

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar, cast

import numpy as np
from PIL import Image

from bif_lightning.data import thumbnails

if TYPE_CHECKING:
    import datasets

_T = TypeVar("_T")

ID_NAMES = ("id", "idx", "uuid", "uid", "guid", "example_id", "sample_id", "__key__")
LABEL_NAMES = ("label", "labels", "target", "targets", "class", "fine_label", "coarse_label", "y")
TEXT_NAMES = ("text", "sentence", "content", "document", "question", "prompt", "sentence1", "premise", "title")
PICTURE_NAMES = ("image", "img", "picture", "pixel_values", "x")
ROWS_AT_ONCE = 256
"""Rows of a Hugging Face dataset held in memory together, encoded pictures included."""


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Description of one example; None where unknown.

    Attributes:
        id: not necessarily unique.
        label: class index; below 0 where the label is hidden.
        text: the whole text.
        thumbnail: bytes of a PNG.
    """

    id: str | None = None
    label: int | None = None
    text: str | None = None
    thumbnail: bytes | None = None


def is_hugging_face(dataset: object) -> "TypeGuard[datasets.Dataset]":
    """Whether `dataset` is a map-style Hugging Face dataset; does not import that slow library."""
    module = sys.modules.get("datasets")  # without the import there is no instance
    return module is not None and isinstance(dataset, module.Dataset)


def whole_number(value: object) -> int | None:
    """The value of an integer, or of a 0-dimensional integer array or tensor; None for anything else, also a bool.

    >>> whole_number(np.int64(3)), whole_number(3.0), whole_number(True)
    (3, None, None)
    """
    array = _array(value)
    if array is not None and array.ndim == 0:
        value = array[()]
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def picture(value: object) -> Image.Image | None:
    """The picture that `value` is: a Pillow image, or an array or tensor that `thumbnails.is_picture`."""
    if isinstance(value, Image.Image):
        return value
    array = _array(value)
    return thumbnails.from_array(array) if array is not None and thumbnails.is_picture(array) else None


def read_item(item: object) -> Fields:
    """Fields of one item of a dataset: (x, y, ...), x alone, or a mapping with names such as "image", "label"."""
    if isinstance(item, Mapping):
        named = {str(name).lower(): value for name, value in cast(Mapping[object, object], item).items()}
        return _fields(
            ids=_pick(named, ID_NAMES), labels=_pick(named, LABEL_NAMES),
            texts=_pick(named, TEXT_NAMES), pictures=_pick(named, PICTURE_NAMES),
        )  # fmt: skip
    if isinstance(item, tuple):
        parts = cast(tuple[object, ...], item)
        return _fields(labels=parts[1:2], texts=parts[:1], pictures=parts[:1])
    return _fields(texts=[item], pictures=[item])


def read_columns(dataset: "datasets.Dataset", index: Sequence[int]) -> list[Fields]:
    """Fields of the rows `index` of a Hugging Face dataset, from its stored columns, without format and transform.

    A picture that cannot be read is left out with a warning.
    """
    columns = _roles(dataset.features)
    if not columns:
        return [Fields() for _ in index]
    stored = dataset.with_format("arrow").select_columns(sorted(set(columns.values())))
    found: list[Fields] = []
    unreadable: list[str] = []
    for start in range(0, len(index), ROWS_AT_ONCE):
        block = list(index[start : start + ROWS_AT_ONCE])
        rows: list[dict[str, Any]] = cast(Any, stored[block]).to_pylist()
        for i, row in zip(block, rows, strict=True):
            values = {f"{role}s": [row[column]] for role, column in columns.items()}
            try:
                values["pictures"] = [_stored_picture(value) for value in values.get("pictures", [])]
            except OSError as error:
                values["pictures"] = []
                unreadable.append(f"{i} ({error})")
            found.append(_fields(**values))
    if unreadable:
        warnings.warn(
            f"{len(unreadable)} of {len(index)} pictures in column {columns['picture']!r} cannot be read and have "
            f"no thumbnail; the first is index {unreadable[0]}",
            stacklevel=2,
        )
    return found


def class_names(dataset: object) -> tuple[str, ...] | None:
    """Names of the classes: of the label's `ClassLabel`, or the attribute `classes` that torchvision has."""
    if is_hugging_face(dataset):
        from datasets import ClassLabel

        feature = dataset.features.get(_roles(dataset.features).get("label", ""))
        names: object = cast(object, feature.names) if isinstance(feature, ClassLabel) else None
    else:
        names = getattr(dataset, "classes", None)
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in cast(Iterable[object], names)):
        return tuple(cast(Iterable[str], names))
    return None


def _fields(
    *, ids: Iterable[object] = (), labels: Iterable[object] = (), texts: Iterable[object] = (),
    pictures: Iterable[object] = (),
) -> Fields:  # fmt: skip
    """For each field, the first candidate of the right type."""
    identity = _present(value if isinstance(value, str) else whole_number(value) for value in ids)
    shown = _present(picture(value) for value in pictures)
    return Fields(
        id=None if identity is None else str(identity),
        label=_present(whole_number(value) for value in labels),
        text=_present(value if isinstance(value, str) else None for value in texts),
        thumbnail=None if shown is None else thumbnails.png(shown),
    )


def _present(values: Iterable[_T | None]) -> _T | None:
    return next((value for value in values if value is not None), None)


def _pick(named: Mapping[str, object], names: Sequence[str]) -> list[object]:
    return [named[name] for name in names if name in named]


def _array(value: object) -> np.ndarray[Any, Any] | None:
    if isinstance(value, np.ndarray):
        return cast(np.ndarray[Any, Any], value)
    torch: Any = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return None
    tensor: Any = value
    if tensor.layout is not torch.strided or tensor.is_meta:
        return None
    # NumPy has no bfloat16.
    return (tensor.detach().float() if tensor.is_floating_point() else tensor.detach()).cpu().numpy()


def _roles(features: Mapping[str, Any]) -> dict[str, str]:
    """Which column of a Hugging Face dataset holds the id, the label, the text and the picture."""
    import datasets
    from datasets import Array2D, Array3D, ClassLabel, Image, Value

    def of_kind(*kinds: type) -> list[str]:
        return [column for column, feature in features.items() if isinstance(feature, kinds)]

    # Before datasets 4 a list is a `Sequence`, or a list of Python with one feature in it.
    found: list[Any] = [getattr(datasets, name, None) for name in ("List", "LargeList", "Sequence")]
    lists = [list, *(kind for kind in found if isinstance(kind, type))]
    dtypes = {column: str(features[column].dtype) for column in of_kind(Value)}
    integers = [column for column, dtype in dtypes.items() if dtype.startswith(("int", "uint"))]
    strings = [column for column, dtype in dtypes.items() if dtype.endswith("string")]
    classes, images, arrays = of_kind(ClassLabel), of_kind(Image), of_kind(Array2D, Array3D, *lists)
    identity = _named(strings + integers, ID_NAMES)
    texts = [column for column in strings if column != identity]
    roles = {
        "id": identity,
        "label": _named(classes, LABEL_NAMES) or _first(classes) or _named(integers, LABEL_NAMES),
        "text": _named(texts, TEXT_NAMES) or _first(texts),
        "picture": _named(images, PICTURE_NAMES) or _first(images) or _named(arrays, PICTURE_NAMES),
    }
    return {role: column for role, column in roles.items() if column is not None}


def _named(columns: Sequence[str], names: Sequence[str]) -> str | None:
    by_name = {column.lower(): column for column in columns}
    return next((by_name[name] for name in names if name in by_name), None)


def _first(columns: Sequence[str]) -> str | None:
    return columns[0] if columns else None


def _stored_picture(stored: object) -> object:
    """Picture of one stored value: an encoded image {bytes, path}, or nested lists of numbers."""
    if isinstance(stored, Mapping):
        encoded = cast(Mapping[str, Any], stored)
        source = encoded.get("bytes") or encoded.get("path")
        return thumbnails.decode(source) if source else None
    if not isinstance(stored, list):
        return None
    try:
        return np.asarray(stored, dtype=np.float64)
    except (ValueError, TypeError):  # ragged lists, or strings: not a picture
        return None
