"""Random numbers belong to their key: equal keys, equal bits; others, others; order and thread do not matter."""

import itertools
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import stats

from bif_lightning.rng import Noise, chain_noise, global_states, seed_global, stream_seed, unaltered_generators

pytestmark = pytest.mark.exact

CPU = torch.device("cpu")


def normals(noise: Noise, step: int, parameter: int, size: int = 64) -> torch.Tensor:
    out = torch.empty(size)
    out.normal_(generator=noise.normals(step, parameter))
    return out


def test_every_part_of_the_key_counts() -> None:
    keys = list(itertools.product([0, 5], [0, 2], [0, 1, 2], [0, 1], [0, 1]))
    drawn = [normals(chain_noise(*key[:3], CPU), *key[3:]) for key in keys]
    again = [normals(chain_noise(*key[:3], CPU), *key[3:]) for key in reversed(keys)]
    assert all(torch.equal(a, b) for a, b in zip(drawn, reversed(again), strict=True))
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == len(keys)
    between = torch.corrcoef(torch.stack(drawn)).fill_diagonal_(0)
    assert float(between.abs().max()) < 0.6


def test_keys_are_not_summed_or_joined() -> None:
    assert len({stream_seed(*key) for key in [(1, 0), (0, 1), (1,), (10,), (1, 0, 0), (0, 0, 1), (-1, 0)]}) == 7
    assert all(0 <= stream_seed(i) < 2**63 for i in range(200))


def test_threads_draw_what_one_thread_draws() -> None:
    def draw(chain: int) -> list[torch.Tensor]:
        noise = chain_noise(3, 1, chain, CPU)
        return [normals(noise, step, p) for step in range(20) for p in range(3)]

    alone = [draw(chain) for chain in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, range(8)))
    assert all(
        torch.equal(a, b) for one, other in zip(alone, together, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_numbers_are_standard_normal() -> None:
    sample = torch.cat(
        [normals(chain_noise(0, 0, c, CPU), s, p, 100) for c in range(4) for s in range(20) for p in (0, 1)]
    )
    assert stats.kstest(sample.numpy(), "norm").pvalue > 1e-4


def test_minibatches_repeat_nothing_and_are_uniform() -> None:
    noise, size, batch, steps = chain_noise(0, 0, 0, CPU), 12, 5, 4000
    rows = torch.stack([noise.minibatch(step, size, batch) for step in range(steps)])
    assert all(len(set(row)) == batch for row in rows.tolist())
    assert torch.equal(rows[7], chain_noise(0, 0, 0, CPU).minibatch(7, size, batch))
    # Without replacement the counts have the hypergeometric variance: scale χ² by (size − 1)/(size − batch).
    counts = torch.bincount(rows.flatten(), minlength=size).double()
    expected = steps * batch / size
    chi2 = float((counts - expected).square().sum() / expected) * (size - 1) / (size - batch)
    assert stats.chi2.sf(chi2, size - 1) > 1e-4
    pairs = np.zeros((size, size))
    for row in rows.tolist():
        pairs[np.ix_(row, row)] += 1
    each = pairs[np.triu_indices(size, 1)]
    p = batch * (batch - 1) / (size * (size - 1))
    assert np.abs(each - steps * p).max() / np.sqrt(steps * p * (1 - p)) < 5


def test_minibatch_of_everything_is_everything_in_order() -> None:
    noise = chain_noise(0, 0, 0, CPU)
    assert noise.minibatch(3, 6, 6).tolist() == noise.minibatch(4, 6, 99).tolist() == list(range(6))


def test_global_generators_are_keyed_and_put_back() -> None:
    before = global_states(CPU)
    with unaltered_generators(CPU):
        drawn = []
        for seed in (5, 5, 6):
            seed_global(CPU, seed)
            drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))
        assert drawn[0] == drawn[1]
        assert not any(a == b for a, b in zip(drawn[1], drawn[2], strict=True))
        assert global_states(CPU) != before
    assert global_states(CPU) == before


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), lambda: np.random.rand(), random.random])
def test_a_draw_from_any_global_generator_shows(draw: Callable[[], object]) -> None:
    with unaltered_generators(CPU):
        before = global_states(CPU)
        torch.randn(3, generator=torch.Generator())
        assert global_states(CPU) == before
        draw()
        assert global_states(CPU) != before
