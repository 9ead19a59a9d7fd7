"""A headless Chromium on a pipe, spoken to in its own protocol: nothing to install but the browser.

Protocol: https://chromedevtools.github.io/devtools-protocol/. With `--remote-debugging-pipe` the browser
reads commands from file descriptor 3 and writes answers and events to 4, each JSON with a NUL at its end.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--hide-scrollbars",
    "--metrics-recording-only",
    "--no-default-browser-check",
    "--no-first-run",
    "--remote-debugging-pipe",
)
ANSWER_S = 60.0
# Duplicates from here on cannot be the descriptors 3 and 4 that the browser expects.
ABOVE_FDS = 10
# Runs in a fresh interpreter, because code between fork and exec is unsafe beside other threads.
LAUNCHER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """A loaded page.

    Attributes:
        requests: addresses of all requests that it made.
        complaints: what it wrote to the console, its exceptions, and the browser's own log.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the answer to a command of the protocol."""
        return self._browser.call(method, session=self._session, page=self, **parameters)

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def note(self, message: dict[str, Any]) -> None:
        """Take note of an event."""
        parameters = message.get("params", {})
        match message["method"]:
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                self.complaints.append(json.dumps(parameters))


class Browser:
    """A running browser; use it in a `with` block."""

    def __init__(self, executable: str, profile: Path) -> None:
        down_read, self._write = os.pipe()
        self._read, up_write = os.pipe()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, ABOVE_FDS) for end in (down_read, up_write)]
        arguments = [executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, *map(str, theirs), *arguments],
                pass_fds=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        finally:
            for end in (down_read, up_write, *theirs):
                os.close(end)
        self._number = 0
        self._buffer = b""

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._send({"id": 0, "method": "Browser.close"})
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)

    @contextlib.contextmanager
    def open(
        self, path: Path, *, width: int, height: int, dark: bool, media: str = "screen"
    ) -> Iterator[Page]:
        """Yield a page loaded from a file, as a device of that size and scheme shows it."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Network", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        page.call("Page.navigate", url=path.as_uri())
        self._await("Page.loadEventFired", page)
        # Two frames later everything is laid out, and what loads late has asked for it.
        page.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        try:
            yield page
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def call(
        self, method: str, *, session: str | None = None, page: Page | None = None, **parameters: Any
    ) -> dict[str, Any]:
        """Return the answer to a command; events that come before it are noted in the page."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        self._send(message if session is None else {**message, "sessionId": session})
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            if page is not None and "method" in answer:
                page.note(answer)

    def _await(self, event: str, page: Page) -> None:
        while True:
            message = self._receive()
            if message.get("method") == event:
                return
            if "method" in message:
                page.note(message)

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + ANSWER_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._read, 1 << 16) if ready else b""
            if not chunk:
                raise AssertionError(f"Chromium gave no answer within {ANSWER_S:.0f} s")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        decoded: dict[str, Any] = json.loads(message)
        return decoded


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless browser; tests that ask for one are skipped where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(
            f"BROWSER ABSENT: none of {', '.join(NAMES)} is on the PATH, so no page was looked at; "
            "install one with `apt-get install chromium chromium-driver`"
        )
    with Browser(found, tmp_path_factory.mktemp("profile")) as running:
        yield running
