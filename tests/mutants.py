# ruff: noqa: T201
"""Break the engine in one way after another, and see the tests notice: python tests/mutants.py [words of a name ...]

Each mutant is one wrong line that a person might write. The script patches it into a copy of the package, runs the
tests that ought to see it until one fails, and prints a table. It exits with 1 if any mutant survives, or if a patch
no longer fits the source (then mend it here), or if a test that noticed a mutant fails without it too.
"""

import contextlib
import gc
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded; see conftest.py

WORKERS = 2
# Of others, and slow to import: the process that each mutant's is forked of has them already.
LOADED = [
    "pytest", "_pytest.doctest", "pytest_timeout", "_hypothesis_pytestplugin", "hypothesis", "beartype", "jaxtyping",
    "torch", "lightning", "torchmetrics", "datasets", "h5py", "xarray", "matplotlib",
]  # fmt: skip
PLUGINS = ["pytest_timeout", "_hypothesis_pytestplugin"]
ROOT = Path(__file__).resolve().parents[1]
KERNEL, REPLAY = "sampling/test_sgld.py", "sampling/test_chain.py"
INFLUENCE, BOOKS = "statistics/test_influence.py", "estimation/test_estimator.py"
HALF = "model/test_weights.py"
SUBSPACE, CONDITIONED = "curvature/test_closed_form.py", "statistics/test_conditioned.py"
METRIC = "curvature/test_kronecker.py"
NOISE, LAW = "test_rng.py", "sampling/test_sgld_law.py"
TOKENS, LANGUAGE = "estimation/test_tokens.py", "losses/test_causal_lm.py"
HOSTS, UNTOUCHED = "model/test_backends.py", "estimation/test_untouched.py"
DATA, OBSERVABLES = "data/test_dataset.py", "losses/test_observables.py"


@dataclass(frozen=True)
class Mutant:
    """A name, a file of the package, the texts to exchange there, and the tests that ought to fail: files, or tests."""

    name: str
    file: str
    patches: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]


def mutant(name: str, file: str, *patches: tuple[str, str], tests: tuple[str, ...]) -> Mutant:
    return Mutant(name, file, patches, tests)


PULL = """loss_gradient.add_(weights, alpha=sampler.localization)
    return loss_gradient.sub_(center, alpha=sampler.localization)"""
