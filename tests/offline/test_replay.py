"""Settings found by "auto" in a run: those that do not last, those that do, and workers that know the dumps alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from bif_lightning.archive.read.index import dump_paths, read_index
from bif_lightning.archive.schema import dump_name
from bif_lightning.calibration import find
from offline_run import STEPS, assert_same_dumps, train, watch

pytestmark = pytest.mark.bitwise


def settings_of(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(read_index(path).settings) for path in dump_paths(directory)]


@pytest.mark.slow
def test_settings_that_do_not_last_serve_one_snapshot_here_as_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The effective dimension is 0.15 of its aim at the first of three snapshots, 0.21 at the second, which all later
    ones follow, whoever makes them."""
    monkeypatch.setattr(find, "LASTING", 0.2)
    inline = train(tmp_path / "inline", sampler="auto")
    first, second, third = settings_of(inline)
    assert [each["lasting"] for each in (first, second, third)] == [False, True, True]
    assert first["sampler"] != second["sampler"]
    assert third["sampler"] | {"step_size": second["sampler"]["step_size"]} == second["sampler"]
    assert third["reasons"] == second["reasons"] != first["reasons"] != ""
    later = train(tmp_path / "later", launch="snapshot", sampler="auto")
    assert watch(later).written == tuple(STEPS)
    (later / dump_name(STEPS[-1])).unlink()
    assert watch(later).written == (STEPS[-1],)  # as another worker, which knows the dumps alone
    assert_same_dumps(inline, later)
