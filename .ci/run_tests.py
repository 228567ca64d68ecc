"""Run pytest; run again what failed; refuse skips that nobody listed: python .ci/run_tests.py [PYTEST OPTIONS]

Each test that failed is run alone three times. Where it passes all three, it is printed under FLAKY and the run
passes: mend or delete the test before anything else. Otherwise the run fails. It also fails where a test is skipped
that .ci/skips.txt does not list as `name of the test: reason`. Exit status: 0 or 1, or that of pytest where pytest
itself could not run.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
AGAIN = 3
MOST_FLAKY = 10
"""So many failures at once have one cause, which no second run takes away."""


@dataclass(frozen=True)
class Outcome:
    """The exit status of one run of pytest, the tests that failed, and the reason of each that was skipped."""

    status: int
    failed: list[str] = field(default_factory=list[str])
    skipped: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def passed(self) -> bool:
        return self.status == 0 and not self.skipped


def run(options: list[str]) -> Outcome:
    """One run of pytest in the current folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outcomes.json"
        paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"OUTCOMES": str(path), "PYTHONPATH": paths}
        command = [sys.executable, "-m", "pytest", "-p", "outcomes", *options]
        status = subprocess.run(command, env=environment, check=False).returncode
        return Outcome(status, **json.loads(path.read_text())) if path.exists() else Outcome(status)


def listed(path: Path) -> dict[str, str]:
    """The tests that may be skipped, each with its reason; a line that lacks one is an error."""
    lines = [line.strip() for line in path.read_text().splitlines()] if path.exists() else []
    entries = [line.rpartition(": ") for line in lines if line and not line.startswith("#")]
    for name, _, reason in entries:
        if not name or not reason:
            raise SystemExit(f"{path}: a line is `name of the test: reason`, this one is not: {name}{reason}")
    return {name: reason for name, _, reason in entries}


def heading(word: str, lines: list[str]) -> None:
    if lines:
        print(f"\n== {word}", *lines, sep="\n   ", flush=True)


def main(options: list[str]) -> int:
    allowed = listed(HERE / "skips.txt")
    first = run(options)
    if first.status not in (0, 1):
        return first.status
    if len(first.failed) > MOST_FLAKY:
        heading("FAILED", first.failed)
        return 1
    alone = {name: all(run([*options, "-n", "0", name]).passed for _ in range(AGAIN)) for name in first.failed}
    unlisted = {name: why for name, why in first.skipped.items() if name not in allowed}
    broken = [name for name, passed in alone.items() if not passed]
    heading("FLAKY: failed once, and passed three times alone", [name for name, passed in alone.items() if passed])
    heading("FAILED, and again when run alone", broken)
    heading("SKIPPED, and not listed in .ci/skips.txt", [f"{name}: {why}" for name, why in unlisted.items()])
    return 1 if broken or unlisted or (first.status and not first.failed) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
