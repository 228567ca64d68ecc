"""Token by token influence by this package and by devinterp 2.0.1, of the same model, data, chains, draws and batches.

The two take turns in one process. Each samples, then makes the token x token correlations of all train sequences with
all queries. Beside them stand the bare passes that both make: the gradients and losses of one chain on each core,
without sampler, noise or record, which no implementation can undercut. Memory is that of a process of its own for
each. Both are compared with a long run of independent seeds, since at equal settings they should be equally far.

    pip install devinterp==2.0.1
    python benchmarks/against_devinterp.py [--train 32] [--queries 8] [--draws 50] [--repeats 3] [--width 128]

The file is not called devinterp.py, as it would hide that package from the scripts of this folder.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

import bif_lightning as bl
import models

LENGTH = 64  # tokens with a loss; each sequence has one more
STEP_SIZE, INVERSE_TEMPERATURE, LOCALIZATION = 1e-5, 100.0, 1e4  # of the mean loss of a token
T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """One library's turn: seconds of sampling and of the token matrix, and the memory that both added, bytes."""

    sampling: float
    matrix: float
    bytes: int
    correlation: np.ndarray

    @property
    def seconds(self) -> float:
        return self.sampling + self.matrix


class Peak:
    """Highest resident memory above that at the start, by looking every 2 ms."""

    def __enter__(self) -> "Peak":
        self._start, self.bytes, self._over = _resident(), 0, threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)
        self._looking.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.002):
            self.bytes = max(self.bytes, _resident() - self._start)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._looking.join()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def clocked(work: Callable[[], T]) -> tuple[T, float, int]:
    """What work gives, its seconds, and its peak memory."""
    with Peak() as peak:
        started = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - started
    return found, seconds, peak.bytes


def sequences(count: int) -> Tensor:
    """Pieces of Python's own sources, as bytes [count, LENGTH + 1]."""
    pairs = models.sources(count, LENGTH)
    return torch.stack([torch.cat([inputs, targets[-1:]]) for inputs, targets in pairs])


def token_losses(model: nn.Module, batch: Tensor) -> Tensor:
    """Cross-entropy of tokens 1 ... LENGTH, given those before them."""
    logits = model(batch[:, :-1])
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none").view(
        len(batch), -1
    )


def ours(model: nn.Module, train: Tensor, query: Tensor, chains: bl.Chains, gradient: Any, errors: bool) -> Turn:
    """This package's turn. Its loss of an example is the sum over tokens, so that nβ is divided by their number."""
    sampler = bl.SGLD(
        step_size=STEP_SIZE, inverse_temperature=INVERSE_TEMPERATURE / LENGTH, localization=LOCALIZATION,
        gradient=gradient,
    )  # fmt: skip
    result, sampling, first = clocked(
        lambda: bl.estimate(
            model, token_losses, list(train), list(query), sampler=sampler, chains=chains, per_token=True,
            check_gradient=False,
        )
    )  # fmt: skip
    assert result.tokens is not None
    tokens = result.tokens
    found, matrix, second = clocked(lambda: tokens.correlation(errors=errors))
    return Turn(sampling, matrix, max(first, second), found.value)


