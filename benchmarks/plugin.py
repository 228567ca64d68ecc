"""How fluid the Influence tab is on a large run, measured in a real browser, as markdown.

    python benchmarks/plugin.py --logdir /tmp/large > table.md

The run has 10,000 train examples, 1,000 queries and 200 steps, some 13 GB; it is made in `--logdir` where it is not
there yet. Ten dumps are written, with `precision="10bit"` and correlations of ten classes; the others are copies of
them under other steps, so that every step is read from a file of its own. All of them are read once before the clock
starts, so that they are in the page cache where memory allows.

A TensorBoard of its own serves the run, and a headless Chromium shows it: each time is from the action to the frame in
which the page shows its result. Needs Playwright and Chromium; `--server` measures the requests alone.
"""

import argparse
import http.client
import json
import random
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bif_lightning.archive.write import write_dump, write_samples
from bif_lightning.config import SGLD, Chains
from bif_lightning.result import Cost, Diagnostics, Estimate, Influence
from bif_lightning.samples import Samples

HOST = "127.0.0.1"
WRITTEN, DRAWS, CLASSES = 10, 400, 10
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
AIMS = {"first picture": 1000, "slider step": 150, "trajectory of a cell": 500}

# Resolves with the milliseconds from the action to the frame in which the condition holds.
CLOCK = """([action, condition]) => new Promise((resolve) => {
    const start = performance.now();
    const holds = new Function('return ' + condition);
    new Function(action)();
    const look = () => holds() ? requestAnimationFrame(() => resolve(performance.now() - start)) : setTimeout(look, 1);
    look();
})"""
PANEL = "document.querySelector('.matrix-panel')"
CURVES = "document.querySelector('[data-name=curves]').innerText"


def make(folder: Path, train: int, query: int, steps: int) -> None:
    """The run, where it is not there yet."""
    if len(list(folder.glob("step=*.h5"))) == steps:
        return
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    sides = [_samples(side, size, rng) for side, size in (("train", train), ("query", query))]
    write_samples(folder, *sides)
    traces = [_traces(side, rng) for side in sides]
    who: dict[str, Any] = {"train": sides[0], "query": sides[1], "precision": "10bit", "epoch": 0}
    written = [
        write_dump(folder, _estimate(traces, number, rng), step=100 * (number + 1), **who)
        for number in range(min(WRITTEN, steps))
    ]
    for number in range(len(written), steps):
        copy = folder / ".copy"
        shutil.copy(written[number % WRITTEN], copy)
        with h5py.File(copy, "r+") as file:
            file.attrs["global_step"] = np.int64(100 * (number + 1))
        copy.rename(folder / f"step={100 * (number + 1):09d}.h5")


def warm(folder: Path) -> None:
    """Read every file once."""
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def _samples(side: str, size: int, rng: np.random.Generator) -> Samples:
    names = tuple(f"class {label}" for label in range(CLASSES))
    ids = tuple(f"{side} {row}" for row in range(size))
    return Samples(ids=ids, index=np.arange(size), labels=rng.integers(0, CLASSES, size), label_names=names)


def _traces(samples: Samples, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors that are alike within a class."""
    assert samples.labels is not None
    values = (
        rng.standard_normal((len(samples), DRAWS), np.float32) + 12 * np.eye(DRAWS, dtype=np.float32)[samples.labels]
    )
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _estimate(traces: Sequence[np.ndarray], number: int, rng: np.random.Generator) -> Estimate:
    weight = (1 + 0.5 * np.sin(number / 2 + np.arange(DRAWS) / 50)).astype(np.float32)
    correlation = np.clip((traces[0] * weight) @ traces[1].T, -1, 1)
    error = np.round(rng.normal(0.05, 0.005, correlation.shape), 3).astype(np.float32)
    scale = np.float32(2**-10)
    losses = Influence(
        name="loss", unit="nat", columns=None, correlation=correlation, correlation_standard_error=error,
        influence=-scale * correlation, influence_standard_error=scale * error,
        mean=np.ones(correlation.shape[1]), std=np.ones(correlation.shape[1]),
    )  # fmt: skip
    return Estimate(
        losses=losses, observables={}, train_mean=np.ones(len(correlation)), train_std=np.ones(len(correlation)),
        snapshot_loss=0.3, chain_ids=(0, 1, 2, 3), loss_trace=0.4 + rng.random((4, 100)) / 10,
        distance_trace=rng.random((4, 100)), divergences=(),
        diagnostics=Diagnostics(rhat=1.0, ess=200.0, llc=5.0, llc_standard_error=0.1, drift=0.0, score_agreement=0.9),
        cost=Cost(seconds=60.0, steps=4000, workers=1, extra_bytes=1 << 20),
        sampler=SGLD(step_size=1e-5, inverse_temperature=1000.0, localization=100.0),
        chains=Chains(num_chains=4, num_draws=100), parameters=("weight",), num_weights=10**6,
    )  # fmt: skip


@contextmanager
def serving(logdir: Path) -> Iterator[int]:
    """Port of a TensorBoard that has just started, as one that a person opens."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", HOST, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                _get(port, "/data/plugins_listing")
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
        time.sleep(2)  # the page of TensorBoard itself takes longer than that to be read
        yield port
    finally:
        process.terminate()
        process.wait(20)


def _get(port: int, path: str, **parameters: object) -> tuple[float, bytes]:
    """Milliseconds, and what was answered."""
    started = time.perf_counter()
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request("GET", f"{path}?{urllib.parse.urlencode(parameters)}")
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path} {parameters}: {answer.status} {body[:200]!r}")
    return 1000 * (time.perf_counter() - started), body


