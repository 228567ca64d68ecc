"""How fluid the Influence tab is on a large run, measured in a real browser, as markdown.

    python benchmarks/plugin.py --logdir /tmp/large > table.md

The run has 10,000 train examples, 1,000 queries and 200 steps, some 13 GB; it is made in `--logdir` where it is not
there yet. Ten dumps are written, with `precision="10bit"` and correlations of ten classes; the others are copies of
them under other steps, so that every step is read from a file of its own. All of them are read once before the clock
starts, so that they are in the page cache where memory allows.

A TensorBoard of its own serves the run, and a headless Chromium shows it: each time is from the action to the frame in
which the page shows its result, by the page's own clock; Playwright looks at a page too seldom. The first picture is
that of a TensorBoard which has just started, in a browser that remembers nothing: from the navigation to the tab until
the heatmap is painted. Needs Playwright and Chromium; `--server` measures the requests alone.
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

from large_run import make, warm

HOST = "127.0.0.1"
STARTS = 5
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
# Keeps the time, from the navigation, at which the first picture is painted.
WATCH = """new MutationObserver((_, watch) => {
    if (!document.querySelector('.matrix-panel[data-step]')) return;
    watch.disconnect();
    requestAnimationFrame(() => setTimeout(() => { window.painted = performance.now(); }));
}).observe(document, { subtree: true, childList: true, attributes: true })"""
PANEL = "document.querySelector('.matrix-panel')"
CURVES = "document.querySelector('[data-name=curves]').innerText"


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
    ranked = {"run": run["run"], "matrix": "influence", "step": steps[-1]}
    yield "ranking of the train examples at a step, the first", [_get(port, f"{root}/ranking", **ranked)[0]]
    yield "the same, once computed", [_get(port, f"{root}/ranking", **ranked)[0] for _ in range(repeats)]
    yield "order by clustering", [_get(port, f"{root}/order", side="train", by="cluster", **asked)[0]]
    yield "diagnostics of all steps", [_get(port, f"{root}/trust", run=run["run"])[0]]


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser that has started."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        time.sleep(1)
        yield browser
        browser.close()


def first_pictures(logdir: Path, starts: int) -> Iterator[tuple[str, list[float]]]:
    """What a person waits for who opens the tab: each time a new TensorBoard."""
    first: list[float] = []
    again: list[float] = []
    before: list[float] = []
    for _ in range(starts):
        with serving(logdir) as port, chromium() as browser:
            first.append(_picture(browser, port))
            again.append(_picture(browser, port))
            before.append(_before_the_tab(browser, port))
    yield "first picture", first
    yield "the same, of a TensorBoard in use", again
    yield "TensorBoard's own page, before it asks for the tab", before


def _picture(browser: Any, port: int) -> float:
    """Open the tab alone, as TensorBoard's iframe does; milliseconds until the heatmap is painted."""
    with _fresh(browser) as page:
        page.goto(f"http://{HOST}:{port}/data/plugin_entry.html?name=influence#influence&view=view%3Dmatrix")
        page.wait_for_function("window.painted", polling=20)
        return page.evaluate("window.painted")


def _before_the_tab(browser: Any, port: int) -> float:
    """Open TensorBoard; milliseconds until it opens the tab's iframe."""
    with _fresh(browser) as page:
        page.goto(f"http://{HOST}:{port}/#influence&view=view%3Dmatrix")
        frame = page.wait_for_selector("iframe[src*=plugin_entry]", state="attached").content_frame()
        frame.wait_for_function("window.painted", polling=20)
        return frame.evaluate("performance.timeOrigin") - page.evaluate("performance.timeOrigin")


@contextmanager
def _fresh(browser: Any) -> Iterator[Any]:
    """A page of a browser that remembers nothing."""
    context = browser.new_context(viewport={"width": 1500, "height": 1100})
    context.add_init_script(WATCH)
    page = context.new_page()
    time.sleep(0.5)
    yield page
    context.close()


def browser(port: int, repeats: int) -> Iterator[tuple[str, list[float]]]:
    """What a person waits for who uses the tab."""
    with chromium() as started, _fresh(started) as page:
        page.goto(f"http://{HOST}:{port}/data/plugin_entry.html?name=influence#influence&view=view%3Dmatrix")
        page.wait_for_function("window.painted", polling=20)
        count = int(page.locator("[data-name=slider]").get_attribute("max") or 0)
        time.sleep(1)
        yield "slider step", [_slide(page, at) for at in range(count - 1, count - 1 - repeats, -1)]
        rng = random.Random(1)
        yield "jump to any step", [_slide(page, at) for at in rng.sample(range(count), repeats)]
        yield "trajectory of a cell", [_click(page, rng) for _ in range(max(repeats // 3, 1))]


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
        table("The tab is opened, in Chromium", lambda: first_pictures(options.logdir, STARTS))
        with serving(options.logdir) as port:
            table("The tab is used, in Chromium", lambda: browser(port, options.repeats))
    with serving(options.logdir) as port:
        table("Requests", lambda: requests(port, options.repeats))


if __name__ == "__main__":
    main()
