"""Flips, peaks and troughs on curves where they are known, and how often chance alone shows one."""

import math

import numpy as np
import pytest
from scipy import stats

from archive_examples import make_estimate, make_samples
from bif_lightning.archive.read import open_run, trajectory
from bif_lightning.archive.read.queries import changes
from bif_lightning.archive.write import write_dump, write_samples
from bif_lightning.results.bands import found_changes, simultaneous

pytestmark = pytest.mark.exact


def found(values: list[float], half: float = 1.0, steps: list[int] | None = None) -> list[tuple[str, int, int, int]]:
    value = np.array(values)
    got = found_changes(steps or list(range(len(values))), value, value - half, value + half)
    for change in got:
        assert change["value"] == values[(steps or list(range(len(values)))).index(change["step"])]
    return [(change["kind"], change["step"], change["before"], change["after"]) for change in got]


def test_a_flip_is_from_one_known_sign_to_the_other():
    assert found([2, 2, -2]) == [("flip", 2, 1, 2)]
    assert found([2, 0.5, -0.5, -2, -2]) == [("flip", 3, 0, 3)]  # in between the sign is not known
    assert found([-2, 0, 2, 0, -2]) == [("flip", 2, 0, 2), ("peak", 2, 0, 4), ("flip", 4, 2, 4)]
    assert found([2, 1.5, 0.9, -0.9, 0.9]) == []
    assert found([0.5, -0.5]) == []


def test_a_peak_stands_above_both_sides():
    assert found([2, 5, 2]) == [("peak", 1, 0, 2)]
    assert found([2, 3.9, 2]) == []  # 2 + 1 > 3.9 - 1
    assert found([5, 2, 2]) == []  # a fall has no peak
    assert found([2, 4, 5, 4, 2.5]) == [("peak", 2, 0, 4)]
    assert found([2, 5, 4, 6, 2]) == [("peak", 3, 0, 4)]  # the dip between 5 and 6 is within the band
    assert found([2, 9, 4, 9, 2]) == [("peak", 1, 0, 2), ("trough", 2, 1, 3), ("peak", 3, 2, 4)]


def test_of_equal_tops_one_is_the_peak():
    assert found([2, 5, 5, 2]) == [("peak", 2, 0, 3)]


def test_a_trough_is_a_peak_upside_down():
    assert found([-2, -5, -2]) == [("trough", 1, 0, 2)]
    assert found([9, 2, 9]) == [("trough", 1, 0, 2)]


def test_steps_without_an_error_are_left_out():
    value = np.array([2.0, 50.0, -2.0])
    low, high = value - 1, value + 1
    low[1] = high[1] = math.nan
    assert [c["kind"] for c in found_changes([10, 20, 30], value, low, high)] == ["flip"]
    assert found_changes([10], value[:1], low[:1], high[:1]) == []
    assert found_changes([], value[:0], low[:0], high[:0]) == []


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_the_band_is_sidak_s(steps):
    assert simultaneous(steps) == pytest.approx(stats.norm.ppf((1 + 0.95 ** (1 / steps)) / 2), rel=1e-9)


@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_chance_alone_rarely_shows_a_change(shared):
    """20 steps without any change, their errors independent or mostly common: at most 5 % of curves show one."""
    rng, wide = np.random.default_rng(0), simultaneous(20)
    noise = math.sqrt(shared) * rng.normal(size=(2000, 1)) + math.sqrt(1 - shared) * rng.normal(size=(2000, 20))
    for level in (0.0, 1.0):
        value = level + noise
        wrong = np.mean([bool(found_changes(range(20), v, v - wide, v + wide)) for v in value])
        assert wrong < 0.05 + 5 * math.sqrt(0.05 * 0.95 / 2000)


def test_changes_of_a_run(tmp_path, rng):
    train, query = make_samples("train", 5), make_samples("query", 3)
    write_samples(tmp_path, train, query)
    estimate = make_estimate(rng, 5, 3)
    error = estimate.losses.correlation_standard_error
    error[2, 1] = 0.01
    for step, value in ((10, 0.5), (20, 0.9), (30, 0.4), (40, -0.3)):
        estimate.losses.correlation[2, 1] = value
        write_dump(tmp_path, estimate, step=step, epoch=0, train=train, query=query)
    run = open_run(tmp_path)
    table = changes(run, 2, 1)
    assert table[["kind", "step", "before", "after"]].values.tolist() == [["peak", 20, 10, 30], ["flip", 40, 30, 40]]
    np.testing.assert_allclose(table.value, [0.9, -0.3], rtol=1e-6)
    band = trajectory(run, 2, 1)
    np.testing.assert_allclose(band.band_high - band.value, simultaneous(4) * band.standard_error, rtol=1e-6)
    assert (band.band_low < band.low).all()
    assert changes(run, 0, 0).columns.tolist() == ["kind", "step", "value", "before", "after"]
