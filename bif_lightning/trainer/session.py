"""One fit of one Trainer: what is attributed, the settled sampler, and how a snapshot is taken."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from bif_lightning.config import SGLD, Chains
from bif_lightning.estimator import estimate_problem, settled_sampler
from bif_lightning.forecast import Forecast, forecast
from bif_lightning.result import Estimate
from bif_lightning.trainer.adapter import Attribution
from bif_lightning.trainer.fingerprint import difference, fingerprint
from bif_lightning.trainer.guard import iterators, training_guard
from bif_lightning.trainer.outputs import Outputs
from bif_lightning.trainer.progress import progress_of

Verify = Literal["first", "always", "never"]


class TrainingDisturbedError(RuntimeError):
    """A snapshot left something of the training other than it was."""


@dataclass
class Session:
    """Takes the snapshots of one fit.

    Attributes:
        attribution: what is attributed, from this Trainer.
        outputs: where estimates go.
        sampler, chains: as the user gave them.
        store_traces: whether dumps keep every draw.
        verify: at which snapshots to check that training is bitwise as it was.
        settled: the settings that the first snapshot settled on; None before.
    """

    attribution: Attribution
    outputs: Outputs
    sampler: SGLD | Literal["auto"]
    chains: Chains
    store_traces: bool
    verify: Verify
    settled: SGLD | None = None
    taken: int = 0

    def announce(self, trainer: Any, module: Any) -> Forecast:
        """Settle the sampler, and say what a snapshot will take; warn of what no guard can put back."""
        problem = self.attribution.problem
        if open_iterators := iterators(trainer, module):
            rank_zero_warn(
                f"{', '.join(open_iterators)} is an iterator, which cannot be rewound: if the loss advances it, a "
                "snapshot changes the training. Pass a loss_fn that does not"
            )
        with self._guarded(trainer, module), self.attribution.around():
            sampler = settled_sampler(problem, self.sampler, self.chains, self.settled)
            expected = forecast(problem, sampler, self.chains, store_traces=self.store_traces)
        say(
            trainer,
            f"BIF: {problem.num_train} train x {len(problem.query)} query examples (loss: {self.attribution.loss}), "
            f"{self.chains.num_chains} chains of {self.chains.num_steps} steps: {expected}"
            + (f"; dumps in {self.outputs.directory}" if self.outputs.directory else "; nothing is written"),
        )
        return expected

    def snapshot(self, trainer: Any, module: Any) -> Estimate:
        """Take the present weights as a snapshot, estimate, and write.

        Raises:
            TrainingDisturbedError: training is not bitwise as it was.
            ChainsDivergedError, ValueError, OSError: see `estimate` and `archive.write_dump`.
        """
        check = self.verify == "always" or (self.verify == "first" and self.taken == 0)
        before = fingerprint(trainer, module) if check else None
        step = trainer.global_step
        with (
            self._guarded(trainer, module),
            self.attribution.around(),
            progress_of(trainer, f"BIF step {step}") as show,
        ):
            settled = settled_sampler(self.attribution.problem, self.sampler, self.chains, self.settled)
            result = estimate_problem(
                self.attribution.problem,
                settled,
                self.chains,
                snapshot=step,
                labels=self.outputs.labels,
                store_traces=self.store_traces,
                progress=show,
            )
        self.settled = self.settled or settled
        path = self.outputs.write(trainer, module, result)
        self.outputs.log(trainer, result)
        self.taken += 1
        if before is not None:
            _check_untouched(difference(before, fingerprint(trainer, module)), step)
        _report(trainer, step, result, path)
        return result

    def _guarded(self, trainer: Any, module: Any) -> Any:
        return training_guard(trainer, module, self.attribution.datasets)


def say(trainer: Any, line: str) -> None:
    """A line for the person who watches, above the progress bar if there is one."""
    bar = trainer.progress_bar_callback
    write: Callable[[str], None] = rank_zero_info if bar is None else bar.print
    write(line)


def _check_untouched(changed: list[str], step: int) -> None:
    if changed:
        raise TrainingDisturbedError(
            f"the snapshot at step {step} changed {', '.join(changed)} of the training, which it must not. The step "
            "uses state that the guard does not know; pass a loss_fn that does not touch it, or take snapshots of "
            "saved checkpoints with bif_lightning.estimate. verify_restore='never' skips this check"
        )


def _report(trainer: Any, step: int, result: Estimate, path: Path | None) -> None:
    found, cost = result.diagnostics, result.cost
    where = f" -> {path.name}" if path else ""
    say(
        trainer,
        f"BIF step {step}: LLC {found.llc:.3g} ± {found.llc_standard_error:.2g}, R-hat {found.rhat:.2f}, ESS "
        f"{found.ess:.0f}, score agreement {found.score_agreement:.2f}, {cost.seconds:.1f} s{where}",
    )
    for divergence in result.divergences:
        rank_zero_warn(f"step {step}: {divergence.message}. It is left out of the matrix.")


def tiny(chains: Chains) -> Chains:
    """The least that runs every line: for a fast_dev_run."""
    return replace(chains, num_chains=1, num_draws=2, burn_in=0, thinning=1)
