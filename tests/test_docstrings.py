"""What docstrings name in backticks exists, and every public name has an example that runs."""

import ast
import builtins
import re
import sys
from pathlib import Path

import pytest

import bif_lightning
from bif_lightning import metrics, plots
from bif_lightning.archive import read, write

PACKAGE = Path(bif_lightning.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
NAME = re.compile(r"`([A-Za-z_][\w.]*)`")
ELSEWHERE = {  # of Python, Lightning, torch, TensorBoard and Hugging Face
    "SummaryWriter.add_scalar", "add_image", "export", "dict", "str", "state_dict", "pytorch_lightning", "rc_context",
    "Figure.colorbar", "savefig", "__dict__", "ClassLabel", "training_step", "validation_step", "Subset",
    "Image", "MisconfigurationException", "Summary.Value", "TensorBoardLogger.experiment", "should_stop",
    "trainer.global_step", "samples.h5", "integrated.h5",
}  # fmt: skip
OTHERS = {
    "torch",
    "np",
    "datasets",
    "lightning",
    "torchmetrics",
    "tensorboard",
    *sys.stdlib_module_names,
    *dir(builtins),
}


def modules():
    """Every tail of a module's dotted name: `bif_lightning.results.bands`, `results.bands`, `bands`."""
    for path in FILES:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        yield from ((".".join(parts[start:]), path) for start in range(len(parts)))


def defined(tree):
    """Names that a module defines: functions, classes, arguments, fields, constants, and keys that are strings."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef() | ast.FunctionDef():
                yield node.name
            case ast.arg():
                yield node.arg
            case ast.AnnAssign(target=ast.Name(name)) | ast.Assign(targets=[ast.Name(name)]):
                yield name
            case ast.Attribute(value=ast.Name("self"), attr=name) | ast.keyword(arg=str(name)):
                yield name
            case ast.Constant(value=str(text)) if text.isidentifier():
                yield text


TREES = {path: ast.parse(path.read_text()) for path in FILES}
MODULES = dict(modules())
DEFINED = {path: set(defined(tree)) for path, tree in TREES.items()}
EVERYWHERE = set().union(*DEFINED.values())
PUBLIC = set(bif_lightning.__all__)


def exists(name):
    head, _, last = name.rpartition(".")
    if name in MODULES or name in ELSEWHERE or name.split(".")[0] in OTHERS:
        return True
    if not head or head in ("bif_lightning", "archive.read", "archive.write"):  # lazy, or made of several modules
        return last in EVERYWHERE
    if head in MODULES:
        return last in DEFINED[MODULES[head]]
    return (PACKAGE / name).exists() or (exists(head) and last in EVERYWHERE)


def docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_a_docstring_names_exists(path):
    unknown = [name for text in docstrings(TREES[path]) for name in NAME.findall(text) if not exists(name)]
    assert not unknown


def public():
    """Every name that users import: the root, reading and writing, metrics, and figures."""
    for name in sorted(bif_lightning.__all__):
        yield name, getattr(bif_lightning, name)
    for name in sorted(read.__all__):
        yield f"archive.read.{name}", getattr(read, name)
    for module, inside in ((write, ""), (metrics, ""), (plots, ".")):  # figures are defined in modules of `plots`
        for name, value in vars(module).items():
            own = str(getattr(value, "__module__", "")).startswith(module.__name__ + inside)
            own = own and (inside or value.__module__ == module.__name__)
            if own and callable(value) and not name.startswith("_"):
                yield f"{module.__name__}.{name}", value


EXEMPT = {  # shown by the example of `exceptions`, or of the metric that they are a part of
    "archive.read.SkippedDumpWarning", "archive.read.UnreadableFileError",
    "bif_lightning.metrics.resampled_scores", "bif_lightning.metrics.two_way_standard_error",
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [each for each in public() if each[0] not in EXEMPT])
def test_every_public_name_has_an_example(name, value):
    assert ">>> " in (value.__doc__ or ""), f"{name} has no example in its docstring"
