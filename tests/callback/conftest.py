"""Fixtures of the callback tests."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def dumps(tmp_path: Path) -> Any:
    """Steps of the dumps that a run left."""
    return lambda folder="bif": sorted(int(path.stem.split("=")[1]) for path in (tmp_path / folder).glob("step=*.h5"))
