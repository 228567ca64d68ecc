"""The measured tables of the documentation: make them anew, or name those that are older than the code they measure.

    python benchmarks/evidence.py                  # all of them, some hours; on a machine that does nothing else
    python benchmarks/evidence.py cost ranks       # these
    python benchmarks/evidence.py --check          # name the stale ones; the exit status is 0 all the same
    python benchmarks/evidence.py --trial FOLDER   # every command at its smallest size, minutes; numbers mean nothing

Each table is the standard output of one command, written to docs/evidence/tables/NAME.md below a line that names the
command, the commit, the date, the machine and the code it measures. A command that fails leaves its old table in place,
and the others still run; the exit status is then 1.
"""

import argparse
import ast
import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "evidence" / "tables"
HEADER = re.compile(r"^Measured by `(?P<command>.+?)` at commit `(?P<commit>\w+)`")

SAMPLING = tuple(f"bif_lightning/{name}" for name in ("sampling", "model", "losses/problem.py", "rng.py"))
ESTIMATE = (*SAMPLING, "bif_lightning/estimation", "bif_lightning/statistics", "bif_lightning/distributed/threads.py")
CLOSED_FORM = (*ESTIMATE, "bif_lightning/curvature", "bif_lightning/calibration")
SHELL = ("bif_lightning/callback.py", "bif_lightning/trainer")
RETRAINING = ("benchmarks/retraining", "bif_lightning/config.py")
TOKENS = ("bif_lightning/results", "bif_lightning/statistics")
TASKS = {"digits_mlp": 10, "digits_cnn": 20, "tabular": 5, "bytes_gpt": 20, "fashion_mlp": 10, "held_out": 5}
"""Networks that are retrained, and the minutes that their scores take."""


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: of its file, without the ending.
        command: what makes it, as typed after `python`.
        trial: options that make it at its smallest size.
        code: paths whose changes make the table stale, beside the script itself.
        minutes: about how long it takes on two cores.
    """

    name: str
    command: str
    trial: str
    code: tuple[str, ...]
    minutes: float

    @property
    def paths(self) -> tuple[str, ...]:
        """The script, and the code it measures."""
        return (self.command.split()[0], *self.code)


TABLES = {
    table.name: table
    for table in (
        Table("cost", "benchmarks/engine.py --tables ratio", "--model mlp --quick --repeats 1", ESTIMATE, 10),
        Table("scaling", "benchmarks/engine.py --tables scaling", "--model mlp --quick", ESTIMATE, 10),
        Table("memory", "benchmarks/engine.py --tables memory", "--model mlp", ESTIMATE, 3),
        Table("draws", "benchmarks/draws.py", "--draws 16 64 --train 20", ESTIMATE, 15),
        Table("ranks", "benchmarks/overhead.py", "--quick --repeats 1 --steps 20 --every 10", (*ESTIMATE, *SHELL), 6),
        Table("budget", "benchmarks/budget.py --seconds 60", "--seconds 2 --repeats 1", (*CLOSED_FORM, *SHELL), 15),
        Table("offline", "benchmarks/offline.py", "--workers 1 --kills 0", ("bif_lightning/offline", *ESTIMATE), 5),
        *(
            Table(
                f"retraining-{task.replace('_', '-')}", f"benchmarks/lds.py --task {task}", "--method gradient",
                (*CLOSED_FORM, *RETRAINING), minutes,
            )
            for task, minutes in TASKS.items()
        ),
        *(
            Table(
                f"whole-training-{task.replace('_', '-')}", f"benchmarks/whole_training.py --task {task}",
                "--part seeds --count 2", (*CLOSED_FORM, *RETRAINING), 2 * minutes,
            )
            for task, minutes in TASKS.items() if task != "bytes_gpt"
        ),
        Table("reliability", "benchmarks/reliability.py", "--task tabular", (*CLOSED_FORM, *RETRAINING), 10),
        Table(
            "clean-labels", "examples/clean_labels.py --seeds 4 --out runs/clean_labels", "--seeds 2",
            (*CLOSED_FORM, *SHELL), 10,
        ),
        Table("coverage", "benchmarks/error_coverage.py", "--estimates 4", ("bif_lightning/statistics",), 5),
        Table("verdicts", "benchmarks/verdicts.py", "--steps 0", (*CLOSED_FORM, "bif_lightning/results/verdict.py"), 5),
        Table(
            "tokens", "benchmarks/tokens.py", "--sequences 8 --tokens 20 --queries 4 --draws 60",
            (*TOKENS, "bif_lightning/archive"), 5,
        ),
        Table("language-memory", "benchmarks/language_memory.py", "", SAMPLING, 1),
        Table(
            "devinterp", "benchmarks/against_devinterp.py --repeats 2 --reference 500",
            "--train 4 --queries 2 --draws 6 --repeats 1 --width 16 --blocks 1 --reference 0", (*ESTIMATE, *TOKENS), 15,
        ),
        Table(
            "token-matrix", "benchmarks/token_matrix.py", "--sequences 4 --queries 2 --tokens 8 --draws 24", TOKENS, 5,
        ),
        Table(
            "tab", "benchmarks/plugin.py --logdir runs/large", "--train 200 --query 20 --steps 3 --repeats 2",
            ("bif_lightning/tensorboard/plugin", "bif_lightning/archive/read"), 30,
        ),
    )
}  # fmt: skip


def read(name: str) -> str:
    """The file of a table: the line that says how it was made, and the table. Empty if the file does not exist."""
    path = FOLDER / f"{name}.md"
    return path.read_text() if path.exists() else ""


def measured_at(name: str) -> str | None:
    """The commit at which a table was measured; None for a table that never was."""
    match = HEADER.match(read(name))
    return match["commit"] if match else None


def stale(table: Table) -> str | None:
    """Why the table may no longer hold; None if its code has not changed since, or outside a git repository."""
    commit = measured_at(table.name)
    if commit is None:
        return "It has not been measured."
    if not (ROOT / ".git").exists():
        return None
    if _git("cat-file", "-e", f"{commit}^{{commit}}") is None:
        return f"Its commit {commit} is not in this history."
    changed = [path for path in _changed(commit, table.paths) if _code(commit, path) != _code("HEAD", path)]
    if not changed:
        return None
    others = f" and {len(changed) - 1} more" * (len(changed) > 1)
    return f"The code it measures has changed since {commit}: {changed[0]}{others}."


def _changed(commit: str, paths: Sequence[str]) -> list[str]:
    return (_git("diff", "--name-only", "--no-renames", commit, "HEAD", "--", *paths) or "").splitlines()


def _code(commit: str, path: str) -> str | None:
    """What a file computes at a commit, without the words for people; None where there is no such file.

    Comments, docstrings and messages (texts with a blank in them) make no table stale, and documents hold no code.
    """
    if path.endswith(".md"):
        return None
    if not path.endswith(".py"):
        return _git("rev-parse", f"{commit}:{path}")
    source = _git("show", f"{commit}:{path}")
    return None if source is None else ast.dump(_Wordless().visit(ast.parse(source)))


class _Wordless(ast.NodeTransformer):
    """Drops docstrings, and empties the texts for people."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        is_words = isinstance(node.value, str) and " " in node.value
        return ast.Constant("") if is_words else node


