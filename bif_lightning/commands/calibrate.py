"""The command `bif-lightning calibrate`: settings for a checkpoint, as a page and as YAML."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from bif_lightning.calibration.grid import Calibration, calibrate_problem
from bif_lightning.offline.fit_start import imported, module_and_data, with_problem
from bif_lightning.plots import to_png
from bif_lightning.results.settings import encode
from bif_lightning.trainer.checkpoints import load_weights


def calibrate_checkpoint(
    checkpoint: str,
    *,
    config: str | None = None,
    model: str | None = None,
    data: str | None = None,
    loss_fn: str | None = None,
    params: Sequence[str] | None = None,
    out: str = "calibration",
    accelerator: str = "auto",
) -> tuple[Calibration, dict[str, Any]]:
    """Calibrate, and write `<out>.png` and `<out>.yaml`.

    Returns:
        The calibration, and as plain values: sampler, chains, reasons, whether it is sound, files written.

    Raises:
        ValueError, OSError: bad arguments or paths; see `offline.fit_start`.
    """
    page, settings = Path(f"{out}.png"), Path(f"{out}.yaml")
    if not page.absolute().parent.is_dir():
        raise FileNotFoundError(f"{page.absolute().parent} is not a folder; give an --out in an existing one")
    module, loader = module_and_data(config, model, data)
    load_weights(module, checkpoint)
    loss = None if loss_fn is None else imported(loss_fn)
    with quietly():
        found = with_problem(
            module,
            loader,
            lambda problem: calibrate_problem(problem, progress=_show),
            loss_fn=loss,
            params=params,
            accelerator=accelerator,
        )
    page.write_bytes(to_png(found.plot())[0])
    settings.write_text(found.as_yaml())
    answer = found.resolved.as_dict() | {"reasons": str(found.found), "sound": found.found.sound}
    return found, answer | {"target": found.found.target, "files": [str(page), str(settings)], "grid": _grid(found)}


def _grid(found: Calibration) -> list[dict[str, Any]]:
    return [
        {
            "sampler": encode(cell.sampler),
            "diverged": cell.diverged,
            "dimension": cell.dimension,
            "nonlinearity": cell.nonlinearity,
            "chosen": cell.chosen,
        }
        for cell in found.cells
    ]


def _show(done: int, total: int) -> None:
    """Progress on one line of the terminal; nothing where the output is a file."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        sys.stderr.write(f"\rpilot {done} of {total}{end}")
        sys.stderr.flush()


@contextlib.contextmanager
def quietly() -> Generator[None]:
    """Silence the Trainer, whose messages describe a fit that does not take place."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
