"""One fit of one Trainer: what is attributed, the settled sampler, and how a snapshot is taken."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from bif_lightning.config import SGLD, Chains
from bif_lightning.estimator import estimate_problem, placement_of, settled_sampler
from bif_lightning.forecast import Forecast, forecast
from bif_lightning.noise import unaltered_generators
from bif_lightning.placement import OutOfStepError, PeerFailedError
from bif_lightning.result import Estimate
from bif_lightning.shards import reshard
from bif_lightning.trainer.adapter import Attribution
from bif_lightning.trainer.fingerprint import difference, fingerprint
from bif_lightning.trainer.guard import iterators, training_guard
from bif_lightning.trainer.outputs import Outputs
from bif_lightning.trainer.progress import progress_of
from bif_lightning.trainer.support import loss_scale_of
from bif_lightning.workers import Progress

Verify = Literal["first", "always", "never"]


class TrainingDisturbedError(RuntimeError):
    """A snapshot left something of the training other than it was."""


class PreemptedError(RuntimeError):
    """The job is asked to end: the snapshot under way is given up, so that training can save itself in time."""


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
        reshard(module)
        problem.loss_scale = loss_scale_of(trainer)
        with self._guarded(trainer, module), self.attribution.around():
            sampler = settled_sampler(problem, self.sampler, self.chains, self.settled)
            expected = forecast(
                problem, sampler, self.chains, store_traces=self.store_traces, scratch=self.outputs.directory
            )
        say(
            trainer,
            f"BIF: {problem.num_train} train x {len(problem.query)} query examples (loss: {self.attribution.loss}), "
            f"{self.chains.num_chains} chains of {self.chains.num_steps} steps: {expected}"
            + (f"; dumps in {self.outputs.directory}" if self.outputs.directory else "; nothing is written"),
        )
        return expected

    def snapshot(self, trainer: Any, module: Any) -> Estimate | None:
        """Take the present weights as a snapshot, estimate, and write. All ranks do, or none; rank 0 gets the result.

        Raises:
            TrainingDisturbedError: training is not bitwise as it was.
            PreemptedError: the job is asked to end.
            ChainsDivergedError, ValueError, OSError: see `estimate` and `archive.write_dump`.
            PeerFailedError: another rank raised one of these.
        """
        placement, step = placement_of(module), trainer.global_step
        reshard(module)  # an epoch may end with gathered weights, which the first pass of a chain would free
        check = self.verify == "always" or (self.verify == "first" and self.taken == 0)
        before = fingerprint(trainer, module) if check else None
        with placement.together(f"the snapshot at step {step}"):
            result = self._estimate(trainer, module, step)
        path = None
        with placement.together(f"writing the dump of step {step}"):
            if result is not None:
                with unaltered_generators(trainer.strategy.root_device):  # loggers and plots are others' code
                    path = self.outputs.write(trainer, module, result)
                    self.outputs.log(trainer, result)
            self.taken += 1
            if before is not None:
                _check_untouched(difference(before, fingerprint(trainer, module)), step)
        if result is not None:
            _report(trainer, step, result, path)
        return result

    def _estimate(self, trainer: Any, module: Any, step: int) -> Estimate | None:
        problem, derived = self.attribution.problem, self.attribution.derived
        problem.loss_scale = loss_scale_of(trainer)
        if derived is not None:
            derived.refreeze()
        with (
            self._guarded(trainer, module),
            self.attribution.around(),
            progress_of(trainer, f"BIF step {step}") as show,
        ):
            settled = settled_sampler(problem, self.sampler, self.chains, self.settled)
            result = estimate_problem(
                problem,
                settled,
                self.chains,
                snapshot=step,
                labels=self.outputs.labels,
                store_traces=self.store_traces,
                everywhere=False,
                scratch=self.outputs.directory,
                progress=_until_asked_to_end(trainer, show),
            )
        self.settled = self.settled or settled
        return result

    def _guarded(self, trainer: Any, module: Any) -> Any:
        return training_guard(trainer, module, self.attribution.datasets)


def _until_asked_to_end(trainer: Any, show: Progress) -> Progress:
    def watched(done: int, total: int) -> None:
        if trainer.received_sigterm:
            raise PreemptedError("SIGTERM was received")
        show(done, total)

    return watched


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


def is_preemption(error: Exception) -> bool:
    """Whether a snapshot ended because the job is asked to end, on this rank or another."""
    return PreemptedError.__name__ in _names(error)


def is_fatal(error: Exception) -> bool:
    """Whether training cannot go on after this error of a snapshot, on this rank or another."""
    return not _names(error).isdisjoint({TrainingDisturbedError.__name__, OutOfStepError.__name__})


def is_of_files(error: Exception) -> bool:
    """Whether an error, of this rank or another, is about files."""
    return isinstance(error, OSError) or _names(error) <= {cls.__name__ for cls in (OSError, *OSError.__subclasses__())}


def _names(error: Exception) -> frozenset[str]:
    return error.kinds if isinstance(error, PeerFailedError) else frozenset({type(error).__name__})
