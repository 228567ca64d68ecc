"""The Influence tab in a real Chromium, as a person would use it."""

import re
from collections.abc import Callable
from typing import Any

from playwright.sync_api import BrowserContext, Frame, Locator, Page

MINUS = "\N{MINUS SIGN}"
# Of TensorBoard itself, or of reading pixels here; not of the tab.
MATRIX = "view%3Dmatrix"
FOREIGN = ("Three.js", "favicon", "font-roboto", "willReadFrequently")


class Tab:
    """One open page.

    Args:
        context: of the browser; the page is closed with it.
        address: of the TensorBoard, without a fragment.
        link: fragment after `#influence`; the matrix, unless it names a view.
        whole: within TensorBoard's own page; else the tab's page alone, from the same route, which opens sooner.
        before: called with the page before it loads.
    """

    def __init__(
        self,
        context: BrowserContext,
        address: str,
        link: str = "",
        whole: bool = False,
        before: Callable[[Page], None] = lambda page: None,
    ) -> None:
        self.page: Page = context.new_page()
        self.errors: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        before(self.page)
        path = "" if whole else "data/plugin_entry.html?name=influence"
        if "view%3D" not in link:
            link = f"{link}%26{MATRIX}" if link else f"&view={MATRIX}"
        self.page.goto(f"{address}/{path}#influence{link}")
        self.frame = self._frame() if whole else self.page.main_frame

    def _heard(self, message: Any) -> None:
        line = f"{message.type}: {message.text} ({message.location.get('url', '')})"
        if message.type in ("error", "warning") and not any(word in line for word in FOREIGN):
            self.errors.append(line)

    def _frame(self) -> Frame:
        self.page.wait_for_selector("iframe[src*=plugin_entry]", state="attached")
        handle = self.page.query_selector("iframe[src*=plugin_entry]")
        assert handle is not None
        frame = handle.content_frame()
        assert frame is not None
        return frame

    def reset(self, view: str = "matrix") -> None:
        """Everything as the page opens, but for the view: a link that says nothing else."""
        self.page.mouse.move(2, 2)
        link = f"#influence&view=view%3D{view}%26fresh%3D"
        self.frame.evaluate(f"location.hash = `{link}${{performance.now()}}`; scrollTo(0, 0)")
        self.wait("!location.hash.includes('fresh')")

    def named(self, name: str) -> Locator:
        return self.frame.locator(f'[data-name="{name}"]').first

    def shows(self, **wanted: str) -> None:
        """Wait until the matrix view is painted with these: run, step, matrix, window."""
        parts = "".join(f'[data-{key}="{value}"]' for key, value in wanted.items()) or "[data-step]"
        self.frame.wait_for_selector(f".matrix-panel{parts}", timeout=60_000)

    def wait(self, script: str, seconds: float = 60) -> None:
        self.frame.wait_for_function(script, timeout=1000 * seconds)

    def until(self, check: Callable[[], Any], seconds: float = 60) -> Any:
        """What `check` gives once it is true."""
        for _ in range(int(seconds * 20)):
            if found := check():
                return found
            self.page.wait_for_timeout(50)
        raise AssertionError(f"not true after {seconds} s; the page: {self.frame.inner_text('body')[:3000]}")

    # the heatmap

    @property
    def canvas(self) -> Locator:
        return self.frame.locator(".matrix-panel canvas.heatmap")

    def place(self, train: float, query: float) -> tuple[float, float]:
        """Where a position of the matrix lies on the screen."""
        box = self.canvas.bounding_box()
        assert box is not None
        x, y, width, height = map(float, (self.canvas.get_attribute("data-area") or "").split(","))
        window = self.frame.locator(".matrix-panel").get_attribute("data-window") or ""
        r0, r1, c0, c1 = map(int, window.split(","))
        return box["x"] + x + (query - c0) / (c1 - c0) * width, box["y"] + y + (train - r0) / (r1 - r0) * height

    def point(self, train: int, query: int) -> str:
        """Hold the pointer over a cell; the text beside it once its value has come."""
        self.page.mouse.move(*self.place(train + 0.5, query + 0.5))
        hover = self.named("hover")
        return self.until(lambda: (text := hover.inner_text()) and ("±" in text or "unknown" in text) and text)

    def click(self, train: int, query: int) -> None:
        self.page.mouse.click(*self.place(train + 0.5, query + 0.5))

    def drag(self, start: tuple[float, float], end: tuple[float, float], shift: bool = False) -> None:
        """Drag a block between two places of the matrix."""
        if shift:
            self.page.keyboard.down("Shift")
        self.page.mouse.move(*self.place(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.place(*end), steps=4)
        self.page.mouse.up()
        if shift:
            self.page.keyboard.up("Shift")

    def colour(self, train: int, query: int) -> tuple[int, int, int]:
        """Of the middle of a cell, as painted."""
        x, y = self.place(train + 0.5, query + 0.5)
        box = self.canvas.bounding_box()
        assert box is not None
        script = """([x, y]) => {
            const canvas = document.querySelector('.matrix-panel canvas.heatmap');
            const dots = canvas.width / canvas.clientWidth;
            return [...canvas.getContext('2d').getImageData(x * dots, y * dots, 1, 1).data].slice(0, 3);
        }"""
        return tuple(self.frame.evaluate(script, [x - box["x"], y - box["y"]]))

    # numbers

    def curves(self) -> list[str]:
        return self.frame.locator("[data-name=curves] .curve-name").all_inner_texts()

    def segment(self, name: str, value: str) -> None:
        self.named(name).locator(f'[data-value="{value}"]').click()


def number(text: str) -> float:
    """The first number in a text, with the minus sign and powers of ten of the page."""
    found = re.search(rf"([+{MINUS}]?\d+(?:\.\d+)?)", text)
    assert found, text
    return float(found[1].replace(MINUS, "-"))
