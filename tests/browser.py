"""A headless Chromium, driven with its DevTools protocol over a pipe: pages at the widths of phones and desktops.

The window of a headless Chromium is at least 500 pixels wide, whatever `--window-size` says; a narrower page needs the
emulation of a device. Messages are JSON that ends with a zero byte, which Chromium reads from file 3 and writes to 4.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

PROGRAM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")
START = "import os, sys; a, b, *words = sys.argv[1:]; os.dup2(int(a), 3); os.dup2(int(b), 4); os.execv(words[0], words)"
SECONDS = 100  # for one answer
LOADED = """new Promise(done => {
  const later = () => requestAnimationFrame(() => setTimeout(done, 50));
  document.readyState === "complete" ? later() : addEventListener("load", later);
})"""


class Browser:
    """A running Chromium; each page is opened in a tab without memory of the others.

    Args:
        program: path of the executable file.
        profile: folder of the browser's own files.
    """

    def __init__(self, program: str, profile: Path) -> None:
        commands, self.commands = os.pipe()
        self.answers, answers = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, answers)]  # neither of them is 3 or 4
        words = [sys.executable, "-c", START, *map(str, ends), program, *FLAGS, f"--user-data-dir={profile}"]
        with Path(f"{profile}.log").open("wb") as log:
            self.process = subprocess.Popen(words, pass_fds=ends, stdout=log, stderr=log)
        for end in (commands, answers, *ends):
            os.close(end)
        self.number, self.rest = 0, b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self.call("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)

    def read(self, deadline: float) -> dict[str, Any]:
        """Return the next message of the browser."""
        while b"\0" not in self.rest:
            if not select.select([self.answers], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium did not answer within {SECONDS} s")
            if not (more := os.read(self.answers, 1 << 16)):
                raise RuntimeError("Chromium has ended")
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol; events that arrive meanwhile are kept in `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while (answer := self.read(deadline)).get("id") != self.number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, page: Path, width: int = 1280, dark: bool = False) -> Tab:
        """Open a file in a tab of a width in pixels, in light or dark colours."""
        self.events.clear()
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        tab = Tab(self, context, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        tab.call("Emulation.setDeviceMetricsOverride", **size)
        colours = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[colours])
        tab.call("Page.navigate", url=page.resolve().as_uri())
        tab.value(LOADED)
        return tab


class Tab:
    """An open page.

    Args:
        browser: its browser.
        context: identifier of the tab's own store of cookies and caches.
        session: identifier of the connection to the tab.
    """

    def __init__(self, browser: Browser, context: str, session: str) -> None:
        self.browser, self.context, self.session = browser, context, session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol on this page."""
        return self.browser.call(method, self.session, **params)

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression[:200]}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """Return the messages of the console and of the browser, and the exceptions of scripts."""
        found = []
        for event in self.browser.events:
            about = event.get("params", {})
            if event["method"] == "Runtime.consoleAPICalled":
                found.append(" ".join(str(one.get("value", one.get("description"))) for one in about["args"]))
            elif event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(about["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded":
                found.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        return found

    def requests(self) -> list[str]:
        """Return the addresses of everything that the page loads, without data in the page itself."""
        sent = [one["params"] for one in self.browser.events if one["method"] == "Network.requestWillBeSent"]
        addresses = [one["request"]["url"] for one in sent if one["type"] != "Document"]
        return [one for one in addresses if not one.startswith(("data:", "blob:"))]
