"""Make the pictures of the Influence tab from the dumps of `make demo`: of the ranking, and of the matrix.

    python docs/make_tab.py runs/digits [--out docs]  # ranking.png and tab.png

Needs Playwright (`pip install playwright`) and Chromium.
"""

import argparse
import io
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Frame, Page, sync_playwright

SIZES = {"ranking": {"width": 1320, "height": 900}, "tab": {"width": 1320, "height": 1400}}
PARTS = {
    "ranking": (".ranking-panel[data-of]", ".sparkline"),
    "tab": (".matrix-panel[data-step]", "[data-curves]", "[data-name=pair][data-of]", "[data-name=cards][data-of]"),
}
VIEWS = {"ranking": "ranking", "tab": "matrix"}
COLOURS = 128
MOST_BYTES = 300_000


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """Address of a TensorBoard over the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    process = subprocess.Popen([*command, "--host", "127.0.0.1"], stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/data/plugin/influence/runs")
        yield address
    finally:
        process.terminate()
        process.wait(20)


def wait_for(address: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(address, timeout=20).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    raise SystemExit(f"{address} did not answer within {seconds:.0f} s")


def photograph(page: Page, address: str, name: str) -> bytes:
    """A view of the tab as it opens: newest step; in the matrix, what helps the first query most."""
    page.goto(f"{address}/#influence&view=view%3D{VIEWS[name]}")
    handle = page.wait_for_selector("iframe[src*=plugin_entry]", state="attached")
    frame = handle.content_frame() if handle else None
    if frame is None:
        raise SystemExit(f"{address} has no Influence tab; is the package installed where TensorBoard runs?")
    settle(frame, PARTS[name])
    return page.screenshot()


def settle(frame: Frame, parts: tuple[str, ...]) -> None:
    """Wait for every part, and for the pictures of the examples that are in sight."""
    for part in parts:
        frame.wait_for_selector(part)
    frame.wait_for_timeout(500)
    frame.wait_for_function(
        "[...document.images].every(one => one.complete || one.getBoundingClientRect().top > innerHeight)"
    )
    frame.wait_for_timeout(500)


def small(png: bytes) -> bytes:
    """The same with few colours: a fraction of the bytes, and hardly a difference to see."""
    picture = (
        Image.open(io.BytesIO(png))
        .convert("RGB")
        .quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    )
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, help="log folder of the demo, such as runs/digits")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tensorboard(arguments.logs) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, size in SIZES.items():
            picture = small(photograph(browser.new_page(viewport=size), address, name))
            if len(picture) > MOST_BYTES:
                raise SystemExit(f"{name}.png has {len(picture):,} bytes, more than the {MOST_BYTES:,} of a README")
            (arguments.out / f"{name}.png").write_bytes(picture)
            sys.stdout.write(f"{name}.png: {len(picture):,} bytes\n")
        browser.close()


if __name__ == "__main__":
    main()
