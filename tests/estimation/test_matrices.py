"""Matrices in a file: the bits of those in memory in the estimate and in the dump, and no full-size temporaries."""

import dataclasses
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import bif_lightning.tensorboard.pairs as pairs
from bif_lightning.archive.read import open_run, top
from bif_lightning.archive.read.index import dump_paths, read_indices
from bif_lightning.archive.write import write_dump, write_samples
from bif_lightning.config import SGLD, Chains
from bif_lightning.estimation import estimate as public
from bif_lightning.estimation.estimator import estimate_problem
from bif_lightning.exceptions import SkippedDumpWarning
from bif_lightning.losses.observables import PerExample
from bif_lightning.plots.pooling import axis_of, pool
from bif_lightning.results.estimate import Estimate, Influence
from bif_lightning.results.examples import Samples
from bif_lightning.tensorboard.numbers import scalars
from targets import Regression, half_square

pytestmark = pytest.mark.bitwise

N, Q = 6000, 200
TRAIN, QUERY = Regression.random(N, 3, 0), Regression.random(Q, 3, 1)
SAMPLER = SGLD(step_size=0.02, inverse_temperature=7.0, localization=11.0)
CHAINS = Chains(num_chains=2, num_draws=9, batch_size=50)
MATRIX_BYTES = 4 * N * Q


def described(side: str, size: int) -> Samples:
    labels = np.arange(size) % 3
    return Samples(ids=tuple(f"{side}{row}" for row in range(size)), index=np.arange(size), labels=labels)


SAMPLES = {"train": described("train", N), "query": described("query", Q)}


def gain(module: torch.nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    return -half_square(module, batch)


def estimated(scratch: Path, matrix_bytes: int) -> Estimate:
    with pytest.MonkeyPatch.context() as patch:
        more = {"scratch": scratch, "matrix_bytes": matrix_bytes}
        patch.setattr(public, "estimate_problem", lambda *args, **kw: estimate_problem(*args, **(kw | more)))
        return public.estimate(
            TRAIN.model(), half_square, TRAIN.data(), QUERY.data(), sampler=SAMPLER, chains=CHAINS,
            observables=[PerExample("gain", gain)], train_labels=SAMPLES["train"].labels,
            query_labels=SAMPLES["query"].labels, eval_batch_size=N,
        )  # fmt: skip


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory: pytest.TempPathFactory) -> Estimate:
    return estimated(tmp_path_factory.mktemp("unused"), 1 << 30)


@pytest.fixture(scope="module")
def in_file(tmp_path_factory: pytest.TempPathFactory) -> Estimate:
    folder = tmp_path_factory.mktemp("scratch")
    found = estimated(folder, 1000)
    assert list(folder.iterdir()) == []
    return found


def arrays(of: Influence) -> dict[str, np.ndarray]:
    return {name: value for name, value in vars(of).items() if isinstance(value, np.ndarray)}


def test_matrices_in_a_file_have_the_bits_of_those_in_memory(in_memory: Estimate, in_file: Estimate) -> None:
    observables = zip(in_memory.observables.values(), in_file.observables.values(), strict=True)
    for one, other in ((in_memory.losses, in_file.losses), *observables):
        for name, value in arrays(one).items():
            np.testing.assert_array_equal(arrays(other)[name], value, err_msg=name)
    assert in_memory.diagnostics == in_file.diagnostics
    assert in_memory.label_means is not None
    assert in_file.label_means is not None
    for name, value in vars(in_memory.label_means).items():
        np.testing.assert_array_equal(vars(in_file.label_means)[name], value, err_msg=name)
    assert in_file.cost.extra_bytes < in_memory.cost.extra_bytes


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["full", "10bit"])
def test_dumps_of_both_hold_the_same(in_memory: Estimate, in_file: Estimate, precision: str, tmp_path: Path) -> None:
    paths = [
        write_dump(tmp_path / name, each, step=1, epoch=0, precision=precision, **SAMPLES)
        for name, each in (("memory", in_memory), ("file", in_file))
    ]
    with h5py.File(paths[0]) as one, h5py.File(paths[1]) as other:
        for name in (name for name in one if isinstance(one[name], h5py.Dataset)):
            np.testing.assert_array_equal(one[name][()], other[name][()], err_msg=name)
    with h5py.File(paths[1]) as file:
        stored, found = file["gain_influence"][()], in_file.observables["gain"].influence
        assert np.array_equal(stored, found) == (precision == "full")
        np.testing.assert_allclose(stored, found, rtol=2**-11)


