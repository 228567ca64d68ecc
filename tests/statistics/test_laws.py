"""Laws that hold for any draws, examples and settings."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.utils.data import Subset, TensorDataset

from bif_lightning.config import SGLD, Chains, Pairs, Subspace
from bif_lightning.estimation.estimate import estimate
from bif_lightning.statistics.draws import from_draws
from bif_lightning.statistics.influence import correlation, influence, products
from bif_lightning.statistics.moments import Moments, merge, stack
from targets import Regression, half_square

pytestmark = pytest.mark.law

quick = settings(deadline=None, max_examples=40)
VALUES = st.floats(-100, 100, width=32)


def draws(*shape: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, shape, elements=VALUES)


def moments_of(values: np.ndarray) -> Moments:
    return from_draws(torch.from_numpy(values[:, :3]), torch.from_numpy(values[:, 3:]))


def same(one: Moments, other: Moments) -> None:
    for name, value in vars(one).items():
        np.testing.assert_allclose(getattr(other, name), value, rtol=1e-9, atol=1e-7, err_msg=name)


def joined(*parts: Moments) -> Moments:
    return merge(stack(list(parts)))


@quick
@given(draws(4, 5), draws(1, 5), draws(7, 5))
def test_merging_is_associative_and_equal_to_one_batch(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    one, two, three = moments_of(a), moments_of(b), moments_of(c)
    whole = moments_of(np.concatenate([a, b, c]))
    same(whole, joined(one, two, three))
    same(whole, joined(joined(one, two), three))
    same(whole, joined(one, joined(two, three)))
    same(whole, joined(three, one, two))


@quick
@given(draws(6, 5), st.permutations(range(6)))
def test_the_order_of_draws_does_not_matter(a: np.ndarray, order: list[int]) -> None:
    same(moments_of(a), moments_of(a[order]))


def matrices(train: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Influence, its error, and correlation of draws [chain, draw, ...], in batches of three."""
    chains = [
        stack([from_draws(a, b) for a, b in zip(losses.split(3), f.split(3), strict=True)])
        for losses, f in zip(torch.from_numpy(train), torch.from_numpy(columns), strict=True)
    ]
    found = products(stack(chains), "chain")
    entries = influence(found)
    return entries.value, entries.standard_error, correlation(found.standardized())[0].value


@quick
@given(st.integers(0, 10**6), draws(4), draws(3), st.floats(0.01, 100))
def test_shifts_do_nothing_scales_scale_and_signs_flip(
    seed: int, shift: np.ndarray, other: np.ndarray, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    train, columns = rng.normal(size=(2, 9, 3)), rng.normal(size=(2, 9, 4))
    b, e, r = matrices(train, columns)
    for found in (matrices(train + other, columns + shift), matrices(train, columns + shift)):
        for value, expected in zip(found, (b, e, r), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-7, atol=1e-9)
    for factor in (scale, -scale):
        for found in (matrices(train, columns * factor), matrices(train * factor, columns)):
            for value, expected in zip(found, (b * factor, e * scale, r * np.sign(factor)), strict=True):
                np.testing.assert_allclose(value, expected, rtol=1e-8, atol=1e-9)


@quick
@given(st.integers(0, 10**6), st.permutations(range(5)))
def test_permuted_examples_are_permuted_rows(seed: int, order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    train, columns = rng.normal(size=(2, 9, 5)), rng.normal(size=(2, 9, 4))
    for found, expected in zip(matrices(train[..., order], columns), matrices(train, columns), strict=True):
        np.testing.assert_allclose(found, expected[order], rtol=1e-10, atol=1e-13)


@quick
@given(st.integers(0, 10**6))
def test_train_by_train_is_symmetric_with_variances_on_its_diagonal(seed: int) -> None:
    train = np.random.default_rng(seed).normal(size=(2, 9, 5))
    b, e, r = matrices(train, train)
    for values in (b, e, r):
        np.testing.assert_allclose(values, values.T, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(-np.diag(b), train.var(1, ddof=1).mean(0), rtol=1e-10)
    assert np.linalg.eigvalsh(-b).min() > -1e-9
    assert np.abs(r).max() <= 1


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 100), st.permutations(range(6)))
def test_permuting_the_queries_of_an_estimate_permutes_its_columns(seed: int, order: list[int]) -> None:
    world, query = Regression.random(5, 2, seed), Regression.random(6, 2, seed + 1)
    sampler = SGLD(step_size=0.02, inverse_temperature=5.0, localization=3.0)
    chains = Chains(num_chains=1, num_draws=5, batch_size=3, seed=seed)

    def run(queries: Subset | TensorDataset) -> np.ndarray:
        return estimate(world.model(), half_square, world.data(), queries, sampler=sampler, chains=chains).influence

    permuted, whole = run(Subset(query.data(), order)), run(query.data())
    np.testing.assert_allclose(permuted, whole[:, order], rtol=1e-5, atol=1e-7)


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 100))
def test_negating_the_loss_of_the_queries_flips_the_sign(seed: int) -> None:
    """Both sides have the same loss function, so the scale of the loss enters the influence twice."""
    world = Regression.random(5, 2, seed)
    chains = Chains(num_chains=1, num_draws=6, batch_size=3, seed=seed)

    def run(factor: float) -> np.ndarray:
        sampler = SGLD(step_size=0.02, inverse_temperature=5.0 / factor, localization=3.0)
        return estimate(
            world.model(), lambda m, b: factor * half_square(m, b), world.data(), sampler=sampler, chains=chains
        ).influence

    np.testing.assert_allclose(run(4.0), 16 * run(1.0), rtol=1e-4, atol=1e-6)


