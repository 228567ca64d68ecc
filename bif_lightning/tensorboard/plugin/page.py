"""Bundles the modules of the page, so that a browser sends one request instead of one for each level of imports.

TensorBoard answers a request in some milliseconds, so that forty modules took half of the time to the first picture.
Each module becomes a function that gives what it exports. It is called once, after those that it imports; so no name
of one module meets that of another.
"""

import re
from pathlib import Path

_IMPORT = re.compile(r'^import (?:\{\s*(\w+(?:,\s*\w+)*,?)\s*\}|(\w+)) from "\./([\w.]+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) (\w+))", re.MULTILINE)
_DEFAULT = re.compile(r"\bexport\{(\w+) as default\};?\s*\Z")
# At the start of a line of code, or of a statement of minified code.
_OTHER = re.compile(r"(?:^|[;}])\s*(?:import\b(?!\.meta)|export\b).*", re.MULTILINE)


def joined(folder: Path, entry: str) -> str:
    """One ES module that exports what a module does, made of it and all that it imports.

    Args:
        folder: of the modules, named NAME.js.
        entry: name of the module, without its ending.

    Raises:
        ValueError: modules import one another in a circle, or one has an import or export that is not written as
            `import { a, b } from "./NAME.js";`, `import A from "./NAME.js";`, or `export` before a function, a class
            or a const.
        OSError: a module is not there.
    """
    found: dict[str, str] = {}
    _add(folder, entry, (), found)
    parts = [f"const ${name} = (() => {{\n{text}}})();\n" for name, text in found.items()]
    names = _EXPORT.findall((folder / f"{entry}.js").read_text("utf-8"))
    return "\n".join([*parts, f"export const {{ {', '.join(names)} }} = ${entry};\n"])


def _add(folder: Path, name: str, above: tuple[str, ...], found: dict[str, str]) -> None:
    """The body of a module, after those that it imports."""
    if name in above:
        raise ValueError(f"modules of the page import one another in a circle: {' -> '.join((*above, name))}")
    if name in found:
        return
    text = (folder / f"{name}.js").read_text("utf-8")
    for _, _, other in _IMPORT.findall(text):
        _add(folder, other, (*above, name), found)
    found[name] = _body(name, text)


def _body(name: str, text: str) -> str:
    text = _IMPORT.sub(_taken, text)
    exports = _EXPORT.findall(text)
    text = _EXPORT.sub("", text)
    if default := _DEFAULT.search(text):
        exports.append(f"default: {default[1]}")
        text = text[: default.start()] + "\n"
    if other := _OTHER.search(text):
        raise ValueError(f"{name}.js: {other[0].strip()[:80]!r} cannot be joined; write it as the other modules do")
    return f"{text}return {{ {', '.join(exports)} }};\n"


def _taken(found: re.Match[str]) -> str:
    several, default, name = found.groups()
    return f"const {{ {several or f'default: {default}'} }} = ${name};"