def make(table: Table, folder: Path, *, trial: bool) -> str | None:
    """Run the command, and write the table; what went wrong, if anything."""
    options = shlex.split(table.trial) if trial else []
    command = [*shlex.split(table.command), *options]
    if "--logdir" in command and trial:
        command[command.index("--logdir") + 1] = str(folder / "large")
    if not (ROOT / command[0]).exists():
        return f"{command[0]} does not exist"
    done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return f"exit status {done.returncode}"
    if not done.stdout.strip():
        return "it printed nothing"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{table.name}.md").write_text(f"{_header(table, command)}\n\n{_body(done.stdout)}\n")
    return None


def _header(table: Table, command: Sequence[str]) -> str:
    commit = _git("rev-parse", "--short=9", "HEAD") or "unknown"
    changed = " with uncommitted changes" if _git("status", "--porcelain", "--", *table.paths) else ""
    today = datetime.datetime.now(datetime.UTC).date()
    code = ", ".join(f"`{path}`" for path in table.paths)
    made = f"Measured by `python {shlex.join(command)}` at commit `{commit}`{changed}, {today}, on {machine()}."
    return f"{made} Code: {code}."


def _body(text: str) -> str:
    """Markdown as it is; plain text in a fence."""
    return text.strip() if re.search(r"^\|.*\|$", text, re.MULTILINE) else f"```text\n{text.strip()}\n```"


def machine() -> str:
    """Cores, processor and versions, and nothing that names the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    processor = names[0] if names else platform.machine()
    return f"{cores} cores ({processor}), Python {platform.python_version()}, torch {version('torch')}"


def _git(*arguments: str) -> str | None:
    """What git prints; None where it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def check() -> None:
    """Name the tables that are older than their code."""
    reasons = {name: stale(table) for name, table in TABLES.items()}
    for name, reason in reasons.items():
        if reason:
            print(f"STALE {name}: {reason} Make it anew: python benchmarks/evidence.py {name}")
    old = sum(reason is not None for reason in reasons.values())
    print(f"{old} of {len(reasons)} tables are older than the code they measure." if old else "All tables are current.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the tables that are named, or check all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(TABLES)}")
    parser.add_argument("--check", action="store_true", help="name the stale tables, and measure nothing")
    parser.add_argument("--trial", type=Path, metavar="FOLDER", help="smallest sizes, written to FOLDER, not to docs/")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(TABLES):
        parser.error(f"no table is named {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    if options.check:
        check()
        return 0
    folder, failed = (options.trial or FOLDER).resolve(), dict[str, str]()
    for name in options.names or TABLES:
        table, started = TABLES[name], time.monotonic()
        about = "" if options.trial else f", about {table.minutes:g} minutes"
        print(f"{name}: python {table.command}{about}", file=sys.stderr, flush=True)
        if problem := make(table, folder, trial=options.trial is not None):
            failed[name] = problem
        print(f"{name}: {problem or 'done'} after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    for name, problem in failed.items():
        print(f"FAILED {name}: {problem}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
