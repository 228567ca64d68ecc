"""Descriptions of examples (`Samples`), read from the dataset or given by a user's `describe` function."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from bif_lightning.data import thumbnails
from bif_lightning.data.dataset import MapDataset
from bif_lightning.data.fields import (
    Fields,
    class_names,
    is_hugging_face,
    picture,
    read_columns,
    read_item,
    whole_number,
)
from bif_lightning.results.examples import Samples

Describe = Callable[[Any], Mapping[str, Any]]
"""Takes one item of a dataset, returns any of the keys in `DESCRIBE_KEYS`."""

DESCRIBE_KEYS = ("id", "label", "label_name", "label_names", "text", "thumbnail", "tokens", "columns")

_OF_ALL = ("label_name", "label_names", "tokens", "columns")  # keys that `_merge` does not handle

_Given = dict[str, Any]  # checked values of DESCRIBE_KEYS

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def describe_samples(dataset: MapDataset, indices: Sequence[int], describe: Describe | None = None) -> Samples:
    """Describe the examples `indices` of `dataset`, in that order.

    What is found without `describe`:

    - A Hugging Face `datasets.Dataset`, whatever its format or transform, is read by column, only the rows
      and columns that are needed: the id from a column such as "id" or "uuid", the label and the class names
      from a `ClassLabel` (else from a whole-number column such as "label"), the text from a string column
      such as "text" (else the first one), the thumbnail from an `Image` column.
    - Any other map-style dataset gives its items: (x, y), x alone, or a dict with those names. A whole number
      y is the label; x is the text where it is a string, and where it looks like a picture (a Pillow image, or
      [H, W], [1 or 3, H, W], [H, W, 1 or 3] of floats or uint8, sides up to 512) the thumbnail. Class names
      come from an attribute `classes`, as torchvision has it. Items are read by `dataset[i]`, which with random
      augmentation uses random numbers; the caller restores the generators.
    - A plain `torch.utils.data.Subset` is replaced by its parent: `Samples.index` counts in the parent.

    The id is the index where there is no such column, or where it is empty or repeats among `indices`.
    A label below 0 (a hidden test label) counts as missing.

    Args:
        dataset: map-style, that is with `len(dataset)` and `dataset[i]`.
        indices: positions in `dataset`.
        describe: called with each item `dataset[i]`; what it returns takes precedence. Keys: "id"
            (anything with a unique str), "label" (class index), "label_name" (name of this item's class, along
            with "label"), "label_names" (names of all classes), "text", "thumbnail" (PNG bytes, a Pillow image,
            or an array as above), "tokens" (texts of its tokens, which `token_texts` reads), "columns" (a dict of
            name to number or text, to sort the examples by). None leaves a value out.

    Raises:
        IndexError: an index outside of the dataset.
        TypeError: `describe` returned something that is not a mapping, or a value of the wrong type.
        ValueError: `describe` returned an unknown key, an id is not unique, or class names contradict.

    >>> describe_samples([("a bad film", 0), ("a good one", 1)], [1, 0]).texts
    ('a good one', 'a bad film')
    """
    origin, index = _origin(dataset, [int(i) for i in indices])
    length = len(origin)
    outside = [i for i in index if not 0 <= i < length]
    if outside:
        raise IndexError(
            f"index {outside[0]} is outside of the dataset, which has {length} examples; pass 0 to {length - 1}"
        )
    found, given = _read(origin, index, describe)
    merged = [_merge(f, g) for f, g in zip(found, given, strict=True)]
    labels = np.array([-1 if row.label is None else max(row.label, -1) for row in merged], dtype=np.int64)
    return Samples(
        ids=_ids(index, found, given),
        index=np.array(index, dtype=np.int64),
        labels=labels if (labels >= 0).any() else None,
        label_names=_label_names(labels, index, given, class_names(origin)),
        texts=_column([row.text for row in merged], ""),
        thumbnails=_column([row.thumbnail for row in merged], b""),
        columns=_sortable([row.get("columns") or {} for row in given], index),
    )


def _origin(dataset: Any, index: list[int]) -> tuple[Any, list[int]]:
    from torch.utils.data import Subset

    # A subclass may change the items (flip labels, for example); a plain Subset does not.
    while type(dataset) is Subset:
        indices: Sequence[Any] = dataset.indices
        index = [int(indices[i]) for i in index]
        dataset = dataset.dataset
    return dataset, index


def _read(origin: Any, index: list[int], describe: Describe | None) -> tuple[list[Fields], list[_Given]]:
    """Fields of each example from the dataset and from `describe`; reads items only where columns do not suffice."""
    columns = read_columns(origin, index) if is_hugging_face(origin) else None
    found: list[Fields] = []
    given: list[_Given] = []
    for position, i in enumerate(index):
        item = None if columns is not None and describe is None else origin[i]
        found.append(read_item(item) if columns is None else columns[position])
        given.append({} if describe is None else _checked(describe(item), i))
    return found, given


def _checked(description: object, index: int) -> _Given:
    """What `describe` returned for the example at `index`, with each value in the form of `Fields`."""
    if not isinstance(description, Mapping):
        raise TypeError(
            f"describe returned {type(description).__name__} for index {index}; "
            f"it must return a dict with any of the keys {', '.join(DESCRIBE_KEYS)}"
        )
    given = cast(Mapping[str, Any], description)
    unknown = [key for key in given if key not in DESCRIBE_KEYS]
    if unknown:
        raise ValueError(
            f"describe returned the unknown key {unknown[0]!r} for index {index}; "
            f"the keys are {', '.join(DESCRIBE_KEYS)}"
        )
    return {key: None if value is None else _value(key, value, index) for key, value in given.items()}


def _value(key: str, value: Any, index: int) -> Any:
    accepted = _ACCEPT[key](value)
    if accepted is None:
        shown = f"{type(value).__name__} {value!r:.60}"
        raise TypeError(f"describe returned {shown} as {key!r} of index {index}; it must be {_NEED[key]}")
    return accepted


def _id(value: Any) -> str:
    number = whole_number(value)
    return str(value if number is None else number)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _names(value: Any) -> tuple[str, ...] | None:
    ok = isinstance(value, list | tuple) and all(isinstance(name, str) for name in cast(Sequence[Any], value))
    return tuple(cast(Sequence[str], value)) if ok else None


def _thumbnail(value: Any) -> bytes | None:
    if isinstance(value, bytes):
        return value if value.startswith(_PNG_SIGNATURE) else None
    shown = picture(value)
    return None if shown is None else thumbnails.png(shown)


def _named(value: Any) -> dict[str, float | str | None] | None:
    if not isinstance(value, Mapping):
        return None
    named = {str(name): _sort_key(each) for name, each in cast(Mapping[Any, Any], value).items()}
    return None if any(each is NotImplemented for each in named.values()) else named


def _sort_key(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float | np.bool_ | np.integer | np.floating):
        return float(value)
    return NotImplemented


_ACCEPT: Mapping[str, Callable[[Any], Any]] = {
    "id": _id,
    "label": whole_number,
    "label_name": _text,
    "label_names": _names,
    "text": _text,
    "thumbnail": _thumbnail,
    "tokens": _names,
    "columns": _named,
}
_NEED = {
    "label": "a whole number, the index of its class",
    "label_name": "a string",
    "label_names": "a list of strings, one for each class",
    "text": "a string",
    "tokens": "a list of strings, one for each token",
    "thumbnail": "the bytes of a PNG, a Pillow image, or an array [H, W], [1 or 3, H, W] or [H, W, 1 or 3] of "
    "floats or uint8 with sides of 2 to 512",
    "columns": "a dict of names, each with a number, a string or None",
}


def _merge(found: Fields, given: _Given) -> Fields:
    own = {key: value for key, value in given.items() if key not in _OF_ALL}
    return replace(found, **own)


def _ids(index: list[int], found: list[Fields], given: list[_Given]) -> tuple[str, ...]:
    named = [row.id or "" for row in found]
    usable = all(named) and len(set(named)) == len(named)
    fallback = named if usable else [str(i) for i in index]
    own = [row.get("id") for row in given]
    ids = tuple(other if mine is None else mine for mine, other in zip(own, fallback, strict=True))
    repeated = [f"{identity!r} ({count} times)" for identity, count in Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{len(repeated)} ids stand for more than one example: {', '.join(repeated[:5])}; "
            "list every index once, and let describe return a different 'id' for every example"
        )
    return ids


def _label_names(
    labels: np.ndarray[Any, Any], index: list[int], given: list[_Given], found: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """Names of all classes: the list from `describe`, else the names of single items, else those of the dataset."""
    classes = int(labels.max(initial=-1)) + 1
    # A list too short to name every label names something else.
    found = found if found is not None and len(found) >= classes else None
    whole = {row["label_names"] for row in given if row.get("label_names") is not None}
    if not whole:
        return _single_names(labels, index, given, found)
    if len(whole) > 1:
        first, second = sorted(whole)[:2]
        raise ValueError(
            f"describe returned different 'label_names': {first} and {second}; return the same list always"
        )
    names = whole.pop()
    if len(names) < classes:
        raise ValueError(
            f"describe returned {len(names)} 'label_names', but index {index[int(labels.argmax())]} has the label "
            f"{classes - 1}; name every class, in the order of the labels from 0"
        )
    return names


def _single_names(
    labels: np.ndarray[Any, Any], index: list[int], given: list[_Given], found: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    names: dict[int, str] = {}
    for label, i, row in zip(labels.tolist(), index, given, strict=True):
        name = row.get("label_name")
        if name is None:
            continue
        if label < 0:
            raise ValueError(
                f"describe returned the 'label_name' {name!r} for index {i}, which has no label; return its class "
                "index as 'label' too, so that a class has one index among train and query examples"
            )
        if names.setdefault(label, name) != name:
            raise ValueError(
                f"describe returned the 'label_name' {name!r} for index {i}, but its label {label} was named "
                f"{names[label]!r} before; a label has one name"
            )
    if not names:
        return found
    classes = int(labels.max()) + 1
    rest = found if found is not None else tuple(str(label) for label in range(classes))
    return tuple(names.get(label, rest[label]) for label in range(max(classes, len(rest))))


def _column(values: list[Any], missing: Any) -> tuple[Any, ...] | None:
    if all(value is None for value in values):
        return None
    return tuple(missing if value is None else value for value in values)


def _sortable(rows: list[dict[str, float | str | None]], index: list[int]) -> dict[str, np.ndarray[Any, Any]] | None:
    """The user's columns: numbers as float64 with NaN, and texts with the empty string, where a value is missing."""
    columns: dict[str, np.ndarray[Any, Any]] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values} - {type(None)}
        if kinds == {float, str}:
            place = next(i for i, value in zip(index, values, strict=True) if isinstance(value, str))
            raise TypeError(
                f"describe returned a string in the column {name!r} for index {place}, and numbers for others; "
                "return numbers for all, or strings for all"
            )
        missing = "" if kinds == {str} else np.nan
        filled = [missing if value is None else value for value in values]
        columns[name] = np.array(filled, dtype=object if kinds == {str} else np.float64)
    return columns or None
