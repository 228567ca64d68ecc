"""How often ±1.96 standard errors hold the long-run value of an entry, in simulated chains, as markdown.

    python benchmarks/error_coverage.py [--estimates 500] > table.md

The chains and the exact values are those of the statistical test of the same claim, which fails outside 93 to 97 %.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from bif_lightning.config import Chains

TESTS = Path(__file__).parent.parent / "tests"


def _test_module() -> ModuleType:
    path = next(TESTS.rglob("test_standard_errors_coverage.py"))
    sys.path[:0] = [str(TESTS / "helpers")]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimates", type=int, default=500, help="simulated estimates of each row")
    estimates = parser.parse_args().estimates
    test = _test_module()
    print("| chains x draws | memory of the slowest mode, draws | influence | correlation |\n|---|---|---|---|")
    for chains, draws, memory in test.CASES:
        found = test.held(Chains(num_chains=chains, num_draws=draws), memory, estimates, seed=2)
        cells = (_share(found[name]) for name in ("influence", "correlation"))
        print(f"| {chains} x {draws} | {memory or 'none'} | {' | '.join(cells)} |", flush=True)


def _share(shares: np.ndarray) -> str:
    """Mean over estimates, and its standard error; estimates without an interval do not count."""
    shares = shares[np.isfinite(shares)]
    if len(shares) < 2:
        return "no interval"
    return f"{100 * shares.mean():.1f} ± {100 * shares.std(ddof=1) / len(shares) ** 0.5:.1f} %"


if __name__ == "__main__":
    main()
