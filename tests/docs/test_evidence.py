"""The tables of the documentation: each has a page, a command that exists, and a line that says how it was made."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from evidence import TABLES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script in a temporary repository, with three tables, of which one fails."""
    spec = importlib.util.spec_from_file_location("evidence", ROOT / "benchmarks" / "evidence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "evidence", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "FOLDER", tmp_path / "tables")
    tables = (
        module.Table("good", "script.py", "", ("code.py",), 1),
        module.Table("broken", "broken.py", "", (), 1),
        module.Table("last", "script.py 2", "--small", ("other.py",), 1),
    )
    monkeypatch.setattr(module, "TABLES", {table.name: table for table in tables})
    (tmp_path / "script.py").write_text("import sys\nprint('| a |')\nprint('|---|')\nprint(f'| {sys.argv[1:]} |')\n")
    (tmp_path / "broken.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / "other.py").write_text("x = 1\n")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return module


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "change")


def test_a_failing_table_does_not_stop_the_others(evidence: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    assert evidence.main([]) == 1
    assert "FAILED broken: exit status 3" in capfd.readouterr().err
    assert sorted(path.name for path in evidence.FOLDER.iterdir()) == ["good.md", "last.md"]


def test_the_header_says_how_a_table_was_made(evidence: ModuleType) -> None:
    evidence.main(["last"])
    header, body = evidence.read("last").split("\n\n", 1)
    assert re.match(r"Measured by `python script.py 2` at commit `\w{9}`, \d{4}-\d\d-\d\d, on \d+ cores", header)
    assert "`other.py`" in header
    assert "torch" in header
    assert str(evidence.ROOT) not in header
    assert body == "| a |\n|---|\n| ['2'] |\n"


def test_trials_leave_the_documentation_alone(evidence: ModuleType, tmp_path: Path) -> None:
    assert evidence.main(["last", "--trial", str(tmp_path / "trial")]) == 0
    assert not evidence.FOLDER.exists()
    assert "['2', '--small']" in (tmp_path / "trial" / "last.md").read_text()


def test_a_table_is_stale_when_its_code_changed(evidence: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    folder = evidence.ROOT
    good, last = (evidence.TABLES[name] for name in ("good", "last"))
    assert "not been measured" in evidence.stale(good)
    evidence.main(["good", "last"])
    assert evidence.stale(good) is None
    commit(folder)  # of the tables: no code
    assert evidence.stale(good) is None
    (folder / "code.py").write_text("x = 2\n")
    commit(folder)
    assert "has changed since" in evidence.stale(good)
    assert "code.py" in evidence.stale(good)
    assert evidence.stale(last) is None
    assert evidence.main(["--check"]) == 0
    said = capsys.readouterr().out
    assert "STALE good" in said
    assert "STALE last" not in said
    (folder / "script.py").write_text("print('| b |')\n")  # the script itself is code that the table rests on
    commit(folder)
    assert evidence.stale(last) is not None


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            'def f(x):\n    """One thing."""\n    return x\n',
            'def f(x):\n    """Another."""\n    return x  # x\n',
            False,
        ),
        ('raise ValueError(f"it is {1}")\n', 'raise ValueError(f"now it is {1}")\n', False),
        ('raise ValueError(f"it is {1}")\n', 'raise ValueError(f"it is {2}")\n', True),
        ('kind = "one"\n', 'kind = "two"\n', True),
    ],
)
def test_words_for_people_make_no_table_stale(evidence: ModuleType, before: str, after: str, expected: bool) -> None:
    code = evidence.ROOT / "code.py"
    code.write_text(before)
    commit(evidence.ROOT)
    evidence.main(["good"])
    code.write_text(after)
    commit(evidence.ROOT)
    assert (evidence.stale(evidence.TABLES["good"]) is not None) == expected


def test_files_that_are_no_text_are_compared_too(evidence: ModuleType) -> None:
    table = evidence.Table("good", "script.py", "", ("data",), 1)
    data = evidence.ROOT / "data" / "truth.npz"
    data.parent.mkdir()
    data.write_bytes(b"\xc9\x00")
    commit(evidence.ROOT)
    evidence.main(["good"])
    assert evidence.stale(table) is None
    data.write_bytes(b"\xc9\x01")
    commit(evidence.ROOT)
    assert "truth.npz" in evidence.stale(table)


def test_a_commit_that_is_gone_is_named(evidence: ModuleType) -> None:
    evidence.main(["good"])
    path = evidence.FOLDER / "good.md"
    path.write_text(re.sub(r"commit `\w+`", "commit `0123abc`", path.read_text()))
    assert "0123abc is not in this history" in evidence.stale(evidence.TABLES["good"])


def test_the_tables_of_the_documentation_fit_the_list() -> None:
    names = set(TABLES)
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "evidence").glob("*.md"))
    assert set(re.findall(r"^\[[^\]]+\]\(tables/([\w-]+)\.md\)$", pages, re.MULTILINE)) == names
    files = {path.stem: path.read_text() for path in (ROOT / "docs" / "evidence" / "tables").glob("*.md")}
    assert set(files) <= names
    for name, text in files.items():
        assert re.match(r"Measured by `python .+` at commit `\w{7,}`|Not measured yet.$", text), name


def test_code_that_tables_measure_exists() -> None:
    source = (ROOT / "benchmarks" / "evidence.py").read_text()
    paths = re.findall(r'"((?:bif_lightning|benchmarks|examples)/[\w/.]+)[ "]', source)
    assert len(paths) > 20
    tables = {file.stem: file.read_text() for file in (ROOT / "docs" / "evidence" / "tables").glob("*.md")}
    # A table may be announced before its benchmark is there.
    waiting = {f"benchmarks/{name}.py" for name, text in tables.items() if text.startswith("Not measured yet")}
    assert [path for path in paths if not (ROOT / path).exists() and path not in waiting] == []


def test_scores_of_the_concept_page_are_those_of_the_tables() -> None:
    page = (ROOT / "docs" / "concepts" / "whole_training.md").read_text()
    rows = re.findall(
        r"^\| (?:\*\*)?`(\w+)`(?:\*\*)? \| ([.\d]+) \| ([.\d]+) \| ([.\d]+) \| ([.\d]+) \| ([.\d]+) \|$", page, re.M
    )
    assert len(rows) >= 4
    methods = (
        "Subspace 128", "sum over 8 snapshots of Subspace 128", "EK-FAC (kronfluence), heuristic damping",
        "sum over 8 snapshots of EK-FAC, heuristic damping",
    )  # fmt: skip
    for name, *numbers, ceiling in rows:
        table = (ROOT / "docs" / "evidence" / "tables" / f"retraining-{name.replace('_', '-')}.md").read_text()
        table = table.replace("Subspace 128, the default", "Subspace 128")  # as it was when others were measured
        for method, number in zip(methods, numbers, strict=True):
            assert f"| {method} | 0{number} ±" in table, (name, method)
        assert f"scores 0{ceiling} on the other" in table
