"""A headless Chromium, controlled through its DevTools pipe: one process, no port, no driver."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
KEYS = {"Tab": ("\t", 9), "Enter": ("\r", 13)}
# Chromium reads commands from file descriptor 3 and writes answers to 4.
LAUNCHER = (
    "import fcntl, os, sys\n"
    "high = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 20) for n in sys.argv[1:3]]\n"
    "[os.dup2(fd, n) for fd, n in zip(high, (3, 4))]\n"
    "os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One page. `events` collects the DevTools events.

    Args:
        folder: folder for the profile of the browser.
    """

    def __init__(self, folder: Path, width: int = 1200, height: int = 900) -> None:
        assert PROGRAM is not None
        (browser_in, self.out), (self.answers, browser_out) = os.pipe(), os.pipe()
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}")
        size = f"--window-size={width},{height}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(browser_in), str(browser_out), PROGRAM, *flags, size],
            pass_fds=(browser_in, browser_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(browser_in)
        os.close(browser_out)
        self.number, self.session, self.unread = 0, "", b""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Log"):
            self.call(f"{part}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        self.session = ""
        self.call("Browser.close")  # also ends its child processes
        self.process.wait(timeout=60)
        os.close(self.out)
        os.close(self.answers)

    def _next_message(self, until: float) -> dict[str, Any]:
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.answers], [], [], max(until - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            got = os.read(self.answers, 1 << 20)
            assert got, "the browser has ended"
            self.unread += got
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a DevTools command and wait for its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + 300
        while True:
            answer = self._next_message(until)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, page: Path) -> None:
        """Open a file and wait until it is loaded."""
        self.open_url(page.as_uri())

    def open_url(self, url: str) -> None:
        """Open an address and wait until it is loaded."""
        self.events = [event for event in self.events if event["method"] != "Page.loadEventFired"]
        self.call("Page.navigate", url=url)
        until = time.monotonic() + 300
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self.events.append(self._next_message(until))

    def evaluate(self, code: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys of KEYS one after the other."""
        for key in keys:
            text, code = KEYS[key]
            more = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **more)
            self.call("Input.dispatchKeyEvent", type="keyUp", **more)

    def set_media(self, kind: str = "screen", scheme: str = "light") -> None:
        """Emulate a medium ("screen", "print") and a color scheme ("light", "dark")."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=kind, features=features)

    def resize(self, width: int) -> None:
        """Set the width of the page in CSS pixels."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def screenshot(self, height: int | None = None) -> bytes:
        """Return a screenshot of the whole page, or of its first `height` CSS pixels, as PNG."""
        more = {}
        if height is not None:
            width = self.evaluate("document.documentElement.clientWidth")
            more["clip"] = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True, **more)["data"])

    def pdf(self) -> bytes:
        """Return the printed page as PDF."""
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"])

    @property
    def errors(self) -> list[dict[str, Any]]:
        """Events of console output, exceptions and log entries."""
        bad = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for event in self.events if event["method"] in bad]
