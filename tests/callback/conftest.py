"""Fixtures of the callback tests; every test here is one of training with the callback."""

from pathlib import Path
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.trainer)


@pytest.fixture
def dumps(tmp_path: Path) -> Any:
    """Steps of the dumps that a run left."""
    return lambda folder="bif": sorted(int(path.stem.split("=")[1]) for path in (tmp_path / folder).glob("step=*.h5"))