PUSH = PULL.replace("sub_", "X").replace("add_", "sub_").replace("X", "add_")
STEP = """        state.steps = step
        kernel.draw(state, step - 1)
        context.tick()
"""
UPDATE = """            if finite and self.preconditioner and not updated:
                self.preconditioner.update(self.weights.gradient, self.settings, self.scale)
                updated = True
"""
ANCHOR = """            if finite and self.anchor:
                self._add_gradient(self.anchor, minibatch, index, -self.scale)
                finite = self._is_representable()
"""
MUTANTS = [
    # The statistical test alone has to see the mistakes in the formula: the exact ones repeat the formula.
    mutant(
        "localization sign",
        "sampling/kernel.py",
        (PULL, PUSH),
        tests=(f"{LAW}::test_full_batch_chains_follow_their_law[False-control_variate]",),
    ),
    mutant(
        "localization missing",
        "sampling/kernel.py",
        ("alpha=sampler.localization", "alpha=0"),
        tests=(f"{LAW}::test_full_batch_chains_follow_their_law[False-control_variate]",),
    ),
    mutant(
        "temperature on the pull too",
        "sampling/kernel.py",
        ("loss_gradient.mul_(sampler.inverse_temperature)", "pass"),
        (
            "(center, alpha=sampler.localization)",
            "(center, alpha=sampler.localization).mul_(sampler.inverse_temperature)",
        ),
        tests=(f"{LAW}::test_full_batch_chains_follow_their_law[False-control_variate]",),
    ),
    mutant(
        "temperature inverted",
        "sampling/kernel.py",
        ("mul_(sampler.inverse_temperature)", "div_(sampler.inverse_temperature)"),
        tests=(f"{LAW}::test_full_batch_chains_follow_their_law[False-control_variate]",),
    ),
    mutant(
        "half missing",
        "sampling/kernel.py",
        ("alpha=-0.5 * sampler.step_size", "alpha=-sampler.step_size"),
        tests=(f"{LAW}::test_full_batch_chains_follow_their_law[False-control_variate]",),
    ),
    mutant(
        "noise eps, not its root",
        "sampling/kernel.py",
        ("math.sqrt(sampler.step_size)", "sampler.step_size"),
        tests=(f"{LAW}::test_full_batch_chains_follow_their_law[False-control_variate]",),
    ),
    mutant(
        "noise root of 2 eps",
        "sampling/kernel.py",
        ("math.sqrt(sampler.step_size)", "math.sqrt(2 * sampler.step_size)"),
        tests=(f"{LAW}::test_full_batch_chains_follow_their_law[False-control_variate]",),
    ),
    mutant(
        "one number for all coordinates",
        "model/functional.py",
        ("out.normal_(generator=generator)", "out.copy_(out.new_empty(1).normal_(generator=generator))"),
        tests=(f"{LAW}::test_full_batch_chains_follow_their_law[False-control_variate]",),
    ),
    mutant(
        "control variate sign",
        "sampling/sgld.py",
        ("index, -self.scale)", "index, self.scale)"),
        tests=(f"{LAW}::test_full_batch_chains_follow_their_law[False-control_variate]",),
    ),
    mutant(
        "draw before the step",
        "sampling/chain.py",
        (STEP, ""),
        (
            "            yield state.measure(past // chains.thinning - 1, step)",
            "            yield state.measure(past // chains.thinning - 1, step)\n" + STEP.rstrip(),
        ),
        tests=(f"{REPLAY}::test_estimate_is_that_of_chains_walked_by_hand[control_variate-None]",),
    ),
    mutant(
        "thinning off by one",
        "sampling/chain.py",
        ("past % chains.thinning == 0", "(past + 1) % chains.thinning == 0"),
        tests=(f"{REPLAY}::test_estimate_is_that_of_chains_walked_by_hand[control_variate-None]",),
    ),
    mutant(
        "burn-in recorded",
        "sampling/chain.py",
        ("past = step - chains.burn_in", "past = step"),
        tests=(f"{REPLAY}::test_estimate_is_that_of_chains_walked_by_hand[control_variate-None]",),
    ),
    mutant(
        "chains share a stream",
        "rng.py",
        ("self.snapshot, self.chain, step", "self.snapshot, 0, step"),
        tests=(f"{NOISE}::test_every_part_of_the_key_counts",),
    ),
    mutant(
        "steps share a stream",
        "rng.py",
        ("self.chain, step, parameter", "self.chain, 0, parameter"),
        tests=(f"{NOISE}::test_every_part_of_the_key_counts",),
    ),
    mutant(
        "parameters share a stream",
        "rng.py",
        ("self.chain, step, parameter", "self.chain, step, 0"),
        tests=(f"{NOISE}::test_every_part_of_the_key_counts",),
    ),
    mutant(
        "minibatch with repetition",
        "rng.py",
        ("replace=False", "replace=True"),
        tests=(f"{NOISE}::test_minibatches_repeat_nothing_and_are_uniform",),
    ),
    mutant(
        "snapshots always share noise",
        "estimation/estimator.py",
        ("0 if chains.common_random_numbers else snapshot", "0"),
        tests=(f"{REPLAY}::test_snapshots_share_their_noise_only_where_asked",),
    ),
    mutant(
        "rmsprop without bias correction",
        "sampling/kernel.py",
        ("correction = 1 - sampler.rmsprop_decay**self.updates", "correction = 1.0"),
        tests=(f"{KERNEL}::test_three_steps_of_rmsprop",),
    ),
    mutant(
        "rmsprop noise not rooted",
        "sampling/kernel.py",
        ("step_sizes.sqrt_()", "step_sizes"),
        tests=(f"{KERNEL}::test_three_steps_of_rmsprop",),
    ),
    mutant(
        "rmsprop of the control variate",
        "sampling/sgld.py",
        (UPDATE + ANCHOR, ANCHOR + UPDATE),
        tests=(f"{REPLAY}::test_estimate_is_that_of_chains_walked_by_hand[control_variate-rmsprop]",),
    ),
    mutant(
        "always pooled",
        "statistics/influence.py",
        ('if centring == "chain":\n', 'if centring == "never":\n'),
        tests=(f"{INFLUENCE}::test_influence_correlation_and_errors[chain-3]",),
    ),
    mutant(
        "influence without its minus",
        "statistics/influence.py",
        ("value=-found.value", "value=found.value"),
        tests=(f"{INFLUENCE}::test_influence_correlation_and_errors[chain-3]",),
    ),
    mutant(
        "1/T for 1/(T-1)",
        "statistics/influence.py",
        ("scale = total / (total - lost)", "scale = 1.0"),
        tests=(f"{INFLUENCE}::test_influence_correlation_and_errors[chain-3]",),
    ),
    mutant(
        "standard error without 1/(K-1)",
        "statistics/influence.py",
        ("np.sqrt(variance * (count / (count - 1)))", "np.sqrt(variance)"),
        tests=(f"{INFLUENCE}::test_influence_correlation_and_errors[chain-3]",),
    ),
    mutant(
        "correlation error of a covariance",
        "statistics/influence.py",
        ("each += change", "pass"),
        tests=(f"{INFLUENCE}::test_influence_correlation_and_errors[chain-3]",),
    ),
    mutant(
        "errors of chains without memory",
        "statistics/standard_errors.py",
        ("f += 2 * rest * least", "f += rest * least"),
        tests=("statistics/test_standard_errors.py::test_memory_is_that_of_an_autoregression[0.3]",),
    ),
    mutant(
        "few batches as good as many",
        "statistics/standard_errors.py",
        ("quantile(batches - 1) / NORMAL", "1.0"),
        tests=(f"{SUBSPACE}::test_its_error_is_the_spread_over_groups_of_examples_of_the_curvature",),
    ),
    mutant(
        "conditioned on nothing",
        "statistics/conditioned.py",
        ("solved = inverse @ cross", "solved = cross"),
        tests=(f"{CONDITIONED}::test_it_is_minus_the_covariance_after_a_kalman_update[7-0.01-False]",),
    ),
    mutant(
        "increments not scaled",
        "statistics/conditioned.py",
        ("trace.diff(dim=0) / math.sqrt(2)", "trace.diff(dim=0)"),
        tests=(f"{CONDITIONED}::test_it_is_minus_the_covariance_after_a_kalman_update[7-0.01-False]",),
    ),
    mutant(
        "pairs not halved",
        "statistics/conditioned.py",
        ("(trace[0::2] - trace[1::2]) / 2", "trace[0::2] - trace[1::2]"),
        tests=(f"{CONDITIONED}::test_it_is_minus_the_covariance_after_a_kalman_update[7-0.01-True]",),
    ),
    mutant(
        "error of the raw increments",
        "statistics/conditioned.py",
        (
            "weights, done = self.s * self.inverse[:, rows], 0",
            "weights, done = torch.eye(len(self.inverse))[:, rows], 0",
        ),
        tests=(f"{CONDITIONED}::test_its_error_is_that_of_reweighting_the_batches[7]",),
    ),
    mutant(
        "draws conditioned on, without the update of their errors",
        "statistics/conditioned.py",
        (
            "train = self.s * (self.inverse @ self.of.stacked(self.of.train, rows))",
            "train = self.of.stacked(self.of.train, rows)",
        ),
        tests=(f"{CONDITIONED}::test_its_error_is_that_of_reweighting_the_batches[60]",),
    ),
    mutant(
        "pieces of increments without the draw that they share",
        "statistics/conditioned.py",
        ("slice(at.start, at.stop + 1)", "slice(at.start, at.stop)"),
        tests=(f"{CONDITIONED}::test_it_is_minus_the_covariance_after_a_kalman_update[7-0.01-False]",),
    ),
    mutant(
        "always draws x draws",
        "statistics/conditioned.py",
        ("_ByIncrements if ensemble.count <= ensemble.num_train else _ByExamples", "_ByIncrements"),
        tests=(f"{CONDITIONED}::test_products_grow_linearly_with_the_draws",),
    ),
    mutant(
        "pairs of one sign",
        "sampling/antithetic.py",
        ("state.put(out if draw % 2 == 0 else -out)", "state.put(out)"),
        tests=(f"{SUBSPACE}::test_the_draws_are_those_of_the_posterior_within_the_span",),
    ),
    mutant(
        "pairs of one number",
        "sampling/antithetic.py",
        ("noise.normals(draw // 2,", "noise.normals(0,"),
        tests=(f"{SUBSPACE}::test_pairs_are_mirrored_about_the_snapshot",),
    ),
    mutant(
        "nothing outside the span",
        "curvature/closed_form.py",
        (
            "whole = (train @ self.columns.mT).double().cpu() * pull",
            "whole = (train @ self.columns.mT).double().cpu() * 0",
        ),
        tests=(f"{SUBSPACE}::test_influence_is_the_closed_form[1-kronecker]",),
    ),
    mutant(
        "span counted twice",
        "curvature/closed_form.py",
        ("(along * (self.variances - pull))", "(along * self.variances)"),
        tests=(f"{SUBSPACE}::test_influence_is_the_closed_form[1-kronecker]",),
    ),
    mutant(
        "curvature error of one side",
        "curvature/closed_form.py",
        ("moved[0] @ self.deviations @ moved[1].mT", "moved[0] @ self.deviations @ self.columns_along.mT"),
        tests=(f"{SUBSPACE}::test_its_error_is_the_spread_over_groups_of_examples_of_the_curvature",),
    ),
    mutant(
        "negative curvature kept",
        "curvature/gaussian.py",
        ("values.clamp(min=0)", "values"),
        tests=(f"{SUBSPACE}::test_a_direction_of_negative_curvature_is_cut_off",),
    ),
    mutant(
        "metric without damping",
        "curvature/kronecker.py",
        ("= own + (max(", "= own + 0 * (max("),
        tests=(f"{METRIC}::test_whitened_gradients_have_the_inner_products_of_the_metric[2048]",),
    ),
    mutant(
        "metric of its own scale",
        "curvature/kronecker.py",
        ("        if mean > 0:\n", "        if False:\n"),
        tests=(f"{METRIC}::test_whitened_gradients_have_the_inner_products_of_the_metric[2048]",),
    ),
    mutant(
        "metric and not its root",
        "curvature/kronecker.py",
        ("curvature.rsqrt()", "curvature.reciprocal()"),
        tests=(f"{METRIC}::test_whitened_gradients_have_the_inner_products_of_the_metric[2048]",),
    ),
    mutant(
        "directions not turned back",
        "curvature/kronecker.py",
        ("factor.rotate(found, back=True)", "factor.rotate(found)"),
        tests=(f"{METRIC}::test_a_direction_in_the_weights_has_the_slope_that_it_has_in_the_coordinates",),
    ),
    mutant(
        "bases turned the wrong way",
        "curvature/kronecker.py",
        ("basis if back else basis.mT", "basis.mT if back else basis"),
        tests=(f"{METRIC}::test_whitened_gradients_have_the_inner_products_of_the_metric[2048]",),
    ),
    mutant(
        "pull without its metric",
        "sampling/chain.py",
        ("kernel.squared_distance(state)", "draw.squared_distance"),
        tests=(f"{SUBSPACE}::test_a_layer_that_hardly_acts_makes_no_draw_diverge[0.0001]",),
    ),
    mutant(
        "queries not whitened",
        "curvature/gradients.py",
        ("        metric.whiten(queries)\n", ""),
        tests=(f"{SUBSPACE}::test_influence_is_the_closed_form[1-kronecker]",),
    ),
    mutant(
        "curvature along other directions",
        "curvature/laplace.py",
        ("hessians_along(problem, backend, in_weights, span", "hessians_along(problem, backend, directions, span"),
        tests=(f"{SUBSPACE}::test_influence_is_the_closed_form[1-kronecker]",),
    ),
    mutant(
        "draws left in the coordinates",
        "curvature/gaussian.py",
        ("self.metric.to_weight_space(drawn[None])[0]", "drawn"),
        tests=(f"{SUBSPACE}::test_the_draws_are_those_of_the_posterior_within_the_span",),
    ),
    mutant(
        "directions not orthonormal",
        "curvature/gaussian.py",
        ("narrow.copy_(torch.linalg.solve_triangular(lower, narrow, upper=False))", "narrow.mul_(2)"),
        tests=(f"{SUBSPACE}::test_influence_is_the_closed_form[1-kronecker]",),
    ),
    mutant(
        "chains leave their directions",
        "sampling/sgld.py",
        ("return vector if self.directions is None else", "return vector if True else"),
        tests=(f"{SUBSPACE}::test_sgld_stays_in_its_directions",),
    ),
    mutant(
        "second derivative of one group",
        "curvature/subsample.py",
        ("of_group, own, workers, steps)", "of_group, [0] * len(own), workers, steps)"),
        tests=(f"{SUBSPACE}::test_influence_is_the_closed_form[1-kronecker]",),
    ),
    mutant(
        "others stand for themselves",
        "curvature/subsample.py",
        ("(self.others[first::count], self.weight)", "(self.others[first::count], 1.0)"),
        tests=("curvature/test_subsample.py::test_where_many_are_curved_a_spread_stands_for_the_rest",),
    ),
    mutant(
        "error of a spread not squared",
        "curvature/subsample.py",
        ("ERROR**2", "ERROR"),
        tests=("curvature/test_subsample.py::test_the_examples_that_have_the_curvature_are_found[1]",),
    ),
    mutant(
        "half a second derivative",
        "curvature/hessian.py",
        ('endswith("::Error")', 'endswith("::Other")'),
        tests=("curvature/test_hessian.py::test_a_function_that_is_marked_as_differentiable_once_is_found",),
    ),
    mutant(
        "errors as narrow as a chain",
        "statistics/standard_errors.py",
        ("wide = _width_ratio(draws, chain_mean_covariance(parts, centring)), 1.0", "wide = 1.0, 1.0"),
        tests=("statistics/test_standard_errors.py::test_chains_that_stand_apart_have_wider_errors",),
    ),
    mutant(
        "merge forgets the shift of means",
        "statistics/moments.py",
        (
            'parts.comoment.sum(-3) + np.einsum("...kt,...kc->...tc", weight * train_shift, column_shift)',
            "parts.comoment.sum(-3)",
        ),
        tests=(f"{INFLUENCE}::test_merged_moments_equal_those_of_one_batch",),
    ),
    mutant(
        "label means by wrong counts",
        "statistics/label_means.py",
        ("sums.influence / size", "sums.influence / size.T.reshape(size.shape)"),
        tests=(f"{BOOKS}::test_label_means_are_means_of_blocks",),
    ),
    mutant(
        "label means by train counts alone",
        "statistics/label_means.py",
        ("self._train.sizes[:, None] * self._query.sizes", "self._train.sizes[:, None] + 0 * self._query.sizes"),
        tests=(f"{BOOKS}::test_label_means_are_means_of_blocks",),
    ),
    mutant(
        "token losses averaged",
        "losses/observables.py",
        ("values.sum(1) if values.dim() == 2", "values.mean(1) if values.dim() == 2"),
        tests=(f"{DATA}::test_token_losses_are_summed",),
    ),
    mutant(
        "other sign of token influence",
        "results/token_matrices.py",
        ("np.negative(covariance", "np.positive(covariance"),
        tests=(f"{TOKENS}::test_values_alone_are_the_same_values[influence]",),
    ),
    mutant(
        "padding has a loss",
        "losses/causal_lm.py",
        ("mask = targets != ignore_index", "mask = targets == targets"),
        tests=(f"{LANGUAGE}::test_ignored_labels_are_absent",),
    ),
    mutant(
        "labels not shifted",
        "losses/causal_lm.py",
        ("functional.pad(labels[:, 1:], (0, 1)", "functional.pad(labels[:, :-1], (0, 1)"),
        tests=(f"{LANGUAGE}::test_shifted_labels_stand_where_their_token_does",),
    ),
    mutant(
        "first token after padding has a loss",
        "losses/causal_lm.py",
        ("~there | ~functional.pad(there, (1, -1))", "~there"),
        tests=(f"{LANGUAGE}::test_padding_on_the_left_moves_no_token",),
    ),
    mutant(
        "softmax alone as the slope",
        "losses/causal_lm.py",
        ("labels[:, None], -ones)", "labels[:, None], 0 * ones)"),
        tests=(f"{LANGUAGE}::test_chunks_change_nothing[1]",),
    ),
    mutant(
        "tokens not centred in chains",
        "results/token_products.py",
        ("about = means if self.centring ==", "about = 0 * means if self.centring =="),
        tests=(f"{TOKENS}::test_tokens_have_the_matrices_and_errors_of_examples[chains]",),
    ),
    mutant(
        "batches of tokens unweighted",
        "results/token_products.py",
        ("lengths / lengths.sum()", "lengths**0 / len(lengths)"),
        tests=(f"{TOKENS}::test_tokens_have_the_matrices_and_errors_of_examples[chains]",),
    ),
    mutant(
        "draws of tokens in one row",
        "sampling/token_trace.py",
        ("self._first[chain] + draw", "self._first[chain]"),
        tests=(f"{TOKENS}::test_sums_over_tokens_are_the_influence_of_sequences[chains]",),
    ),
    mutant(
        "groups of tokens summed",
        "results/token_matrices.py",
        ("np.arange(len(sizes))) / sizes", "np.arange(len(sizes)))"),
        tests=(f"{TOKENS}::test_means_over_groups_are_those_over_labels[chains]",),
    ),
    mutant(
        "tokens keep the losses of others",
        "losses/token_losses.py",
        ("kept = losses[mask]", "kept = losses[mask].flip(0)"),
        tests=(f"{TOKENS}::test_sums_over_tokens_are_the_influence_of_sequences[chains]",),
    ),
    mutant(
        "closed form of tokens without the posterior",
        "results/token_products.py",
        ("(self.variances[:, None] * train.values).T", "train.values.T"),
        tests=(f"{TOKENS}::TestClosedForm::test_sums_over_tokens_are_the_influence_of_sequences_within_the_span",),
    ),
    mutant(
        "a few examples refuse a step",
        "sampling/stability.py",
        ("if found < _LIMIT / 2:\n            return", "if found < _LIMIT / 2 or examples < 64:\n            break"),
        tests=("calibration/test_find.py::test_only_a_long_step_is_held_against_many_examples[1.0-64]",),
    ),
    mutant(
        "settings that do not last are kept",
        "calibration/find.py",
        ("lasting=off >= LASTING", "lasting=True"),
        tests=("calibration/test_find.py::test_weights_that_have_learned_nothing_have_settings_for_themselves_alone",),
    ),
    mutant(
        "minibatches stay as hot as they are",
        "calibration/find.py",
        ("if heat > _COOL else 1.0", "if heat > math.inf else 1.0"),
        tests=("calibration/test_find.py::test_steps_are_shortened_until_minibatches_are_cooler_than_the_sampler",),
    ),
    mutant(
        "draws by the agreement of one chain more",
        "calibration/pilot.py",
        ("(1 - self.agreement) / self.agreement", "1 / self.agreement"),
        tests=("calibration/test_find.py::test_draws_follow_from_the_agreement_of_the_pilots_chains",),
    ),
    mutant(
        "an example agrees with itself",
        "calibration/pilot.py",
        ("torch.where(own, products.masked_fill(own, 0).sum(0) / max(count - 1, 1), products)", "products"),
        tests=("calibration/test_find.py::test_the_agreement_of_a_pilot_leaves_each_example_itself_out",),
    ),
    mutant(
        "groups agree about zero",
        "statistics/diagnostics.py",
        ("left, right = one - one.mean(0), other - other.mean(0)", "left, right = one, other"),
        tests=("statistics/test_diagnostics.py::test_group_agreement_is_that_of_the_sums_over_all_groups",),
    ),
    mutant(
        "another worker calibrates anew",
        "offline/replay.py",
        ('if settings.get("lasting", True)', "if False"),
        tests=("offline/test_replay.py::test_settings_that_do_not_last_serve_one_snapshot_here_as_there",),
    ),
    mutant(
        "a graph of other weights kept",
        "curvature/hessian.py",
        ("len(parts) == 1 and weights is None", "weights is None"),
        tests=("curvature/test_hessian.py::test_products_are_those_of_the_dense_hessian[mlp]",),
    ),
    mutant(
        "padding of the whole set",
        "data/dataset.py",
        ("and self._collates_to_rows_of(stacked, probe)", ""),
        tests=(f"{DATA}::test_ragged_examples_are_collated_batch_by_batch[True]",),
    ),
    mutant(
        "readers at once",
        "data/dataset.py",
        ("with _READING:", "if True:"),
        tests=(f"{DATA}::test_a_dataset_is_read_by_one_thread_at_a_time",),
    ),
    mutant(
        "metric not reset",
        "losses/observables.py",
        ("        metric.reset()\n", ""),
        tests=(f"{OBSERVABLES}::test_observables_carry_the_right_numbers",),
    ),
    mutant(
        "rounded weights not renewed",
        "model/weights.py",
        ("leaf.copy_(piece)", "pass"),
        tests=(f"{HALF}::test_steps_below_the_resolution_of_the_model_are_taken[dtype0]",),
    ),
    mutant(
        "gradient in half precision lost",
        "model/weights.py",
        ("gradient.add_(own)", "pass"),
        tests=(f"{HALF}::test_steps_below_the_resolution_of_the_model_are_taken[dtype0]",),
    ),
    mutant(
        "rounded gradient kept",
        "model/weights.py",
        ("own.zero_()", "pass"),
        tests=(f"{HALF}::test_influence_in_bfloat16_is_that_of_float32_up_to_its_rounding[None]",),
    ),
    mutant(
        "loss scale left in",
        "sampling/sgld.py",
        ("self.weights.gradient.div_(self.scale)", "pass"),
        tests=(f"{HALF}::test_a_loss_scale_of_a_power_of_two_changes_no_bit[None-control_variate]",),
    ),
    mutant(
        "loss scale never lowered",
        "sampling/sgld.py",
        ("return self.scale <= 1 or", "return True or"),
        tests=(f"{HALF}::test_a_scale_that_overflows_is_lowered[None]",),
    ),
    mutant(
        "rmsprop of the loss scale",
        "sampling/kernel.py",
        ("value=(1 - decay) / scale**2", "value=1 - decay"),
        tests=(f"{HALF}::test_a_loss_scale_of_a_power_of_two_changes_no_bit[rmsprop-control_variate]",),
    ),
    mutant(
        "any gradient will do",
        "sampling/preflight.py",
        ("if not _near(best, slope, slope) and alike:", "if False:"),
        tests=("sampling/test_preflight.py::test_a_gradient_that_is_not_that_of_the_loss_is_refused",),
    ),
    mutant(
        "lists of weights kept",
        "model/functional.py",
        ("if type(value) in (list, tuple):", "if False:"),
        tests=(f"{HOSTS}::test_losses_and_gradients_are_those_of_a_module_with_these_weights",),
    ),
    mutant(
        "buffers shared",
        "model/functional.py",
        ("key: buffer.clone()", "key: buffer"),
        tests=(f"{UNTOUCHED}::test_after_a_result[buffer that is written]",),
    ),
    mutant(
        "fields not given back",
        "model/functional.py",
        ("for part, fields in originals:", "for part, fields in originals[:1]:"),
        tests=(f"{UNTOUCHED}::test_after_a_result[mlp]",),
    ),
    mutant(
        "gradients of the probe left",
        "model/weights.py",
        ("            parameter.grad = gradient\n", "            pass\n"),
        tests=(f"{UNTOUCHED}::test_after_a_result[mlp]",),
    ),
    mutant(
        "training flags forgotten",
        "losses/problem.py",
        ("            part.training = flag\n", "            pass\n"),
        tests=(f"{UNTOUCHED}::test_after_a_result[mlp]",),
    ),
    mutant(
        "generator not put back",
        "rng.py",
        ("torch.set_rng_state(of_torch)", "pass"),
        tests=(f"{UNTOUCHED}::test_after_a_result[mlp]",),
    ),
    mutant(
        "autocast left on",
        "sampling/context.py",
        ("torch.autocast(device.type, enabled=False)", "torch.enable_grad()"),
        tests=(f"{UNTOUCHED}::test_within_autocast_the_answer_does_not_depend_on_the_number_of_threads[1]",),
    ),
    mutant(
        "diverged chain kept",
        "sampling/chain.py",
        ("            if why:\n", "            if False:\n"),
        tests=("sampling/test_divergence.py::test_a_diverged_chain_is_named_and_left_out[nan-no longer finite]",),
    ),
    mutant(
        "a stop that handlers of errors swallow",
        "distributed/threads.py",
        ("class StoppedError(BaseException)", "class StoppedError(RuntimeError)"),
        tests=("distributed/test_threads.py::test_what_progress_raises_ends_all_and_no_handler_of_errors_swallows_it",),
    ),
    mutant(
        "other threads go on after an error",
        "distributed/threads.py",
        ("                steps.stop()\n                pool", "                pool"),
        tests=("distributed/test_threads.py::test_an_error_in_one_ends_the_others_at_their_next_step[error0]",),
    ),
    mutant(
        "products with a Hessian not counted",
        "curvature/subsample.py",
        ("                steps.tick(len(products) // len(parts))\n", ""),
        tests=(f"{UNTOUCHED}::test_after_an_error_from_progress_before_the_first_draw[KeyboardInterrupt-20]",),
    ),
    mutant(
        "Control-C acts while a lease is released",
        "offline/replay.py",
        ("with defer_interrupts(), self._leased", "with self._leased"),
        tests=("offline/test_attribute.py::test_control_c_waits_until_nothing_is_half_done",),
    ),
    mutant(
        "gather in the order of ranks",
        "distributed/ranks.py",
        (
            "sorted((outcome for part in everyone for outcome in part), key=lambda outcome: outcome.chain)",
            "[outcome for part in everyone for outcome in part]",
        ),
        tests=("distributed/test_ranks.py::test_two_processes_give_the_same_bits_as_one",),
    ),
    mutant(
        "ties ranked by position",
        "statistics/diagnostics.py",
        ("rankdata(scores.cpu().numpy(), axis=0)", 'rankdata(scores.cpu().numpy(), "ordinal", axis=0)'),
        tests=("statistics/test_diagnostics.py::test_score_agreement_is_the_median_spearman",),
    ),
    mutant(
        "integrated influence with the wrong sign",
        "results/integrated.py",
        ("each[:, added] += _whole(z", "each[:, added] -= _whole(z"),
        tests=(
            "results/test_integrated.py::test_it_is_the_discounted_effect_of_retraining_on_the_outputs_of_the_queries",
        ),
    ),
    mutant(
        "one scale for all queries of a snapshot",
        "results/integrated.py",
        ("z = values[:, added] / scale[added]", "z = values[:, added] / scale[added].mean()"),
        tests=(
            "results/test_integrated.py::test_it_is_the_discounted_effect_of_retraining_on_the_outputs_of_the_queries",
        ),
    ),
    mutant(
        "errors of the sum in the units of the snapshots",
        "results/integrated.py",
        ("np.float64)[:, added] / scale[added], _QUANTUM", "np.float64)[:, added], _QUANTUM"),
        tests=("results/test_integrated.py::test_errors_are_in_the_units_of_the_sum",),
    ),
    mutant(
        "repeated columns counted again",
        "results/integrated.py",
        ("new = ~(self.digests == digest).all(2).any(0)", "new = np.ones(len(digest), bool)"),
        tests=("results/test_integrated.py::test_a_step_counts_once_and_repeated_weights_change_no_ranking",),
    ),
    mutant(
        "the halves of a sum are its beginning and its end",
        "results/integrated.py",
        ("if len(self.steps) % 2 else [self.total]", "if len(self.steps) > 2 else [self.total]"),
        tests=("results/test_integrated.py::test_halves_are_the_sums_over_every_second_snapshot_bit_for_bit",),
    ),
    mutant(
        "sums that are not rounded to a quantum",
        "results/integrated.py",
        ("return np.round(values / quantum) * quantum", "return values"),
        tests=("results/test_integrated.py::test_the_order_of_snapshots_changes_no_bit_of_a_sum",),
    ),
    mutant(
        "a dump that was replaced is not seen",
        "archive/read/integrated_file.py",
        ("own = list(zip(self.steps, self.created, strict=True))", "own = [(step, '') for step in self.steps]"),
        ("return own == [(each.step, each.created)", "return own == [(each.step, '')"),
        tests=("archive/write/test_integrated_file.py::test_a_dump_that_is_replaced_or_comes_in_between_is_seen",),
    ),
    mutant(
        "the sum of all train examples for some of them",
        "archive/read/over_training.py",
        (" or not np.array_equal(at.positions[0], np.arange(at.shape[0]))", ""),
        tests=("archive/read/test_over_training.py::test_the_file_of_the_sum_changes_no_bit[train examples]",),
    ),
    mutant(
        "a file of the sum that was replaced is read on",
        "archive/read/integrated_file.py",
        ("if _described(file, of.path) != of:", "if False:"),
        tests=(
            "archive/read/test_integrated_file.py::test_a_file_that_is_replaced_after_the_run_was_opened_is_noticed",
        ),
    ),
    mutant(
        "columns of no snapshot begin with NaN",
        "archive/read/integrated_file.py",
        ("(np.where(known, values, 0.0) for values in sums)", "sums"),
        tests=("archive/write/test_integrated_file.py::test_a_column_that_has_no_scale_yet_grows_later",),
    ),
    mutant(
        "moments at equal distances of t where nothing says when",
        "trainer/schedule.py",
        ("(k / count) ** 2", "(k / count)"),
        tests=("callback/test_triggers.py::test_snapshots_are_taken_when_due[triggers0-trainer0-expected0]",),
    ),
    mutant(
        "a failure to write the sum stops the training",
        "trainer/outputs.py",
        ("    except Exception as error:\n        why", "    except ZeroDivisionError as error:\n        why"),
        tests=("callback/test_integrated.py::test_a_failure_costs_no_snapshot",),
    ),
    mutant(
        "the tab takes a file of the sum that is not of the dumps",
        "tensorboard/plugin/over_training.py",
        ("if known is None or not known.begins(dumps):", "if known is None:"),
        tests=("tensorboard/plugin/test_over_training.py::test_a_dump_that_was_replaced_is_seen",),
    ),
    mutant(
        "the tab follows a link to a file of the sum",
        "tensorboard/plugin/over_training.py",
        ("str(regular(path))", "str(path)"),
        tests=("tensorboard/plugin/test_over_training.py::test_a_link_to_a_file_is_not_followed",),
    ),
    mutant(
        "errors of a mean over queries as if they were independent",
        "results/ranking.py",
        (
            "error = np.where(known, errors, 0).sum(1, dtype=np.float64)",
            "error = np.sqrt(np.where(known, errors, 0).astype(np.float64).__pow__(2).sum(1))",
        ),
        tests=("results/test_ranking.py",),
    ),
    mutant(
        "q-values that do not grow with p",
        "results/ranking.py",
        ("np.minimum.accumulate(np.minimum(p[order] * len(p) / rank, 1))", "np.minimum(p[order] * len(p) / rank, 1)"),
        tests=("results/test_ranking.py",),
    ),
    mutant(
        "the error of a mean over queries that of its first query",
        "statistics/aggregate.py",
        ("draws.columns.mean(2, keepdims=True, dtype=np.float64)", "draws.columns[:, :, :1].astype(np.float64)"),
        tests=("archive/read/test_ranking.py",),
    ),
    mutant(
        "draws of a closed form taken for its errors",
        "archive/read/drawn.py",
        ("if kind not in _DRAWN or found is None:", "if found is None:"),
        tests=("archive/read/test_ranking.py",),
    ),
    mutant(
        "the most helpful first",
        "archive/read/ranking.py",
        (
            'order = np.argsort(found.total.effect, kind="stable")',
            'order = np.argsort(-found.total.effect, kind="stable")',
        ),
        tests=("archive/read/test_ranking.py",),
    ),
    mutant(
        "the tab ranks by a sum that lacks a new dump",
        "tensorboard/plugin/rankings.py",
        ("tokens = [dump.token for dump in run.dumps.values()] if whole else []", "tokens: list[str] = []"),
        tests=("tensorboard/plugin/test_ranking.py",),
    ),
    mutant(
        "a matrix of chosen rows in the order of the dataset",
        "tensorboard/plugin/views.py",
        ("return ordered[chosen[ordered]]", "return np.flatnonzero(chosen)"),
        tests=("tensorboard/plugin/test_ranking.py",),
    ),
    mutant(
        "each rank takes a folder of its own",
        "callback.py",
        (
            "            if ranks.rank == 0:\n                found = own_folder",
            "            if True:\n                found = own_folder",
        ),
        tests=("trainer/test_run_folder.py::test_all_ranks_have_the_folder_of_the_first",),
    ),
    mutant(
        "a resumed run takes a new folder",
        "callback.py",
        ("former=self._owned", "former=None"),
        tests=("trainer/test_run_folder.py::test_a_trainer_that_goes_on_keeps_the_folder",),
    ),
    mutant(
        "a run takes the folder of another",
        "trainer/run_folder.py",
        ("if former is not None or not _is_used(parent / name):", "if True:"),
        tests=("trainer/test_run_folder.py::test_a_version_that_is_used_gets_a_numbered_folder",),
    ),
    mutant(
        "a logger that fails stops the training",
        "trainer/loggers.py",
        ("        except Exception as error:", "        except ZeroDivisionError as error:"),
        tests=("trainer/test_loggers.py::test_a_logger_that_fails_is_named_and_costs_no_snapshot",),
    ),
    mutant(
        "a random loss is asked for with one seed",
        "losses/derived/randomness.py",
        ("batches[0]).detach(), seed) for seed in (0, 0, 1)]", "batches[0]).detach(), seed) for seed in (0, 0, 0)]"),
        tests=("losses/derived/test_randomness.py::test_randomness_is_named",),
    ),
    mutant(
        "a random batch is told as a random loss",
        "losses/derived/randomness.py",
        ("if digest(batches[0]) != digest(batches[1]):", "if False:"),
        tests=("losses/derived/test_randomness.py::test_randomness_is_named",),
    ),
    mutant(
        "the whole module is what needs training mode",
        "losses/derived/modes.py",
        ("len(inside) for path", "-len(inside) for path"),
        tests=("losses/derived/test_modes.py::test_the_part_that_decides_is_in_training_mode",),
    ),
    mutant(
        "an error in both modes is one of evaluation mode",
        "losses/derived/modes.py",
        ("return None if found is None else TrainingPart(found, error)", 'return TrainingPart(found or "", error)'),
        tests=("losses/derived/test_modes.py::test_an_error_in_both_modes_is_told_as_it_is",),
    ),
    mutant(
        "what a hook sets at the start of an epoch is not seen",
        "offline/dependence.py",
        ('HOOKS = ("on_train_start", "on_train_epoch_start", ', 'HOOKS = ("on_train_start", '),
        tests=("offline/test_dependence.py::test_what_no_checkpoint_tells_is_refused",),
    ),
    mutant(
        "what a hook writes into buffers is not that of the checkpoint",
        "offline/dependence.py",
        ("module.load_state_dict(saved)", "pass"),
        tests=("offline/test_dependence.py::test_the_loss_of_each_checkpoint_is_that_of_its_position",),
    ),
    mutant(
        "rates that schedulers tell are not seen",
        "offline/dependence.py",
        ("each._last_lr = [rate * 2 for rate in each._last_lr]", "pass"),
        tests=("offline/test_dependence.py::test_what_no_checkpoint_tells_is_refused",),
    ),
    mutant(
        "epochs that matter late are not seen",
        "offline/dependence.py",
        ("_MORE = (7, 1_000_000)", "_MORE = (7, 8)"),
        tests=("offline/test_dependence.py::test_an_epoch_that_matters_only_late_is_asked_for",),
    ),
    mutant(
        "a statement that adds sets nothing",
        "offline/hook_state.py",
        ("ast.AugAssign | ast.AnnAssign", "ast.AnnAssign"),
        tests=("offline/test_hook_state.py::test_statements_of_every_form_and_methods_of_parts",),
    ),
    mutant(
        "a loader with batches of some rows draws all",
        "trainer/drawn_rows.py",
        ("sampler = batching.sampler if plain", "sampler = loader.sampler if plain"),
        tests=("trainer/test_drawn_rows.py::test_some_rows[given batches]",),
    ),
    mutant(
        "weights without replacement are shares",
        "trainer/drawn_rows.py",
        ("if not sampler.replacement:", "if False:"),
        tests=("trainer/test_drawn_rows.py::test_all_rows[weights, all drawn]",),
    ),
    mutant(
        "the first epoch of a sampler twice",
        "trainer/drawn_rows.py",
        ("(_epoch(copied, epoch, ", "(_epoch(copied_sampler(sampler, dataset), 0, "),
        tests=(
            "trainer/test_drawn_rows.py::test_numbers_of_its_own_do_not_hide_that_a_sampler_draws_others_in_each_epoch",
        ),
    ),
    mutant(
        "batches that are dropped count",
        "trainer/drawn_rows.py",
        ("if batching.drop_last:", "if False:"),
        tests=("trainer/test_drawn_rows.py::test_limits_hold_where_the_order_is_fixed[more2-inf-1-10]",),
    ),
    mutant(
        "batches are prepared once for all snapshots",
        "trainer/prepared.py",
        ("return before != self._before", "return False"),
        tests=("trainer/test_prepared.py::test_batches_are_those_of_each_snapshot[SGLD-Growing]",),
    ),
    mutant(
        "a drive is another machine",
        "storage/places.py",
        ("[a-zA-Z][a-zA-Z0-9+.-]+)", "[a-zA-Z][a-zA-Z0-9+.-]*)"),
        tests=("storage/test_places.py::test_paths_stay[C:/runs]",),
    ),
    mutant(
        "a cache of a bucket is a folder",
        "storage/places.py",
        ("return local_path(rest, name, access=access)", "return Path(text)"),
        tests=("storage/test_places.py::test_a_cached_bucket_is_one_too",),
    ),
    mutant(
        "spaces of a URL stay as they are written",
        "storage/places.py",
        ('Path(url2pathname(f"/{rest}"))', 'Path(f"/{rest}")'),
        tests=("storage/test_places.py::test_urls_of_this_machine_are_paths[file:///runs/a%20b]",),
    ),
    mutant(
        "a mask is turned",
        "data/rows.py",
        ("if kept)", "if not kept)"),
        tests=("data/test_rows.py::test_masks_are_the_rows_where_they_are_true[NumPy]",),
    ),
    mutant(
        "numbers in floating point are rows",
        "data/rows.py",
        ("isinstance(value, numbers.Integral)", "isinstance(value, numbers.Real)"),
        tests=("data/test_rows.py::test_examples_are_no_rows[numbers]",),
    ),
    mutant(
        "a column of rows is a dataset",
        "data/rows.py",
        ("found.shape[1] == 1 and", "found.shape[1] == 0 and"),
        tests=("data/test_rows.py::test_numbers[np.argwhere]",),
    ),
    mutant(
        "rare examples are not looked at",
        "data/variety.py",
        ("[: count // 2]", "[:0]"),
        tests=("data/test_variety.py::test_a_rare_form_is_among_them[1-length]",),
    ),
    mutant(
        "labels of uint8 are a mask",
        "losses/derived/intercept.py",
        ("target = target.long()", "target = target"),
        tests=("callback/test_equivalences.py::test_both_ways_have_one_matrix",),
    ),
    mutant(
        "losses of queries are not checked",
        "trainer/problem.py",
        (
            "for further in checked[1:]:\n            check_rows",
            "for further in checked[2:]:\n            check_rows",
        ),
        tests=(
            "losses/derived/test_rows_in_batches.py::test_a_collate_function_that_sorts_queries_is_refused_and_the_remedy_works",
        ),
    ),
    mutant(
        "memory that runs out is another way to compute",
        "model/devices.py",
        ("        raise error\n", "        pass\n"),
        tests=("model/test_devices.py::test_curvature_that_finds_no_memory_is_not_by_differences",),
    ),
    mutant(
        "rounding of memorized examples is a factor",
        "curvature/gradients.py",
        ("if problem.sums_elements else 1.0", ""),
        tests=("curvature/test_gradients.py::test_rounding_of_a_memorized_example_is_no_factor",),
    ),
    mutant(
        "gradients are checked along themselves alone",
        "sampling/preflight.py",
        ("if error > MOST_ERROR:", "if False:"),
        tests=("sampling/test_preflight.py::test_a_stopped_gradient_that_is_orthogonal_to_the_rest_is_refused",),
    ),
    mutant(
        "surrogate with noise of its own",
        "sampling/controlled.py",
        (
            "self._moved(self.surrogate, self.curvature * self.surrogate) + noise",
            "self._moved(self.surrogate, self.curvature * self.surrogate) + noise.roll(1)",
        ),
        tests=("sampling/test_controlled.py::test_of_a_quadratic_loss_chain_and_surrogate_are_one[16]",),
    ),
    mutant(
        "surrogate with a start of its own",
        "sampling/controlled.py",
        ("self.surrogate = self.chain\n", "self.surrogate = 0 * self.chain\n"),
        tests=("sampling/test_controlled.py::test_of_a_quadratic_loss_chain_and_surrogate_are_one[16]",),
    ),
    mutant(
        "start without the first noise",
        "sampling/controlled.py",
        ("return 0.5 * math.sqrt(self.step_size) * self.standard + spread", "return spread"),
        tests=("sampling/test_controlled.py::test_the_surrogate_has_the_posteriors_law_from_its_start_on",),
    ),
    mutant(
        "noise of plain Euler steps",
        "sampling/controlled.py",
        ("0.5 * math.sqrt(self.step_size) * (self.standard + following)", "math.sqrt(self.step_size) * following"),
        tests=("sampling/test_controlled.py::test_the_surrogate_has_the_posteriors_law_from_its_start_on",),
    ),
    mutant(
        "chains that stay where the loss curves down",
        "sampling/controlled.py",
        ("yield from self._parted(estimate)", "pass"),
        tests=("sampling/test_controlled.py::test_a_loss_that_curves_down_is_not_local",),
    ),
    mutant(
        "sketches without signs",
        "curvature/count_sketch.py",
        ('dtype=torch.int8, device="cpu") * 2 - 1', 'dtype=torch.int8, device="cpu") * 0 + 1'),
        tests=("curvature/test_count_sketch.py::test_inner_products_of_sketches_have_their_mean_and_variance",),
    ),
    mutant(
        "sketches that shift past their end",
        "curvature/count_sketch.py",
        ("out[:, : around.shape[1]] += around", "pass"),
        tests=("curvature/test_count_sketch.py::test_a_sketch_is_linear_and_adds_signed_coordinates[10]",),
    ),
    mutant(
        "sums over examples without the last part",
        "curvature/streamed.py",
        ("for part in range(PARTS + 1)]", "for part in range(PARTS)]"),
        tests=("curvature/test_streamed.py::test_the_metric_of_a_stream_is_that_of_all_gradients",),
    ),
    mutant(
        "combinations of the examples of one block",
        "curvature/streamed.py",
        ("coefficients[:, some.start : some.stop]", "coefficients[:, : len(some)]"),
        tests=("curvature/test_streamed.py::test_sketches_and_combinations_are_those_of_all_gradients",),
    ),
    mutant(
        "sketches of gradients that are not whitened",
        "curvature/streamed.py",
        ("    metric.whiten(vectors)\n    return sketch(vectors)", "    return sketch(vectors)"),
        tests=("curvature/test_streamed.py::test_sketches_and_combinations_are_those_of_all_gradients",),
    ),
    mutant(
        "chains along directions of the metric's coordinates",
        "curvature/sketched.py",
        ("row.copy_(metric.to_weight_space(row[None])[0])", "pass"),
        tests=("curvature/test_streamed.py::test_a_sketch_with_room_for_all_gives_the_influence_of_all_gradients",),
    ),
    mutant(
        "one basis for channels and kernel",
        "curvature/kronecker.py",
        ("if len(shape) > 2 and columns > LONGEST_PATCH", "if False and columns > LONGEST_PATCH"),
        tests=("curvature/test_kronecker.py::test_a_convolution_of_many_channels_has_three_bases",),
    ),
    mutant(
        "no draws left, and the chains' covariance none the less",
        "estimation/estimator.py",
        ("if not traces and context.kernel.closed_form:", "if False:"),
        tests=("sampling/test_controlled.py::test_where_no_chain_is_left_the_influence_is_the_closed_form",),
    ),
    mutant(
        "sign of the correction",
        "statistics/correction.py",
        ("(chain.T @ chain - surrogate.T @ surrogate)", "(surrogate.T @ surrogate - chain.T @ chain)"),
        tests=("statistics/test_correction.py::test_the_difference_is_that_of_two_covariances",),
    ),
    mutant(
        "correction also where chain and surrogate part",
        "sampling/covariances.py",
        ("if share <= MOST_RESIDUAL else 0.0", ""),
        tests=("sampling/test_controlled.py::test_where_the_loss_is_bent_the_correction_is_that_of_the_posterior",),
    ),
    mutant(
        "draws alone with the closed form in them",
        "sampling/covariances.py",
        ("self.drawn.of_moments(found.moments) if", "RowCovariances(found.moments, batches, found.chain_means) if"),
        tests=("sampling/test_influence_draws.py",),
    ),
    mutant(
        "agreement of a chain with itself",
        "statistics/correction.py",
        ("(whole - np.trace(products)) / (chains * (chains - 1))", "whole / chains**2"),
        tests=("statistics/test_correction.py::test_agreement_is_the_shared_part_of_the_corrections_themselves",),
    ),
    mutant(
        "softmax without its mean",
        "curvature/outputs.py",
        ("(scaled - probability * scaled.sum(classes, keepdim=True))", "scaled"),
        tests=("curvature/test_outputs.py::test_the_second_moment_is_the_curvature[cross-entropy]",),
    ),
    mutant(
        "calls inside the network are outputs",
        "curvature/outputs.py",
        ("None if slope is None or slope.requires_grad else slope", "slope"),
        tests=("curvature/test_outputs.py::test_the_second_moment_is_the_curvature[log-probabilities]",),
    ),
    mutant(
        "strata without their shares",
        "curvature/strata.py",
        ("Stratum(part, found[number], len(part) / size)", "Stratum(part, found[number], 1 / len(parts))"),
        tests=("curvature/test_gauss_newton.py::test_strata_divide_all_examples_and_bias_no_mean[4]",),
    ),
    mutant(
        "examples that count alike in the sketch",
        "curvature/gauss_newton.py",
        ("GaussNewton(rows, torch.cat(ordered), ranks.broadcast(weights))", "GaussNewton(rows, torch.cat(ordered))"),
        tests=("callback/test_equivalences.py::test_both_ways_have_one_matrix",),
    ),
    mutant(
        "batches that count by their number in the Hessian",
        "curvature/hessian.py",
        ('torch.ones(len(chosen), device="cpu") if weights is None else weights', "torch.ones(len(chosen))"),
        tests=("curvature/test_example_weights.py",),
    ),
    mutant(
        "rounding at a minimum counts as a wrong gradient",
        "sampling/preflight.py",
        ("<= _TOLD * slope", "<= 1e9 * slope"),
        tests=("sampling/test_preflight.py::test_a_model_at_a_minimum_is_taken",),
    ),
]


