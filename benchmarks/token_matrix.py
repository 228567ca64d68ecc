"""The token x token correlations alone, of this package, of devinterp 2.0.1, and of the bare matrix product of centred
draws, which none can undercut. The draws are made up; the three take turns.

    pip install devinterp==2.0.1
    python benchmarks/token_matrix.py [--sequences 32 96 96] [--queries 8 18 18] [--tokens 64 150 150] ...

devinterp makes, for every pair of sequences, the matrix of the tokens of both with the tokens of both, of which a
quarter is asked for. Its part that makes the matrix is called directly, with draws laid out as it keeps them. Memory is
that of a process of its own for each.
"""

import argparse
import math
import statistics
import subprocess
import sys
from collections.abc import Callable

import numpy as np

from against_devinterp import clocked
from bif_lightning.results.token_matrices import InMemoryTokens
from bif_lightning.results.token_products import DrawCovariance
from bif_lightning.results.tokens import Tokens, blocks_of
from bif_lightning.statistics.standard_errors import ErrorModel, ErrorScale, centre_scale
from tokens import axis, made_up

CHAINS, REPEATS = 4, 3
Size = tuple[int, int, int, int]
"""Train sequences, queries, tokens of each, and draws of all chains."""


def correlations(size: Size) -> dict[str, Callable[[], np.ndarray]]:
    """Each way to the matrix [train token, query token], under its name."""
    import xarray as xr
    from devinterp.slt.bif import _tokenwise_bif

    train, queries, length, total = size
    draws = total // CHAINS
    sides = [made_up(CHAINS, draws, count * length, seed) for seed, count in enumerate((train, queries), 1)]
    lengths = tuple(map(len, np.array_split(np.arange(draws), 6)))
    law = DrawCovariance(CHAINS, lengths, "chain", centre_scale(CHAINS, 6, "chain"))
    blocks = blocks_of(
        law, ErrorModel(6, ErrorScale(1.1, 200.0), ErrorScale(1.1, math.nan)), *map(InMemoryTokens, sides)
    )
    tokens = Tokens(train=axis(train, length), query=axis(queries, length), blocks=blocks)
    laid = [
        xr.DataArray(
            np.ascontiguousarray(side.reshape(total, count, length).transpose(1, 2, 0)),
            dims=("batch", "target_position", "draw"),
        )
        for side, count in zip(sides, (train, queries), strict=True)
    ]
    flat = [side.reshape(total, -1) for side in sides]

    def devinterp() -> np.ndarray:
        return _tokenwise_bif(*laid, batch_size=32, average=False, covariance=False, device="cpu")

    return {
        "devinterp 2.0.1": devinterp,
        "bif_lightning": lambda: tokens.correlation(errors=False).value,
        "the same, with standard errors": lambda: tokens.correlation().value,
        "bare product": lambda: flat[0].T @ flat[1],
    }


def alone(size: Size, name: str) -> int:
    """Memory that it takes in a process of its own, bytes: this script again."""
    command = [sys.executable, __file__, "--only", name, *map(str, size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--only"]:
        train, queries, length, total = map(int, sys.argv[3:])
        small = correlations((1, 1, length, 4 * CHAINS))
        small[sys.argv[2]]()  # what is there from the first use on
        print(clocked(correlations((train, queries, length, total))[sys.argv[2]])[2])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, sizes in (("sequences", [32, 96, 96]), ("queries", [8, 18, 18]), ("tokens", [64, 150, 150]),
                        ("draws", [60, 400, 2000])):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, nargs="+", default=sizes)
    given = parser.parse_args()
    print("| sequences x queries, tokens, draws | | s | times faster | memory MB |\n|---|---|---|---|---|")
    for size in zip(given.sequences, given.queries, given.tokens, given.draws, strict=True):
        ways, seconds = correlations(size), dict[str, list[float]]()
        for repeat in range(REPEATS + 1):  # the first to warm up
            for name, make in ways.items():
                if repeat:
                    seconds.setdefault(name, []).append(clocked(make)[1])
                else:
                    make()
        base = seconds["devinterp 2.0.1"]
        for name, each in seconds.items():
            ratio = statistics.median(b / s for b, s in zip(base, each, strict=True))
            print(
                f"| {size[0]} x {size[1]}, {size[2]}, {size[3]} | {name} | {statistics.median(each):.3f} | {ratio:.1f} "
                f"| {alone(size, name) / 1e6:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
