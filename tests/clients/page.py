"""The tables in docs/guides/libraries.md, each under a comment that names the script which made it."""

import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "libraries.md"


def rows(script: str) -> list[str]:
    """The lines of a table below its header."""
    return _found(script)[0].splitlines()[2:]


def write(script: str, header: Sequence[str], lines: Sequence[str]) -> None:
    """Put a table in the place of the former one."""
    former = _found(script)
    table = "\n".join([f"| {' | '.join(header)} |", "|" + "---|" * len(header), *lines]) + "\n"
    PAGE.write_text(former.string[: former.start()] + table + former.string[former.end() :])


def _found(script: str) -> re.Match[str]:
    found = re.search(rf"(?<=<!-- made by {re.escape(script)} -->\n\n)(?:\|.*\n)*", PAGE.read_text())
    if found is None:
        raise SystemExit(f"{PAGE.name} has no place for a table of {script}")
    return found
