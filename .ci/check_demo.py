"""Does what the demo left behind say what the README promises? Arguments: its folder, and what it printed."""

import re
import sys
from pathlib import Path

import numpy as np

import bif_lightning as bl


def main(folder: Path, printed: str) -> None:
    runs = sorted({path.parent for path in folder.rglob("step=*.h5")})
    assert len(runs) == 1, f"the demo should leave the dumps of one run below {folder}, not of {len(runs)}"
    run = bl.open_run(runs[0])
    assert run.sizes["step"] >= 5, f"the demo should leave 5 dumps or more, not {run.sizes['step']}"
    for step in run.step.values:
        correlation = run.correlation.sel(step=step).values
        assert np.isfinite(correlation).all(), f"step {step} has correlations that are not finite"
        assert np.abs(correlation).max() <= 1 + 1e-6, f"step {step} has a correlation beyond [-1, 1]"
    events = list(folder.rglob("events.out.tfevents.*"))
    assert events, f"the demo should leave TensorBoard logs below {folder}"
    scores = [float(score) for score in re.findall(r"^ *\d+ +([01]\.\d+) ", printed, flags=re.MULTILINE)]
    assert len(scores) == run.sizes["step"], f"the demo should print an AUROC for each dump, not {len(scores)}"
    assert 0.5 < scores[-1] <= 1, f"the AUROC of the last step is {scores[-1]}: no better than chance"
    print(f"{run.sizes['step']} dumps open, all correlations finite, AUROC at the last {scores[-1]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).read_text())
