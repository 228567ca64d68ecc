"""What token by token influence takes at the paper's scaling size: 400 sequences of 150 tokens against 18 queries, 4 x
500 draws. The draws are made up, so that only what comes after them is measured: the dump, and blocks read from it.

    python benchmarks/tokens.py [--sequences 400] [--tokens 150] [--queries 18] [--chains 4] [--draws 500]
"""

import argparse
import math
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

import bif_lightning as bl
from bif_lightning.results.estimate import Cost, Diagnostics, Estimate, Influence
from bif_lightning.results.token_matrices import MOST_BYTES, InMemoryTokens
from bif_lightning.results.token_products import DrawCovariance
from bif_lightning.results.tokens import TokenAxis, Tokens, blocks_of
from bif_lightning.statistics.standard_errors import ErrorModel, ErrorScale, centre_scale
from bif_lightning.storage.scratch import ScratchArrays, Spec

T = TypeVar("T")


def made_up(chains: int, draws: int, tokens: int, seed: int) -> np.ndarray:
    """Changes of losses: a few directions in common, and noise; stored as the engine stores them."""
    rng = np.random.default_rng(seed)
    storage = ScratchArrays([Spec((chains * draws, tokens), np.float32)], MOST_BYTES)
    common = np.random.default_rng(0).normal(size=(chains * draws, 8)).astype(np.float32)
    slopes = 0.01 * rng.normal(size=(8, tokens)).astype(np.float32)
    for start in range(0, chains * draws, 100):
        part = common[start : start + 100]
        noise = 0.03 * rng.standard_normal((len(part), tokens), np.float32)
        storage.write(0, slice(start, start + len(part)), part @ slopes + noise)
    storage.close()
    return storage.arrays[0].reshape(chains, draws, tokens)


def axis(sequences: int, tokens: int) -> TokenAxis:
    size = sequences * tokens
    one = np.ones(size)
    return TokenAxis(
        sequence=np.repeat(np.arange(sequences), tokens), position=np.tile(np.arange(tokens), sequences),
        num_sequences=sequences, snapshot_loss=3 * one, loss=3 * one, std=0.05 * one,
    )  # fmt: skip


def estimate(tokens: Tokens, chains: int, draws: int) -> Estimate:
    """An estimate whose matrices of sequences are empty but for their size."""
    n, q = tokens.train.num_sequences, tokens.query.num_sequences
    zero = np.zeros((n, q), np.float32)
    losses = Influence(
        name="loss", unit="nat", columns=None, influence=zero, influence_standard_error=zero, correlation=zero,
        correlation_standard_error=zero, mean=np.zeros(q), std=np.zeros(q),
    )  # fmt: skip
    return Estimate(
        losses=losses, observables={}, train_loss=np.zeros(n), train_std=np.zeros(n), snapshot_loss=3.0,
        chain_ids=tuple(range(chains)), loss_trace=np.zeros((chains, draws)), distance_trace=np.zeros((chains, draws)),
        divergences=(),
        diagnostics=Diagnostics(rhat=1, ess=100, llc=1, llc_standard_error=1, drift=0, score_agreement=1),
        cost=Cost(seconds=0, steps=0, workers=1, extra_bytes=0),
        sampler=bl.SGLD(step_size=1e-5, inverse_temperature=30, localization=300),
        chains=bl.Chains(num_chains=chains, num_draws=draws), parameters=("w",), num_weights=1, tokens=tokens,
    )  # fmt: skip


def samples(side: str, count: int) -> bl.Samples:
    return bl.Samples(ids=tuple(f"{side}{row}" for row in range(count)), index=np.arange(count))


def timed(what: str, call: Callable[[], T], note: Callable[[T], str] = lambda _: "") -> T:
    started = time.perf_counter()
    found = call()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"| {what} | {seconds:.3g} s | {note(found)} | {peak:.2f} GB |", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("sequences", 400), ("tokens", 150), ("queries", 18), ("chains", 4), ("draws", 500)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    train, query = axis(given.sequences, given.tokens), axis(given.queries, given.tokens)
    lengths = tuple(map(len, np.array_split(np.arange(given.draws), 6)))
    law = DrawCovariance(given.chains, lengths, "chain", centre_scale(given.chains, 6, "chain"))
    print("| what | time | size | peak memory so far |\n|---|---|---|---|")
    sides = [made_up(given.chains, given.draws, len(each), seed) for seed, each in enumerate((train, query), 1)]
    gigabytes = sum(each.nbytes for each in sides) / 1e9
    blocks = blocks_of(
        law, ErrorModel(6, ErrorScale(1.1, 200.0), ErrorScale(1.1, math.nan)), *map(InMemoryTokens, sides)
    )
    tokens = timed(
        "draws made up", lambda: Tokens(train=train, query=query, blocks=blocks), lambda _: f"{gigabytes:.3g} GB"
    )
    rows, columns = np.arange(len(train)), np.arange(len(query))

    def size(found: object) -> str:
        return f"{len(train):,} x {len(query):,}"

    timed("whole matrix of correlations", lambda: tokens.matrix(rows, columns, "correlation", errors=False), size)
    timed("the same with standard errors", lambda: tokens.matrix(rows, columns, "correlation"), size)
    kinds = [f"{row % 7}" for row in rows], [f"{row % 7}" for row in columns]
    timed("means over 7 x 7 groups, with errors", lambda: tokens.group_means(*kinds))
    whole = estimate(tokens, given.chains, given.draws)
    whole = replace(whole, losses=replace(whole.losses, influence=whole.losses.influence + 1))
    with tempfile.TemporaryDirectory() as folder:
        sides_of = samples("t", given.sequences), samples("q", given.queries)
        for step, precision in enumerate(("full", "10bit")):
            path = timed(
                f"dump, precision={precision!r}",
                lambda step=step, precision=precision: bl.write_dump(
                    folder, whole, step=step, epoch=0, train=sides_of[0], query=sides_of[1], precision=precision
                ),
                lambda path: f"{path.stat().st_size / 1e9:.3g} GB",
            )
        stored = timed("dump opened", lambda: bl.open_tokens(Path(path)))
        timed("one pair of sequences read", lambda: stored.correlation(given.sequences // 2, 3))
        timed("one query against all sequences read", lambda: stored.correlation(None, 3))


if __name__ == "__main__":
    main()
