"""68,000 train x 1,000 query examples in a process that may take 0.7 GB, where their matrices take 1.1 GB.

That is a little more than matrices in memory may take: they lie in a file.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.exact

ALLOWANCE = 700_000_000
TESTS = Path(__file__).parents[1]
DRIVER, ROOT = TESTS / "helpers" / "large_matrices_run.py", TESTS.parent


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit on private memory is Linux's")
def test_matrices_of_a_gigabyte_in_less_memory(tmp_path: Path) -> None:
    command = [sys.executable, str(DRIVER), str(tmp_path), "68000", "1000", str(ALLOWANCE)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    numbers = {name: value for name, value in found.items() if name not in ("found", "alone")}
    sys.stdout.write(f"{json.dumps(numbers)}\n")
    assert found["matrix_bytes"] == 4 * 4 * 68_000 * 1_000
    assert max(found["peaks"].values()) < ALLOWANCE
    # Rows are independent given the chains, up to the rounding of losses in batches of other sizes.
    np.testing.assert_allclose(found["found"], found["alone"], rtol=2e-4, atol=2e-6)
    assert found["top"] == found["expected_top"]
    assert found["pair"] == found["expected_pair"]
    assert found["peaks"]["estimate"] < 2.5 * found["forecast"]
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.is_file()) == [".h5", ".h5"]
