"""The code of the README and of every page runs as it stands, and what they point to exists."""

import ast
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger

from bif_lightning.commands import cli

ROOT = Path(__file__).parents[2]
SETUP = Path(__file__).with_name("setup.py")
PAGES = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
WRITTEN = {name: path for name, path in PAGES.items() if "evidence/tables" not in name}
SLOW = re.compile(r"^<!-- test: slow, .+ -->$", re.MULTILINE)
TRAINS = ("README.md", "docs/get-started.md")
"""Pages that make the run which they read; the others find one."""

# Programs that a page may name though no test runs them, and why.
FOREIGN = {
    "pip": "installs from a registry",
    "tensorboard": "serves until it is stopped; tests of the plugin start it",
    "torchrun": "tests/offline starts it",
    "fabric": "tests/offline starts it",
    "srun": "needs SLURM; tests/offline sets its variables",
    "eval": "of the shell",
}


def blocks(text: str, *languages: str) -> list[str]:
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Words of each command line, without the prompt and comments."""
    lines = (line.removeprefix("$ ") for block in blocks(text, "sh", "console") for line in block.splitlines())
    inline = re.findall(r"`((?:python|make|bif-lightning) [^`]+)`", text)
    return [words for line in (*lines, *inline) if (words := shlex.split(line, comments=True))]


def with_python() -> list[Any]:
    """Each page once; and those that train twice, as people run a script or a cell again, but for slow ones."""
    cases: list[Any] = []
    for name, path in WRITTEN.items():
        text = path.read_text()
        code = "".join(blocks(text, "python"))
        slow = [pytest.mark.slow] if SLOW.search(text) else []
        cases += [pytest.param(name, 1, marks=slow, id=name)] * bool(code)
        again = "BIFCallback(" in code and not slow
        cases += [pytest.param(name, 2, marks=pytest.mark.slow, id=f"{name}, twice")] * again
    return cases


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with lightning_logs/version_0 of a short training with the callback."""
    folder = tmp_path_factory.mktemp("run")
    program = f"""
from bif_lightning import BIFCallback
bif = BIFCallback(train=train_set, query=query_set, at_steps=[5, 10])
L.Trainer(max_epochs=1, callbacks=[bif], default_root_dir={str(folder)!r}).fit(model, train_loader)
"""
    with pytest.MonkeyPatch.context() as patch:
        make_quiet(patch)
        exec(compile(program, "run", "exec"), prepared())
    return folder


def make_quiet(patch: pytest.MonkeyPatch) -> None:
    """Trainers without progress bars and figures, which take most of the time of so short a training."""
    trainer = L.Trainer

    def quiet(**settings: Any) -> L.Trainer:
        folder = settings.get("default_root_dir", ".")
        defaults = {"logger": CSVLogger(folder), "enable_progress_bar": False, "enable_model_summary": False}
        return trainer(**defaults | settings)

    patch.setattr(L, "Trainer", quiet)


def prepared() -> dict[str, Any]:
    """The names that every page starts with."""
    names: dict[str, Any] = {}
    exec(compile(SETUP.read_text(), str(SETUP), "exec"), names)
    return names


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("page", "times"), with_python())
def test_python_blocks_run_one_after_the_other(
    page: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    text = PAGES[page].read_text()
    monkeypatch.setenv("MPLBACKEND", "Agg")
    if "lightning_logs/" in "".join(blocks(text, "python")) and page not in TRAINS:
        shutil.copytree(request.getfixturevalue("finished_run"), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    make_quiet(monkeypatch)
    for _ in range(times):
        names = prepared()
        for block in blocks(text, "python"):
            exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", [name for name, path in WRITTEN.items() if commands(path.read_text())])
def test_commands_exist_with_their_options(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(PAGES[page].read_text()):
        program = words[0]
        if "bif-lightning" in words:
            check_command(words[words.index("bif-lightning") + 1 :], capsys)
        elif program == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
            assert {word for word in words[1:] if "=" not in word} <= set(targets), words
        elif program == "python" and not words[1].startswith("-"):
            check_script(ROOT / words[1], options(words))
        else:
            assert program in {*FOREIGN, "python"}, f"{words}: nothing says why this is not tried"


def options(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if word.startswith("--")}


def check_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A command line of bif-lightning has only options that the help of its subcommand lists."""
    subcommand = [word for word in words[:1] if not word.startswith("-")]
    with pytest.raises(SystemExit) as end:
        cli.main([*subcommand, "--help"])
    assert end.value.code == 0, words
    known = capsys.readouterr().out.replace("_", "-")
    unknown = {option for option in options(words) if option.replace("_", "-") not in known}
    assert not unknown or words[0].startswith("--print"), (words, unknown)


def check_script(script: Path, given: set[str]) -> None:
    """A script exists, and its source names the options."""
    assert script.is_file(), script
    source = script.read_text()
    # Options made in a loop have their names in the source without the dashes.
    unknown = {option for option in given if option not in source and f'"{option[2:]}"' not in source}
    assert not unknown, (script, unknown)


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files(page: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", PAGES[page].read_text()) if "://" not in link]
    assert [link for link in links if not (PAGES[page].parent / link).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "docs/concepts/promises.md"])
def test_every_promise_names_a_test(page: str) -> None:
    table = PAGES[page].read_text().partition("| promise |")[2]
    rows = re.findall(r"^\| ([^-].*?) \| (.+) \|$", table, flags=re.MULTILINE)
    assert rows
    assert [claim for claim, shown in rows if "tests/" not in shown] == []


def test_paths_of_the_internals_exist() -> None:
    paths = re.findall(r"`(bif_lightning/[\w/.]+)`", PAGES["docs/internals.md"].read_text())
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_public_name_is_in_the_reference() -> None:
    stub = ast.parse((ROOT / "bif_lightning" / "__init__.pyi").read_text())
    modules = {"exceptions"}  # have a page of their own
    public = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    metrics = ast.parse((ROOT / "bif_lightning" / "metrics.py").read_text())
    defined = {node.name for node in metrics.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")}
    listed = re.findall(r"^::: bif_lightning\.(\w+)$", PAGES["docs/reference/api.md"].read_text(), flags=re.MULTILINE)
    assert set(listed) == public - modules
    assert len(listed) == len(set(listed))
    shown = re.findall(r"^        - (\w+)$", PAGES["docs/reference/metrics.md"].read_text(), flags=re.MULTILINE)
    assert set(shown) == defined


def test_readme_is_read_in_a_minute() -> None:
    assert len(PAGES["README.md"].read_text().split()) <= 600
