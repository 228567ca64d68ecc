"""Places on other machines are refused by name, and the remedy of the message works."""

import re
from pathlib import Path

import fsspec
import pytest

from bif_lightning.storage.places import local_path

pytestmark = pytest.mark.exact


@pytest.mark.parametrize("place", ["runs/bif", "/tmp/a b", ".", "C:/runs", "runs/a:b", "step=000000001.h5", "a:b/c"])
def test_paths_stay(place: str) -> None:
    assert local_path(place, "dirpath") == Path(place)
    assert local_path(Path(place), "dirpath") == Path(place)


@pytest.mark.parametrize("place", ["file:///runs/a%20b", "local:///runs/a b", Path("file:///runs/a b")])
def test_urls_of_this_machine_are_paths(place: str | Path) -> None:
    assert local_path(place, "dirpath") == Path("/runs/a b")


@pytest.mark.parametrize(
    "place",
    [
        "s3://bucket/run",
        "gs://bucket/run",
        "abfs://c@a.dfs/run",
        "memory://run",
        "hdfs:///run",
        Path("s3://bucket/run"),
    ],
)
def test_places_elsewhere_are_refused(place: str | Path) -> None:
    scheme = str(place).partition(":")[0]
    with pytest.raises(ValueError, match=rf"dirpath is {scheme}://.*no place of this machine.*local folder as dirpath"):
        local_path(place, "dirpath")


def test_a_cached_bucket_is_one_too() -> None:
    with pytest.raises(ValueError, match="dirpath is s3://bucket/run, which is no place"):
        local_path("simplecache::s3://bucket/run", "dirpath")


def test_what_the_messages_say_works(tmp_path: Path) -> None:
    """The calls of both messages, run as they stand."""
    calls = dict[str, str]()
    for access in ("write", "read"):
        with pytest.raises(ValueError, match="fsspec") as refused:
            local_path("memory://bucket/there", "dirpath", access=access)
        found = re.search(r"fsspec\.filesystem\(.*\)\.(put|get)\(.*\)", str(refused.value))
        assert found is not None
        calls[access] = found[0]
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "step=000000001.h5").write_bytes(b"dump")
    exec(calls["write"], {"fsspec": fsspec, "dirpath": str(tmp_path / "here")})
    exec(calls["read"].replace("'local'", repr(str(tmp_path / "back"))), {"fsspec": fsspec})
    assert (tmp_path / "back" / "step=000000001.h5").read_bytes() == b"dump"
