"""Train with other people's libraries, each in an environment of its own: python tests/clients/run.py [LIBRARY ...]

For each library, uv makes an environment with it, this package and torch 2.13.0, in a build without CUDA where the
index has one. Its test file runs there. --write puts what was found into the table of docs/guides/libraries.md. The
tests take no part in any other run. Exit status: 0, or 1 where a library could not be installed, or a test failed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MADE = "tests/clients/run.py"
HEADER = ("library", "trained", "`train`, `query`", "and", "verdict", "training", "with it", "a snapshot")
MINUTES = 10
"""Longest time for the tests of a library."""


@dataclass(frozen=True)
class Library:
    """What to install, and the lowest Python that has it."""

    requirements: tuple[str, ...]
    python: str = "3.11"

    @property
    def title(self) -> str:
        return self.requirements[0].replace("==", " ")


VISION = "torchvision==0.28.0"  # of torch 2.13
LIBRARIES = {
    "transformers": Library(("transformers==5.23.0",)),
    "torch-geometric": Library(("torch-geometric==2.8.1",)),
    "monai": Library(("monai==1.6.1",)),
    "chemprop": Library(("chemprop==2.3.1",)),
    "torchvision": Library((VISION,)),
    "segmentation-models-pytorch": Library(("segmentation-models-pytorch==0.6.0", VISION)),
    "lightly": Library(("lightly==1.6.0", VISION)),
    "pytorch-forecasting": Library(("pytorch-forecasting==1.8.0",)),
    "litgpt": Library(("litgpt==0.5.13",)),
    "pytorch-tabular": Library(("pytorch-tabular==1.2.0",)),
    "neuralforecast": Library(("neuralforecast==3.3.0",)),
    "scvi-tools": Library(("scvi-tools==1.5.1",), python="3.12"),
    "torchgeo": Library(("torchgeo==0.10.1", VISION), python="3.12"),
    "anomalib": Library(("anomalib==2.7.0", VISION)),
}


def uv() -> str:
    """The program, beside this Python or on the PATH."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise SystemExit("uv is not installed: pip install uv")
    return found


def install(name: str, folder: Path) -> str | None:
    """Make the environment of a library; returns what uv says where that cannot be done."""
    library, python = LIBRARIES[name], folder / "bin" / "python"
    if not python.exists():
        made = call([uv(), "venv", "--quiet", "--python", library.python, str(folder)])
        if made is not None:
            return made
    torch = ["--override", str(HERE / "override.txt"), "torch==2.13.0"]
    ours = ["pytest>=9.2,<10", "pytest-timeout>=2.4,<3", "--editable", str(ROOT)]
    return call([uv(), "pip", "install", "--quiet", "--python", str(python), *torch, *ours, *library.requirements])


def call(command: list[str]) -> str | None:
    """Run; returns its error output where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | wheels())
    return done.stderr.strip() if done.returncode else None


def wheels() -> dict[str, str]:
    """Where pip is told to find further wheels, uv finds them too."""
    found = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS")
    return {"UV_FIND_LINKS": found} if found else {}


def test_file(name: str) -> Path:
    return HERE / f"test_{name.replace('-', '_')}.py"


def run_tests(name: str, folder: Path) -> tuple[bool, list[dict[str, str]]]:
    """Run the tests of a library in its environment; returns whether all passed, and what those that did recorded."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        options = ["-q", "-m", "clients", "-p", "no:cacheprovider", "--confcutdir", str(HERE), f"--junitxml={report}"]
        command = [str(folder / "bin" / "python"), "-m", "pytest", *options, str(test_file(name))]
        environment = os.environ | {"MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}
        try:
            status = subprocess.run(command, cwd=ROOT, env=environment, check=False, timeout=60 * MINUTES).returncode
        except subprocess.TimeoutExpired:
            print(f"{name}: stopped after {MINUTES} minutes")
            return False, []
        return status == 0, recorded(report) if report.exists() else []


def recorded(report: Path) -> list[dict[str, str]]:
    """The properties of each test that recorded any, with the test's name in words."""
    found: list[dict[str, str]] = []
    for case in ElementTree.parse(report).iter("testcase"):
        properties = {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}
        if properties:
            words = case.attrib["name"].removeprefix("test_").replace("_", " ")
            found.append({"trained": re.sub(r"\[(.*)\]", r", \1", words), **properties})
    return found


def row(name: str, found: dict[str, str]) -> str:
    cells = ("trained", "given", "added", "verdict", "training", "watched", "snapshot")
    return f"| [{LIBRARIES[name].title}]({source(name)}) | " + " | ".join(found[cell] for cell in cells) + " |"


def source(name: str) -> str:
    """The test file of a library, as the page links to it."""
    return f"../../tests/clients/{test_file(name).name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", nargs="*", help="of " + ", ".join(LIBRARIES) + "; all if none is given")
    parser.add_argument("--environments", type=Path, default=ROOT / ".venv-clients", help="folder of the environments")
    parser.add_argument("--write", action="store_true", help="put the rows into docs/guides/libraries.md")
    arguments = parser.parse_args()
    names = arguments.library or list(LIBRARIES)
    if unknown := set(names) - set(LIBRARIES):
        parser.error(f"no such library: {', '.join(sorted(unknown))}")
    rows, failed = list[str](), list[str]()
    for name in names:
        print(f"\n== {name}", flush=True)
        folder = arguments.environments / name
        if error := install(name, folder):
            print(error)
            failed.append(f"{name} (not installed)")
            continue
        passed, found = run_tests(name, folder)
        rows += [row(name, each) for each in found]
        failed += [] if passed else [name]
    print("", *rows, sep="\n")
    if arguments.write:
        ran = tuple(f"({source(name)})" for name in names)
        kept = [line for line in page.rows(MADE) if not any(path in line for path in ran)]
        page.write(MADE, HEADER, sorted(kept + rows, key=str.lower))
    print("\nfailed: " + ", ".join(failed) if failed else "\nall passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
