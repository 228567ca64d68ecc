"""A headless Chromium, driven over its debugging pipe with the standard library alone."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# The browser reads commands from descriptor 3 and answers on 4; neither may be overwritten before it is moved.
WIRE = """import fcntl, os, sys
read, write = (fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3])
os.dup2(read, 3), os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])"""

# Text of the page and of every shadow root in it: TensorBoard keeps most of its own there.
DEEP_TEXT = """(function deep(node) {
    let text = node.nodeType === 3 ? node.data : '';
    for (const child of node.childNodes) if (!['STYLE', 'SCRIPT'].includes(child.nodeName)) text += deep(child) + ' ';
    return text + (node.shadowRoot ? deep(node.shadowRoot) : '');
})(document.body)"""
DEEP_IMAGES = """(function deep(node) {
    let found = node.nodeName === 'IMG' && node.naturalWidth > 300 ? 1 : 0;
    for (const child of node.childNodes) found += deep(child);
    return found + (node.shadowRoot ? deep(node.shadowRoot) : 0);
})(document.body)"""


class Chromium:
    """One page of one browser; `with` closes it."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        read_in, self._out = os.pipe()
        self._in, write_out = os.pipe()
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        command += [f"--user-data-dir={profile}", "--window-size=1500,1250", "about:blank"]
        wired = [sys.executable, "-c", WIRE, str(read_in), str(write_out), *command]
        self._process = subprocess.Popen(wired, pass_fds=(read_in, write_out), stderr=subprocess.DEVNULL)
        os.close(read_in)
        os.close(write_out)
        self._buffer, self._count, self._session = b"", 0, None
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = os.read(self._in, 1 << 20)
            assert read, "the browser went away"
            self._buffer += read
        one, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(one)

    def open(self, url: str) -> None:
        # The fragment alone does not reload the page.
        self._ask("Page.navigate", url="about:blank")
        self._ask("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        return self._ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait_for(self, script: str, seconds: float = 30) -> Any:
        """The value of the script once it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.evaluate(script)
            if value:
                return value
            time.sleep(0.2)
        raise AssertionError(f"not true after {seconds} s: {script}\npage: {str(self.evaluate(DEEP_TEXT))[:3000]}")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))
