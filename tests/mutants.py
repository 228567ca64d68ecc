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
TOKENS, LANGUAGE, TOKEN_DUMPS = "estimation/test_tokens.py", "losses/test_causal_lm.py", "archive/test_tokens.py"
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
    mutant("localization sign", "sampling/kernel.py", (PULL, PUSH), tests=(LAW,)),
    mutant("localization missing", "sampling/kernel.py", ("alpha=sampler.localization", "alpha=0"), tests=(LAW,)),
    mutant(
        "temperature on the pull too",
        "sampling/kernel.py",
        ("loss_gradient.mul_(sampler.inverse_temperature)", "pass"),
        (
            "(center, alpha=sampler.localization)",
            "(center, alpha=sampler.localization).mul_(sampler.inverse_temperature)",
        ),
        tests=(LAW,),
    ),
    mutant(
        "temperature inverted",
        "sampling/kernel.py",
        ("mul_(sampler.inverse_temperature)", "div_(sampler.inverse_temperature)"),
        tests=(LAW,),
    ),
    mutant(
        "half missing",
        "sampling/kernel.py",
        ("alpha=-0.5 * sampler.step_size", "alpha=-sampler.step_size"),
        tests=(LAW,),
    ),
    mutant(
        "noise eps, not its root",
        "sampling/kernel.py",
        ("math.sqrt(sampler.step_size)", "sampler.step_size"),
        tests=(LAW,),
    ),
    mutant(
        "noise root of 2 eps",
        "sampling/kernel.py",
        ("math.sqrt(sampler.step_size)", "math.sqrt(2 * sampler.step_size)"),
        tests=(LAW,),
    ),
    mutant(
        "one number for all coordinates",
        "model/functional.py",
        ("out.normal_(generator=generator)", "out.copy_(out.new_empty(1).normal_(generator=generator))"),
        tests=(LAW,),
    ),
    mutant("control variate sign", "sampling/sgld.py", ("index, -self.scale)", "index, self.scale)"), tests=(LAW,)),
    mutant(
        "draw before the step",
        "sampling/chain.py",
        (STEP, ""),
        (
            "            yield state.measure(past // chains.thinning - 1, step)",
            "            yield state.measure(past // chains.thinning - 1, step)\n" + STEP.rstrip(),
        ),
        tests=(REPLAY,),
    ),
    mutant(
        "thinning off by one",
        "sampling/chain.py",
        ("past % chains.thinning == 0", "(past + 1) % chains.thinning == 0"),
        tests=(REPLAY,),
    ),
    mutant("burn-in recorded", "sampling/chain.py", ("past = step - chains.burn_in", "past = step"), tests=(REPLAY,)),
    mutant(
        "chains share a stream",
        "rng.py",
        ("self.snapshot, self.chain, step", "self.snapshot, 0, step"),
        tests=(NOISE,),
    ),
    mutant(
        "steps share a stream", "rng.py", ("self.chain, step, parameter", "self.chain, 0, parameter"), tests=(NOISE,)
    ),
    mutant(
        "parameters share a stream", "rng.py", ("self.chain, step, parameter", "self.chain, step, 0"), tests=(NOISE,)
    ),
    mutant("minibatch with repetition", "rng.py", ("replace=False", "replace=True"), tests=(NOISE,)),
    mutant(
        "snapshots always share noise",
        "estimation/estimator.py",
        ("0 if chains.common_random_numbers else snapshot", "0"),
        tests=(REPLAY,),
    ),
    mutant(
        "rmsprop without bias correction",
        "sampling/kernel.py",
        ("correction = 1 - sampler.rmsprop_decay**self.updates", "correction = 1.0"),
        tests=(KERNEL,),
    ),
    mutant("rmsprop noise not rooted", "sampling/kernel.py", ("step_sizes.sqrt_()", "step_sizes"), tests=(KERNEL,)),
    mutant(
        "rmsprop of the control variate",
        "sampling/sgld.py",
        (UPDATE + ANCHOR, ANCHOR + UPDATE),
        tests=(REPLAY,),
    ),
    mutant(
        "always pooled",
        "statistics/influence.py",
        ('if centring == "chain":\n', 'if centring == "never":\n'),
        tests=(INFLUENCE,),
    ),
    mutant(
        "influence without its minus",
        "statistics/influence.py",
        ("value=-found.value", "value=found.value"),
        tests=(INFLUENCE,),
    ),
    mutant(
        "1/T for 1/(T-1)",
        "statistics/influence.py",
        ("scale = total / (total - lost)", "scale = 1.0"),
        tests=(INFLUENCE,),
    ),
    mutant(
        "standard error without 1/(K-1)",
        "statistics/influence.py",
        ("np.sqrt(variance * (count / (count - 1)))", "np.sqrt(variance)"),
        tests=(INFLUENCE,),
    ),
    mutant(
        "correlation error of a covariance",
        "statistics/influence.py",
        ("each += change", "pass"),
        tests=(INFLUENCE,),
    ),
    mutant(
        "errors of chains without memory",
        "statistics/standard_errors.py",
        ("f += 2 * rest * least", "f += rest * least"),
        tests=("statistics/test_standard_errors.py",),
    ),
    mutant(
        "few batches as good as many",
        "statistics/standard_errors.py",
        ("quantile(batches - 1) / NORMAL", "1.0"),
        tests=(SUBSPACE, CONDITIONED),
    ),
    mutant(
        "conditioned on nothing",
        "statistics/conditioned.py",
        ("solved = inverse @ cross", "solved = cross"),
        tests=(CONDITIONED,),
    ),
    mutant(
        "increments not scaled",
        "statistics/conditioned.py",
        ("trace.diff(dim=0) / math.sqrt(2)", "trace.diff(dim=0)"),
        tests=(CONDITIONED,),
    ),
    mutant(
        "pairs not halved",
        "statistics/conditioned.py",
        ("(trace[0::2] - trace[1::2]) / 2", "trace[0::2] - trace[1::2]"),
        tests=(CONDITIONED,),
    ),
    mutant(
        "error of the raw increments",
        "statistics/conditioned.py",
        (
            "weights, done = self.s * self.inverse[:, rows], 0",
            "weights, done = torch.eye(len(self.inverse))[:, rows], 0",
        ),
        tests=(CONDITIONED,),
    ),
    mutant(
        "draws conditioned on, without the update of their errors",
        "statistics/conditioned.py",
        (
            "train = self.s * (self.inverse @ self.of.stacked(self.of.train, rows))",
            "train = self.of.stacked(self.of.train, rows)",
        ),
        tests=(CONDITIONED,),
    ),
    mutant(
        "pieces of increments without the draw that they share",
        "statistics/conditioned.py",
        ("slice(at.start, at.stop + 1)", "slice(at.start, at.stop)"),
        tests=(CONDITIONED,),
    ),
    mutant(
        "always draws x draws",
        "statistics/conditioned.py",
        ("_ByIncrements if ensemble.count <= ensemble.num_train else _ByExamples", "_ByIncrements"),
        tests=(CONDITIONED,),
    ),
    mutant(
        "pairs of one sign",
        "sampling/antithetic.py",
        ("state.put(out if draw % 2 == 0 else -out)", "state.put(out)"),
        tests=(SUBSPACE,),
    ),
    mutant(
        "pairs of one number",
        "sampling/antithetic.py",
        ("noise.normals(draw // 2,", "noise.normals(0,"),
        tests=(SUBSPACE,),
    ),
    mutant(
        "nothing outside the span",
        "curvature/closed_form.py",
        (
            "whole = (train @ self.columns.mT).double().cpu() * pull",
            "whole = (train @ self.columns.mT).double().cpu() * 0",
        ),
        tests=(SUBSPACE,),
    ),
    mutant(
        "span counted twice",
        "curvature/closed_form.py",
        ("(along * (self.variances - pull))", "(along * self.variances)"),
        tests=(SUBSPACE,),
    ),
    mutant(
        "curvature error of one side",
        "curvature/closed_form.py",
        ("moved[0] @ self.deviations @ moved[1].mT", "moved[0] @ self.deviations @ self.columns_along.mT"),
        tests=(SUBSPACE,),
    ),
    mutant("negative curvature kept", "curvature/gaussian.py", ("values.clamp(min=0)", "values"), tests=(SUBSPACE,)),
    mutant(
        "metric without damping",
        "curvature/kronecker.py",
        ("squares[own] + (max(", "squares[own] + 0 * (max("),
        tests=(METRIC,),
    ),
    mutant(
        "metric of its own scale",
        "curvature/kronecker.py",
        ("        if mean > 0:\n", "        if False:\n"),
        tests=(METRIC,),
    ),
    mutant(
        "metric and not its root",
        "curvature/kronecker.py",
        ("curvature.rsqrt()", "curvature.reciprocal()"),
        tests=(METRIC,),
    ),
    mutant(
        "directions not turned back",
        "curvature/kronecker.py",
        ("factor.rotate(found, back=True)", "factor.rotate(found)"),
        tests=(METRIC,),
    ),
    mutant(
        "sides exchanged",
        "curvature/kronecker.py",
        ("_basis(own), _basis(own.mT)", "_basis(own), _basis(own)"),
        tests=(METRIC,),
    ),
    mutant(
        "pull without its metric",
        "sampling/chain.py",
        ("kernel.squared_distance(state)", "draw.squared_distance"),
        tests=(SUBSPACE,),
    ),
    mutant(
        "queries not whitened", "curvature/gradients.py", ("        metric.whiten(queries)\n", ""), tests=(SUBSPACE,)
    ),
    mutant(
        "curvature along other directions",
        "curvature/laplace.py",
        ("hessians_along(problem, backend, in_weights, span", "hessians_along(problem, backend, directions, span"),
        tests=(SUBSPACE,),
    ),
    mutant(
        "draws left in the coordinates",
        "curvature/gaussian.py",
        ("self.metric.to_weight_space(drawn[None])[0]", "drawn"),
        tests=(SUBSPACE,),
    ),
    mutant(
        "directions not orthonormal",
        "curvature/gaussian.py",
        ("return torch.linalg.solve_triangular(lower.to(rough), rough, upper=False)", "return 2 * rough"),
        tests=(SUBSPACE,),
    ),
    mutant(
        "chains leave their directions",
        "sampling/sgld.py",
        ("return vector if self.directions is None else", "return vector if True else"),
        tests=(SUBSPACE,),
    ),
    mutant(
        "second derivative of one group",
        "curvature/subsample.py",
        ("of_group, own, workers, steps)", "of_group, [0] * len(own), workers, steps)"),
        tests=(SUBSPACE,),
    ),
    mutant(
        "others stand for themselves",
        "curvature/subsample.py",
        ("(self.others[first::count], self.weight)", "(self.others[first::count], 1.0)"),
        tests=("curvature/test_subsample.py",),
    ),
    mutant(
        "error of a spread not squared",
        "curvature/subsample.py",
        ("ERROR**2", "ERROR"),
        tests=("curvature/test_subsample.py",),
    ),
    mutant(
        "half a second derivative",
        "curvature/hessian.py",
        ('endswith("::Error")', 'endswith("::Other")'),
        tests=("curvature/test_hessian.py",),
    ),
    mutant(
        "errors as narrow as a chain",
        "statistics/standard_errors.py",
        ("wide = _width_ratio(draws, chain_mean_covariance(parts, centring)), 1.0", "wide = 1.0, 1.0"),
        tests=("statistics/test_standard_errors.py",),
    ),
    mutant(
        "merge forgets the shift of means",
        "statistics/moments.py",
        (
            'parts.comoment.sum(-3) + np.einsum("...kt,...kc->...tc", weight * train_shift, column_shift)',
            "parts.comoment.sum(-3)",
        ),
        tests=(INFLUENCE,),
    ),
    mutant(
        "label means by wrong counts",
        "statistics/label_means.py",
        ("sums.influence / size", "sums.influence / size.T.reshape(size.shape)"),
        tests=(BOOKS,),
    ),
    mutant(
        "label means by train counts alone",
        "statistics/label_means.py",
        ("self._train.sizes[:, None] * self._query.sizes", "self._train.sizes[:, None] + 0 * self._query.sizes"),
        tests=(BOOKS,),
    ),
    mutant(
        "token losses averaged",
        "losses/observables.py",
        ("values.sum(1) if values.dim() == 2", "values.mean(1) if values.dim() == 2"),
        tests=(DATA,),
    ),
    mutant(
        "other sign of token influence",
        "results/token_matrices.py",
        ("np.negative(covariance", "np.positive(covariance"),
        tests=(TOKENS,),
    ),
    mutant(
        "padding has a loss",
        "losses/causal_lm.py",
        ("mask = targets != ignore_index", "mask = targets == targets"),
        tests=(LANGUAGE,),
    ),
    mutant(
        "labels not shifted",
        "losses/causal_lm.py",
        ("functional.pad(labels[:, 1:], (0, 1)", "functional.pad(labels[:, :-1], (0, 1)"),
        tests=(LANGUAGE,),
    ),
    mutant(
        "first token after padding has a loss",
        "losses/causal_lm.py",
        ("~there | ~functional.pad(there, (1, -1))", "~there"),
        tests=(LANGUAGE,),
    ),
    mutant(
        "softmax alone as the slope",
        "losses/causal_lm.py",
        ("labels[:, None], -ones)", "labels[:, None], 0 * ones)"),
        tests=(LANGUAGE,),
    ),
    mutant(
        "tokens not centred in chains",
        "results/token_products.py",
        ("about = means if self.centring ==", "about = 0 * means if self.centring =="),
        tests=(TOKENS,),
    ),
    mutant(
        "batches of tokens unweighted",
        "results/token_products.py",
        ("lengths / lengths.sum()", "lengths**0 / len(lengths)"),
        tests=(TOKENS,),
    ),
    mutant(
        "draws of tokens in one row",
        "sampling/token_trace.py",
        ("self._first[chain] + draw", "self._first[chain]"),
        tests=(TOKENS,),
    ),
    mutant(
        "groups of tokens summed",
        "results/token_matrices.py",
        ("np.arange(len(sizes))) / sizes", "np.arange(len(sizes)))"),
        tests=(TOKENS,),
    ),
    mutant(
        "tokens keep the losses of others",
        "losses/token_losses.py",
        ("kept = losses[mask]", "kept = losses[mask].flip(0)"),
        tests=(TOKENS,),
    ),
    mutant(
        "closed form of tokens without the posterior",
        "results/token_products.py",
        ("(self.variances[:, None] * train.values).T", "train.values.T"),
        tests=(TOKENS, TOKEN_DUMPS),
    ),
    mutant(
        "a few examples refuse a step",
        "sampling/stability.py",
        ("if found < _LIMIT / 2:\n            return", "if found < _LIMIT / 2 or examples < 64:\n            break"),
        tests=("calibration/test_find.py",),
    ),
    mutant(
        "settings that do not last are kept",
        "calibration/find.py",
        ("lasting=off >= LASTING", "lasting=True"),
        tests=("calibration/test_find.py",),
    ),
    mutant(
        "minibatches stay as hot as they are",
        "calibration/find.py",
        ("if heat > _COOL else 1.0", "if heat > math.inf else 1.0"),
        tests=("calibration/test_find.py",),
    ),
    mutant(
        "draws by the agreement of one chain more",
        "calibration/pilot.py",
        ("(1 - self.agreement) / self.agreement", "1 / self.agreement"),
        tests=("calibration/test_find.py",),
    ),
    mutant(
        "an example agrees with itself",
        "calibration/pilot.py",
        ("torch.where(own, products.masked_fill(own, 0).sum(0) / max(count - 1, 1), products)", "products"),
        tests=("calibration/test_find.py",),
    ),
    mutant(
        "groups agree about zero",
        "statistics/diagnostics.py",
        ("left, right = one - one.mean(0), other - other.mean(0)", "left, right = one, other"),
        tests=("statistics/test_diagnostics.py",),
    ),
    mutant(
        "another worker calibrates anew",
        "offline/replay.py",
        ('if settings.get("lasting", True)', "if False"),
        tests=("offline/test_replay.py",),
    ),
    mutant(
        "a graph of other weights kept",
        "curvature/hessian.py",
        ("len(parts) == 1 and weights is None", "weights is None"),
        tests=("curvature/test_hessian.py",),
    ),
    mutant(
        "padding of the whole set",
        "data/dataset.py",
        ("and self._collates_to_rows_of(stacked, probe)", ""),
        tests=(DATA,),
    ),
    mutant("readers at once", "data/dataset.py", ("with _READING:", "if True:"), tests=(DATA,)),
    mutant("metric not reset", "losses/observables.py", ("        metric.reset()\n", ""), tests=(OBSERVABLES,)),
    mutant("rounded weights not renewed", "model/weights.py", ("leaf.copy_(piece)", "pass"), tests=(HALF,)),
    mutant("gradient in half precision lost", "model/weights.py", ("gradient.add_(own)", "pass"), tests=(HALF,)),
    mutant("rounded gradient kept", "model/weights.py", ("own.zero_()", "pass"), tests=(HALF,)),
    mutant("loss scale left in", "sampling/sgld.py", ("self.weights.gradient.div_(self.scale)", "pass"), tests=(HALF,)),
    mutant(
        "loss scale never lowered",
        "sampling/sgld.py",
        ("return self.scale <= 1 or", "return True or"),
        tests=(HALF,),
    ),
    mutant(
        "rmsprop of the loss scale",
        "sampling/kernel.py",
        ("value=(1 - decay) / scale**2", "value=1 - decay"),
        tests=(HALF,),
    ),
    mutant(
        "any gradient will do",
        "sampling/preflight.py",
        ("if not _near(best, slope, slope) and alike:", "if False:"),
        tests=("sampling/test_preflight.py",),
    ),
    mutant(
        "lists of weights kept",
        "model/functional.py",
        ("if type(value) in (list, tuple):", "if False:"),
        tests=(HOSTS,),
    ),
    mutant("buffers shared", "model/functional.py", ("key: buffer.clone()", "key: buffer"), tests=(HOSTS, UNTOUCHED)),
    mutant(
        "fields not given back",
        "model/functional.py",
        ("for part, fields in originals:", "for part, fields in originals[:1]:"),
        tests=(UNTOUCHED,),
    ),
    mutant(
        "gradients of the probe left",
        "sampling/preflight.py",
        ("                parameter.grad = gradient\n", "                pass\n"),
        tests=(UNTOUCHED,),
    ),
    mutant(
        "training flags forgotten",
        "losses/problem.py",
        ("            part.training = flag\n", "            pass\n"),
        tests=(UNTOUCHED,),
    ),
    mutant("generator not put back", "rng.py", ("torch.set_rng_state(of_torch)", "pass"), tests=(UNTOUCHED,)),
    mutant(
        "autocast left on",
        "sampling/context.py",
        ("torch.autocast(device.type, enabled=False)", "torch.enable_grad()"),
        tests=(UNTOUCHED,),
    ),
    mutant(
        "diverged chain kept",
        "sampling/chain.py",
        ("            if why:\n", "            if False:\n"),
        tests=("sampling/test_divergence.py",),
    ),
    mutant(
        "a stop that handlers of errors swallow",
        "distributed/threads.py",
        ("class StoppedError(BaseException)", "class StoppedError(RuntimeError)"),
        tests=("distributed/test_threads.py",),
    ),
    mutant(
        "other threads go on after an error",
        "distributed/threads.py",
        ("                steps.stop()\n                pool", "                pool"),
        tests=("distributed/test_threads.py",),
    ),
    mutant(
        "products with a Hessian not counted",
        "curvature/subsample.py",
        ("                steps.tick(len(products) // len(parts))\n", ""),
        tests=("estimation/test_untouched.py",),
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
        tests=("distributed/test_ranks.py",),
    ),
    mutant(
        "ties ranked by position",
        "statistics/diagnostics.py",
        ("rankdata(scores.cpu().numpy(), axis=0)", 'rankdata(scores.cpu().numpy(), "ordinal", axis=0)'),
        tests=("statistics/test_diagnostics.py",),
    ),
    mutant(
        "integrated influence with the wrong sign",
        "results/integrated.py",
        ("each[:, added] += _whole(z", "each[:, added] -= _whole(z"),
        tests=("results/test_integrated.py",),
    ),
    mutant(
        "one scale for all queries of a snapshot",
        "results/integrated.py",
        ("z = values[:, added] / scale[added]", "z = values[:, added] / scale[added].mean()"),
        tests=("results/test_integrated.py",),
    ),
    mutant(
        "errors of the sum in the units of the snapshots",
        "results/integrated.py",
        ("np.float64)[:, added] / scale[added], _QUANTUM", "np.float64)[:, added], _QUANTUM"),
        tests=("results/test_integrated.py",),
    ),
    mutant(
        "repeated columns counted again",
        "results/integrated.py",
        ("new = ~(self.digests == digest).all(2).any(0)", "new = np.ones(len(digest), bool)"),
        tests=("results/test_integrated.py",),
    ),
    mutant(
        "the halves of a sum are its beginning and its end",
        "results/integrated.py",
        ("if len(self.steps) % 2 else [self.total]", "if len(self.steps) > 2 else [self.total]"),
        tests=("results/test_integrated.py",),
    ),
    mutant(
        "sums that are not rounded to a quantum",
        "results/integrated.py",
        ("return np.round(values / quantum) * quantum", "return values"),
        tests=("results/test_integrated.py",),
    ),
    mutant(
        "a dump that was replaced is not seen",
        "archive/read/integrated_file.py",
        ("own = list(zip(self.steps, self.created, strict=True))", "own = [(step, '') for step in self.steps]"),
        ("return own == [(each.step, each.created)", "return own == [(each.step, '')"),
        tests=("archive/write/test_integrated_file.py",),
    ),
    mutant(
        "the sum of all train examples for some of them",
        "archive/read/over_training.py",
        (" or not np.array_equal(at.positions[0], np.arange(at.shape[0]))", ""),
        tests=("archive/read/test_over_training.py",),
    ),
    mutant(
        "a file of the sum that was replaced is read on",
        "archive/read/integrated_file.py",
        ("if _described(file, of.path) != of:", "if False:"),
        tests=("archive/read/test_integrated_file.py",),
    ),
    mutant(
        "columns of no snapshot begin with NaN",
        "archive/read/integrated_file.py",
        ("(np.where(known, values, 0.0) for values in sums)", "sums"),
        tests=("archive/write/test_integrated_file.py",),
    ),
    mutant(
        "moments at equal distances of t where nothing says when",
        "trainer/schedule.py",
        ("(k / count) ** 2", "(k / count)"),
        tests=("callback/test_triggers.py",),
    ),
    mutant(
        "a failure to write the sum stops the training",
        "trainer/outputs.py",
        ("    except Exception as error:\n        why", "    except ZeroDivisionError as error:\n        why"),
        tests=("callback/test_integrated.py",),
    ),
    mutant(
        "the tab takes a file of the sum that is not of the dumps",
        "tensorboard/plugin/over_training.py",
        ("if known is None or not known.begins(dumps):", "if known is None:"),
        tests=("tensorboard/plugin/test_over_training.py",),
    ),
    mutant(
        "the tab follows a link to a file of the sum",
        "tensorboard/plugin/over_training.py",
        ("str(regular(path))", "str(path)"),
        tests=("tensorboard/plugin/test_over_training.py",),
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
        tests=("trainer/test_run_folder.py",),
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
        ("batches[0]).detach(), seed) for seed in (0, 1)]", "batches[0]).detach(), seed) for seed in (0, 0)]"),
        tests=("losses/derived/test_randomness.py",),
    ),
    mutant(
        "a random batch is told as a random loss",
        "losses/derived/randomness.py",
        ("if digest(batches[0]) != digest(batches[1]):", "if False:"),
        tests=("losses/derived/test_randomness.py",),
    ),
    mutant(
        "the whole module is what needs training mode",
        "losses/derived/modes.py",
        ("len(inside) for path", "-len(inside) for path"),
        tests=("losses/derived/test_modes.py",),
    ),
    mutant(
        "an error in both modes is one of evaluation mode",
        "losses/derived/modes.py",
        ("return None if found is None else TrainingPart(found, error)", 'return TrainingPart(found or "", error)'),
        tests=("losses/derived/test_modes.py",),
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
        tests=("offline/test_hook_state.py",),
    ),
    mutant(
        "a loader with batches of some rows draws all",
        "trainer/drawn_rows.py",
        ("sampler = batching.sampler if plain", "sampler = loader.sampler if plain"),
        tests=("trainer/test_drawn_rows.py",),
    ),
    mutant(
        "weights without replacement are shares",
        "trainer/drawn_rows.py",
        ("if not sampler.replacement:", "if False:"),
        tests=("trainer/test_drawn_rows.py",),
    ),
    mutant(
        "the first epoch of a sampler twice",
        "trainer/drawn_rows.py",
        ("(_epoch(copied, epoch, ", "(_epoch(copied_sampler(sampler, dataset), 0, "),
        tests=("trainer/test_drawn_rows.py",),
    ),
    mutant(
        "batches that are dropped count",
        "trainer/drawn_rows.py",
        ("if batching.drop_last:", "if False:"),
        tests=("trainer/test_drawn_rows.py",),
    ),
    mutant(
        "batches are prepared once for all snapshots",
        "trainer/prepared.py",
        ("return before != self._before", "return False"),
        tests=("trainer/test_prepared.py",),
    ),
    mutant(
        "a drive is another machine",
        "storage/places.py",
        ("[a-zA-Z][a-zA-Z0-9+.-]+)", "[a-zA-Z][a-zA-Z0-9+.-]*)"),
        tests=("storage/test_places.py",),
    ),
    mutant(
        "a cache of a bucket is a folder",
        "storage/places.py",
        ("return local_path(rest, name, access=access)", "return Path(text)"),
        tests=("storage/test_places.py",),
    ),
    mutant(
        "spaces of a URL stay as they are written",
        "storage/places.py",
        ('Path(url2pathname(f"/{rest}"))', 'Path(f"/{rest}")'),
        tests=("storage/test_places.py",),
    ),
    mutant("a mask is turned", "data/rows.py", ("if kept)", "if not kept)"), tests=("data/test_rows.py",)),
    mutant(
        "numbers in floating point are rows",
        "data/rows.py",
        ("isinstance(value, numbers.Integral)", "isinstance(value, numbers.Real)"),
        tests=("data/test_rows.py",),
    ),
    mutant(
        "a column of rows is a dataset",
        "data/rows.py",
        ("found.shape[1] == 1 and", "found.shape[1] == 0 and"),
        tests=("data/test_rows.py",),
    ),
    mutant(
        "rare examples are not looked at",
        "data/variety.py",
        ("[: count // 2]", "[:0]"),
        tests=("data/test_variety.py",),
    ),
    mutant(
        "labels of uint8 are a mask",
        "losses/derived/intercept.py",
        ("target = target.long()", "target = target"),
        tests=("callback/test_equivalences.py",),
    ),
    mutant(
        "losses of queries are not checked",
        "trainer/problem.py",
        (
            "for further in checked[1:]:\n            check_rows",
            "for further in checked[2:]:\n            check_rows",
        ),
        tests=("losses/derived/test_rows_in_batches.py",),
    ),
    mutant(
        "memory that runs out is another way to compute",
        "model/devices.py",
        ("        raise error\n", "        pass\n"),
        tests=("model/test_devices.py",),
    ),
    mutant(
        "rounding of memorized examples is a factor",
        "curvature/gradients.py",
        ("if problem.sums_elements else 1.0", ""),
        tests=("curvature/test_gradients.py",),
    ),
    mutant(
        "gradients are checked along themselves alone",
        "sampling/preflight.py",
        ("if error > MOST_ERROR:", "if False:"),
        tests=("sampling/test_preflight.py",),
    ),
    mutant(
        "surrogate with noise of its own",
        "sampling/controlled.py",
        ("alpha=-0.5 * step).add_(noise)", "alpha=-0.5 * step).add_(self._normal(index + 1000) * step**0.5)"),
        tests=("sampling/test_controlled.py",),
    ),
    mutant(
        "surrogate with a start of its own",
        "sampling/controlled.py",
        ("self.surrogate = self.chain.clone()", "self.surrogate = torch.zeros_like(self.chain)"),
        tests=("sampling/test_controlled.py",),
    ),
    mutant(
        "start without the first noise",
        "sampling/controlled.py",
        ("0.5 * math.sqrt(step) * self.standard + outside", "outside"),
        tests=("sampling/test_controlled.py",),
    ),
    mutant(
        "noise of plain Euler steps",
        "sampling/controlled.py",
        ("(self.standard + following).mul_(0.5 * math.sqrt(step))", "following.mul(math.sqrt(step))"),
        tests=("sampling/test_controlled.py",),
    ),
    mutant(
        "sign of the correction",
        "statistics/correction.py",
        ("(chain.T @ chain - surrogate.T @ surrogate)", "(surrogate.T @ surrogate - chain.T @ chain)"),
        tests=("statistics/test_correction.py",),
    ),
    mutant(
        "correction also where chain and surrogate part",
        "sampling/covariances.py",
        ("if share <= MOST_RESIDUAL else 0.0", ""),
        tests=("sampling/test_controlled.py",),
    ),
    mutant(
        "agreement of a chain with itself",
        "statistics/correction.py",
        ("(whole - np.trace(products)) / (chains * (chains - 1))", "whole / chains**2"),
        tests=("statistics/test_correction.py",),
    ),
    mutant(
        "softmax without its mean",
        "curvature/outputs.py",
        ("(scaled - probability * scaled.sum(classes, keepdim=True))", "scaled"),
        tests=("curvature/test_outputs.py",),
    ),
    mutant(
        "calls inside the network are outputs",
        "curvature/outputs.py",
        ("None if slope is None or slope.requires_grad else slope", "slope"),
        tests=("curvature/test_outputs.py",),
    ),
    mutant(
        "strata without their shares",
        "curvature/strata.py",
        ("Stratum(part, found[number], len(part) / size)", "Stratum(part, found[number], 1 / len(parts))"),
        tests=("curvature/test_gauss_newton.py",),
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
    os.environ |= {"PYTHONPATH": str(folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
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
