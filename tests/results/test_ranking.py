"""Means over queries, their bound, and q-values, against values computed by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bif_lightning.results.ranking import aggregate, q_values

pytestmark = pytest.mark.exact


def test_means_over_queries_leave_out_what_is_unknown():
    nan = np.nan
    effects = np.array([[0.5, -1.5, -2.0], [nan, 2.0, 0.0], [nan, nan, nan]])
    errors = np.array([[0.3, 0.6, 0.9], [0.7, 0.1, 0.3], [nan, nan, nan]])
    found = aggregate(effects, errors)
    np.testing.assert_allclose(found.effect, [-1.0, 1.0, nan])
    np.testing.assert_allclose(found.standard_error, [0.6, 0.2, nan])
    np.testing.assert_allclose(found.share_hurt, [2 / 3, 0.0, nan])


def test_an_unknown_error_of_one_query_leaves_that_of_the_mean_unknown():
    found = aggregate(np.array([[1.0, 3.0]]), np.array([[0.1, np.nan]]))
    assert found.effect.tolist() == [2.0]
    assert np.isnan(found.standard_error).all()


def test_q_values_by_hand():
    """p = 0.0027, 0.0455, 0.3173, 1 by the normal law, times 4 over their rank."""
    effect = np.array([1.0, -2.0, 0.0, 3.0, np.nan, 5.0])
    error = np.array([1.0, 1.0, 1.0, 1.0, 1.0, np.nan])
    expected = [0.3173105 * 4 / 3, 0.0455003 * 4 / 2, 1.0, 0.0026998 * 4, np.nan, np.nan]
    np.testing.assert_allclose(q_values(effect, error), expected, atol=1e-6)


def test_a_q_value_is_at_most_that_of_a_larger_p():
    """Of p = 0.04, 0.0455 the first would have 0.08 by itself; what is found with it has 0.0455."""
    z = np.array([2.0537489, 2.0])
    np.testing.assert_allclose(q_values(z, np.ones(2)), [0.0455003, 0.0455003], atol=1e-6)


def test_errors_of_zero_are_exact_effects():
    assert q_values(np.array([1.0, 0.0]), np.zeros(2)).tolist() == [0.0, 1.0]
    assert q_values(np.array([]), np.array([])).tolist() == []


@pytest.mark.law
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=40))
def test_q_values_are_those_of_the_definition(z):
    q = q_values(np.array(z), np.ones(len(z)))
    import scipy.stats

    expected = scipy.stats.false_discovery_control(2 * scipy.stats.norm.sf(np.abs(z)))
    np.testing.assert_allclose(q, expected, atol=1e-12)
