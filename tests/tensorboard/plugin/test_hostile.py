"""Files that were made to harm the server: each question about them has an answer, and none tells what it must not."""

import resource
from dataclasses import replace

import h5py
import numpy as np
import pytest

from bif_lightning.archive.write import write_samples
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.protocol import Question
from bif_lightning.tensorboard.plugin.readers import Readers
from hostile import HOSTILE, SECRET, refill
from plugin_runs import PNG, ask, files_of, refused, samples_of, told, write_run

pytestmark = pytest.mark.crash

PAIR = {"train": 1, "query": 1}
QUESTIONS = {
    "description": {}, "dump_lines": {}, "view": {}, "cell": PAIR, "top": {"query": 1}, "trajectory_points": PAIR,
    "order": {"side": "train", "by": "strength"}, "trust_points": {}, "chains": {}, "export_window": {},
    "ranking": {}, "ranking_at": {},
}  # fmt: skip
PICTURES = (
    b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", b"<html>", b"GIF89a", PNG[1:], PNG[:5],
)  # fmt: skip


@pytest.fixture(scope="module")
def readers():
    pool = Readers(count=1)
    yield pool
    pool.close()


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_hostile_matrix_is_neither_read_nor_the_end_of_anything(tmp_path, readers, make):
    write_run(tmp_path / "run", 6, 4, steps=(1,))
    refill(tmp_path / "run" / "step=000000001.h5", make)
    files = files_of(tmp_path / "run")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, parameters in QUESTIONS.items():
        values = {key: str(value) for key, value in ({"step": 1, "matrix": "correlation"} | parameters).items()}
        answer = readers.ask(Question(name, files, Parameters(values)))
        assert answer.status in (200, 400, 404, 422), (name, answer.body)
        assert str(SECRET).encode() not in answer.body
        assert np.float32(SECRET).tobytes() not in answer.body
        if name in ("view", "cell", "top", "export_window", "ranking", "ranking_at"):
            assert answer.status != 200, name
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.parametrize("picture", PICTURES)
def test_a_picture_that_is_no_png_is_not_served(tmp_path, picture):
    write_run(tmp_path, 6, 4, steps=(1,))
    (tmp_path / "samples.h5").unlink()
    train = replace(samples_of("train", 6), thumbnails=(picture,) + (PNG,) * 5)
    write_samples(tmp_path, train, samples_of("query", 4, seed=1))
    files = files_of(tmp_path)
    status, why = refused(files, "thumbnail", side="train", row=0)
    assert (status, "is not a PNG" in why) == (422, True)
    assert ask(files, "thumbnail", side="train", row=5).status == 200


def test_a_picture_too_large_or_outside_of_its_bytes_is_not_served(tmp_path):
    write_run(tmp_path, 6, 4, steps=(1,))
    files = files_of(tmp_path)
    for offsets in ([0, 10**12] * 4, [50, 0] * 4, [-5, 10] * 4):
        with h5py.File(tmp_path / "samples.h5", "r+") as file:
            file["train/thumbnail_offset"][...] = offsets[:7]
        assert refused(files, "thumbnail", side="train", row=0)[0] == 422
    (tmp_path / "samples.h5").unlink()
    train = replace(samples_of("train", 6), thumbnails=(PNG + bytes(1 << 20),) * 6)
    write_samples(tmp_path, train, samples_of("query", 4, seed=1))
    assert refused(files, "thumbnail", side="train", row=0)[0] == 422


def test_texts_of_the_samples_are_checked(tmp_path):
    """Strings have no checksum of their own: the digest of all of them takes its place."""
    write_run(tmp_path, 6, 4, steps=(1,))
    with h5py.File(tmp_path / "samples.h5", "r+") as file:
        file["train/id"][2] = "another"
    status, why = refused(files_of(tmp_path), "samples", side="train")
    assert (status, "does not match its digest" in why) == (422, True)
    assert told(files_of(tmp_path), "cell", step=1, matrix="influence", train=1, query=1)


def test_a_dump_that_became_a_link_is_not_opened(tmp_path):
    write_run(tmp_path / "run", 6, 4, steps=(1, 2))
    files = files_of(tmp_path / "run")
    (tmp_path / "run" / "step=000000002.h5").unlink()
    (tmp_path / "run" / "step=000000002.h5").symlink_to(tmp_path / "run" / "step=000000001.h5")
    status, why = refused(files, "view", step=2, matrix="correlation")
    assert (status, "not a regular file" in why) == (422, True)


def test_a_dump_that_calls_itself_by_another_step_is_named(tmp_path):
    write_run(tmp_path, 6, 4, steps=(1,))
    (tmp_path / "step=000000001.h5").rename(tmp_path / "step=000000002.h5")
    (line,) = told(files_of(tmp_path), "dump_lines")["lines"]
    assert line["why"] == "its attribute global_step is 1"
