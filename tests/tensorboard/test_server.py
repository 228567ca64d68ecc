"""A real TensorBoard over a real log folder: what its pages get, and what a browser shows."""

import html
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from bif_lightning.tensorboard.summaries import write_summaries
from estimates import digits_estimate
from headless import CHROMIUM, DEEP_IMAGES, DEEP_TEXT, Chromium
from ports import free_port

NASTY = "<b>one</b> | <script>alert(1)</script>"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """Address of a TensorBoard that shows one run of 12 snapshots."""
    folder: Path = tmp_path_factory.mktemp("logs")
    estimate, train, query = digits_estimate(40, 10)
    train = replace(train, ids=(NASTY, *train.ids[1:]), texts=(NASTY,) * 40)
    with SummaryWriter(str(folder / "run")) as writer:
        for step in range(12):
            views = ("scalars", "bands", "tables", "histograms") + (("heatmap",) if step % 4 == 3 else ())
            write_summaries(
                writer, estimate, step=100 * step, train=train, query=query, pairs=[(NASTY, query.ids[0])],
                queries=1, k=40, views=views, introduce=step == 0,
            )  # fmt: skip
    with serving(folder, "false") as address:
        yield address


@contextmanager
def serving(folder: Path, fast: str) -> Iterator[str]:
    """Address of a TensorBoard that has loaded a folder, by one of its two loaders."""
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--samples_per_plugin", "images=1000", "--load_fast", fast]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_loaded(address)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def fetch(address: str, route: str, **query: object) -> str:
    url = f"{address}/data/plugin/{route}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read().decode()


def wait_until_loaded(address: str) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            if "bif/read_me" in fetch(address, "text/tags"):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(0.3)
    raise AssertionError("TensorBoard did not load the run within 120 s")


def test_the_server_serves_every_view(server):
    scalars = json.loads(fetch(server, "scalars/tags"))["run"]
    assert "nats" in scalars["bif/llc"]["description"]
    points = json.loads(fetch(server, "scalars/scalars", run="run", tag="bif/llc"))
    assert [step for _, step, _ in points] == list(range(0, 1200, 100))
    images = json.loads(fetch(server, "images/images", run="run", tag="bif/heatmap", sample=0))
    assert [image["step"] for image in images] == [300, 700, 1100]
    charts = json.loads(fetch(server, "custom_scalars/layout"))["category"]
    assert [len(category["chart"]) for category in charts] == [2, 1]
    assert len(json.loads(fetch(server, "histograms/histograms", run="run", tag="bif/correlations"))) == 12


@pytest.mark.slow
def test_descriptions_reach_the_default_loader_of_event_files(tmp_path):
    estimate, train, query = digits_estimate(20, 5)
    with SummaryWriter(str(tmp_path / "run")) as writer:
        write_summaries(writer, estimate, step=1, train=train, query=query, queries=1, k=2)
    with serving(tmp_path, "true") as address:
        for plugin, tag, words in (
            ("scalars", "bif/llc", "Local learning coefficient"), ("images", "bif/heatmap", "Every train example"),
            ("histograms", "bif/correlations", "All pairs"), ("text", "bif/verdict", "Whether this snapshot"),
        ):  # fmt: skip
            found = json.loads(fetch(address, f"{plugin}/tags"))["run"]
            if plugin != "text":  # which lists names alone
                assert words in found[tag]["description"], plugin
        image = json.loads(fetch(address, "images/images", run="run", tag="bif/heatmap", sample=0))[0]
        assert image["step"] == 1
        ((_, step, value),) = json.loads(fetch(address, "scalars/scalars", run="run", tag="bif/llc"))
        assert (step, value) == (1, pytest.approx(12.31, rel=1e-6))
        assert len(json.loads(fetch(address, "histograms/histograms", run="run", tag="bif/correlations"))) == 1


def test_a_table_is_rendered_with_hostile_text_as_text(server):
    tags = json.loads(fetch(server, "text/tags"))["run"]
    (tag,) = (tag for tag in tags if "top_table" in tag)
    entries = json.loads(fetch(server, "text/text", run="run", tag=tag))
    page = entries[-1]["text"]
    assert page.count("<table>") == 2
    assert len(re.findall(r"<tr>", page)) == 42
    assert "<script" not in page
    assert "<b>one" not in page
    assert html.unescape(page).count(f"<td>{NASTY}</td>") == 41


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install Debian's chromium")
def test_a_browser_shows_the_charts_the_table_and_the_pictures(server, tmp_path):
    with Chromium(tmp_path) as page:
        page.open(f"{server}/#custom_scalars")
        page.wait_for(f"{DEEP_TEXT}.includes('all pairs: median, 5 % to 95 %')", 60)
        page.open(f"{server}/#text")
        page.wait_for(f"{DEEP_TEXT}.includes('Bayesian influence, as this run trains')", 60)
        page.wait_for(f"{DEEP_TEXT}.includes('<script>alert(1)</script>')", 60)
        page.open(f"{server}/#images")
        page.wait_for(f"{DEEP_IMAGES} > 0", 60)
