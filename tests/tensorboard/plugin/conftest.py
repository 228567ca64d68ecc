"""A real TensorBoard over real dumps, and a real Chromium."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def logs(tmp_path_factory) -> Path:
    """A log folder with three runs, one of which has a broken dump."""
    import tab_runs

    folder: Path = tmp_path_factory.mktemp("influence")
    for name, write in tab_runs.WRITERS.items():
        write(folder / name)
    tab_runs.write_broken(folder / "other/bif")
    for dump in (folder / "digits/bif").glob("step=*.h5"):  # the run that is written last opens first
        os.utime(dump)
    with SummaryWriter(str(folder / "digits")) as writer:
        writer.add_scalar("loss", 1.0, 10)  # without any, no other tab is shown
    return folder


@pytest.fixture(scope="session")
def tensorboard(logs) -> Iterator[str]:
    from tab_server import serving

    with serving(logs) as address:
        yield address


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install Debian's chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium) -> Iterator[Callable[..., object]]:
    """Opens the tab; closes it at the end, and fails if the browser's console had an error."""
    from tab_page import Tab

    contexts, tabs = [], []

    def open_tab(address: str, link: str = "", *, errors: bool = False, **options) -> Tab:
        own = {name: options.pop(name) for name in ("whole", "before") if name in options}
        context = chromium.new_context(**{"viewport": {"width": 1400, "height": 1000}, **options})
        contexts.append(context)
        page = Tab(context, address, link, **own)
        tabs.append((page, errors))
        return page

    yield open_tab
    heard = [error for page, expected in tabs if not expected for error in page.errors]
    for context in contexts:
        context.close()
    assert not heard


@pytest.fixture(scope="session")
def page(chromium, tensorboard) -> Iterator[object]:
    """One page that many tests share: opening it anew takes longer than most of them."""
    from tab_page import Tab

    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    yield Tab(context, tensorboard)
    context.close()


@pytest.fixture
def tab(page) -> Iterator[object]:
    """The tab over the digits, painted, as it opens; the browser's console must stay silent."""
    page.errors.clear()
    page.reset()
    page.shows(run="digits/bif", step="320", matrix="correlation", window="0,120,0,40")
    yield page
    assert not page.errors
