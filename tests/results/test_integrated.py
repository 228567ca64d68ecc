"""Influence over a whole training, where retraining can be written down: a linear model, full-batch gradient descent.

With n examples of loss l_i = ½(x_i·w − y_i)², g_i(t) = r_i(t)·x_i its gradient at w_t, H = mean of x·xᵀ and step η,

    w_{t+1} = w_t − (η/n)·Σ_i (1 + ε_{i,t})·g_i(t)

is the training in which example i weighs more at step t. The output f_j of a query then is affine in ε_{i,t}:

    f_j(w_{t+1+s}) moves by E[i, j, t, s] = −(η/n)·x_jᵀ(I − ηH)^s·g_i(t)   for ε_{i,t} = 1,

and the influence of one snapshot, cold and with the pull λ = (1 − ρ)/(ρη), is that effect, discounted over s:

    B_t[i, j] = −g_j(t)ᵀ(H + λI)⁻¹g_i(t) = n·ρ·r_j(t)·Σ_{s≥0} ρ^s·E[i, j, t, s].

So the integrated influence over all steps is the effect of more weight during the whole training on the area under the
query's curve of outputs, each step on its own scale:

    I[i, j] = Σ_t ω_t[j]·Σ_{s≥0} ρ^s·E[i, j, t, s],   ω_t[j] = n·ρ·r_j(t)/sd_i(B_t[i, j]).

The effect on the *last* loss, U[i, j] = r_j(T)·Σ_t E[i, j, t, T−1−t], takes of each step one s, not all. Where H = h·I,
which a good preconditioner comes near, both are sums of the same columns, with other weights.
"""

import numpy as np
import pytest

from bif_lightning.results.integrated import (
    COUNTED,
    REPEATED,
    WITHOUT_SCALE,
    IntegratedInfluence,
    rank_agreement,
    top_overlap,
)

pytestmark = pytest.mark.exact

N, QUERIES, WEIGHTS, STEPS, RATE, DISCOUNT = 8, 3, 4, 12, 0.3, 0.6
HORIZON = 90  # 0.6^90 is below rounding
PULL = (1 - DISCOUNT) / (DISCOUNT * RATE)


@pytest.fixture
def problem(rng):
    return Problem(rng.normal(size=(N, WEIGHTS)), rng.normal(size=N), *queries(rng), rng.normal(size=WEIGHTS))


def queries(rng):
    return rng.normal(size=(QUERIES, WEIGHTS)), rng.normal(size=QUERIES)


class Problem:
    """A linear model and its training."""

    def __init__(self, x, y, query_x, query_y, start):
        self.x, self.y, self.query_x, self.query_y, self.start = x, y, query_x, query_y, start
        self.hessian = x.T @ x / len(x)

    def path(self, extra=None, steps=STEPS):
        """w_0 ... w_T of a training with these further weights, [step, train]."""
        path = [self.start]
        for t in range(steps):
            more = 0 if extra is None or t >= len(extra) else extra[t]
            residual = self.x @ path[-1] - self.y
            path.append(path[-1] - RATE / len(self.x) * self.x.T @ ((1 + more) * residual))
        return np.array(path)

    def snapshot(self, w, pull=PULL):
        """B_t: the closed form, cold, times nβ."""
        gradients = (self.x @ w - self.y)[:, None] * self.x
        of_queries = (self.query_x @ w - self.query_y)[:, None] * self.query_x
        return -gradients @ np.linalg.solve(self.hessian + pull * np.eye(WEIGHTS), of_queries.T)

    def impulse(self, step, example, steps):
        """Outputs of the queries when an example counts twice at one step, less those of the training as it was."""
        extra = np.zeros((STEPS, N))
        extra[step, example] = 1
        return (self.path(extra, steps) - self.path(steps=steps)) @ self.query_x.T

    def final_effect(self, steps=STEPS):
        """U by complex steps: d loss_j(w_T)/dε_i, with ε_i at every step."""
        rows = []
        for i in range(N):
            extra = np.zeros((steps, N), complex)
            extra[:, i] = 1e-30j
            residual = self.query_x @ self.path(extra, steps)[-1] - self.query_y
            rows.append((0.5 * residual**2).imag / 1e-30)
        return np.array(rows)


