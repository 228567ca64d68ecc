"""Content of the samples file, and the digest that identifies the examples of a run."""

import hashlib
import re
from collections.abc import Iterator

import numpy as np

from bif_lightning.archive.schema import SAMPLES, VERSION, Content, Variable, storable, strings
from bif_lightning.results.examples import Samples

SIDES = ("train", "query")
COLUMN = "column_"
COLUMN_NAME = re.compile(r"[^/]{1,80}")


def check_samples(samples: Samples, side: str) -> None:
    """Check that the descriptions of examples can be stored.

    Raises:
        ValueError: columns have different lengths, there are no examples, or an id or name cannot be stored unchanged.
    """
    if len(samples) == 0:
        raise ValueError(f"the {side} samples are empty; describe at least one example")
    lengths = {
        "index": len(samples.index),
        "labels": len(samples) if samples.labels is None else len(samples.labels),
        "texts": len(samples) if samples.texts is None else len(samples.texts),
        "thumbnails": len(samples) if samples.thumbnails is None else len(samples.thumbnails),
    }
    lengths |= {name: len(each) for name in ("tokens", "token_ids") if (each := getattr(samples, name)) is not None}
    lengths |= {f"entries of the column {name!r}": len(values) for name, values in (samples.columns or {}).items()}
    for name, length in lengths.items():
        if length != len(samples):
            raise ValueError(f"the {side} samples have {len(samples)} ids but {length} {name}; give one for each id")
    for value in samples.ids:
        if value != storable(value):
            raise ValueError(f"{side} id {value!r} contains NUL or a lone surrogate; use ids of valid Unicode text")
    for name in samples.columns or {}:
        if not COLUMN_NAME.fullmatch(name) or not name.isprintable():
            raise ValueError(
                f"a column of the {side} samples is called {name!r}; use 1 to 80 printable characters without a slash"
            )


def digest(train: Samples, query: Samples) -> str:
    """SHA-256 of the ids, indices, labels, label names and texts of both sides.

    Thumbnails are left out, since versions of an image library encode the same picture differently. Columns are left
    out, since they may be measured again when a run is resumed.
    """
    sha = hashlib.sha256()
    for part in (*_parts(train), *_parts(query)):
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()


def _parts(samples: Samples) -> Iterator[bytes]:
    for texts in (samples.ids, samples.label_names, samples.texts):
        yield str(len(texts)).encode() if texts else b"absent"
        yield from (storable(text).encode() for text in texts or ())
    for numbers in (samples.index, samples.labels):
        yield b"absent" if numbers is None else np.asarray(numbers, "<i8").tobytes()


def samples_content(train: Samples, query: Samples, attrs: dict[str, str]) -> Content:
    """Content of samples.h5: one group for each side.

    Args:
        train, query: descriptions of the examples.
        attrs: further root attributes (creator, time).

    Raises:
        ValueError: see `check_samples`.
    """
    variables: list[Variable] = []
    pure_dims: dict[str, int] = {}
    for side, samples in zip(SIDES, (train, query), strict=True):
        check_samples(samples, side)
        variables += _side(side, samples)
        if thumbnails := _pictures(samples):
            pure_dims[f"{side}/byte"] = sum(map(len, thumbnails))
            pure_dims[f"{side}/edge"] = len(samples) + 1
        if tokens := token_lengths(samples, side):
            pure_dims[f"{side}/token"] = sum(tokens)
            pure_dims[f"{side}/token_edge"] = len(samples) + 1
    root = {"schema": SAMPLES, "schema_version": VERSION, "sha256": digest(train, query)} | attrs
    return Content(variables=variables, attrs={"": root}, pure_dims=pure_dims)


def _pictures(samples: Samples) -> tuple[bytes, ...]:
    return samples.thumbnails if samples.thumbnails and any(samples.thumbnails) else ()


def _side(side: str, samples: Samples) -> Iterator[Variable]:
    def column(name: str, values: np.ndarray, units: str | None, long_name: str, dim: str = side) -> Variable:
        return Variable(path=f"{side}/{name}", dims=(dim,), values=values, units=units, long_name=long_name)

    yield column(side, np.arange(len(samples)), "1", f"row of the {side} axis")
    yield column("id", strings(samples.ids), None, "unique id of each example")
    yield column("index", np.asarray(samples.index, np.int64), "1", "index of the example in its dataset")
    if samples.labels is not None:
        yield column("label", np.asarray(samples.labels, np.int64), "1", "class index, -1 for none")
    if samples.label_names:
        yield column("class", np.arange(len(samples.label_names)), "1", "class index", dim="class")
        yield column("class_name", strings(samples.label_names), None, "name of each class", dim="class")
    if samples.texts is not None:
        yield column("text", strings(samples.texts), None, "text of each example")
    for name, values in (samples.columns or {}).items():
        is_text = values.dtype.kind == "O"
        stored = strings(values.tolist()) if is_text else np.asarray(values, np.float64)
        yield column(
            f"{COLUMN}{name}", stored, None if is_text else "1", "user-defined column of the examples, to sort by"
        )
    if thumbnails := _pictures(samples):
        sizes = np.array([0, *map(len, thumbnails)], np.int64)
        joined = np.frombuffer(b"".join(thumbnails), np.uint8)
        yield column("thumbnail", joined, "1", "concatenated PNG files", dim="byte")
        yield column(
            "thumbnail_offset", np.cumsum(sizes), "byte", "start of each PNG file, and end of the last", dim="edge"
        )
    yield from _tokens(side, samples)


def _tokens(side: str, samples: Samples) -> Iterator[Variable]:
    def column(name: str, values: np.ndarray, units: str | None, long_name: str, dim: str = "token") -> Variable:
        return Variable(path=f"{side}/{name}", dims=(dim,), values=values, units=units, long_name=long_name)

    lengths = token_lengths(samples, side)
    if lengths is None:
        return
    if samples.tokens is not None:
        yield column(
            "token_text", strings([text for each in samples.tokens for text in each]), None, "text of each token"
        )
    if samples.token_ids is not None:
        numbers = np.concatenate(samples.token_ids).astype(np.int64)
        yield column("token_id", numbers, "1", "id of each token in the vocabulary")
    edges = np.cumsum([0, *lengths], dtype=np.int64)
    words = "first token of each example, and end of the last example"
    yield column("token_offset", edges, "1", words, dim="token_edge")


def token_lengths(samples: Samples, side: str) -> tuple[int, ...] | None:
    """Number of tokens of each example; None if unknown.

    Raises:
        ValueError: an example has different numbers of token texts and token ids.
    """
    sets = [tuple(map(len, each)) for each in (samples.tokens, samples.token_ids) if each is not None]
    for row, (texts, numbers) in enumerate(zip(sets[0], sets[-1], strict=True) if sets else ()):
        if texts != numbers:
            raise ValueError(
                f"{side} example {row} has {texts} token texts but {numbers} token ids; give one text for each token, "
                "or leave out the texts"
            )
    return sets[0] if sets and sum(sets[0]) else None
