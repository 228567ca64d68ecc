# ruff: noqa: T201
"""Break the engine in one way after another, and see the tests notice: python tests/mutants.py [words of a name ...]

Each mutant is one wrong line that a person might write. The script patches it into a copy of the package, runs the
tests that ought to see it until one fails, and prints a table. It exits with 1 if any mutant survives, or if a patch
no longer fits the source (then mend it here), or if the tests fail without a mutant.
"""

import contextlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

WORKERS = 2
# Of others, and slow to import: the process that each mutant's is forked of has them already.
LOADED = ["pytest", "hypothesis", "beartype", "torch", "lightning", "torchmetrics", "datasets", "xarray", "matplotlib"]
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
    """A name, a file of the package, the texts to exchange there, and the tests that ought to fail."""

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
        ("factor.turn(found, back=True)", "factor.turn(found)"),
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
        ("hessians_along(problem, backend, lowered, span", "hessians_along(problem, backend, directions, span"),
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
        ("wide = _widened(draws, chain_mean_covariance(parts, centring)), 1.0", "wide = 1.0, 1.0"),
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
        "loss scale never lowered", "sampling/sgld.py", ("return self.scale <= 1 or", "return True or"), tests=(HALF,)
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
        ("if abs(best - slope) > _TOLERANCE * slope:", "if False:"),
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
        "Control-C acts while a claim is let go of",
        "offline/replay.py",
        ("with defer_interrupts(), self._claimed", "with self._claimed"),
        tests=("offline/test_attribute.py",),
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
        ("self.total[:, added] += ", "self.total[:, added] -= "),
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
]


def run_tests(folder: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """The exit status of pytest and what it said, in a process that has not imported the package yet."""
    import pytest

    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = str(folder)
    options = ["-q", "-x", "--no-header", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = pytest.main([*options, *(str(folder / "tests" / test) for test in tests)])
    return int(status), said.getvalue()


def first_failure(output: str) -> str:
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split("::")[-1].split(" - ")[0] if failed else ""


def mutated(folder: Path, one: Mutant) -> str:
    """The source of the mutant's file with its patches; ValueError where one of them does not fit."""
    source = (folder / "bif_lightning" / one.file).read_text()
    for old, new in one.patches:
        if old not in source:
            raise ValueError(f"the patch does not fit {one.file}: {old!r}")
        source = source.replace(old, new)
    return source


def judge(base: Path, one: Mutant) -> tuple[bool, str, float]:
    """Whether the mutant was noticed, by which test, and in how many seconds."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = shutil.copytree(base, Path(name) / "project")
        try:
            source = mutated(base, one)
        except ValueError as error:
            return False, str(error), 0.0
        (folder / "bif_lightning" / one.file).write_text(source)
        status, said = run_tests(folder, one.tests)
    # 1: tests failed; anything else is a break that no test had to notice, such as a syntax error.
    return status == 1, first_failure(said) if status == 1 else said[-300:], time.perf_counter() - started


def copy_project(folder: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("bif_lightning", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(WORKERS, mp_context=context, max_tasks_per_child=1) as pool,
    ):
        base = Path(name)
        copy_project(base)
        files = sorted({test for one in chosen for test in one.tests})
        for status, said in pool.map(partial(run_tests, base), [(test,) for test in files]):
            if status != 0:
                print(said[-3000:], "\nThe tests fail without any mutant.")
                return 1
        survivors = 0
        for one, (killed, how, seconds) in zip(chosen, pool.map(partial(judge, base), chosen), strict=True):
            print(f"{'killed' if killed else 'SURVIVED':8}  {one.name:36}  {seconds:5.1f} s  {how}", flush=True)
            survivors += not killed
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
