"""The snapshots of one fit: their inputs, the sampler's settings, and the steps of each snapshot."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from bif_lightning.calibration.find import provisional
from bif_lightning.config import Chains, Sampler
from bif_lightning.estimation.estimate import resolve_sampler, with_reasons
from bif_lightning.estimation.estimator import estimate_problem
from bif_lightning.estimation.forecast import Forecast, forecast
from bif_lightning.exceptions import TrainingDisturbedError
from bif_lightning.model.sharded import reshard
from bif_lightning.model.weights import sampled_parameters
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.settings import ResolvedSettings
from bif_lightning.rng import unaltered_generators
from bif_lightning.sampling.context import ranks_of
from bif_lightning.trainer.guard.fingerprint import fingerprint, named_difference
from bif_lightning.trainer.guard.guard import attributes, iterators, training_guard
from bif_lightning.trainer.interrupts import stop_if_requested, stopping_progress
from bif_lightning.trainer.outputs import Outputs
from bif_lightning.trainer.position import TrainingPosition, now
from bif_lightning.trainer.prepared import forget_prepared
from bif_lightning.trainer.problem import Attribution, renew_training
from bif_lightning.trainer.progress import progress_of
from bif_lightning.trainer.schedule import training_fraction
from bif_lightning.trainer.snapshot_files import write_end, write_snapshot
from bif_lightning.trainer.support import loss_scale_of
from bif_lightning.trainer.time_budget import TimeBudget

Verify = Literal["first", "always", "never"]


@dataclass
class Session:
    """Takes the snapshots of one fit.

    Attributes:
        attribution: the inputs of estimates, from this Trainer.
        outputs: the dumps and loggers that estimates are written to.
        sampler, chains: as given by the user.
        store_traces: whether dumps keep every draw.
        verify: at which snapshots to check that training is bitwise unchanged.
        resolved: settings that a snapshot found for all later ones; None before.
        budget: time that snapshots may take.
        launch: "inline" to estimate at each snapshot, or "snapshot" to write its weights for other processes.
        expected: forecast of the cost of a snapshot.
        taken: number of snapshots so far.
    """

    attribution: Attribution
    outputs: Outputs
    sampler: Sampler | Literal["auto"]
    chains: Chains | None
    store_traces: bool
    verify: Verify
    resolved: ResolvedSettings | None
    budget: TimeBudget
    launch: Literal["inline", "snapshot"] = "inline"
    expected: Forecast | None = None
    taken: int = 0
    _skipped_at: int | None = None

    def announce(self, trainer: Any, module: Any) -> Forecast | None:
        """Check the sampler, print a forecast of the cost of a snapshot, and warn of state that cannot be restored.

        The settings of "auto" are unknown before the first snapshot; the forecast is for settings of similar cost.
        """
        if self.launch == "snapshot":
            folder = self.outputs.directory
            say(trainer, f"BIF: snapshots in {folder}; to compute their dumps run: bif-lightning watch {folder}")
            return None
        problem = self.attribution.problem
        if open_iterators := iterators(trainer, module):
            rank_zero_warn(
                f"{', '.join(open_iterators)} is an iterator, which cannot be rewound: if the loss advances it, a "
                "snapshot changes the training. Pass a loss_fn that does not"
            )
        reshard(module)
        problem.loss_scale = loss_scale_of(trainer)
        with self._guarded(trainer, module), self.attribution.around():
            found = self.resolved
            if found is None and self.sampler == "auto":
                found = provisional(self.chains)
            else:
                found = resolve_sampler(problem, self.sampler, self.chains, self.resolved)
            self.expected = self._forecast(found)
        self._leave_device(trainer)
        unknown = self.resolved is None and self.sampler == "auto"
        say(
            trainer,
            f"BIF: {problem.num_train} train x {len(problem.query)} query examples (loss: {self.attribution.loss}), "
            f"{found.sampler.describe(found.chains)}: {self.expected}"
            + (", with settings to be found at the first snapshot" if unknown else "")
            + (f"; dumps in {self.outputs.directory}" if self.outputs.directory else "; nothing is written"),
        )
        return self.expected

    def affords(self, trainer: Any, module: Any, *, by_rhythm: bool, one_more: bool) -> bool:
        """Whether to take a snapshot that is due. Collective: the clock of rank 0 decides for all ranks.

        Args:
            by_rhythm: whether it is due by an interval, and so may be skipped to stay within the budget; snapshots at
                requested steps are always taken.
            one_more: whether a last snapshot will be taken at the end of training, for which time is reserved.
        """
        budget, step = self.budget, trainer.global_step
        # The last step may be due twice: by interval, and as the last one.
        again, self._skipped_at = self._skipped_at == step, None
        budget.due += not again
        budget.skipped -= again
        if not budget.limited:
            return True
        assert self.expected is not None
        seconds = budget.expected(self.expected.seconds)
        reserved = seconds if one_more and by_rhythm else 0.0
        if ranks_of(module).broadcast(
            budget.within_budget(seconds, reserved, budget.ahead(training_fraction(trainer)))
        ):
            return True
        if not by_rhythm:
            rank_zero_warn(
                f"the snapshot at step {step} is taken as requested, although its {seconds:.2g} s exceed the budget of "
                f"{100 * budget.share:g} %: the callback has taken {100 * budget.used:.1f} %"
            )
            return True
        budget.skipped += 1
        self._skipped_at = step
        if budget.skipped == 1:
            say(
                trainer,
                f"BIF step {step}: skipped to stay within the budget, and later ones may be too; a snapshot takes "
                f"about {seconds:.2g} s: {budget}",
            )
        return False

    def close(self, trainer: Any) -> None:
        """Print the use of the budget, and mark the end of training for processes that watch for snapshots."""
        if self.launch == "snapshot" and self.outputs.directory is not None and trainer.is_global_zero:
            write_end(self.outputs.directory, trainer.global_step)
        if self.budget.limited:
            say(trainer, f"BIF: {self.budget}")

    def _forecast(self, resolved: ResolvedSettings) -> Forecast:
        return forecast(
            self.attribution.problem,
            resolved.sampler,
            resolved.chains,
            store_traces=self.store_traces,
            scratch=self.outputs.directory,
        )

    def _resolve(self, trainer: Any) -> ResolvedSettings:
        """Resolve the settings of this snapshot, and print them if they were found here."""
        tick = partial(stop_if_requested, trainer)
        resolved = resolve_sampler(self.attribution.problem, self.sampler, self.chains, self.resolved, tick)
        if self.resolved is None and resolved.reasons:
            until = "kept from now on" if resolved.lasting else "for this snapshot only, as they would not stay valid"
            say(trainer, f"BIF settings, {until}: {resolved.reasons}")
        return resolved

    def snapshot(self, trainer: Any, module: Any, position: TrainingPosition | None = None) -> Estimate | None:
        """Take a snapshot of the current weights, estimate influence, and write it. Collective; rank 0 gets the result.

        Args:
            position: position in training of these weights; None for the current one.

        Raises:
            TrainingDisturbedError: the snapshot changed the state of training.
            PreemptedError: the process received SIGTERM.
            ChainsDivergedError, ValueError, OSError: see `estimate` and `archive.write.write_dump`.
            PeerFailedError: another rank raised one of these.
        """
        position = position or _now(trainer, module)
        ranks, step = ranks_of(module), position.step
        reshard(module)  # an epoch may end with gathered weights, which a chain's first forward pass would free
        check = self.verify == "always" or (self.verify == "first" and self.taken == 0)
        before = fingerprint(trainer, module) if check else None
        if self.launch == "snapshot":
            self._keep(trainer, module, position)
            result = None
        else:
            with ranks.collective(f"the snapshot at step {step}"):
                result = self._estimate(trainer, module, position)
        path = None
        with ranks.collective(f"writing the dump of step {step}"):
            if result is not None:
                with unaltered_generators(trainer.strategy.root_device):  # loggers and plots may draw random numbers
                    path = self.outputs.write(position, result)
                    self.outputs.log(trainer, position, result)
            self.taken += 1
            if before is not None:
                _check_untouched(named_difference(before, fingerprint(trainer, module)), step)
        if result is not None:
            _report(trainer, step, result, path)
        return result

    def _keep(self, trainer: Any, module: Any, position: TrainingPosition) -> None:
        started, directory = time.perf_counter(), self.outputs.directory
        if directory is None:  # a fast_dev_run
            return
        with self._guarded(trainer, module):
            path = write_snapshot(directory, module, position, ranks_of(module))
        say(trainer, f"BIF step {position.step}: weights saved, {time.perf_counter() - started:.2g} s -> {path.name}")

    def _estimate(self, trainer: Any, module: Any, position: TrainingPosition) -> Estimate | None:
        problem, derived = self.attribution.problem, self.attribution.derived
        problem.loss_scale = position.loss_scale
        if derived is not None:
            derived.reset_coefficients()
        with (
            self._guarded(trainer, module),
            self.attribution.around(),
            progress_of(trainer, f"BIF step {position.step}") as show,
        ):
            renew_training(trainer, self.attribution)
            resolved = self._resolve(trainer)
            result = estimate_problem(
                problem,
                resolved.sampler,
                resolved.chains,
                snapshot=position.step,
                labels=self.outputs.labels,
                store_traces=self.store_traces,
                everywhere=False,
                scratch=self.outputs.directory,
                progress=stopping_progress(trainer, show),
            )
        self._leave_device(trainer)
        self.resolved = self.resolved or (resolved if resolved.lasting else None)
        return None if result is None else with_reasons(result, resolved)

    def _leave_device(self, trainer: Any) -> None:
        """Let no example stay on an accelerator between snapshots: its memory is short, and training needs it."""
        if trainer.strategy.root_device.type == "cpu":
            return
        forget_prepared(self.attribution.problem)
        if self.attribution.derived is not None:  # it knows batches by their identity, and keeps them
            self.attribution.derived.reset_coefficients()

    def _guarded(self, trainer: Any, module: Any) -> Any:
        sampled = sampled_parameters(module, self.attribution.problem.params)
        return training_guard(trainer, module, self.attribution.datasets, sampled=sampled)


def say(trainer: Any, line: str) -> None:
    """Print a line for the user, above the progress bar if there is one."""
    bar = trainer.progress_bar_callback
    write: Callable[[str], None] = rank_zero_info if bar is None else bar.print
    write(line)


def _now(trainer: Any, module: Any) -> TrainingPosition:
    """The current position. Hyperparameters may fill a cache of their own when they are read, which is undone."""
    with training_guard(trainer, module, parts={"attributes": attributes}):
        return now(trainer, module)


def _check_untouched(changed: list[str], step: int) -> None:
    if changed:
        raise TrainingDisturbedError(
            f"the snapshot at step {step} changed {', '.join(changed)} of the training, which it must not. The step "
            "uses state that the guard cannot restore; pass a loss_fn that does not use it, or attribute saved "
            "checkpoints with bif_lightning.attribute. verify_restore='never' skips this check"
        )


def _report(trainer: Any, step: int, result: Estimate, path: Path | None) -> None:
    found, cost, verdict = result.diagnostics, result.cost, result.verdict
    where = f" -> {path.name}" if path else ""
    chains = "" if result.sampler.paired else f"R-hat {found.rhat:.2f}, ESS {found.ess:.0f}, "
    say(
        trainer,
        f"BIF step {step}: {verdict.word}; LLC {found.llc:.3g} ± {found.llc_standard_error:.2g}, {chains}"
        f"agreement on groups {found.group_agreement:.2f}, {cost.seconds:.1f} s{where}",
    )
    if verdict.word != "good":
        say(trainer, f"BIF step {step} is {verdict}")
    for divergence in result.divergences:
        rank_zero_warn(f"step {step}: {divergence.message}. It is left out of the matrix.")