NOT_POSITIVE = st.one_of(st.floats(max_value=0), st.sampled_from([float("nan"), float("inf"), True, "1", None]))
NEGATIVE = st.one_of(
    st.floats(max_value=0, exclude_max=True), st.sampled_from([float("nan"), float("inf"), False, "1", None])
)
NOT_POSITIVE_OR_NONE = NOT_POSITIVE.filter(lambda value: value is not None)
BELOW_ONE = st.one_of(st.integers(max_value=0), st.sampled_from([1.5, 2.0, True, "3", None]))
BELOW_ZERO = st.one_of(st.integers(max_value=-1), st.sampled_from([0.5, False, "3", None]))
NOT_DECAY = st.one_of(st.floats(min_value=1), st.floats(max_value=0, exclude_max=True), st.sampled_from([None, True]))
WRONG = {
    SGLD: {
        "step_size": NOT_POSITIVE, "rmsprop_stability": NOT_POSITIVE, "inverse_temperature": NEGATIVE,
        "localization": NEGATIVE, "rmsprop_decay": NOT_DECAY, "preconditioner": st.sampled_from(["adam", "", 0]),
        "gradient": st.sampled_from(["svrg", None, ""]), "num_directions": st.sampled_from([0, -1, 2.0, True, "3"]),
    },
    Pairs: {"scale": NOT_POSITIVE},
    Subspace: {
        "num_directions": BELOW_ONE, "span": NOT_POSITIVE,
        "inverse_temperature": NOT_POSITIVE_OR_NONE, "localization": NOT_POSITIVE_OR_NONE,
        "metric": st.sampled_from(["", None, "fisher"]),
    },
    Chains: {
        "num_chains": BELOW_ONE, "num_draws": BELOW_ONE, "thinning": BELOW_ONE, "batch_size": BELOW_ONE,
        "num_threads": BELOW_ONE,
        "burn_in": BELOW_ZERO, "seed": BELOW_ZERO, "centring": st.sampled_from(["", None, "both"]),
        "storage": st.sampled_from(["disk", None]), "ridge": st.sampled_from([0, -1.0, float("nan"), "best", True]),
    },
}  # fmt: skip
RIGHT = {
    SGLD: SGLD(step_size=0.1, inverse_temperature=1.0, localization=1.0),
    Pairs: Pairs(),
    Subspace: Subspace(),
    Chains: Chains(),
}


@quick
@given(st.sampled_from([(kind, name) for kind, names in WRONG.items() for name in names]), st.data())
def test_settings_out_of_range_are_refused_by_name(case: tuple[type, str], data: st.DataObject) -> None:
    kind, name = case
    value = data.draw(WRONG[kind][name])
    with pytest.raises(ValueError, match=rf"^{name} is .*; it must be"):
        dataclasses.replace(RIGHT[kind], **{name: value})


def test_every_number_of_the_settings_is_checked() -> None:
    unchecked = {"common_random_numbers"}
    for kind, names in WRONG.items():
        assert {field.name for field in dataclasses.fields(kind)} == set(names) | (
            unchecked & set(RIGHT[kind].__dict__)
        )
