"""Calibration without a run: settings that fit a model, a grid of pilots around them, a figure, and YAML."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from bif_lightning.calibration.find import FoundSettings, find_settings
from bif_lightning.calibration.pilot import CHAINS, DRAWS, Pilot, run_pilot, small_problem
from bif_lightning.config import SGLD, Chains
from bif_lightning.data.dataset import Collate, Examples, MapDataset, check_map_style
from bif_lightning.losses.metric_states import keeping_metrics
from bif_lightning.losses.observables import LossFn, mean_of
from bif_lightning.losses.own_batches import OwnBatches
from bif_lightning.losses.problem import Problem
from bif_lightning.losses.token_losses import zero_absent
from bif_lightning.model.devices import raise_unrelated
from bif_lightning.model.weights import WeightBackend
from bif_lightning.plots.sweep import Cell, sweep
from bif_lightning.results.settings import ResolvedSettings
from bif_lightning.sampling.checked_loss import check_loss_fn
from bif_lightning.sampling.context import engine_context, ranks_of, to_device_of
from bif_lightning.sampling.stability import stiffness

STEPS = (0.25, 1.0, 4.0, 8.0)
"""Factors of the step size, in columns; SGLD is unstable from 4 upwards."""

PULLS = (0.1, 1.0, 10.0)
"""Factors of the pull (localization divided by inverse temperature), in rows."""

TEMPERATURES = (0.01, 1.0, 100.0)
"""Factors of nβ, in blocks: narrower posteriors to the right."""

PilotProgress = Callable[[int, int], None]
"""Called with (pilots done, total pilots)."""


@dataclass(frozen=True)
class Calibration:
    """Settings for a run, and a grid of pilots around them.

    Attributes:
        found: the settings, and the measurements behind them.
        cells: the grid.
        spacing: steps between draws of a pilot.

    >>> from bif_lightning import Chains, calibrate
    >>> found = calibrate(module, loss_fn, data, chains=Chains(num_chains=2, num_draws=4))
    >>> print(found.as_yaml().splitlines()[1], found.as_yaml().splitlines()[-1])
    sampler:   ridge: auto
    """

    found: FoundSettings
    cells: tuple[Cell, ...]
    spacing: int

    @property
    def resolved(self) -> ResolvedSettings:
        """The sampler and its chains."""
        return self.found.resolved

    def plot(self) -> Figure:
        """Draw the loss traces over the grid, with diverged cells marked and the choice framed."""
        return sweep(self.cells, self.found.target, self.spacing, str(self.found))

    def as_yaml(self) -> str:
        """`sampler` and `chains` as arguments of BIFCallback in a LightningCLI configuration."""
        lines = ["# init_args of bif_lightning.BIFCallback"]
        for name, value in (("sampler", self.resolved.sampler), ("chains", self.resolved.chains)):
            # Fields alone: jsonargparse before 4.53 takes no class_path for a dataclass.
            lines += [f"{name}:", *(f"  {key}: {_plain(each)}" for key, each in asdict(value).items())]
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        trials = [f"  {n}. {trial.conclusion}" for n, trial in enumerate(self.found.trials, 1)]
        doubt = "" if self.found.sound else "\nThe effective dimension is not near its target: look at the figure."
        return "\n".join(["Pilots:", *trials, f"Choice: {self.found}{doubt}"])


def calibrate(
    model: nn.Module,
    loss_fn: LossFn,
    train: MapDataset,
    *,
    training_data: MapDataset | None = None,
    chains: Chains | None = None,
    params: str | Sequence[str] | None = None,
    collate_fn: Collate | None = None,
    eval_batch_size: int = 256,
    progress: PilotProgress | None = None,
) -> Calibration:
    """Find settings of SGLD for a model at its current weights by measurement, without labels.

    It runs the same search as `sampler="auto"` at the first snapshot of a run. Then it runs pilots over a grid around
    the result: step size x localization x inverse temperature. The model is not changed.

    Args:
        model: any module with float32 or float64 parameters, trained or not.
        loss_fn: (module, batch) -> Tensor[batch], or [batch, token].
        train: the attribution set.
        training_data: data for the gradient minibatches; None for `train`.
        chains: chains to use unchanged; None chooses draws, thinning and burn-in.
        params: name patterns of the parameters to sample; None for all trainable ones.
        collate_fn, eval_batch_size: as in `estimate`.
        progress: called after every pilot of the grid.

    Raises:
        ValueError: invalid input, a loss_fn that does not return the loss of each example, a loss that is flat or not
            finite, or chains that diverge with every setting.

    >>> from bif_lightning import Chains, calibrate
    >>> found = calibrate(module, loss_fn, data, chains=Chains(num_chains=2, num_draws=4))
    >>> type(found.resolved.sampler).__name__, len(found.cells)
    ('SGLD', 36)
    """
    check_map_style(train, "train")
    examples, losses = Examples(train, collate_fn), zero_absent(keeping_metrics(OwnBatches(loss_fn), model))
    problem = Problem(
        module=model,
        loss=losses,
        objective=lambda module, batch: mean_of(losses(module, batch)),
        train=examples,
        query=examples,
        training=examples if training_data is None else Examples(training_data, collate_fn),
        prepare=to_device_of(model),
        params=[params] if isinstance(params, str) else params,
        eval_batch_size=eval_batch_size,
    )
    check_loss_fn(problem)
    return calibrate_problem(problem, chains, progress=progress)


def calibrate_problem(
    problem: Problem, chains: Chains | None = None, *, progress: PilotProgress | None = None
) -> Calibration:
    """Run `calibrate` on an existing problem, in one process."""
    given = chains or Chains()
    with engine_context(problem, given, ranks_of(problem.module)) as (backend, _, _):
        found = find_settings(problem, backend, chains, seed=given.seed)
        last = found.pilot
        small, cells, size = small_problem(problem, backend, given.seed), list[Cell](), _size()
        for block, row, column in np.ndindex(len(TEMPERATURES), len(PULLS), len(STEPS)):
            factors = TEMPERATURES[block], PULLS[row], STEPS[column]
            sampler = scaled(last.sampler, found.curvature, *factors)
            pilot = last if factors == (1, 1, 1) else _pilot(small, backend, sampler, given, last.spacing)
            cells.append(_cell((block, row, column), pilot, found.curvature, chosen=factors == (1, 1, 1)))
            if progress is not None:
                progress(len(cells), size)
    return Calibration(found, tuple(cells), last.spacing)


def scaled(sampler: SGLD, curvature: float, temperature: float, pull: float, step: float) -> SGLD:
    """Multiply nβ, γ/nβ, and ε·(nβ·λmax + γ) of a sampler by these factors.

    A step in the last unit is as stable in one cell of the grid as in another.
    """
    nb = sampler.inverse_temperature
    stiff = step * sampler.step_size * (nb * curvature + sampler.localization)
    hotter = temperature * nb
    localization = temperature * pull * sampler.localization
    # SGLD refuses a step with which the pull alone runs away; such a cell shows that it does.
    step_size = min(stiff / (hotter * curvature + localization), 3.9 / localization)
    return replace(sampler, step_size=step_size, inverse_temperature=hotter, localization=localization)


def _size() -> int:
    return len(TEMPERATURES) * len(PULLS) * len(STEPS)


def _pilot(small: Problem, backend: WeightBackend, sampler: SGLD, chains: Chains, spacing: int) -> Pilot:
    try:
        return run_pilot(small, backend, sampler, chains, spacing)
    except (RuntimeError, ValueError) as error:  # some models refuse weights that are not finite
        raise_unrelated(error)
        lost = torch.full((CHAINS, DRAWS), torch.nan, dtype=torch.float64, device="cpu")
        return Pilot(sampler, spacing, lost, float("nan"), f"{type(error).__name__}: {error}")


def _cell(place: tuple[int, int, int], pilot: Pilot, curvature: float, *, chosen: bool) -> Cell:
    return Cell(
        block=place[0],
        row=place[1],
        column=place[2],
        sampler=pilot.sampler,
        stiffness=stiffness(pilot.sampler, curvature),
        rise=pilot.sampler.inverse_temperature * (pilot.loss.numpy() - pilot.snapshot_loss),
        diverged=pilot.diverged,
        dimension=pilot.dimension,
        nonlinearity=pilot.nonlinearity,
        chosen=chosen,
    )


def _plain(value: object) -> str:
    """Format a YAML scalar. YAML 1.1 reads a number with an exponent but no point as a string."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        text = repr(value)
        mantissa, exponent, power = text.partition("e")
        return f"{mantissa}.0{exponent}{power}" if exponent and "." not in mantissa else text
    return str(value)
