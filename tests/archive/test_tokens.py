"""Tokens in files: what is written is read, any block of it, and what is broken is refused."""

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import bif_lightning as bl
from bif_lightning.archive.schema import round_to_10_bits
from bif_lightning.config import Chains, Subspace
from bif_lightning.exceptions import UnreadableFileError
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.examples import Samples
from small_language import CHAINS, SAMPLER, sequences
from small_language import by_tokens as estimated

pytestmark = pytest.mark.exact

by_tokens = cache(estimated)  # files are changed here, estimates are not

KINDS = {
    "chains": (SAMPLER, CHAINS),
    "pooled": (SAMPLER, replace(CHAINS, centring="pooled")),
    "one chain": (SAMPLER, Chains(num_chains=1, num_draws=60, batch_size=4)),
    "closed form": (Subspace(num_directions=5), None),
}


def samples(side: str, count: int, seed: int) -> Samples:
    ids = tuple(item["input_ids"].numpy() for item in sequences(count, seed))
    return Samples(
        ids=tuple(f"{side}{row}" for row in range(count)),
        index=np.arange(count),
        tokens=tuple(tuple(f" <{number}>" for number in row) for row in ids),
        token_ids=ids,
    )


TRAIN, QUERY = samples("t", 9, 0), samples("q", 4, 1)


def written(folder: Path, estimate: Estimate, **more: str) -> Path:
    bl.write_samples(folder, TRAIN, QUERY)
    return bl.write_dump(folder, estimate, step=7, epoch=0, train=TRAIN, query=QUERY, **more)


@pytest.mark.parametrize("kind", list(KINDS))
def test_any_block_comes_back(kind: str, tmp_path: Path) -> None:
    estimate = by_tokens(*KINDS[kind])
    stored, tokens = bl.open_tokens(written(tmp_path, estimate)), estimate.tokens
    assert tokens is not None
    for quantity in ("influence", "correlation"):
        for chosen in ((3, 1), ([8, 0, 3], None), (None, [2])):
            found = getattr(stored, quantity)(*chosen)
            expected = getattr(tokens, quantity)(*chosen)
            np.testing.assert_allclose(found["value"], expected.value, rtol=1e-4, atol=1e-6 * abs(expected.value).max())
            np.testing.assert_allclose(found["standard_error"], expected.standard_error, rtol=1e-3)
    for side in ("train", "query"):
        for name, value in vars(getattr(tokens, side)).items():
            np.testing.assert_array_equal(getattr(getattr(stored, side), name), value, err_msg=name)


def test_a_block_says_which_tokens_it_is_of(tmp_path: Path) -> None:
    stored = bl.open_tokens(written(tmp_path, by_tokens()))
    block = stored.correlation(3, [1, 0])
    ids = sequences(9)[3]["input_ids"].tolist()
    assert block["train_text"].values.tolist() == [f" <{number}>" for number in ids[1:]]
    assert block["train_position"].values.tolist() == list(range(1, len(ids)))
    assert set(block["train_sequence"].values.tolist()) == {3}
    assert block["query_sequence"].values.tolist() == sorted(block["query_sequence"].values.tolist(), reverse=True)
    assert stored.texts("train", 3) == [f" <{number}>" for number in ids]
    assert "positive" in block["value"].attrs["sign"]
    assert "standard_error" not in stored.influence(0, 0, errors=False)
    with pytest.raises(ValueError, match="sequence 4 does not exist"):
        stored.texts("query", 4)


def test_a_dump_alone_has_no_texts(tmp_path: Path) -> None:
    path = written(tmp_path, by_tokens())
    (tmp_path / "samples.h5").unlink()
    stored = bl.open_tokens(path)
    assert stored.texts("train", 0) is None
    assert "train_text" not in stored.correlation(0, 0)


def test_rounding_leaves_the_matrices_as_they_are(tmp_path: Path) -> None:
    full, rounded = (
        bl.open_tokens(written(tmp_path / name, by_tokens(), precision=name)) for name in ("full", "10bit")
    )
    changes = full.tokens.blocks.train.whole()
    np.testing.assert_array_equal(rounded.tokens.blocks.train.whole(), round_to_10_bits(changes))
    one, other = (each.correlation() for each in (full, rounded))
    assert float(abs(one["value"] - other["value"]).max()) < 0.02 * float(one["standard_error"].min())


