"""A headless Chromium, driven through chromedriver by the WebDriver protocol."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
needs_driver = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="no Chromium with its driver is installed (apt-get install chromium-driver)",
)

ENTER, ESCAPE, SHIFT, TAB, UP = "\ue007", "\ue00c", "\ue008", "\ue004", "\ue013"
"""keys, as WebDriver calls them"""
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--mute-audio",
)


class Browser:
    """One window. `close` ends the browser and its driver."""

    def __init__(self, folder: Path) -> None:
        port = _free_port()
        self._driver = subprocess.Popen(
            [str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._at = f"http://127.0.0.1:{port}"
        wait(lambda: self._ready(), "chromedriver", 20)
        options = {"binary": CHROMIUM, "args": [*_FLAGS, f"--user-data-dir={folder}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._at += f"/session/{self._call('POST', '/session', capabilities={'alwaysMatch': wanted})['sessionId']}"

    def _ready(self) -> bool:
        try:
            return bool(self._call("GET", "/status")["ready"])
        except OSError:
            return False

    def _call(self, method: str, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self._at + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def close(self) -> None:
        self._call("DELETE", "")
        self._driver.terminate()
        self._driver.wait(10)

    def open(self, address: str) -> None:
        self._call("POST", "/url", url=address)

    def reload(self) -> None:
        self._call("POST", "/refresh")

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a script, the body of a function, returns."""
        return self._call("POST", "/execute/sync", script=script, args=arguments)

    def until(self, script: str, seconds: float = 10) -> Any:
        """Return what an expression gives once that is true."""
        return wait(lambda: self.run(f"return {script}"), script, seconds)

    def press(self, *keys: str, holding: str = "") -> None:
        """Press keys one after another, a text key by key, wherever the focus is."""
        each = [key for text in keys for key in text]
        pressed = [{"type": kind, "value": key} for key in each for kind in ("keyDown", "keyUp")]
        held = [[{"type": kind, "value": key} for key in holding] for kind in ("keyDown", "keyUp")]
        actions = [{"type": "key", "id": "keyboard", "actions": [*held[0], *pressed, *held[1]]}]
        self._call("POST", "/actions", actions=actions)

    def click(self, selector: str) -> None:
        """Click where the element is seen, as a mouse does."""
        element = self._call("POST", "/element", using="css selector", value=selector)
        self._call("POST", f"/element/{next(iter(element.values()))}/click")

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._call("POST", "/goog/cdp/execute", cmd=command, params=parameters)

    def resize(self, width: int, height: int = 800) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def prefer(self, **features: str) -> None:
        """Set what the reader prefers, such as prefers_color_scheme="dark"."""
        said = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.devtools("Emulation.setEmulatedMedia", features=said)

    def complaints(self) -> list[str]:
        """Return what the console was told of faults since it was last asked: errors of scripts, and refusals of the policy."""
        said = self._call("POST", "/se/log", type="browser")
        return [
            one["message"]
            for one in said
            if one["level"] == "SEVERE" and "Failed to load resource" not in one["message"]
        ]

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))


def wait(found: Callable[[], Any], what: str, seconds: float = 10) -> Any:
    """Return what is found once it is true."""
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return value


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
