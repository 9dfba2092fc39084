"""A headless Chromium over the DevTools protocol, through its pipe: no driver, no package."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
    "--window-size=1280,900",
)
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "ArrowUp": 38, "Tab": 9, "Escape": 27}


def find_chromium() -> str | None:
    """Path of an installed Chromium, None without one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of one browser; every exception and console error of it is kept in ``errors``.

    Args:
        executable: the browser.
        profile: an empty folder for its settings.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, executable: str, profile: Path, timeout: float = 30.0) -> None:
        self.errors: list[str] = []
        self.timeout = timeout
        self._number = 0
        self._unread = b""
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()

        def as_3_and_4() -> None:  # Chromium reads descriptor 3 and writes descriptor 4
            spare = [os.dup(theirs_in), os.dup(theirs_out)]
            os.dup2(spare[0], 3)
            os.dup2(spare[1], 4)

        self._process = subprocess.Popen(
            [executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=as_3_and_4,
            close_fds=False,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._session = ""
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(t for t in targets if t["type"] == "page")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(self.timeout)
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer["error"]
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, path: Path, fragment: str = "") -> None:
        """Load a file and wait until its scripts have run."""
        self._leave()
        self.call("Page.navigate", url=f"{path.as_uri()}{fragment}")
        self._loaded("file:", str(path))

    def visit(self, url: str) -> None:
        """Load a page of a server and wait until its scripts have run."""
        self._leave()
        self.call("Page.navigate", url=url)
        self._loaded("http:", url)

    def wait(self, expression: str) -> None:
        """Wait until JavaScript is true."""
        deadline = time.monotonic() + self.timeout
        while not self._is_true(expression):
            assert time.monotonic() < deadline, f"{expression} does not come true"
            time.sleep(0.02)

    def look(self, width: int, dark: bool, height: int = 900) -> None:
        """Have the page be so wide, in light or dark colours."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self) -> bytes:
        """The whole page as a PNG."""
        told = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(told["data"])

    def _leave(self) -> None:
        """Be on an empty page: else the page before may pass for the next one, and a new fragment
        alone would not load it anew.
        """
        self.call("Page.navigate", url="about:blank")
        self.wait("document.readyState === 'complete' && location.protocol === 'about:'")

    def _loaded(self, protocol: str, what: str) -> None:
        loaded = f"document.readyState === 'complete' && location.protocol === '{protocol}'"
        deadline = time.monotonic() + self.timeout
        while not self._is_true(loaded):
            assert time.monotonic() < deadline, f"{what} does not load"
            time.sleep(0.02)

    def _is_true(self, expression: str) -> bool:
        """Whether JavaScript is true now; between two pages nothing is."""
        try:
            return bool(self.value(expression))
        except AssertionError as error:
            if "context" in str(error):
                return False
            raise

    def value(self, expression: str) -> Any:
        """Evaluate JavaScript."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """What a person reads in an element."""
        return str(self.value(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Press the left button in the middle of an element."""
        place = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=place[0],
                y=place[1],
                button="left",
                clickCount=1,
            )

    def press(self, key: str) -> None:
        """Press one key."""
        code = KEYS.get(key, ord(key[0].upper()))
        text = {} if key in KEYS else {"text": key}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text
            )

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + self.timeout
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._in, 1 << 20) if ready else b""
            assert chunk, "the browser does not answer" if not ready else "the browser is gone"
            self._unread += chunk
        raw, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        method = event.get("method")
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(event["params"]["exceptionDetails"])[:500])
        elif method == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.errors.append(event["params"]["entry"]["text"])
