"""Provenance of a dump: versions, git commit, command line, platform."""

import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("bif-lightning", "torch", "lightning", "numpy", "h5py")
_SECRET = re.compile(
    r"(?P<name>[\w.\-]*(?:key|token|secret|passw|pwd|credential|auth)[\w.\-]*)(?P<sign>=|:)(?P<value>.+)", re.I | re.S
)
_SECRET_FLAG = re.compile(r"-{1,2}[\w.\-]*(?:key|token|secret|passw|pwd|credential|auth)[\w.\-]*", re.IGNORECASE)
_LOGIN_IN_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_HIDDEN = "***"


def provenance() -> dict[str, Any]:
    """Collect package versions, the git commit of the working folder, the command line and the platform.

    Values that cannot be determined are None; no error is raised.

    Returns:
        versions (package -> version), python, platform, git_commit, git_dirty (uncommitted changes), command
        (with values that look like secrets replaced by `***`).
    """
    commit = _git("rev-parse", "HEAD")
    changes = None if commit is None else _git("status", "--porcelain", "--untracked-files=no")
    return {
        "versions": {package: _version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git_commit": commit,
        "git_dirty": None if changes is None else bool(changes),
        "command": without_secrets(sys.argv),
    }


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """Replace the values of keys, tokens, passwords and URL logins in a command line.

    >>> without_secrets(["fit.py", "--api_key=abc", "--token", "abc", "--lr", "0.1", "s3://me:pw@host/x"])
    ['fit.py', '--api_key=***', '--token', '***', '--lr', '0.1', 's3://***@host/x']
    """
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        if hide_next and not argument.startswith("-"):
            shown.append(_HIDDEN)
        else:
            shown.append(_LOGIN_IN_URL.sub(_HIDDEN, _SECRET.sub(rf"\g<name>\g<sign>{_HIDDEN}", argument)))
        hide_next = _SECRET_FLAG.fullmatch(argument) is not None
    return shown


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
    # Missing git, no repository, another owner or a slow disk must not prevent a dump.
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()
