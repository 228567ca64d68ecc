"""Where tests of a GPU run: on one of CUDA, and on the simulated accelerator, so that their code is tried.

There each test runs with its first parameters alone: tests/device claims more of all of them.
"""

from pathlib import Path

import pytest
import torch

from places import Place
from simulated_device.fixtures import built, sim

__all__ = ["built", "gpu", "place", "sim"]

NO_GPU = "there is no GPU of CUDA here"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tried, further = set[str](), list[pytest.Item]()
    for item in items:
        here = isinstance(item, pytest.Function) and item.path.parent == Path(__file__).parent
        if not here or not hasattr(item, "callspec") or item.callspec.params.get("place") != "sim":
            continue
        if item.originalname in tried:
            further.append(item)
        tried.add(item.originalname)
    config.hook.pytest_deselected(items=further)
    items[:] = [item for item in items if item not in further]


@pytest.fixture
def gpu() -> Place:
    """A GPU of CUDA, in the process of the test."""
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    return Place("cuda", lambda function, *args: function(*args))


@pytest.fixture(
    params=[pytest.param("gpu", id="cuda", marks=pytest.mark.gpu), pytest.param("sim", marks=pytest.mark.device)]
)
def place(request: pytest.FixtureRequest) -> Place:
    """A GPU, or the simulated accelerator."""
    found = request.getfixturevalue(request.param)
    return found if isinstance(found, Place) else Place("sim", found)
