"""Every exception that a user may want to catch is in `bif_lightning.exceptions`, and it imports without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bif_lightning
from bif_lightning import exceptions

PACKAGE = Path(bif_lightning.__file__).parent
INTERNAL = {
    "HeapError",  # becomes an UnreadableFileError
    "IncompleteError",  # the command line's exit status
    "NoOutputsError",  # the curvature is computed in another way, and the notes say so
    "NotSeparableError",  # the next way of deriving the losses is tried
    "RefusedError",  # an answer of the tab's server
    "StoppedError",  # ends a thread
    "UndecidedError",  # a check is made in another precision
}
PUBLIC = [value for value in vars(exceptions).values() if isinstance(value, type)]


def test_no_other_module_defines_an_exception_for_users():
    found = {
        node.name
        for path in PACKAGE.rglob("*.py")
        if path.name != "exceptions.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        if node.name.endswith(("Error", "Warning")) and not node.name.startswith("_")
    }
    assert found <= INTERNAL


@pytest.mark.parametrize("cls", PUBLIC, ids=lambda cls: cls.__name__)
def test_each_says_when_and_what_to_do(cls):
    assert issubclass(cls, Exception)
    assert "What to do:" in " ".join(cls.__doc__.split())


def test_they_are_public_and_need_no_torch():
    code = "import sys; from bif_lightning import exceptions; print('torch' in sys.modules, 'numpy' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "False"]


def test_old_places_still_have_them():
    from bif_lightning.archive.read import SkippedDumpWarning, UnreadableFileError
    from bif_lightning.exceptions import ChainsDivergedError

    assert (SkippedDumpWarning, UnreadableFileError) == (exceptions.SkippedDumpWarning, exceptions.UnreadableFileError)
    assert ChainsDivergedError is exceptions.ChainsDivergedError