def summed(matrices, errors=None):
    found = IntegratedInfluence.zeros(*matrices[0].shape)
    for step, matrix in enumerate(matrices):
        found.push(step, matrix, np.zeros_like(matrix) if errors is None else errors[step])
    return found


def test_it_is_the_discounted_effect_of_retraining_on_the_outputs_of_the_queries(problem):
    path, steps = problem.path(), STEPS + HORIZON
    snapshots = [problem.snapshot(w) for w in path[:-1]]
    expected = np.zeros((N, QUERIES))
    for t, matrix in enumerate(snapshots):
        weight = N * DISCOUNT * (problem.query_x @ path[t] - problem.query_y) / matrix.std(0)
        for i in range(N):
            moved = problem.impulse(t, i, steps)[t + 1 :]
            expected[i] += weight * (DISCOUNT ** np.arange(len(moved)) @ moved)
    # The sum is kept in multiples of 2^-36, half of which each snapshot may be off.
    np.testing.assert_allclose(summed(snapshots).influence, expected, rtol=0, atol=STEPS * 2.0**-37 + 1e-12)


def test_the_effect_on_the_last_loss_is_the_unrolled_sum(problem):
    path, keep = problem.path(), np.eye(WEIGHTS) - RATE * problem.hessian
    unrolled = np.zeros((N, QUERIES))
    for t in range(STEPS):
        gradients = (problem.x @ path[t] - problem.y)[:, None] * problem.x
        unrolled -= RATE / N * gradients @ np.linalg.matrix_power(keep, STEPS - 1 - t) @ problem.query_x.T
    unrolled *= problem.query_x @ path[-1] - problem.query_y
    np.testing.assert_allclose(problem.final_effect(), unrolled, rtol=1e-10, atol=1e-14)


def test_in_a_metric_that_makes_the_curvature_isotropic_it_is_a_sum_of_the_same_columns(problem, rng):
    directions, _ = np.linalg.qr(rng.normal(size=(N, WEIGHTS)))
    h = 2.0
    white = Problem(directions * np.sqrt(N * h), problem.y, problem.query_x, problem.query_y, problem.start)
    path, expected = white.path(), 0
    for t in range(STEPS):
        matrix = white.snapshot(path[t])
        now, last = (white.query_x @ w - white.query_y for w in (path[t], path[-1]))
        weight = RATE / N * (1 - RATE * h) ** (STEPS - 1 - t) * (h + PULL) * last / now
        expected = expected + weight * matrix.std(0) * summed([matrix]).influence
    np.testing.assert_allclose(white.final_effect(), expected, rtol=1e-8, atol=1e-11)


def test_at_the_end_of_a_long_training_it_ranks_as_retraining_does(problem):
    problem.start = np.linalg.lstsq(problem.x, problem.y)[0]
    snapshots = [problem.snapshot(w, pull=0.0) for w in problem.path()]
    exact = summed(snapshots).influence
    effect = problem.final_effect(steps=4000)  # to the minimum of the new weights
    np.testing.assert_allclose(exact / exact.std(0), effect / effect.std(0), rtol=1e-7, atol=1e-9)


def test_the_order_of_snapshots_changes_no_bit_of_a_sum(rng):
    matrices = [rng.normal(size=(20, 4)) * 10.0 ** rng.integers(-6, 6) for _ in range(9)]
    errors = [abs(each) / 3 for each in matrices]
    whole, other = summed(matrices, errors), IntegratedInfluence.zeros(20, 4)
    for step in rng.permutation(9):
        other.push(int(step), matrices[step], errors[step])
    for name in ("influence", "standard_error", "moment_standard_error", "counts"):
        np.testing.assert_array_equal(getattr(other, name), getattr(whole, name))


def test_halves_are_the_sums_over_every_second_snapshot_bit_for_bit(rng):
    matrices = [rng.normal(size=(20, 4)) for _ in range(7)]
    matrices[3][:, 1] = 0.5
    found = summed(matrices)
    for half, of in zip(found.halves, (matrices[1::2], matrices[::2]), strict=True):
        np.testing.assert_array_equal(half, summed(of).influence)
    np.testing.assert_array_equal(found.rank_agreement, rank_agreement(*found.halves))
    one = summed(matrices[:1])
    assert np.isnan(one.halves[0]).all()
    np.testing.assert_array_equal(one.halves[1], one.influence)


