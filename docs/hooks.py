"""What mkdocs does to a page beyond Markdown: tables of evidence, links into the repository, formulas as MathML."""

import html
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import evidence  # noqa: E402  benchmarks/ is a folder of scripts

TABLE = re.compile(r"^\[[^\]]*\]\((?:[\w/.-]*/)?tables/([\w-]+)\.md\)$", re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")  # of pictures too
UNIT = re.compile(r"(\d) (%|±|s\b|GB\b|MB\b)")  # kept on one line
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Fill in the tables and included files, and turn links to files outside docs/ into addresses or names."""
    markdown = TABLE.sub(lambda match: _table(match[1]), markdown)
    # A page that includes a file of the root has that file's links.
    here = ROOT if "--8<--" in markdown else (ROOT / "docs" / page.file.src_uri).parent
    markdown = re.sub(r'^--8<-- "(.+)"$', lambda match: (ROOT / match[1]).read_text(), markdown, flags=re.MULTILINE)

    def resolved(match: re.Match[str]) -> str:
        text, target, anchor = match[1], (here / match[2]).resolve(), match[3] or ""
        inside = target.is_relative_to(ROOT / "docs")
        if not target.exists() or (inside and here != ROOT):
            return match[0]
        if inside:
            up = "../" * page.file.src_uri.count("/")
            return f"[{text}]({up}{target.relative_to(ROOT / 'docs')}{anchor})"
        path = target.relative_to(ROOT).as_posix()
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor})"
        inside_parentheses = markdown[: match.start()].endswith("(")
        return f"{text}: `{path}`" if inside_parentheses else f"{text} (`{path}`)"

    return LINK.sub(resolved, markdown)


def on_page_content(html_text: str, **_: Any) -> str:
    """Formulas as MathML, which browsers show without a script."""

    def mathml(match: re.Match[str]) -> str:
        display = "inline" if match[2] == "(" else "block"
        return convert(html.unescape(match[3]), display=display)

    return FORMULA.sub(mathml, html_text)


def _table(name: str) -> str:
    """The table, how it was made, and a warning where its code has changed since."""
    table = evidence.TABLES[name]
    made, _, rest = evidence.read(name).strip().partition("\n\n")
    lines = [f"{made}\n{{: .measured }}", "", UNIT.sub("\\1\u00a0\\2", rest)]
    if reason := evidence.stale(table):
        lines += ["", f'!!! warning "Stale. {reason}"']
    return "\n".join(lines)
