"""Processes that tests start side by side."""

import subprocess
from collections.abc import Sequence


def answers(running: Sequence[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    """Standard output and standard error of each, which all have to end well; none goes on after this."""
    try:
        said = [each.communicate(timeout=200) for each in running]
    finally:
        for each in running:
            each.kill()
    for each, (_, errors) in zip(running, said, strict=True):
        assert each.returncode == 0, errors[:3000] + errors[-1500:]
    return said