def requests(port: int, repeats: int) -> Iterator[tuple[str, list[float]]]:
    """What single requests take."""
    root = "/data/plugin/influence"
    listing, body = _get(port, f"{root}/runs")
    yield "list of runs, the first", [listing]
    (run,) = json.loads(body)["runs"]
    steps = [each["step"] for each in run["steps"]]
    asked = {"run": run["run"], "matrix": "correlation", "train_by": "label", "query_by": "label", "at": steps[-1]}
    size = {"height": 700, "width": 900}

    def views(chosen: Sequence[int]) -> list[float]:
        times: list[float] = []
        for step in chosen:
            times.append(_get(port, f"{root}/view", step=step, **asked, **size)[0])
            time.sleep(0.3)
        return times

    yield "view, the first", views(steps[-1:])
    yield "view, step by step", views(steps[-2 : -2 - repeats : -1])
    rng = random.Random(0)
    yield "view, any step", views(rng.sample(steps, repeats))
    pairs = [(rng.randrange(run["num_train"]), rng.randrange(run["num_query"])) for _ in range(max(repeats // 3, 1))]
    curve = {"run": run["run"], "matrix": "correlation"}
    yield "trajectory of a cell", [_get(port, f"{root}/trajectory", train=i, query=j, **curve)[0] for i, j in pairs]
    yield "order by clustering", [_get(port, f"{root}/order", side="train", by="cluster", **asked)[0]]
    yield "diagnostics of all steps", [_get(port, f"{root}/trust", run=run["run"])[0]]


def browser(port: int, repeats: int) -> Iterator[tuple[str, list[float]]]:
    """What a person waits for."""
    from playwright.sync_api import sync_playwright

    address = f"http://{HOST}:{port}/data/plugin_entry.html?name=influence#influence"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM)
        page = chromium.new_page(viewport={"width": 1500, "height": 1100})
        time.sleep(1)  # the browser itself has started
        started = time.perf_counter()
        page.goto(address)
        page.wait_for_selector(".matrix-panel[data-step]")
        yield "first picture", [1000 * (time.perf_counter() - started)]
        count = int(page.locator("[data-name=slider]").get_attribute("max") or 0)
        time.sleep(1)
        yield "slider step", [_slide(page, at) for at in range(count - 1, count - 1 - repeats, -1)]
        rng = random.Random(1)
        yield "jump to any step", [_slide(page, at) for at in rng.sample(range(count), repeats)]
        yield "trajectory of a cell", [_click(page, rng) for _ in range(max(repeats // 3, 1))]
        chromium.close()


def _slide(page: Any, at: int) -> float:
    """Move the slider, and wait until the matrix of that step is painted."""
    time.sleep(0.4)  # a person who looks at each picture
    action = (
        f"const s = document.querySelector('[data-name=slider]'); s.value = {at}; s.dispatchEvent(new Event('input'))"
    )
    return page.evaluate(CLOCK, [action, f"{PANEL}.dataset.step === '{100 * (at + 1)}'"])


def _click(page: Any, rng: random.Random) -> float:
    """Click a cell, and wait until its curve is listed."""
    time.sleep(0.5)
    before = page.evaluate(CURVES)
    box = page.locator(".matrix-panel canvas.heatmap").bounding_box()
    x, y = box["x"] + (0.3 + 0.5 * rng.random()) * box["width"], box["y"] + (0.3 + 0.5 * rng.random()) * box["height"]
    started = page.evaluate("performance.now()")
    page.mouse.click(x, y)
    page.wait_for_function(f"before => {CURVES} !== before", arg=before, polling=5)
    return page.evaluate("performance.now()") - started


def table(title: str, rows: Callable[[], Iterator[tuple[str, list[float]]]]) -> None:
    """Print the rows as they come."""
    print(f"\n### {title}\n\n| what | median ms | 90 % below | times | aim |\n|---|---|---|---|---|", flush=True)
    for what, times in rows():
        most = sorted(times)[min(len(times) - 1, int(0.9 * len(times)))]
        aim = f"{AIMS[what]}" if what in AIMS else ""
        print(f"| {what} | {statistics.median(times):.0f} | {most:.0f} | {len(times)} | {aim} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logdir", type=Path, required=True, help="folder of the run, which is kept")
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--query", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--server", action="store_true", help="measure the requests alone")
    options = parser.parse_args()
    make(options.logdir / "run" / "bif", options.train, options.query, options.steps)
    warm(options.logdir / "run" / "bif")
    print(f"{options.train:,} x {options.query:,} with {options.steps} steps")
    if not options.server:
        with serving(options.logdir) as port:
            table("In Chromium", lambda: browser(port, options.repeats))
    with serving(options.logdir) as port:
        table("Requests", lambda: requests(port, options.repeats))


if __name__ == "__main__":
    main()
