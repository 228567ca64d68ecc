"""SPEC.md and the files agree both ways: what the tables promise is there, and nothing else is."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import bif_lightning
from archive_examples import make_estimate, make_full, make_samples, make_tokens
from bif_lightning.archive.read.index import read_index
from bif_lightning.archive.schema import VERSION
from bif_lightning.archive.write import write_dump, write_integrated, write_samples
from bif_lightning.config import Subspace
from training_dumps import make_estimates, write_training

pytestmark = pytest.mark.exact

SPEC = (Path(bif_lightning.__file__).parent / "archive" / "SPEC.md").read_text()
OBSERVABLES = {"accuracy": ("1", "nat", "accuracy_column"), "margin": ("m", "nat m", "query")}


def table(section: int) -> list[list[str]]:
    """Cells of the rows of a section's table, without its head."""
    text = re.split(r"^## ", SPEC, flags=re.MULTILINE)[section]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip().replace("`", "") for cell in row] for row in rows[2:]]


def expand(row: list[str]) -> list[list[str]]:
    """A row with a placeholder becomes one row for each thing it stands for."""
    joined = "|".join(row)
    joined = joined.replace("<number>", "hardness").replace("<text>", "source")
    if "<side>" in joined:
        return [joined.replace("<side>", side).split("|") for side in ("train", "query")]
    if "<observable>" in joined:
        rows: list[list[str]] = []
        for name, (unit, product, column) in OBSERVABLES.items():
            if "columns of their own" in joined and column == "query":
                continue
            cells = joined.replace("<observable>", name).replace("<column>", column).split("|")
            cells[3] = {"unit": unit, "nat·unit": product}.get(cells[3], cells[3])
            rows.append(cells)
        return rows
    return [row]


def promised(section: int, presence: str | None = None, but: str = "") -> dict[str, tuple[str, str, str]]:
    rows = [each for row in table(section) for each in expand(row) if presence in (None, row[4]) and row[4] != but]
    assert rows
    return {name: (dtype, dims, units) for name, dtype, dims, units, *_ in rows}


def described(dataset: h5py.Dataset) -> tuple[str, str, str]:
    text = h5py.check_string_dtype(dataset.dtype)
    dtype = "str" if text is not None else f"{dataset.dtype.kind}{dataset.dtype.itemsize}"
    own = dataset.name.rpartition("/")[2]
    dims = [own] if dataset.is_scale else [dim[0].name.rpartition("/")[2] for dim in dataset.dims]
    return dtype, ", ".join(dims) or "-", dataset.attrs.get("units", "")


def found(path: Path) -> dict[str, tuple[str, str, str]]:
    datasets: dict[str, tuple[str, str, str]] = {}

    def walk(group: h5py.Group, prefix: str) -> None:
        for name, node in group.items():
            assert isinstance(group.get(name, getlink=True), h5py.HardLink)
            if isinstance(node, h5py.Group):
                walk(node, f"{prefix}{name}/")
            else:
                datasets[prefix + name] = described(node)

    with h5py.File(path) as file:
        walk(file, "")
    return datasets


def attribute_type(value: object) -> str:
    if isinstance(value, np.ndarray):
        return "str[]"
    return "str" if isinstance(value, str) else f"{value.dtype.kind}{value.dtype.itemsize}"


def attributes(path: Path) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}

    def visit(name: str, node: object) -> None:
        if isinstance(node, h5py.Group):
            found.update({(f"/{name}", each): attribute_type(value) for each, value in node.attrs.items()})

    with h5py.File(path) as file:
        visit("", file)
        file.visititems(visit)
    return found


@pytest.fixture
def full(tmp_path, rng):
    train, query, estimate = make_full(rng)
    records = {"hyperparameters": {"a": 1}, "provenance": {"b": 2}, "metrics": {"val/loss": 1.0}}
    return write_dump(tmp_path, estimate, step=1, epoch=0, train=train, query=query, **records)


@pytest.fixture
def bare(tmp_path, rng):
    arguments = {"train": make_samples("train", 5), "query": make_samples("query", 3)}
    return write_dump(tmp_path, make_estimate(rng, 5, 3), step=2, epoch=0, **arguments)


def test_full_dump_is_the_table(full):
    assert found(full) == promised(5, but="tokens in closed form")


def test_tokens_in_closed_form_are_the_table(tmp_path, rng):
    train, query, estimate = make_full(rng)
    estimate = replace(estimate, tokens=make_tokens(rng, len(train), len(query), 2, 5, closed_form=True))
    path = write_dump(tmp_path, estimate, step=1, epoch=0, train=train, query=query)
    tokens = {name for name in found(path) if name.startswith("tokens/")}
    expected = promised(5, but="tokens of draws")
    assert {name: each for name, each in found(path).items() if name in tokens} == {
        name: each for name, each in expected.items() if name.startswith("tokens/")
    }


def test_bare_dump_is_the_part_that_is_always_there(bare):
    assert found(bare) == promised(5, "always")


def test_attributes_are_the_table(full, bare):
    rows = [[cell.replace("<metric>", "val/loss") for cell in row] for row in table(4)]
    assert attributes(full) == {(group, name): kind for group, name, kind, *_ in rows}
    always = {(group, name): kind for group, name, kind, _, presence in rows if presence == "always"}
    assert attributes(bare) == always


