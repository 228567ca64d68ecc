"""Statistical tests take many small steps: array types are checked everywhere else."""

from collections.abc import Generator

import pytest
from jaxtyping import config


@pytest.fixture(autouse=True)
def _no_array_checks() -> Generator[None]:
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
