"""Ids and texts of the tokens of the examples of a dataset."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from bif_lightning.data.dataset import MapDataset
from bif_lightning.data.describe import Describe
from bif_lightning.results.examples import Samples


class Decoder(Protocol):
    """A tokenizer, of Hugging Face, tiktoken or any other kind."""

    def decode(self, ids: Any, /) -> str:
        """The text of a list of token numbers."""
        ...


def with_tokens(
    samples: Samples,
    dataset: MapDataset,
    indices: Sequence[int],
    describe: Describe | None = None,
    tokenizer: Decoder | None = None,
) -> Samples:
    """Add the tokens of each example to the samples, where they are known.

    Token ids come from items that are a mapping with "input_ids" (where "attention_mask" is not 0), a row of integers,
    or a pair (inputs, targets) of such rows, whose targets count. Texts come from the "tokens" that `describe` returns,
    or from decoding each id. Examples without a text get that of their tokens.

    Args:
        samples: of the examples `indices` of `dataset`, in that order.
        dataset, indices, describe: as of `describe_samples`.
        tokenizer: decodes a list of one id.
    """
    items = [dataset[int(index)] for index in indices]
    given = [None if describe is None else describe(item).get("tokens") for item in items]
    ids = [_ids(item) for item in items]
    numbers = None if any(each is None for each in ids) else tuple(cast(list[Any], ids))
    if all(each is not None for each in given):
        texts = tuple(tuple(cast(Sequence[str], each)) for each in given)
    else:
        texts = None if tokenizer is None or numbers is None else _decoded(tokenizer, numbers)
    whole = samples.texts or (None if texts is None else tuple("".join(each) for each in texts))
    return replace(samples, tokens=texts, token_ids=numbers, texts=whole)


def _decoded(tokenizer: Decoder, numbers: Sequence[Int[np.ndarray, " _"]]) -> tuple[tuple[str, ...], ...]:
    known = {int(number): "" for number in np.unique(np.concatenate(numbers))}
    for number in known:
        known[number] = tokenizer.decode([number])
    return tuple(tuple(known[int(number)] for number in each) for each in numbers)


def _ids(item: Any) -> Int[np.ndarray, " token"] | None:
    """Token ids of an example; None where unknown."""
    if isinstance(item, Mapping):
        named = cast(Mapping[str, Any], item)
        ids, attended = _row(named.get("input_ids")), _row(named.get("attention_mask"))
        return ids if ids is None or attended is None or len(attended) != len(ids) else ids[attended != 0]
    if isinstance(item, tuple):
        rows = [_row(part) for part in cast(tuple[Any, ...], item)]
        return rows[1] if len(rows) == 2 and rows[0] is not None else None
    return _row(item)


def _row(value: Any) -> Int[np.ndarray, " token"] | None:
    """A row of integers; None for anything else."""
    if isinstance(value, Tensor):
        value = None if value.is_floating_point() else value.detach().to("cpu", torch.int64).numpy()
    elif isinstance(value, list):
        entries = cast(list[Any], value)
        value = np.array(entries, np.int64) if entries and all(type(entry) is int for entry in entries) else None
    if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.integer):
        return None
    row = cast(np.ndarray, value).reshape(-1) if value.ndim == 2 and len(value) == 1 else cast(np.ndarray, value)
    return row.astype(np.int64) if row.ndim == 1 else None