def peak_of(call: Callable[[], object]) -> int:
    """Most bytes of arrays and objects that a call held at once; what a mapped file takes does not count."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_writing_copies_no_matrix(in_file: Estimate, tmp_path: Path) -> None:
    """Rounding to 10 bits takes several copies of what it rounds."""
    size = peak_of(lambda: write_dump(tmp_path, in_file, step=1, epoch=0, precision="10bit", **SAMPLES))
    assert size < MATRIX_BYTES / 1.5


def in_small_bands(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pairs, "BAND_PAIRS", 50 * Q)
    patch.setattr(pairs, "SORTED_PAIRS", 100 * Q)


def test_looking_at_all_pairs_copies_no_matrix(in_file: Estimate, monkeypatch: pytest.MonkeyPatch) -> None:
    in_small_bands(monkeypatch)
    rows, columns = axis_of(SAMPLES["train"].labels, N, 64), axis_of(None, Q, 64)
    assert peak_of(lambda: pool(in_file.correlation, rows, columns)) < MATRIX_BYTES / 4
    assert peak_of(lambda: scalars(in_file, **SAMPLES)) < MATRIX_BYTES / 4
    assert peak_of(lambda: [part.size for part in pairs.Pairs(in_file.losses, **SAMPLES).defined()]) < MATRIX_BYTES / 4


def test_numbers_of_bands_are_those_of_the_whole(in_file: Estimate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the queries are train examples themselves, and one train example has no correlation."""
    ids = tuple(f"train{7 * row}" if row % 3 == 0 else f"query{row}" for row in range(Q))
    query = dataclasses.replace(SAMPLES["query"], ids=ids)
    correlation = in_file.correlation.copy()
    correlation[1234] = np.nan
    of = dataclasses.replace(in_file, losses=dataclasses.replace(in_file.losses, correlation=correlation))
    whole = scalars(of, SAMPLES["train"], query)
    others = correlation.copy()
    for column in range(0, Q, 3):
        others[7 * column, column] = np.nan
    others = others[np.isfinite(others)]
    assert whole["bif/mean_abs_correlation"] == pytest.approx(float(np.abs(others).mean(dtype=float)), rel=1e-12)
    assert whole["bif/correlation_q05"] == float(np.quantile(others, (0.05, 0.5))[0])
    in_small_bands(monkeypatch)
    banded = scalars(of, SAMPLES["train"], query)
    assert banded.keys() == whole.keys()
    for tag, value in whole.items():
        of_a_sample = tag.startswith("bif/correlation_")
        assert banded[tag] == pytest.approx(value, rel=1e-12, abs=0.1 if of_a_sample else 0), tag
    found = np.concatenate(list(pairs.Pairs(of.losses, SAMPLES["train"], query).defined()))
    np.testing.assert_array_equal(found, others)


@pytest.fixture(scope="module")
def run_folder(in_file: Estimate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_samples(folder, **SAMPLES)
    for step in (1, 2, 3):
        write_dump(folder, in_file, step=step, epoch=0, **SAMPLES)
    return folder


def test_reading_a_part_reads_little_more(run_folder: Path, in_file: Estimate) -> None:
    run = open_run(run_folder)
    parts = {
        "a query": lambda: run.influence.isel(step=0, query=3).values,
        "a pair over training": lambda: run.influence.isel(train=N - 1, query=3).values,
        "two rows far apart": lambda: run.influence.isel(step=0, train=[N - 1, 2, N - 1, 0]).values,
    }
    expected = in_file.influence
    np.testing.assert_array_equal(parts["a query"](), expected[:, 3])
    np.testing.assert_array_equal(parts["a pair over training"](), expected[N - 1, 3].repeat(3))
    np.testing.assert_array_equal(parts["two rows far apart"](), expected[[N - 1, 2, N - 1, 0]])
    for name, part in parts.items():
        assert peak_of(part) < MATRIX_BYTES / 20, name
    assert top(run, 3, k=2)["train"].tolist()[0] == expected[:, 3].argmin()


def test_a_run_holds_its_ids_once(run_folder: Path) -> None:
    indices = read_indices(dump_paths(run_folder))
    assert len(indices) == 3
    for name in ("train", "train_id", "query_label"):
        assert all(index.axes[name][1] is indices[0].axes[name][1] for index in indices), name
    assert indices[1].axes["labels/train_label"][1].tolist() == [0, 1, 2]


def test_a_dump_with_fewer_examples_than_its_digest_says_is_left_out(run_folder: Path, in_file: Estimate) -> None:
    other = run_folder / "step=000000004.h5"
    (run_folder / "step=000000003.h5").rename(other)
    with h5py.File(other, "r+") as file:
        file.attrs["global_step"] = 4
        del file["train"]
        file["train"] = np.arange(N - 1)
    with pytest.warns(SkippedDumpWarning, match="its train axis has shape"):
        assert open_run(run_folder).step.values.tolist() == [1, 2]
    other.unlink()
