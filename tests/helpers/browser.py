"""A headless Chromium, spoken to over its DevTools pipe: one process, no port, no driver."""

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
# Chromium reads its commands from descriptor 3 and answers on 4.
WIRED = (
    "import fcntl, os, sys\n"
    "high = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 20) for n in sys.argv[1:3]]\n"
    "[os.dup2(fd, n) for fd, n in zip(high, (3, 4))]\n"
    "os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One page; `events` gathers what it logs.

    Args:
        folder: where the browser may keep its profile.
    """

    def __init__(self, folder: Path, width: int = 1200, height: int = 900) -> None:
        assert PROGRAM is not None
        (theirs_in, self.out), (self.answers, theirs_out) = os.pipe(), os.pipe()
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}")
        size = f"--window-size={width},{height}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", WIRED, str(theirs_in), str(theirs_out), PROGRAM, *flags, size],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
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
        self.call("Browser.close")  # its children go with it
        self.process.wait(timeout=60)
        os.close(self.out)
        os.close(self.answers)

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.answers], [], [], max(until - time.monotonic(), 0))
            assert ready, "the browser says nothing"
            got = os.read(self.answers, 1 << 20)
            assert got, "the browser is gone"
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
            said = self._next(until)
            if said.get("id") == self.number:
                assert "error" not in said, said
                return said["result"]
            self.events.append(said)

    def open(self, page: Path) -> None:
        """Show a file, and wait until it is loaded."""
        self.call("Page.navigate", url=page.as_uri())
        until = time.monotonic() + 300
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self.events.append(self._next(until))

    def evaluate(self, code: str) -> Any:
        """Return the value of a JavaScript expression."""
        said = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys of KEYS, one after the other."""
        for key in keys:
            text, code = KEYS[key]
            more = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **more)
            self.call("Input.dispatchKeyEvent", type="keyUp", **more)

    def media(self, kind: str = "screen", scheme: str = "light") -> None:
        """Pretend to be paper ("print"), or that the reader likes dark pages."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=kind, features=features)

    def resize(self, width: int) -> None:
        """Make the page so many CSS pixels wide."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def picture(self) -> bytes:
        """Return what is seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def pdf(self) -> bytes:
        """Print."""
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"])

    @property
    def complaints(self) -> list[dict[str, Any]]:
        """Everything that was logged or thrown."""
        bad = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for event in self.events if event["method"] in bad]
