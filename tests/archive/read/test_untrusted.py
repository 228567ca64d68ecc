"""Files that were made to harm their reader: each is refused by name, quickly, and nothing outside of it is read."""

import os
import re
import tracemalloc
from contextlib import suppress

import h5py
import numpy as np
import pytest

from archive_examples import make_estimate, make_samples
from bif_lightning.archive import read
from bif_lightning.archive.read.index import read_index
from bif_lightning.archive.read.parts import read_parts
from bif_lightning.archive.read.untrusted import attribute, find, open_file, present
from bif_lightning.archive.schema import DUMP
from bif_lightning.archive.write import write_dump
from bif_lightning.exceptions import UnreadableFileError
from hostile import HOSTILE, refill

pytestmark = pytest.mark.crash


@pytest.fixture
def dump(tmp_path, rng):
    samples = {"train": make_samples("train", 6), "query": make_samples("query", 4)}
    return write_dump(tmp_path / "run", make_estimate(rng, 6, 4), step=1, epoch=0, **samples)


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_hostile_matrix_is_refused(dump, make):
    refill(dump, make)
    tracemalloc.start()
    with open_file(dump, DUMP) as file, pytest.raises(UnreadableFileError, match=HOSTILE[make]):
        find(file, "correlation")
    with pytest.raises(UnreadableFileError):
        read_parts(dump, DUMP, names=("correlation",))
    with pytest.warns(read.SkippedDumpWarning), suppress(UnreadableFileError):
        assert "correlation" not in read.open_run(dump.parent)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def test_a_link_on_the_way_is_not_followed(dump):
    with h5py.File(dump, "r+") as file:
        del file["chains"]
        file["chains"] = h5py.SoftLink("/cost")
    with open_file(dump, DUMP) as file, pytest.raises(UnreadableFileError, match="a link to elsewhere"):
        present(file, "chains/loss")


def test_damaged_attributes_are_refused_by_name(dump):
    data = bytearray(dump.read_bytes())
    heaps = [found.start() for found in re.finditer(b"FRHP", data)]
    assert heaps
    for at in heaps:
        data[at + 20] ^= 255
    dump.write_bytes(data)
    with pytest.raises(UnreadableFileError, match=r"step=000000001\.h5 is damaged"), open_file(dump, DUMP):
        pass


def test_what_should_lie_below_a_dataset_is_refused(dump):
    with open_file(dump, DUMP) as file, pytest.raises(UnreadableFileError, match="/correlation is not a group"):
        present(file, "correlation/loss")


def test_many_attributes_are_no_harm(dump):
    with h5py.File(dump, "r+", libver="latest") as file:
        group = file.create_group("metrics")
        for each in range(200):
            group.attrs[f"m{each}"] = np.zeros(7500)
    assert len(read_parts(dump, DUMP, tables=("metrics",)).tables["metrics"]) == 200
    with pytest.raises(UnreadableFileError, match="it is damaged"):
        read_index(dump)


def test_an_attribute_beyond_64_kib_is_refused(dump):
    with h5py.File(dump, "r+", libver="latest") as file:
        group = file.create_group("metrics")
        group.attrs["small"] = 1.0
        group.attrs["large"] = np.zeros(100_000)
    with open_file(dump, DUMP) as file:
        assert attribute(file["metrics"], "small") == 1.0
        assert attribute(file["metrics"], "absent") is None
        with pytest.raises(UnreadableFileError, match="the attribute large of /metrics has 800,000 bytes"):
            attribute(file["metrics"], "large")


def test_a_matrix_of_texts_is_refused(dump):
    refill(dump, lambda file: file.create_dataset("correlation", (6, 4), h5py.string_dtype()))
    with pytest.warns(read.SkippedDumpWarning), pytest.raises(UnreadableFileError):
        read.open_run(dump.parent)


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "step=000000001.h5")
    with (
        pytest.raises(UnreadableFileError, match="not a regular file"),
        open_file(tmp_path / "step=000000001.h5", DUMP),
    ):
        pass


def test_pick_says_what_is_there(dump):
    found = read_parts(
        dump, DUMP, attrs=("epoch", "nothing"), names=("chains/rhat", "train_id", "chains/verdict", "no/where"),
        matrices=("correlation",), tables=("metrics",), asked=("labels", "chains", "chains/rhat"),
    )  # fmt: skip
    assert dict(found.attrs) == {"epoch": 0}
    assert found.values["chains/rhat"] == 1.01
    assert found.values["train_id"].tolist() == [f"train-é{row}" for row in range(6)]
    assert isinstance(found.values["chains/verdict"], str)
    assert "no/where" not in found.values
    assert dict(found.shapes) == {"correlation": (6, 4)}
    assert dict(found.tables) == {"metrics": {}}
    assert found.present == {"chains", "chains/rhat"}
