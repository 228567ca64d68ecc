"""One fit of one Trainer: what is attributed, the sampler's settings, and how a snapshot is taken."""

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
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.settings import ResolvedSettings
from bif_lightning.rng import unaltered_generators
from bif_lightning.sampling.context import ranks_of
from bif_lightning.trainer.guard.fingerprint import difference, fingerprint
from bif_lightning.trainer.guard.guard import iterators, training_guard
from bif_lightning.trainer.interrupts import stop_if_requested, stopping_progress
from bif_lightning.trainer.outputs import Outputs
from bif_lightning.trainer.position import TrainingPosition, now
from bif_lightning.trainer.problem import Attribution
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
        attribution: what is attributed, from this Trainer.
        outputs: where estimates go.
        sampler, chains: as the user gave them.
        store_traces: whether dumps keep every draw.
        verify: at which snapshots to check that training is bitwise as it was.
        resolved: the settings that a snapshot found for all later ones; None before.
        budget: what snapshots may take.
        launch: whether an estimate follows each snapshot here, or others make it of the snapshot's file.
        expected: what a snapshot was forecast to take.
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
        """Check the sampler, and say what a snapshot will take; warn of what no guard can put back.

        What "auto" will find is not known before the first snapshot; the forecast is for settings that cost as much.
        """
        if self.launch == "snapshot":
            folder = self.outputs.directory
            say(trainer, f"BIF: snapshots in {folder}; for their dumps run: bif-lightning watch {folder}")
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
        unknown = self.resolved is None and self.sampler == "auto"
        say(
            trainer,
            f"BIF: {problem.num_train} train x {len(problem.query)} query examples (loss: {self.attribution.loss}), "
            f"{found.sampler.describe(found.chains)}: {self.expected}"
            + (", to be found at the first one" if unknown else "")
            + (f"; dumps in {self.outputs.directory}" if self.outputs.directory else "; nothing is written"),
        )
        return self.expected

    def affords(self, trainer: Any, module: Any, *, by_rhythm: bool, one_more: bool) -> bool:
        """Whether to take a snapshot that is due. Collective: the clock of rank 0 decides for all.

        Args:
            by_rhythm: it may be skipped for the budget; others were asked for by step, and are taken.
            one_more: another one is taken at the end of training, which the rest of it must pay for.
        """
        budget, step = self.budget, trainer.global_step
        # The last step may be due by rhythm, and then again as the last one.
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
                f"the snapshot at step {step} is taken, as asked for, though the budget of {100 * budget.share:g} % "
                f"does not pay for its {seconds:.2g} s yet: the callback has taken {100 * budget.used:.1f} %"
            )
            return True
        budget.skipped += 1
        self._skipped_at = step
        if budget.skipped == 1:
            say(
                trainer, f"BIF step {step}: skipped, as others may be; a snapshot takes about {seconds:.2g} s: {budget}"
            )
        return False

    def close(self, trainer: Any) -> None:
        """Say what became of the budget; tell those who wait for snapshots that there are no more."""
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
        """The settings of this snapshot, and a line about them where they were found here."""
        tick = partial(stop_if_requested, trainer)
        resolved = resolve_sampler(self.attribution.problem, self.sampler, self.chains, self.resolved, tick)
        if self.resolved is None and resolved.reasons:
            until = "kept from now on" if resolved.lasting else "for this snapshot alone, as they would not stay right"
            say(trainer, f"BIF settings, {until}: {resolved.reasons}")
        return resolved

    def snapshot(self, trainer: Any, module: Any, moment: TrainingPosition | None = None) -> Estimate | None:
        """Take the present weights as a snapshot, estimate, and write. All ranks do, or none; rank 0 gets the result.

        Args:
            moment: when in training these weights are from; None for the present.

        Raises:
            TrainingDisturbedError: training is not bitwise as it was.
            PreemptedError: the job is asked to end.
            ChainsDivergedError, ValueError, OSError: see `estimate` and `archive.write.write_dump`.
            PeerFailedError: another rank raised one of these.
        """
        moment = moment or now(trainer, module)
        ranks, step = ranks_of(module), moment.step
        reshard(module)  # an epoch may end with gathered weights, which the first pass of a chain would free
        check = self.verify == "always" or (self.verify == "first" and self.taken == 0)
        before = fingerprint(trainer, module) if check else None
        if self.launch == "snapshot":
            self._keep(trainer, module, moment)
            result = None
        else:
            with ranks.collective(f"the snapshot at step {step}"):
                result = self._estimate(trainer, module, moment)
        path = None
        with ranks.collective(f"writing the dump of step {step}"):
            if result is not None:
                with unaltered_generators(trainer.strategy.root_device):  # loggers and plots are others' code
                    path = self.outputs.write(moment, result)
                    self.outputs.log(trainer, moment, result)
            self.taken += 1
            if before is not None:
                _check_untouched(difference(before, fingerprint(trainer, module)), step)
        if result is not None:
            _report(trainer, step, result, path)
        return result

    def _keep(self, trainer: Any, module: Any, moment: TrainingPosition) -> None:
        started, directory = time.perf_counter(), self.outputs.directory
        if directory is None:  # a fast_dev_run
            return
        with self._guarded(trainer, module):
            path = write_snapshot(directory, module, moment, ranks_of(module))
        say(trainer, f"BIF step {moment.step}: weights kept, {time.perf_counter() - started:.2g} s -> {path.name}")

    def _estimate(self, trainer: Any, module: Any, moment: TrainingPosition) -> Estimate | None:
        problem, derived = self.attribution.problem, self.attribution.derived
        problem.loss_scale = moment.loss_scale
        if derived is not None:
            derived.refreeze()
        with (
            self._guarded(trainer, module),
            self.attribution.around(),
            progress_of(trainer, f"BIF step {moment.step}") as show,
        ):
            resolved = self._resolve(trainer)
            result = estimate_problem(
                problem,
                resolved.sampler,
                resolved.chains,
                snapshot=moment.step,
                labels=self.outputs.labels,
                store_traces=self.store_traces,
                everywhere=False,
                scratch=self.outputs.directory,
                progress=stopping_progress(trainer, show),
            )
        self.resolved = self.resolved or (resolved if resolved.lasting else None)
        return None if result is None else with_reasons(result, resolved)

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
            "uses state that the guard does not know; pass a loss_fn that does not touch it, or look at "
            "saved checkpoints, with bif_lightning.attribute. verify_restore='never' skips this check"
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
