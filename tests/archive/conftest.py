import sys
from pathlib import Path

import numpy as np
import pytest

# The helpers are also run in subprocesses and by make_golden.py, so they are a module and not fixtures.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def rng():
    return np.random.default_rng(0)
