"""Where tests of a GPU run: on one of CUDA, and on the simulated accelerator, so that their code is tried."""

import pytest
import torch

from places import Place
from simulated_device.fixtures import built, sim

__all__ = ["built", "gpu", "place", "sim"]

NO_GPU = "there is no GPU of CUDA here"


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