def test_samples_file_is_the_table(tmp_path):
    full = [make_samples(side, 4, classes=("a", "b"), texts=True) for side in ("train", "query")]
    assert found(write_samples(tmp_path / "full", *full)) == promised(6)
    bare = [make_samples(side, 4) for side in ("train", "query")]
    assert found(write_samples(tmp_path / "bare", *bare)) == promised(6, "always")


def test_integrated_file_is_the_table(tmp_path, rng):
    path = write_integrated(write_training(tmp_path, make_estimates(rng)))
    assert found(path) == promised(10)
    expected = {"schema", "schema_version", "creator", "created_utc", "samples_sha256"}
    assert attributes(path) == {("/", name): "str" for name in expected}
    with h5py.File(path) as file:
        assert file.attrs["schema"] == "bif-lightning-integrated"
        assert [name for name in file if "sign" in file[name].attrs] == ["integrated"]
        numbers = [node for node in file.values() if h5py.check_string_dtype(node.dtype) is None]
        assert all(node.fletcher32 for node in numbers if not node.name.endswith("/byte"))


def test_words_of_every_dataset(full):
    signed = re.compile(
        r"(\w+_)?(influence|correlation|conditioned|influence_draws)|labels/(influence|correlation)|overview/block"
        r"|plot/(influence|correlation)"
    )

    def check(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset):
            text = h5py.check_string_dtype(node.dtype)
            assert node.attrs["long_name"]
            assert ("units" in node.attrs) == (text is None), name
            assert ("sign" in node.attrs) == (signed.fullmatch(name) is not None), name
            assert node.fletcher32 == (text is None and node.ndim > 0), name
            assert not node.is_virtual
            assert node.external is None

    with h5py.File(full) as file:
        file.visititems(check)


GOLDEN = Path(__file__).parent / "golden"


def test_version_1_1_lists_what_it_added():
    """By what the 1.0 golden dump lacks: each name stands in the paragraph on 1.1, and no other does."""
    old, new = (GOLDEN / version / "step=000000300.h5" for version in ("1.0", "1.1"))
    words = SPEC.partition("- 1.1 added")[2].partition("- 1.0 was")[0]
    listed = set(re.findall(r"`([^`]+)`", words)) - {"kind", "settings_json", "verdict"}
    added = {
        name.replace("accuracy_", "<observable>_").replace("margin_", "<observable>_")
        for name in set(found(new)) - set(found(old))
    }
    assert {name for name in added if not name.endswith(("_standard_error", "_json"))} == listed
    assert {name for _, name in attributes(new)} - {name for _, name in attributes(old)} == {"verdict"}


def test_version_1_2_lists_what_it_added(tmp_path):
    """By what the golden files of 1.1 lack: further groups of a dump, and further datasets of the samples file."""
    old, new = (GOLDEN / version / "step=000000300.h5" for version in ("1.1", "1.2"))
    words = SPEC.partition("- 1.2 added")[2].partition("- 1.1 added")[0]
    listed = set(re.findall(r"`([^`]+)`", words))
    dump = {name for name in found(new) if not name.endswith("_json")} - set(found(old))
    samples = write_samples(
        tmp_path, *(make_samples(side, 4, classes=("a",), texts=True) for side in ("train", "query"))
    )
    further = set(found(samples)) - set(found(GOLDEN / "1.1" / "samples.h5"))
    named = {name.replace("train/", "<side>/").replace("query/", "<side>/") for name in further}
    named = {name.replace("hardness", "<number>").replace("source", "<text>") for name in named}
    assert {name.partition("/")[0] for name in dump} | named == listed
    assert attributes(new) == attributes(old)


def test_version_1_3_lists_what_it_added():
    """By what the golden dump of 1.2 lacks: a number, and words of the settings; and by a setting of Subspace."""
    old, new = (GOLDEN / version / "step=000000300.h5" for version in ("1.2", "1.3"))
    words = SPEC.partition("- 1.3 added")[2].partition("- 1.2 added")[0]
    listed = set(re.findall(r"`([^`]+)`", words)) - {"settings_json"}
    settings = [json.loads(read_index(path).settings).keys() for path in (old, new)]
    numbers = {name for name in set(found(new)) - set(found(old)) if not name.endswith("_json")}
    of_subspace = set(asdict(Subspace())) - {"num_directions", "inverse_temperature", "localization", "span"}
    assert numbers | (settings[1] - settings[0]) | of_subspace == listed
    assert attributes(new) == attributes(old)


def test_the_last_version_lists_what_it_added(full):
    old = GOLDEN / "1.3" / "step=000000300.h5"
    words = SPEC.partition("- 1.4 added")[2].partition("- 1.3 added")[0]
    added = {
        name.replace("accuracy_", "<observable>_").replace("margin_", "<observable>_")
        for name in set(found(full)) - set(found(old))
    }
    unlisted = "_json", "influence_draws_standard_error"
    assert {name for name in added if not name.endswith(unlisted)} == set(re.findall(r"`([^`]+)`", words))
    assert attributes(full) == attributes(old)


def test_version_is_the_one_described():
    assert SPEC.startswith(f"# The bif_lightning file format, version {VERSION}\n")
    assert f'"{VERSION}"' in SPEC