class Failures:
    """A pytest plugin: the tests that failed, in the order in which they did."""

    def __init__(self) -> None:
        self.found = list[str]()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.found.append(report.nodeid)


def run_tests(folder: Path, tests: tuple[str, ...], *more: str) -> tuple[int, list[str], str]:
    """The exit status of pytest, what failed, and what was said, in a process that has not imported the package yet."""
    import pytest

    gc.freeze()  # what is loaded stays
    sys.dont_write_bytecode = False  # that of the whole copy serves all mutants
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ |= {"PYTHONPATH": str(folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TESTS_START_METHOD": "fork"}
    os.environ["PYTEST_XDIST_WORKER_COUNT"] = str(WORKERS)  # for the share of the cores
    options = ["-q", "-x", "--no-header", "-p", "no:cacheprovider", "--rootdir", str(folder), *more]
    options += [word for plugin in PLUGINS for word in ("-p", plugin)]
    failures, said = Failures(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = pytest.main([*options, *(f"{folder}/tests/{test}" for test in tests)], plugins=[failures])
    return int(status), failures.found, said.getvalue()


def mutated(folder: Path, one: Mutant) -> str:
    """The source of the mutant's file with its patches; ValueError where one of them does not fit."""
    source = (folder / "bif_lightning" / one.file).read_text()
    for old, new in one.patches:
        if old not in source:
            raise ValueError(f"the patch does not fit {one.file}: {old!r}")
        source = source.replace(old, new)
    return source


@dataclass(frozen=True)
class Verdict:
    """The test that noticed a mutant, as file::name, or why none did; and how long that took."""

    by: str | None
    why: str
    seconds: float


def judge(base: Path, one: Mutant) -> Verdict:
    """Run the tests of a mutant in a copy of the project."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = shutil.copytree(base, Path(name) / "project", copy_function=os.link)
        try:
            source = mutated(base, one)
        except ValueError as error:
            return Verdict(None, str(error), 0.0)
        changed = folder / "bif_lightning" / one.file
        changed.unlink()  # the copy is one of names alone
        changed.write_text(source)
        status, failed, said = run_tests(folder, one.tests)
    # 1: tests failed; anything else is a break that no test had to notice, such as a syntax error.
    by = failed[0].removeprefix("tests/") if status == 1 and failed else None
    return Verdict(by, said[-300:], time.perf_counter() - started)


def copy_project(folder: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("bif_lightning", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)


def report(one: Mutant, verdict: Verdict) -> None:
    how = verdict.by.partition("::")[2] if verdict.by else verdict.why
    print(f"{'killed' if verdict.by else 'SURVIVED':8}  {one.name:36}  {verdict.seconds:5.1f} s  {how}", flush=True)


def pass_without_mutants(pool: ProcessPoolExecutor, base: Path, tests: set[str]) -> bool:
    """Whether these tests pass in the copy that the mutants were made of."""
    files = sorted({test.partition("::")[0] for test in tests})
    each = [tuple(sorted(test for test in tests if test.startswith(f"{file}::"))) for file in files]
    for status, _, said in pool.map(partial(run_tests, base), each):
        if status != 0:
            print(said[-3000:], "\nThe test fails without any mutant.")
            return False
    return True


def main(words: list[str], mutants: Sequence[Mutant] = MUTANTS) -> int:
    chosen = [m for m in mutants if not words or any(word in m.name for word in words)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(WORKERS, mp_context=context, max_tasks_per_child=1) as pool,
    ):
        base = Path(name) / "project"
        copy_project(base)
        files = tuple(sorted({test for one in chosen for test in one.tests}))
        pool.submit(run_tests, base, files, "--collect-only").result()  # leaves the bytecode of all
        verdicts = list[Verdict]()
        for one, verdict in zip(chosen, pool.map(partial(judge, base), chosen), strict=True):
            report(one, verdict)
            verdicts.append(verdict)
        noticed = {verdict.by for verdict in verdicts if verdict.by}
        if not pass_without_mutants(pool, base, noticed):
            return 1
    killed = sum(verdict.by is not None for verdict in verdicts)
    print(f"{killed} of {len(chosen)} mutants killed, by {len(noticed)} tests that pass without them")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
