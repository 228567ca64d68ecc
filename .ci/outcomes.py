"""A pytest plugin that writes JSON to the file $OUTCOMES: which tests failed, and which were skipped, and why."""

import json
import os
from pathlib import Path

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    stats = terminalreporter.stats
    failed = {report.nodeid for name in ("failed", "error") for report in stats.get(name, ())}
    skipped = {report.nodeid: reason(report) for report in stats.get("skipped", ())}
    Path(os.environ["OUTCOMES"]).write_text(json.dumps({"failed": sorted(failed), "skipped": skipped}))


def reason(report: pytest.TestReport) -> str:
    """Without pytest's prefix; the report of a skip holds the file, the line and this."""
    return report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else str(report.longrepr)