def theirs(model: nn.Module, train: Tensor, query: Tensor, chains: bl.Chains) -> Turn:
    """devinterp's turn. It stores both sets in the alphabetical order of their names, so these are named in order."""
    from datasets import Dataset
    from devinterp.slt.bif import compute_bif
    from devinterp.slt.sampling import sample

    def dataset(rows: Tensor) -> Dataset:
        return Dataset.from_dict({"input_ids": rows.tolist()}).with_format("torch")

    size = chains.batch_size
    with tempfile.TemporaryDirectory() as folder:
        samples, sampling, first = clocked(
            lambda: sample(
                model, dataset(train),
                {"a_train": (dataset(train), len(train) // size), "b_query": (dataset(query), len(query) // size)},
                lr=STEP_SIZE, n_beta=INVERSE_TEMPERATURE, localization=LOCALIZATION, num_chains=chains.num_chains,
                num_draws=chains.num_draws, num_steps_bw_draws=chains.thinning, batch_size=size, loss_fn=token_losses,
                num_init_loss_batches=1, output_path=Path(folder, "samples.zarr"), init_seed=chains.seed,
            )
        )  # fmt: skip
        rows, columns = range(len(train)), range(len(train), len(train) + len(query))
        found, matrix, second = clocked(
            lambda: compute_bif(
                samples, correlation_method="token", batch_index_range_1=list(rows), batch_index_range_2=list(columns)
            )
        )
    # It draws the rows of each set in an order of its own, and says which.
    ids = found["input_ids"].values
    place = [_places(ids[: len(train)], train.numpy()), _places(ids[len(train) :], query.numpy())]
    values = found["influences"].values[place[0]][:, place[1]].transpose(0, 2, 1, 3)
    return Turn(sampling, matrix, max(first, second), values.reshape(len(train) * LENGTH, len(query) * LENGTH))


def bare(model: nn.Module, train: Tensor, query: Tensor, chains: bl.Chains) -> float:
    """Seconds of the passes alone, the chains side by side on threads of their own."""
    every, weights = torch.cat([train, query]), list(model.parameters())

    def chain(_: int) -> None:
        for step in range(chains.num_steps):
            torch.autograd.grad(token_losses(model, train[: chains.batch_size]).mean(), weights)
            if (step + 1) % chains.thinning == 0:
                with torch.no_grad():
                    token_losses(model, every)

    threads = torch.get_num_threads()
    started = time.perf_counter()
    with ThreadPoolExecutor(min(threads, chains.num_chains), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(chain, range(chains.num_chains)))
    torch.set_num_threads(threads)
    return time.perf_counter() - started


def works(model: nn.Module, train: Tensor, query: Tensor, chains: bl.Chains) -> dict[str, Callable[[], Turn]]:
    """Each turn under its name; the first is what the others are compared with."""
    mine = {
        "bif_lightning, plain gradients": ("minibatch", False),
        "the same, with standard errors": ("minibatch", True),
        "bif_lightning, control variates": ("control_variate", False),
    }
    first: dict[str, Callable[[], Turn]] = {"devinterp 2.0.1": partial(theirs, model, train, query, chains)}
    return first | {name: partial(ours, model, train, query, chains, *options) for name, options in mine.items()}


def _places(found: np.ndarray, wanted: np.ndarray) -> list[int]:
    where = {row.tobytes(): place for place, row in enumerate(found.astype(np.int64))}
    return [where[row.tobytes()] for row in wanted.astype(np.int64)]


def distance(found: np.ndarray, reference: np.ndarray) -> float:
    """Root mean square difference of correlations that both know."""
    return float(np.sqrt(np.nanmean((found - reference) ** 2)))


def alike(found: np.ndarray, reference: np.ndarray) -> float:
    """Pearson correlation of the two matrices' entries."""
    known = np.isfinite(found) & np.isfinite(reference)
    return float(np.corrcoef(found[known], reference[known])[0, 1])


def alone(name: str) -> int:
    """Memory that a turn takes in a process of its own, bytes: this script again, for one turn."""
    command = [sys.executable, *sys.argv, "--only", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return int(done.stdout.split()[-1])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("train", 32), ("queries", 8), ("draws", 50), ("chains", 2), ("thinning", 2), ("batch", 8),
                          ("repeats", 3), ("width", 128), ("blocks", 5)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--reference", type=int, default=1500, help="draws a chain of the long run; 0 for none")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(given.threads)
    model = models.GPT(width=given.width, blocks=given.blocks, length=LENGTH)
    models.fit(model, models.sources(512, LENGTH), 150, 32)
    every = sequences(given.train + given.queries)
    train, query = every[: given.train], every[given.train :]
    chains = bl.Chains(
        num_chains=given.chains, num_draws=given.draws, thinning=given.thinning, batch_size=given.batch, seed=1
    )
    if given.only:
        works(model, train, query, replace(chains, num_draws=2))[given.only]()  # what is there from the first use on
        print(works(model, train, query, chains)[given.only]().bytes)
        return
    turns, floor = dict[str, list[Turn]](), list[float]()
    for repeat in range(given.repeats + 1):  # the first to warm up
        floor.append(bare(model, train, query, chains))
        for name, work in works(model, train, query, replace(chains, seed=100 + repeat)).items():
            turn = work()
            print(f"{repeat}: {name}: sampling {turn.sampling:.2f} s, matrix {turn.matrix:.3f} s", file=sys.stderr)
            if repeat:
                turns.setdefault(name, []).append(turn)
    reference = None
    if given.reference:
        long = replace(chains, num_chains=4, num_draws=given.reference, seed=7)
        reference = ours(model, train, query, long, "minibatch", False).correlation
    print(f"{sum(p.numel() for p in model.parameters()):,} weights; bare passes {statistics.median(floor[1:]):.2f} s\n")
    report(turns, reference)


def report(turns: dict[str, list[Turn]], reference: np.ndarray | None) -> None:
    """A markdown table: medians over turns, and the ratio to devinterp turn by turn."""
    base = next(iter(turns.values()))
    print("| | sampling s | token matrix s | in all | matrix | memory MB | RMS from the long run | Pearson with it |")
    print("|---|---|---|---|---|---|---|---|")
    for name, each in turns.items():
        whole = statistics.median(b.seconds / t.seconds for b, t in zip(base, each, strict=True))
        matrix = statistics.median(b.matrix / t.matrix for b, t in zip(base, each, strict=True))
        seconds = [statistics.median(getattr(t, key) for t in each) for key in ("sampling", "matrix")]
        far = near = "-"
        if reference is not None:
            far = f"{statistics.median(distance(t.correlation, reference) for t in each):.4f}"
            near = f"{statistics.median(alike(t.correlation, reference) for t in each):.3f}"
        print(
            f"| {name} | {seconds[0]:.2f} | {seconds[1]:.3f} | {whole:.2f} times faster | {matrix:.1f} times faster "
            f"| {alone(name) / 1e6:.0f} | {far} | {near} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
