"""What a snapshot costs beyond its own forward and backward passes: time, scaling and memory, as markdown.

    python benchmarks/engine.py [--model mlp|mlp512|mlp1024|resnet9|gpt|all] [--quick] > table.md

Engine and floor (see floor.py) take turns, so that whatever else the machine does meets both alike. Tables go to
standard output, progress to standard error.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

import memory
from bif_lightning.estimation.estimator import estimate_problem
from bif_lightning.losses.problem import Problem
from cases import Case, cases
from floor import Floor
from parts import PARTS, shares


@dataclass(frozen=True)
class Pair:
    """One turn of engine and floor: wall seconds, and CPU seconds of the whole process."""

    engine: float
    floor: float
    engine_cpu: float
    floor_cpu: float


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


def clocked(run: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU) seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def pairs(case: Case, problem: Problem, threads: int, repeats: int) -> tuple[list[Pair], str]:
    """Engine and floor by turns, after a warm-up of each; also which way of running the floor was the faster."""
    torch.set_num_threads(threads)
    floor = Floor(case, problem)
    snapshot = lambda: estimate_problem(problem, case.sampler, case.chains)  # noqa: E731
    snapshot()
    inside = False
    if threads > 1:
        best = {way: min(floor.seconds(threads, inside=way) for _ in range(2)) for way in (True, False)}
        inside = best[True] < best[False]
        say(f"  floor: {best[True]:.2f} s with threads inside each operation, {best[False]:.2f} s with one a chain")
    found: list[Pair] = []
    for _ in range(repeats):
        engine, bare = clocked(snapshot), clocked(lambda: floor.seconds(threads, inside=inside))
        found.append(Pair(engine[0], bare[0], engine[1], bare[1]))
        say(f"  engine {engine[0]:.2f} s, floor {bare[0]:.2f} s, ratio {engine[0] / bare[0]:.3f}")
    return found, "in each operation" if inside else "one a chain"


def ratio(found: Sequence[Pair]) -> float:
    """Median over turns of engine over floor, wall time."""
    return statistics.median(pair.engine / pair.floor for pair in found)


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A markdown table on standard output."""
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def ratio_row(case: Case, problem: Problem, threads: int, repeats: int) -> list[str]:
    """One line of the first table."""
    say(f"{case.name}: {case.describe()}")
    found, way = pairs(case, problem, threads, repeats)
    ratios = [pair.engine / pair.floor for pair in found]
    cpu = statistics.median(pair.engine_cpu / pair.floor_cpu for pair in found)
    return [
        case.name,
        case.describe(),
        f"{statistics.median(pair.floor for pair in found):.2f}",
        way,
        f"{statistics.median(pair.engine for pair in found):.2f}",
        f"**{ratio(found):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{cpu:.2f}",
    ]


def parts_row(case: Case, problem: Problem, threads: int) -> list[str]:
    """Where the CPU time of one snapshot goes."""
    torch.set_num_threads(threads)
    return [case.name, *(f"{100 * share:.1f} %" for share in shares(case, problem).values())]


def scaling_row(case: Case, threads: int, repeats: int) -> list[str]:
    """Changed settings in units of the unchanged, engine / floor: of work, CPU seconds; of cores, wall seconds."""
    variants = [
        (case, threads),
        (case.scaled(draws=2), threads),
        (case.scaled(chains=2), threads),
        (case.scaled(examples=2), threads),
        (case, 1),
    ]
    cpu: list[tuple[float, float]] = []
    wall: list[tuple[float, float]] = []
    for variant, cores in variants:
        say(f"scaling {variant.name} on {cores} threads: {variant.describe()}")
        found, _ = pairs(variant, variant.problem(), cores, repeats)
        cpu.append((min(pair.engine_cpu for pair in found), min(pair.floor_cpu for pair in found)))
        wall.append((min(pair.engine for pair in found), min(pair.floor for pair in found)))
    more_work = [(changed, cpu[0]) for changed in cpu[1:-1]]
    quotients = [(new[0] / old[0], new[1] / old[1]) for new, old in (*more_work, (wall[-1], wall[0]))]
    return [case.name, f"{wall[0][0]:.2f}", *(f"{engine:.2f} / {floor:.2f}" for engine, floor in quotients)]


def memory_row(name: str) -> list[str]:
    """One line of the memory table, MB."""
    say(f"memory: {name}")
    peaks = memory.measure(name)
    measured = peaks["engine"] - peaks["bare"]
    return [
        name,
        *(f"{value / memory.MEGA:.0f}" for value in (peaks["weights"], peaks["bare"], peaks["formula"], measured)),
    ]


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*cases(quick=False), "all"], default="all")
    parser.add_argument("--quick", action="store_true", help="a fraction of the draws, under a minute on two cores")
    parser.add_argument("--repeats", type=int, help="turns of engine and floor (default 5, quick 3)")
    parser.add_argument(
        "--tables", nargs="+", choices=["ratio", "scaling", "memory"], help="default: all; quick: ratio"
    )
    settings = parser.parse_args()
    repeats = settings.repeats or (3 if settings.quick else 5)
    wanted = settings.tables or (["ratio"] if settings.quick else ["ratio", "scaling", "memory"])
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} cores, median of {repeats} turns")
    chosen = [c for name, c in cases(quick=settings.quick).items() if settings.model in (name, "all")]
    small = [c for name, c in cases(quick=True).items() if settings.model in (name, "all")]
    if "ratio" in wanted:
        ready = [(case, case.problem()) for case in chosen]
        head = ["model", "settings", "floor s", "floor's threads", "snapshot s", "ratio (range)", "CPU ratio"]
        table("Cost of a snapshot", head, (ratio_row(*case, threads, repeats) for case in ready))
        head = ["model", *PARTS, "rest"]
        table("Share of its CPU time", head, (parts_row(*case, threads) for case in ready))
    if "scaling" in wanted:
        head = ["model", "seconds", "2 x draws", "2 x chains", "2 x examples", f"1 core, not {threads}"]
        table("Scaling, engine / floor", head, (scaling_row(case, threads, 2) for case in small))
    if "memory" in wanted:
        names = [n for n in memory.memory_cases() if settings.model in (n, "all")]
        head = ["model", "weights MB", "bare peak MB", "formula MB", "measured extra MB"]
        table("Memory", head, (memory_row(name) for name in names))


if __name__ == "__main__":
    main()
