"""The files of the page: what none of them may do, and that each stays small."""

import re
from pathlib import Path

import pytest

STATIC = Path(__file__).parents[3] / "bif_lightning/tensorboard/plugin/static"
OWN = [path for path in sorted(STATIC.glob("*.js")) if path.name != "uplot.js"]

FORBIDDEN = {
    "markup made of strings": r"(inner|outer|insertAdjacent)HTML|document\.write|DOMParser|ContextualFragment",
    "code made of strings": r"\beval\(|new Function|setTimeout\(\s*[\"'`]",
    "another host": r"(?<!xmlns: \")(?<!SVG = \")https?://(?!localhost)",
    "an absolute path": r"fetch\(\s*[\"'`]/|from \"/|import\(\"/",
    "an import that is no neighbour": r"from \"(?!\./[\w.]+\.js\")",
}


def test_there_are_modules():
    assert len(OWN) > 20


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what):
    found = [f"{path.name}: {hit[0]}" for path in OWN for hit in re.finditer(FORBIDDEN[what], path.read_text())]
    assert not found


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_a_module_is_short_and_says_what_it_is(path):
    text = path.read_text()
    assert text.startswith("/**")
    assert text.count("\n") < 500


def test_every_module_is_used():
    imported = {name for path in OWN for name in re.findall(r'from "\./([\w.]+)"', path.read_text())}
    assert {path.name for path in STATIC.glob("*.js")} == imported | {"index.js", "page.js"}


def test_the_licence_of_the_library_is_beside_it():
    assert "MIT License" in (STATIC / "uplot.LICENSE").read_text()
    assert "1.6.32" in (STATIC / "README.md").read_text()
