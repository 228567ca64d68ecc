"""Does influence predict retraining? Linear datamodelling scores, seconds and memory of all methods in one run.

    python benchmarks/lds.py > table.md                                   # all tasks and methods
    python benchmarks/lds.py --task digits_mlp --method EK-FAC --method Subspace
    python benchmarks/lds.py --cifar10 cifar-10-batches-py                # the ResNet-9 experiment; hours

The truth is retraining on random halves (benchmarks/retraining/truth.py), stored. Methods see the reference
checkpoint, and those that say so eight snapshots of the training that led to it, which is repeated bitwise. Rows marked
"chosen on the answer" have their knob set to the best value on the score itself.
"""

import argparse
import ctypes
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from retraining.cifar10 import Settings, experiment
from retraining.methods import METHODS, Method
from retraining.score import ceiling, difference, lds_with_error
from retraining.tasks import TASKS, Task
from retraining.truth import Truth, load

MEGA = 1e6
AGAINST = ("EK-FAC (kronfluence)", "controlled SGLD, the default")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        seconds, cpu: wall time, and CPU time of all threads, which other work on the machine changes less.
        memory: peak bytes beyond what was held before.
    """

    name: str
    influence: Tensor
    lds: float
    error: float
    seconds: float
    cpu: float
    memory: float


def measure(method: Method, task: Task, truth: Truth) -> Iterator[Row]:
    """Rows of a method on a task: one for each of its settings, and one for the best value of its search."""
    model = truth.reference(task)
    solve, first = timed(lambda: method.prepare(task, model))

    def row(name: str, knob: float) -> Row:
        influence, then = timed(lambda: solve(knob))
        score, error = lds_with_error(influence, truth)
        return Row(
            name, influence, score, error,
            first.seconds + then.seconds, first.cpu + then.cpu, max(first.memory, then.memory),
        )  # fmt: skip

    rows = [row(f"{method.name}, {label}" if label else method.name, knob) for label, knob in method.settings]
    yield from rows
    if method.search:
        values = {*method.search, *(knob for _, knob in method.settings if knob)}
        found = [row(f"{method.name}, {knob:g} (chosen on the answer)", knob) for knob in sorted(values)]
        yield max(found, key=lambda each: each.lds)


@dataclass(frozen=True)
class Cost:
    """Wall and CPU seconds, and peak bytes beyond what was held before (NaN where Linux does not say)."""

    seconds: float
    cpu: float
    memory: float


def timed(work: Callable[[], Result]) -> tuple[Result, Cost]:
    """What it gives, and what it took."""
    before = _reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, Cost(time.perf_counter() - wall, time.process_time() - cpu, _status("VmHWM") - before)


def _reset_peak() -> float:
    """Gives freed memory back, forgets the peak so far, and says what is held, bytes."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return math.nan
    return _status("VmRSS")


def _status(name: str) -> float:
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((1024 * float(line.split()[1]) for line in lines if line.startswith(name)), math.nan)


def table(task: Task, truth: Truth, methods: Sequence[Method], against: Sequence[str]) -> Iterator[str]:
    """Lines of the task's table; those of methods that do not run on it say why."""
    weights = sum(p.numel() for p in task.build().parameters())
    subsets, seeds, query = truth.losses.shape
    yield f"### {task.name}"
    yield ""
    yield (
        f"{weights:,} weights, {truth.subsets.shape[1]} train and {query} query examples; truth: {subsets} halves x "
        f"{seeds} seeds (torch {truth.torch_version}); one half of the seeds scores {ceiling(truth):.3f} on the other"
    )
    yield ""
    yield "| method | LDS | seconds | CPU s | extra MB |"
    yield "|---|---|---|---|---|"
    rows = list[Row]()
    for method in methods:
        try:
            for row in measure(method, task, truth):
                rows.append(row)
                numbers = (
                    f"{row.lds:.3f} ± {row.error:.3f} | {row.seconds:.1f} | {row.cpu:.1f} | {row.memory / MEGA:.0f}"
                )
                yield f"| {row.name} | {numbers} |"
        except ImportError as error:
            yield f"| {method.name} | not installed: pip install {str(error.name).split('.')[0]} | | | |"
        except NotImplementedError as error:
            yield f"| {method.name} | not run: {error} | | | |"
    yield ""
    for each in against:
        yield from _differences(rows, truth, each)


def _differences(rows: Sequence[Row], truth: Truth, against: str) -> Iterator[str]:
    """How far each method lies above the best label-free row of the one that is named."""
    peers = [row for row in rows if row.name.startswith(against) and "answer" not in row.name]
    if not peers:
        return
    peer = max(peers, key=lambda row: row.lds)
    yield f"LDS less that of {peer.name}, on the same subsets and queries:"
    yield ""
    yield "| method | difference | of its CPU s |"
    yield "|---|---|---|"
    for row in rows:
        if row is not peer:
            gap, error = difference(row.influence, peer.influence, truth)
            yield f"| {row.name} | {gap:+.3f} ± {error:.3f} | {row.cpu / peer.cpu:.2f} |"
    yield ""


def _cifar10(folder: Path, settings: Settings, against: Sequence[str]) -> None:
    task, truth, methods = experiment(folder, settings, progress=lambda text: print(text, file=sys.stderr))
    for line in table(task, truth, methods, against):
        print(line, flush=True)


def chosen(patterns: Sequence[str] | None) -> list[Method]:
    """The methods whose names hold one of the patterns; all where there are none."""
    return [method for method in METHODS if not patterns or any(part in method.name for part in patterns)]


def _warm_up() -> None:
    """What torch does once in a process is no method's cost."""
    layer = torch.nn.Linear(64, 64)
    for _ in range(3):
        layer(torch.randn(256, 64)).square().mean().backward()
    torch.linalg.cholesky(torch.eye(64, dtype=torch.float64))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=sorted(TASKS), help="default: all")
    parser.add_argument("--method", action="append", help="part of a method's name; default: all")
    parser.add_argument(
        "--against", action="append", metavar="NAME",
        help="how the name of a method begins to take differences from; default: EK-FAC, and this package's",
    )  # fmt: skip
    parser.add_argument("--cache", type=Path, help="folder of the truth; default $BIF_CACHE or the user's cache")
    parser.add_argument("--cifar10", type=Path, help="folder cifar-10-batches-py: the ResNet-9 experiment alone; hours")
    parser.add_argument("--attribution", type=int, help="of --cifar10: size of the attribution set; default: all")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    against = options.against or AGAINST
    torch.set_num_threads(options.threads)
    _warm_up()
    print(f"torch {torch.__version__}, {options.threads} threads\n")
    if options.cifar10:
        _cifar10(options.cifar10, Settings(attribution=options.attribution), against)
        return
    for name in options.task or TASKS:
        task = TASKS[name]
        for line in table(task, load(task, options.cache), chosen(options.method), against):
            print(line, flush=True)


if __name__ == "__main__":
    main()
