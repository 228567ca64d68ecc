"""Every package that bif_lightning imports is declared as a dependency."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def imported(path: Path) -> Iterator[str]:
    """Top-level names that a module imports, wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_imported_is_declared() -> None:
    names = {name for path in ROOT.glob("bif_lightning/**/*.py") for name in imported(path)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {normal(re.split(r"[\[<>=!~; ]", each)[0]) for each in project["dependencies"]}
    providers = importlib.metadata.packages_distributions()
    foreign = (
        names - set(sys.stdlib_module_names) - {"bif_lightning", "_typeshed"}
    )  # the latter for type checkers alone
    missing = {
        name: providers.get(name) for name in foreign if not declared & set(map(normal, providers.get(name, ())))
    }
    assert not missing