def test_sequences_of_a_dump_are_sums_of_its_tokens(tmp_path: Path) -> None:
    path = written(tmp_path, by_tokens(dtype=torch.float64))
    tokens = bl.open_tokens(path).influence(errors=False)
    sums = np.zeros((9, 4))
    np.add.at(sums, (tokens["train_sequence"].values[:, None], tokens["query_sequence"].values), tokens["value"].values)
    with h5py.File(path) as file:
        np.testing.assert_allclose(sums, file["influence"][:], rtol=1e-4, atol=1e-5 * abs(sums).max())


def test_a_dump_without_tokens_says_so(tmp_path: Path) -> None:
    path = written(tmp_path, by_tokens(per_token=False))
    with pytest.raises(ValueError, match=r"has no tokens; give the callback per_token=True"):
        bl.open_tokens(path)
    with h5py.File(path) as file:
        assert "tokens" not in file


def test_samples_come_back(tmp_path: Path) -> None:
    bl.write_samples(tmp_path, TRAIN, replace(QUERY, tokens=None))
    train, query = bl.open_samples(tmp_path)
    assert train.tokens == TRAIN.tokens
    assert query.tokens is None
    for one, other in zip(query.token_ids or (), QUERY.token_ids or (), strict=True):
        np.testing.assert_array_equal(one, other)


def test_tokens_are_no_part_of_the_digest(tmp_path: Path) -> None:
    """A reader of version 1.1 knows nothing of them, and checks the digest."""
    bl.write_samples(tmp_path, TRAIN, QUERY)
    bl.write_samples(tmp_path, replace(TRAIN, tokens=None), replace(QUERY, token_ids=None))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": TRAIN.tokens[1:]}, "9 ids but 8 tokens"),
        ({"token_ids": (*TRAIN.token_ids[:8], np.arange(50))}, "example 8 has .* token texts but 50 token ids"),
    ],
)
def test_samples_that_do_not_fit_are_refused(change: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        bl.write_samples(tmp_path, replace(TRAIN, **change), QUERY)


def test_tokens_of_other_examples_are_refused(tmp_path: Path) -> None:
    estimate = by_tokens()
    assert estimate.tokens is not None
    axis = replace(estimate.tokens.train, num_sequences=8)
    with pytest.raises(ValueError, match=r"sequences of tokens.train has shape \(8,\)"):
        written(tmp_path, replace(estimate, tokens=replace(estimate.tokens, train=axis)))


def broken(path: Path, name: str, value: object) -> Path:
    """A dump with one number of a dataset set to another."""
    with h5py.File(path, "r+") as file:
        if isinstance(value, str):
            del file[name]
            file[name] = value
        else:
            file[name][0] = value
    return path


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("tokens/train_sequence", 9, "belong to sequences that it does not have"),
        ("tokens/batch_draws", 3, "draws a chain, but its tokens 20"),
        ("tokens/centring", "sideways", "the centring of its tokens, 'sideways'"),
    ],
)
def test_a_broken_dump_is_refused(name: str, value: object, words: str, tmp_path: Path) -> None:
    path = broken(written(tmp_path, by_tokens()), name, value)
    with pytest.raises(UnreadableFileError, match=words):
        bl.open_tokens(path)


def test_broken_offsets_are_refused(tmp_path: Path) -> None:
    bl.write_samples(tmp_path, TRAIN, QUERY)
    broken(tmp_path / "samples.h5", "train/token_offset", 5)
    with pytest.raises(UnreadableFileError, match="token offsets of train do not fit"):
        bl.open_samples(tmp_path)


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    path = written(tmp_path, by_tokens())
    code = (
        "import sys; from bif_lightning.archive.read.tokens import open_tokens; "
        f"print(open_tokens({str(path)!r}).correlation(0, 0)['value'].shape); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