def test_a_query_alone_has_the_bits_that_it_has_among_others(rng):
    matrix = rng.normal(size=(1001, 7)).astype(np.float32)
    for column in range(7):
        alone = summed([matrix[:, [column]]]).influence
        np.testing.assert_array_equal(summed([matrix]).influence[:, [column]], alone)


def test_a_step_counts_once_and_repeated_weights_change_no_ranking(rng):
    matrices = [rng.normal(size=(20, 4)) for _ in range(3)]
    found = summed([*matrices, matrices[2], matrices[2]])  # training stood still
    once = summed(matrices)
    np.testing.assert_array_equal(found.influence, once.influence)
    np.testing.assert_array_equal(found.status, [[COUNTED] * 4] * 3 + [[REPEATED] * 4] * 2)
    np.testing.assert_array_equal(found.counts, [3] * 4)
    again = once.push(2, rng.normal(size=(20, 4)), np.zeros((20, 4)))
    assert again.tolist() == [REPEATED] * 4, "a resumed run took step 2 again"
    assert once.steps == [0, 1, 2]
    np.testing.assert_array_equal(found.influence, once.influence)
    ranks = [each.argsort(0) for each in (summed([matrices[0]]).influence, summed([matrices[0]] * 5).influence)]
    np.testing.assert_array_equal(*ranks)


def test_errors_are_in_the_units_of_the_sum(rng):
    matrices = [scale * rng.normal(size=(30, 2)) for scale in (1.0, 1e-3, 50.0)]
    errors = [abs(each) * rng.uniform(0.1, 0.2) for each in matrices]
    found = summed(matrices, errors)
    scaled = [each / matrix.std(0) for each, matrix in zip(errors, matrices, strict=True)]
    np.testing.assert_allclose(found.standard_error, sum(scaled), atol=3 * 2.0**-37, rtol=1e-12)
    z = np.array([each / each.std(0) for each in matrices])
    np.testing.assert_allclose(found.moment_standard_error, np.sqrt(3) * z.std(0, ddof=1), rtol=1e-6, atol=1e-6)
    assert np.isnan(summed(matrices[:1], errors[:1]).moment_standard_error).all()


def test_columns_without_a_scale_are_left_out_and_named(rng):
    matrix, error = rng.normal(size=(10, 4)), np.zeros((10, 4))
    matrix[:, 1], matrix[3, 2], matrix[5, 3] = 0.0, np.inf, np.nan
    found = summed([matrix])
    other = IntegratedInfluence.zeros(10, 4)
    assert other.push(0, matrix, error).tolist() == [COUNTED, WITHOUT_SCALE, WITHOUT_SCALE, COUNTED]
    assert found.counts.tolist() == [1, 0, 0, 1]
    assert np.isnan(found.influence[:, [1, 2]]).all()
    assert np.isnan(found.standard_error[:, [1, 2]]).all()
    known = np.delete(matrix[:, 3], 5)
    np.testing.assert_allclose(np.delete(found.influence[:, 3], 5), known / known.std(), atol=2.0**-37, rtol=1e-12)
    assert np.isnan(found.influence[5, 3])


def test_stability_of_a_ranking():
    one = np.arange(12.0)[:, None] * [1, 1, 1, 0]
    other = np.stack([one[:, 0] ** 3, -one[:, 0], np.r_[0:3, 3:9][[*range(9), 0, 1, 2]], one[:, 0]], 1)
    assert rank_agreement(one, other)[:2].tolist() == pytest.approx([1, -1])
    assert np.isnan(rank_agreement(one, other)[3])
    assert top_overlap(one, other)[:2].tolist() == [1, 0]
    assert np.isnan(top_overlap(one, other)[3])
    assert np.isnan(top_overlap(one[:3], other[:3])).all()
    ties = np.array([[1.0], [1.0], [2.0], [3.0]])
    assert rank_agreement(ties, np.array([[1.0], [2.0], [3.0], [4.0]]))[0] == pytest.approx(0.9486832980505138)
