"""Which libraries can share an environment with this package: python tests/clients/installs.py [LIBRARY ...] [--write]

uv resolves the newest version of each library alone, and beside the dependencies of this package; nothing is installed.
Where the two do not go together, those of our bounds are named that have to go. --write puts the table into
docs/guides/libraries.md.
"""

import argparse
import re
import subprocess
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import page
from run import ROOT, uv

MADE = "tests/clients/installs.py"
PYTHONS = ("3.12",)
LIBRARIES = (
    "pytorch-tabular", "anomalib", "litgpt", "rectools[torch]", "gluonts[torch]", "replay-rec[torch]",
    "autogluon-timeseries", "chemprop", "scvi-tools", "pytorch-forecasting", "neuralforecast", "lightly", "monai",
    "torchgeo", "segmentation-models-pytorch", "torch-geometric", "transformers", "torchvision", "darts[torch]",
    "cellarium-ml", "boltz", "lightning-uq-box", "torch-uncertainty", "finetuning-scheduler", "pyannote-audio", "rl4co",
    "sentence-transformers", "timm", "wandb", "pytorch-metric-learning", "terratorch", "schnetpack", "mlflow",
    "lightning-pose",
)  # fmt: skip


@dataclass
class Found:
    """Of one library: its newest version, and for each Python what came of it; our bounds that were in the way."""

    version: str = ""
    cells: list[str] = field(default_factory=list[str])
    faults: list[str] = field(default_factory=list[str])
    reason: str = ""


def ours() -> list[str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~; ]", requirement)[0]


def resolve(requirements: Iterable[str], python: str) -> dict[str, str] | str:
    """Versions by name, or what uv says where there are none."""
    command = [uv(), "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate", "--python-version", python]
    done = subprocess.run(
        command, input="\n".join(requirements), capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    if done.returncode:
        return " ".join(done.stderr.split())
    pairs = (line.split(" ;")[0].split("==") for line in done.stdout.splitlines() if "==" in line)
    return {re.sub(r"\[.*", "", name): version.strip() for name, version in pairs}


def in_the_way(library: str, python: str) -> list[str]:
    """Our requirements without whose bounds it resolves: the fewest, as far as dropping one after the other tells."""
    loose = {requirement: name_of(requirement) for requirement in ours()}
    if isinstance(resolve([library, *loose.values()], python), str):
        return ["none of the bounds alone"]
    for requirement in list(loose):
        name = loose.pop(requirement)
        kept = [each for each in ours() if each not in loose]
        if isinstance(resolve([library, *kept, *loose.values()], python), str):
            loose[requirement] = name
    return list(loose)


def try_library(library: str) -> Found:
    found = Found()
    for python in PYTHONS:
        alone = resolve([library], python)
        if isinstance(alone, str):
            found.cells.append("not alone either")
            found.reason = alone
            continue
        name = re.sub(r"\[.*", "", library)
        version = alone[name]
        found.version = found.version if newer(found.version, version) else version
        beside = resolve([f"{library}=={version}", *ours()], python)
        if isinstance(beside, str):
            found.cells.append(f"{version}: **no**")
            found.faults += [each for each in in_the_way(f"{library}=={version}", python) if each not in found.faults]
            continue
        moved = beside["torch"] != alone.get("torch", beside["torch"])
        found.cells.append(f"{version}" + (f", torch {alone['torch']} becomes {beside['torch']}" if moved else ""))
    return found


def newer(one: str, other: str) -> bool:
    return [int(part) for part in re.findall(r"\d+", one)] >= [int(part) for part in re.findall(r"\d+", other)]


def row(library: str, found: Found) -> str:
    fault = ", ".join(f"`{each}`" for each in found.faults) or "-"
    return f"| {library} | " + " | ".join([*found.cells, fault]) + " |"


def main(names: Sequence[str], write: bool) -> None:
    rows: list[str] = []
    for library in names:
        found = try_library(library)
        rows.append(row(library, found))
        print(rows[-1], flush=True)
        if found.reason:
            print(f"    {found.reason[:600]}", flush=True)
        if write:
            page.write(MADE, ("library", *(f"Python {each}" for each in PYTHONS), "our bounds in the way"), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", nargs="*", help="all of the table if none is given")
    parser.add_argument("--write", action="store_true", help="put the table into docs/guides/libraries.md")
    arguments = parser.parse_args()
    main(arguments.library or LIBRARIES, arguments.write)
