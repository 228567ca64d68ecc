"""Tests in environments of other libraries, which tests/clients/run.py makes: no other conftest.py is read there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torchvision_on_cpu import define_operators


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """They import what is not installed elsewhere: only runs that ask for them, by marker or by name, look at them."""
    asked = config.option.markexpr == "clients" and collection_path.name.startswith("test_")
    return None if asked else True


def pytest_configure(config: pytest.Config) -> None:
    define_operators()


@pytest.fixture
def compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, Any], None]
) -> Callable[..., None]:
    """`client_training.compare`, whose findings go into the report of the run; in a folder that may be written to."""
    from client_training import compare as compared

    monkeypatch.chdir(tmp_path)

    def recorded(fit: Any, **options: Any) -> None:
        for name, value in compared(tmp_path, fit, **options).items():
            record_property(name, value)

    return recorded
