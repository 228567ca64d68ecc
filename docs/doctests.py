"""A griffe extension: the examples of docstrings, which stand there as doctests, become code blocks."""

from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Fences each run of lines that begins with a prompt."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring and "```" not in obj.docstring.value:
            lines = obj.docstring.value.splitlines()
            obj.docstring.value = "\n".join(_fenced(lines))


def _fenced(lines: list[str]) -> list[str]:
    """Consecutive examples, which blank lines may part, share one block."""
    out, inside = list[str](), False
    for i, line in enumerate(lines):
        if line.startswith(">>> ") and not inside:
            out += ["```pycon"]
            inside = True
        elif inside and not line and not any(later.startswith(">>> ") for later in lines[i + 1 : i + 2]):
            out += ["```"]
            inside = False
        out.append(line)
    return [*out, "```"] if inside else out
